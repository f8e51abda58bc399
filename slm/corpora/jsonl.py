"""JSON Lines in local files: one JSON object per line, of which one value is the text of a document."""

from typing import Any

from slm.corpora import digest_of
from slm.corpora.division import SplitMethod
from slm.corpora.files import Files


class JsonLines(Files):
    """The string under `key` of every line, unchanged: see `Files`."""

    suffixes, format, column_key = (".jsonl",), "json", "data.key"

    def __init__(
        self,
        *,
        path: str | None,
        key: str,
        split: SplitMethod,
        train_ratio: float,
        seed: int,
        cache: str | None = None,
    ):
        super().__init__(path=path, column=key, split=split, train_ratio=train_ratio, seed=seed, cache=cache)
        self.separator, self.key = "\n", key  # parts of the names of token stores in the cache

    def _further(self, formats: list[str]) -> dict[str, Any]:
        return {}

    def fingerprint(self) -> str:
        return digest_of([super().fingerprint(), self.key])
