"""The tree of forks of a run: the run that it was forked from, and those that were forked from it."""

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from slm.analysis import curves
from slm.analysis.charts import Axis, Chart, colors
from slm.analysis.curves import AXES
from slm.analysis.groups import is_identity
from slm.analysis.html import Markup, escaped, number, table
from slm.analysis.run_charts import UNITS, run_series
from slm.errors import printable
from slm.files import atomic
from slm.security import differing, is_bounded, leaves

MAX_RUNS = 200  # sibling folders that are read, newest last
MAX_LINES = 12  # of the chart
ROW, WIDTH, LABEL = 34, 700, 290  # pixels


@dataclass
class Node:
    """A run of the tree. `step`: where it left its parent; `end`: its last step."""

    folder: str
    info: dict[str, Any]
    step: int = 0
    end: int = 0
    parent: "Node | None" = None


Rows = list[tuple[Node, int]]  # the runs of a tree from top to bottom, each with the row of its parent


def family(folder: Path, info: dict[str, Any]) -> Rows:
    """The tree of a run; empty if it has neither parent nor children among its siblings."""
    siblings = {info["run_id"]: Node(folder.name, info)}
    for path in atomic.entries(folder.resolve().parent)[-MAX_RUNS:]:
        found = atomic.read_object(path / "run.json") if (path / "run.json").is_file() else None
        if found and is_bounded(found) and isinstance(found.get("run_id"), str):
            siblings.setdefault(found["run_id"], Node(path.name, found))
    for node in siblings.values():
        node.end = node.info["steps"] if isinstance(node.info.get("steps"), int) else 0
        origin = node.info.get("fork")
        if isinstance(origin, dict) and isinstance(origin.get("step"), int):
            node.step, parent = origin["step"], siblings.get(str(origin.get("run_id")))
            node.parent = parent if parent is not node else None
    root = siblings[info["run_id"]]
    for _ in siblings:
        root = root.parent or root
    if root.parent:  # a circle, of damaged files
        return []
    rows: Rows = []
    _order(root, 0, list(siblings.values()), rows)
    return rows if len(rows) > 1 or isinstance(info.get("fork"), dict) else []


def tree(rows: Rows, info: dict[str, Any]) -> str:
    """The tree as a picture and a table."""
    return _svg(rows, info["run_id"]) + _table(rows, info) if rows else ""


def chart(rows: Rows, parent: Path) -> list[Chart]:
    """val/loss of the trunk and its forks, whose folders are in `parent`; a list of one chart, or none."""
    series = []
    for (node, _), color in zip(rows[:MAX_LINES], colors(len(rows))):
        found = curves.read(parent / node.folder, node.info.get("flops_per_token"))
        if "val/loss" in found:
            series.append(run_series(found, "val/loss", node.folder, color, limit=200))
    if len(series) < 2:
        return []
    axes = {axis: Axis(label) for axis, label in AXES.items() if all(axis in line.x for line in series)}
    return [Chart("val/loss", UNITS["val/loss"], axes, series)]


def _order(node: Node, parent_row: int, nodes: list[Node], rows: Rows):
    """The node and its children among `nodes`, later forks first, so that no line crosses another."""
    rows.append((node, parent_row))
    own = len(rows) - 1
    for child in sorted((other for other in nodes if other.parent is node), key=lambda child: -child.step):
        _order(child, own, nodes, rows)


def _svg(rows: Rows, run_id: str) -> str:
    """A line per run along the steps, branching off its parent's."""
    end = max(max(node.end for node, _ in rows), 1)
    names = colors(len(rows))
    parts = []
    for row, (node, parent) in enumerate(rows):
        x, y, x_end = _place(node.step, end), ROW * row + 20, _place(node.end, end)
        start = f"M{x:.0f},{ROW * parent + 20}V{y - 8}q0,8 8,8" if row else f"M{x:.0f},{y}"
        parts.append(f'<path d="{start}H{max(x_end, x + 10):.0f}" style="stroke:var(--{names[row]})"/>')
        weight = ' font-weight="700"' if node.info["run_id"] == run_id else ""
        label = f"{printable(node.folder, 34)}, {number(node.info.get('objective'))}"
        parts.append(f'<text x="{max(x_end, x + 10) + 8:.0f}" y="{y + 4}"{weight}>{escaped(label)}</text>')
    size = f'viewBox="0 0 {WIDTH} {ROW * len(rows) + 14}" width="{WIDTH}"'
    picture = f'<svg class="tree" {size} role="img" aria-label="tree of forks">{"".join(parts)}</svg>'
    return f'<div class="scroll">{picture}</div>'


def _place(step: int, end: int) -> float:
    return 10 + (WIDTH - LABEL - 10) * min(max(step, 0), end) / end


def _table(rows: Rows, info: dict[str, Any]) -> str:
    cells = []
    for row, (node, parent) in enumerate(rows):
        link = f'<a href="../{quote(node.folder)}/report.html">{escaped(node.folder)}</a>'
        changed = _changed(rows[parent][0].info, node.info) if row else ""
        origin = f"step {node.step} of {rows[parent][0].folder}" if row else ""
        cells.append((Markup(link), origin, changed, node.info.get("objective")))
    if isinstance(info.get("fork"), dict) and len(rows) == 1:  # its trunk is elsewhere
        cells[0] = (cells[0][0], f"step {info['fork'].get('step')} of {info['fork'].get('run')}", "", cells[0][3])
    return table(("run", "forked at", "changed", "objective"), cells)


def _changed(parent: dict[str, Any], child: dict[str, Any]) -> str:
    """The keys in which a fork differs from its trunk."""
    before, after = (dict(leaves(info.get("config") or {})) for info in (parent, child))
    changed = (
        f"{key}: {old} → {new}"
        for key, (old, new) in differing(before, after).items()
        if key == "seed" or not (key.startswith("fork") or is_identity(key, new, {"config": after}))
    )
    return "; ".join(itertools.islice(changed, 8))
