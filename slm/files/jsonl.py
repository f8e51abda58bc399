"""Files of JSON lines: one event per line, appended, so that a kill costs at most the line under way.

Every event carries `step`, the optimizer updates done when it happened.
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from slm.files import atomic


def append(path: Path, event: dict[str, Any]):
    try:
        with open(path, "a", encoding="utf-8") as file:
            file.write(line_of(event))
    except OSError as error:
        error.filename = str(path)  # a full disk does not say which file
        raise


def line_of(event: dict[str, Any]) -> str:
    """JSON; numbers that it has no word for become null."""
    plain = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in event.items()}
    return json.dumps(plain, ensure_ascii=False) + "\n"


def lines(path: Path) -> Iterator[dict[str, Any]]:
    """The events of the file up to a line that is none, such as one that a kill or a power cut has torn."""
    if not path.is_file():
        return
    with open(path, encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                event = json.loads(line)
            except ValueError:
                return
            if not (line.endswith("\n") and isinstance(event, dict) and isinstance(event.get("step"), int)):
                return
            yield event


def truncate_after(path: Path, step: int):
    """Forgets what was written after the checkpoint of `step`, since it will be written again."""
    if path.is_file():
        atomic.write_text(path, "".join(line_of(event) for event in lines(path) if event["step"] <= step))
