"""Numbers and tables of a plan as text."""

from collections.abc import Sequence


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


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells, the first column to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:]))] for row in rows
    ]
    return "\n".join("  ".join(line).rstrip() for line in lines)
