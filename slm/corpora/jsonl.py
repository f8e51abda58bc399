"""JSON Lines in local files: one JSON object per line, of which one value is the text of a document."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

from slm.corpora.text import SplitMethod, Text
from slm.errors import UserError


class JsonLines(Text):
    """The string under `key` of every line, unchanged. Files (*.jsonl in a folder) and splits as for `Text`."""

    suffix = ".jsonl"
    own = frozenset({".jsonl", ".ndjson", ".json"})

    def __init__(self, *, path: str | None, key: str, split: SplitMethod, train_ratio: float, seed: int):
        super().__init__(path=path, separator="\n", split=split, train_ratio=train_ratio, seed=seed)
        self.key = key

    def fingerprint(self) -> str:
        return hashlib.sha256(json.dumps([super().fingerprint(), self.key]).encode()).hexdigest()

    def read(self, path: Path) -> Iterator[str]:
        """The documents of one file. Raises: UserError: for a line that is not an object with a text under `key`."""
        for number, line in enumerate(super().read(path), start=1):
            if line:
                try:
                    document = json.loads(line)[self.key]
                    document.encode()  # AttributeError: not a string; UnicodeEncodeError: a lone surrogate
                except (ValueError, RecursionError, LookupError, TypeError, AttributeError) as error:
                    rule = f"is not a JSON object with a text under data.key={self.key}"
                    raise UserError(f"{path} line {number} {rule}{explained(line, error)}") from None
                yield document


def explained(line: str, error: Exception) -> str:
    """What a line holds instead."""
    if isinstance(error, KeyError):
        return f": its keys are {', '.join(json.loads(line)) or 'none'}"
    if isinstance(error, UnicodeEncodeError):
        return ": the text has half of a surrogate pair"
    if isinstance(error, TypeError | json.JSONDecodeError | RecursionError) and line[:1] in "[{":
        return ": each line must be a complete object (for a JSON array: jq -c '.[]' a.json > a.jsonl)"
    return f", but {line[:40]}"
