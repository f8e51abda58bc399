"""Sources of text, without torch.

A corpus is a class whose constructor takes the settings of `conf/data/*.yaml` and does no work.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeVar

from slm.classes import name_of

Split = Literal["train", "validation"]
Made = TypeVar("Made")


class Corpus(Protocol):
    """Documents in a fixed order, in constant memory, as often as requested."""

    def documents(self, split: Split) -> Iterator[str]:
        """All documents of the split.

        Raises: UserError: before the first document, if anything is missing or unreadable.
        """

    def fingerprint(self) -> str:
        """Hex digest of content and split, but not of paths or times: different if any document is."""


def made_by(kind: type[Made], node: Mapping[str, Any]) -> Made | None:
    """The corpus that data.corpus of a configuration describes, if it is of this class: no other class is ever built.

    Raises: TypeError: for settings that it does not take; UserError: for impossible ones.
    """
    if node.get("_target_") != name_of(kind):
        return None
    return kind(**{key: value for key, value in node.items() if key != "_target_"})


def digest_of(content: Any) -> str:
    """The hex digest of plain values: a fingerprint of what they determine."""
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


@dataclass
class Place:
    """A place in a split that is read part by part, as by `Hub.parts`: behind `file` of its `files`."""

    file: int = 0
    files: int = 0
    taken: list[int] = field(default_factory=lambda: [0, 0])  # documents of train and their bytes before it
    totals: list[int | None] = field(default_factory=lambda: [None, None])  # of the split, where they are known
