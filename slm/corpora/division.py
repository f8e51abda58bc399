"""Which documents are train and which validation: the first ones, drawn ones, or whole files."""

import hashlib
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Literal, get_args

from slm.corpora import Split
from slm.errors import UserError

SplitMethod = Literal["contiguous", "seeded", "files"]


class Division:
    """A function of the number of documents in each file, and of settings.

    contiguous: the first `train_ratio` of the documents are train.
    seeded: each document is train with probability `train_ratio`, a function of (`seed`, its index) alone.
    files: files are drawn for validation, a function of (`seed`, their index), at least one; or `validation_files`, a
    pattern, names them.
    Raises: UserError: for an unknown method, a ratio outside (0, 1), a pattern for another method than files.
    """

    def __init__(self, method: SplitMethod, train_ratio: float, seed: int, validation_files: str | None):
        if method not in get_args(SplitMethod):
            raise UserError(f"data.split={method} must be contiguous, seeded or files")
        if not 0 < train_ratio < 1:
            raise UserError(f"data.train_ratio={train_ratio} must be between 0 and 1")
        if validation_files and method != "files":
            raise UserError(f"data.validation_files={validation_files} needs data.split=files, not {method}")
        self.method, self.train_ratio, self.seed, self.pattern = method, train_ratio, seed, validation_files

    def validation_files(self, names: Sequence[str]) -> set[int]:
        """The indices of the files that are validation, for the method files.

        Raises: UserError: if there is only one file, or the pattern leaves one split without files.
        """
        if len(names) == 1:
            raise UserError(f"data.split=files needs at least two files, and there is only {names[0]}")
        if self.pattern is None:
            count = min(max(round((1 - self.train_ratio) * len(names)), 1), len(names) - 1)
            return set(sorted(range(len(names)), key=self._draw)[:count])
        found = {index for index, name in enumerate(names) if fnmatchcase(name, self.pattern)}
        if len(found) in (0, len(names)):
            matched = "none" if not found else "all"
            raise UserError(
                f"data.validation_files={self.pattern} matches {matched} of the {len(names)} files, such as {names[0]}"
            )
        return found

    def split_of(self, index: int, count: int) -> Split:
        """The split of a document by its index, for the other methods."""
        if self.method == "contiguous":
            return "train" if index < min(max(round(self.train_ratio * count), 1), count - 1) else "validation"
        return "validation" if self._draw(index) < 1 - self.train_ratio else "train"

    def cut(self, document: str) -> dict[Split, str]:
        """A single document, for the method contiguous: the first `train_ratio` of its characters are train."""
        end = int(self.train_ratio * len(document))
        return {"train": document[:end], "validation": document[end:]}

    def _draw(self, index: int) -> float:
        """In [0, 1)."""
        return int.from_bytes(hashlib.sha256(f"{self.seed}:{index}".encode()).digest()[:8]) / 2**64
