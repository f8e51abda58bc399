"""Files of JSON lines: one record per line, appended, so a kill costs at most the line being written.

Every record holds `step`, the optimizer updates done.
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from slm.errors import file_operation
from slm.files import atomic


def append(path: Path, record: dict[str, Any]):
    """Appends a record. Raises OSError with the file's name."""
    with file_operation("write", path), open(path, "a", encoding="utf-8", newline="\n") as file:
        file.write(format_line(record))


def format_line(record: dict[str, Any]) -> str:
    """JSON with a line end; NaN and infinities, which JSON lacks, become null."""
    plain = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}
    return json.dumps(plain, ensure_ascii=False) + "\n"


def lines(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a file without invalid lines, such as one torn by a kill; none if the file is missing.

    An editor may have added empty lines or a byte order mark, or left out the last line end. Raises OSError.
    """
    if not path.exists():
        return
    with file_operation("read", path), open(path, encoding="utf-8-sig", errors="replace") as file:
        for line in filter(str.strip, file):
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(record, dict) and isinstance(record.get("step"), int):
                yield record


def numbers(path: Path, name: str) -> Iterator[float]:
    """The values of one metric, in the order of the lines."""
    found = (line.get(name) for line in lines(path))
    return (value for value in found if isinstance(value, int | float))


def truncate_after(path: Path, step: float):
    """Removes the records after `step` and invalid lines: training from that checkpoint writes them again."""
    copy_until(path, path, step)


def copy_until(source: Path, path: Path, step: float):
    """Writes the records up to `step` into `path`, if there is such a source."""
    if source.exists():
        atomic.write_text(path, "".join(format_line(record) for record in lines(source) if record["step"] <= step))
