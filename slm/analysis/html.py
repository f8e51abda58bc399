"""Parts of a page as HTML. Values come from files of others: all of them are escaped, and cut to a bounded length."""

import base64
import hashlib
import html
import json
import re
from collections.abc import Iterable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from slm.analysis.charts import Chart, palette
from slm.errors import printable
from slm.security import is_number

MAX_PICTURE = 3 * 10**6  # bytes of one PNG in a page
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{}'; base-uri 'none'"


def escaped(value: Any, limit: int = 300) -> str:
    """A value as text for HTML: without control characters, cut in its middle, escaped."""
    return html.escape(printable(str(value), limit), quote=True)


def number(value: Any, digits: int = 4) -> str:
    """A number in so many significant digits, with separators of thousands; a dash for anything else."""
    if not is_number(value):
        return "–"
    if abs(value) < 10**4:
        return f"{value:.{digits}g}"
    return f"{value:,.0f}" if abs(value) < 10**9 else re.sub(r"e\+0*", "e", f"{value:.{digits}g}")


def table(heads: Sequence[str], rows: Iterable[Sequence[Any]], *, sortable: bool = False, best: int = 0) -> str:
    """A table; numbers are aligned to the right. The first `best` rows are emphasized."""
    body, rows = [], list(rows)
    right = [any(is_number(row[i]) for row in rows) for i in range(len(heads))]
    for index, row in enumerate(rows):
        cells = "".join(_cell(value) for value in row)
        body.append(f'<tr class="best">{cells}</tr>' if index < best else f"<tr>{cells}</tr>")
    kinds = (' class="number"' if aligned else "" for aligned in right)
    head = "".join(f'<th scope="col"{kind}>{escaped(name)}</th>' for kind, name in zip(kinds, heads))
    kind = ' class="sortable"' if sortable else ""
    whole = f"<thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody>"
    return f'<div class="scroll"><table{kind}>{whole}</table></div>'


class Markup(str):
    """Text that is HTML already."""


def _cell(value: Any) -> str:
    if isinstance(value, Markup):
        return f"<td>{value}</td>"
    if is_number(value):
        return f'<td class="number" data-value="{value!r}">{number(value)}</td>'
    if value == "failed":
        return '<td class="failed">failed</td>'
    return f'<td class="text">{"" if value is None else escaped(value)}</td>'


def facts(values: dict[str, str]) -> str:
    """Name and value in boxes."""
    boxes = (f"<div><dt>{escaped(name)}</dt><dd>{escaped(value)}</dd></div>" for name, value in values.items())
    return f'<dl class="facts">{"".join(boxes)}</dl>'


def section(title: str, *content: str) -> str:
    """A section; empty without content."""
    return f"<section><h2>{escaped(title)}</h2>{''.join(content)}</section>" if any(content) else ""


def folded(title: str, content: str) -> str:
    return f"<details><summary>{escaped(title)}</summary>{content}</details>" if content else ""


def paragraph(text: str, kind: str = "") -> str:
    return f'<p class="{kind}">{escaped(text, 2000)}</p>' if text else ""


def picture(path: Path, text: str) -> str:
    """A PNG for readers without JavaScript; empty if it is missing or large."""
    return f"<noscript>{found}</noscript>" if (found := shown(path, text)) else ""


def shown(path: Path, text: str) -> str:
    """A PNG; empty if it is missing or large."""
    if not path.is_file() or path.stat().st_size > MAX_PICTURE:
        return ""
    content = base64.b64encode(path.read_bytes()).decode()
    return f'<figure><img alt="{escaped(text)}" src="data:image/png;base64,{content}"></figure>'


class Page:
    """A page of sections and charts."""

    def __init__(self, title: str):
        self.title, self.charts = title, []

    def group(self, charts: Sequence[Chart], wide: bool = False) -> str:
        """Charts that share their choice of the x axis; empty without charts."""
        figures = []
        for chart in charts:
            head = f"<h3>{escaped(chart.title)}</h3>" if chart.title else ""
            figures.append(f'<figure data-chart="{len(self.charts)}">{head}</figure>')
            self.charts.append(chart)
        kind = "multiples wide" if wide else "multiples"
        return f'<div class="charts"><div class="{kind}">{"".join(figures)}</div></div>' if figures else ""

    def html(self, header: str, sections: Iterable[str], footer: str) -> str:
        """The whole file. Scripts in it other than report.js do not run, whatever a value might contain."""
        style, script = (files("slm.analysis").joinpath(f"report.{kind}").read_text("utf-8") for kind in ("css", "js"))
        data = json.dumps([chart.plain() for chart in self.charts], allow_nan=False, separators=(",", ":"))
        data = data.replace("<", "\\u003c").replace("&", "\\u0026")
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        return "".join((
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY.format(digest)}">',
            f"<title>{escaped(self.title)}</title>",
            f"<style>{style}{_colors()}</style></head><body>",
            f'<header class="top"><h1>{escaped(self.title)}</h1>{header}</header>',
            f"<main>{''.join(sections)}</main><footer>{footer}</footer>",
            f'<script type="application/json" id="charts">{data}</script><script>{script}</script></body></html>\n',
        ))  # fmt: skip


def _colors() -> str:
    """The palettes as variables of CSS."""
    light, dark = (
        "".join(f"--{name}:{color};" for name, color in palette(theme).items()) for theme in ("light", "dark")
    )
    return f":root{{{light}}}@media (prefers-color-scheme: dark){{:root{{{dark}}}}}"
