"""The section of a run's report about its evaluations, from evaluation.json, which may be somebody else's."""

from pathlib import Path
from typing import Any

import numpy as np

from slm.analysis.charts import Axis, Chart, Series, colors
from slm.analysis.evaluation_tables import MAX_ROWS, Table, blocks, objects, overview, rows_of, shown
from slm.analysis.html import Page, folded, paragraph, table
from slm.files import atomic
from slm.security import at, is_number

MAX_FILE = 10**7  # bytes
MAX_TESTS = 500  # rows of all standard tests
MAX_RESULTS = 6  # evaluations, the newest


def content(folder: Path, page: Page) -> str:
    """All evaluations beside one another, charts of them, the details of the newest, and ablations; empty without."""
    path = folder / "evaluation.json"
    if not path.is_file() or path.stat().st_size > MAX_FILE:
        return ""
    found = atomic.read_object(path) or {}
    results, ablations = (objects(found.get(kind))[-MAX_RESULTS:] for kind in ("evaluations", "ablations"))
    parts = []
    if results:
        charts = [chart for chart in (positions(results), reliability(results)) if chart.series]
        tables = [table for block in blocks(results[-1]) for table in block]
        parts = [beside(results), *(page.group([chart]) for chart in charts), *map(as_html, tables)]
    return "".join([*parts, *map(ablation, ablations), standard_tests(found.get("tasks"))])


def beside(results: list[dict[str, Any]]) -> str:
    """A column for each evaluation."""
    found = overview(results, [label(result) for result in results])
    return table(found.head, found.rows) + paragraph(found.lines[0])


def label(result: dict[str, Any]) -> str:
    return f"step {result.get('step')}, {at(result, 'data', 'name')}"[:120]


def positions(results: list[dict[str, Any]]) -> Chart:
    """The loss by position in the window, a line for each evaluation."""
    series = []
    for result, color in zip(results, colors(len(results))):
        rows = objects(at(result, "positions", "groups"))[:MAX_ROWS]
        rows = [r for r in rows if is_number(r.get("from")) and shown(r.get("nats"), "") != "–"]
        if rows:
            values = {name: np.array([row["nats"][name] for row in rows]) for name in ("mean", "low", "high")}
            x = {"position": np.array([row["from"] + 1.0 for row in rows])}
            series.append(Series(label(result), x, values["mean"], color, low=values["low"], high=values["high"]))
    return Chart("Loss by position", "nats per token", {"position": Axis("token of the window", log=True)}, series)


def reliability(results: list[dict[str, Any]]) -> Chart:
    """How often the most probable token is right, by the probability that it is given."""
    ends, axis = np.array([0.0, 1.0]), "confidence"
    series = [Series("calibrated", {axis: ends}, ends, "c5", "thin")]
    for result, color in zip(results, colors(len(results))):
        bins = objects(at(result, "calibration", "bins"))[:MAX_ROWS]
        bins = [one for one in bins if is_number(one.get("confidence")) and is_number(one.get("accuracy"))]
        if bins:
            x, y = (np.array([float(one[name]) for one in bins]) for name in ("confidence", "accuracy"))
            series.append(Series(label(result), {axis: x}, y, color))
    axes = {axis: Axis("probability of the most probable token")}
    return Chart("Calibration", "share that is right", axes, series if len(series) > 1 else [], limits=(0, 1))


def as_html(found: Table) -> str:
    lines = "".join(map(paragraph, [*found.lines[1:], *found.notes]))
    heads = found.head or [""] * max(map(len, found.rows), default=0)
    return folded(
        found.lines[0], (table(heads, found.rows) if found.rows else "") + (lines or paragraph(found.lines[0]))
    )


def ablation(found: dict[str, Any]) -> str:
    """What this run saves beside another one."""
    rows = [
        (row.get("name"), shown(row.get("saved"), ".4f"), shown(row.get("share"), ".0%"))
        for row in objects(found.get("where"))[:MAX_ROWS]
    ]
    unit, other = found.get("unit"), next(iter(objects(found.get("models"))), {}).get("checkpoint")
    rows.append(("all", shown(found.get("saved"), ".4f"), ""))
    body = table((f"bits per {unit}", "saved", "share of all"), rows)
    return paragraph(str(found.get("sentence", ""))) + folded(f"Beside {other}"[:200], body)


def standard_tests(found: Any) -> str:
    """A row for each metric of each task of lm-evaluation-harness, a column for each checkpoint; empty without."""
    cells: dict[tuple[str, str, str], dict[str, str]] = {}
    for checkpoint, tasks in list(rows_of(found).items())[-MAX_RESULTS:]:
        for task, its in list(tasks.items())[:MAX_TESTS] if isinstance(tasks, dict) else ():
            for metric, values in rows_of(at(its, "metrics")).items():
                cells.setdefault((task, metric, str(at(its, "n") or "")), {})[checkpoint] = _metric(values)
    if not cells:
        return ""
    checkpoints = list(dict.fromkeys(name for row in cells.values() for name in row))
    rows = [(*row, *(its.get(name, "–") for name in checkpoints)) for row, its in list(cells.items())[:MAX_TESTS]]
    return folded("Standard tests", table(("task", "metric", "n", *checkpoints), rows))


def _metric(values: Any) -> str:
    """A value, with its interval where it has one."""
    mean = at(values, "value")
    alone = f"{mean:.4f}" if is_number(mean) else "–"
    return shown({"mean": mean, "low": at(values, "low"), "high": at(values, "high")}, ".4f").replace("–", alone)
