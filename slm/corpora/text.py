"""Plain text in local files: a file, a folder of *.txt files or a glob."""

from slm.corpora.division import SplitMethod
from slm.corpora.files import Files


class Text(Files):
    """One document per file, or documents divided by `separator` and stripped: see `Files`."""

    suffixes, format = (".txt",), "text"

    def __init__(
        self,
        *,
        path: str | None,
        separator: str | None,
        split: SplitMethod,
        train_ratio: float,
        seed: int,
        cache: str | None = None,
    ):
        super().__init__(path=path, separator=separator, split=split, train_ratio=train_ratio, seed=seed, cache=cache)
