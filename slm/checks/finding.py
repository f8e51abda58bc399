"""The answer of a check."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """What was found, and what to do about it; `error`: training does not work, `warning`: some of it does not."""

    check: str
    status: Literal["ok", "warning", "error"]
    found: str
    remedy: str = ""
