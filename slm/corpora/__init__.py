"""Where text comes from. No torch here.

A corpus is a class whose constructor takes the choices of `conf/data/*.yaml` and does no work.
"""

from collections.abc import Iterator
from typing import Literal, Protocol

Split = Literal["train", "validation"]


class Corpus(Protocol):
    """Documents in a fixed order, as often as asked for, in constant memory."""

    def documents(self, split: Split) -> Iterator[str]:
        """Every document of the split. Raises UserError, before the first one, for what is missing or unreadable."""

    def fingerprint(self) -> str:
        """Hex digest that changes when the documents of any split would: content and split, never paths or times."""
