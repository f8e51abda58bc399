"""Tables and numbers as text for a console."""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from slm.errors import one_line


def columns(rows: Sequence[Sequence[Any]], *, right: bool = False, width: int = 120) -> str:
    """Rows of cells, the first one the head, as lines whose columns are as wide as their content, at most `width`.

    `right` aligns all columns but the first one to the right. Control characters are escaped.
    """
    lines = [[one_line(cell, width) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    kinds = ["<", *(">" if right else "<" for _ in widths[1:])]
    return "\n".join(
        "  ".join(f"{cell:{kind}{size}}" for cell, kind, size in zip(line, kinds, widths)).rstrip() for line in lines
    )


def comma_separated(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> str:
    """Rows as CSV, a column per name; empty where a row has no such value."""
    text = io.StringIO()
    writer = csv.DictWriter(text, names, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def clock(seconds: float) -> str:
    """0:07, 3:42, 2:05:09; 3 d 04:00 from two days on."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 48:
        return f"{hours // 24} d {hours % 24:02}:{minutes:02}"
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def gigabytes(size: float) -> str:
    """In 10^9 bytes, to a megabyte below 10."""
    return f"{size / 1e9:.3f}" if size < 1e10 else f"{size / 1e9:,.0f}"
