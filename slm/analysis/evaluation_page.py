"""The section of a run's report about its evaluations, from evaluation.json, which may be somebody else's."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from slm.analysis.charts import Axis, Chart, Series, colors
from slm.analysis.html import Page, folded, paragraph, table
from slm.files import atomic
from slm.security import at, is_number

MAX_FILE = 10**7  # bytes
MAX_TESTS = 500  # rows of all standard tests
MAX_RESULTS, MAX_ROWS = 6, 40  # evaluations, the newest; rows of one table
TEXTS = ("distinct_1", "distinct_2", "distinct_3", "self_bleu", "repeated_4_grams", "loops")


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
        parts = [overview(results), *(page.group([chart]) for chart in charts), *details(results[-1])]
    return "".join([*parts, *map(ablation, ablations), standard_tests(found.get("tasks"))])


def objects(values: Any) -> list[dict[str, Any]]:
    return [value for value in values if isinstance(value, dict)] if isinstance(values, list) else []


def rows_of(value: Any) -> dict[str, Any]:
    """The first entries of an object; none for anything else."""
    return dict(list(value.items())[:MAX_ROWS]) if isinstance(value, dict) else {}


def estimate(value: Any, form: str) -> str:
    """mean [low, high], or a dash."""
    numbers = [at(value, name) for name in ("mean", "low", "high")]
    if not all(map(is_number, numbers)):
        return "–"
    mean, low, high = (f"{number:{form}}" for number in numbers)
    return f"{mean} [{low}, {high}]"


def label(result: dict[str, Any]) -> str:
    return f"step {result.get('step')}, {at(result, 'data', 'name')}"[:120]


def overview(results: list[dict[str, Any]]) -> str:
    """A column for each evaluation."""
    measures = {
        "nats per token": (("loss", "nats"), ".4f"),
        "bits per byte, with ends of documents": (("loss", "bits_per_byte"), ".4f"),
        "bits per byte, without them": (("loss", "text_bits_per_byte"), ".4f"),
        "in-context gain, nats": (("positions", "in_context_gain"), ".4f"),
        "calibration error": (("calibration", "ece"), ".2%"),
        "temperature of the least loss": (("calibration", "best_temperature"), ".3f"),
        "bits per story above the floor": (("stories", "seen", "excess"), ".2f"),
        **{f"right on {kind}": (("probes", kind, "right"), ".1%") for kind in ("names", "pronouns", "word order")},
    }
    rows = [(name, *(estimate(at(r, *keys), form) for r in results)) for name, (keys, form) in measures.items()]
    rows = [row for row in rows if set(row[1:]) != {"–"}]
    n = [(f"{at(r, 'loss', 'n')} {at(r, 'loss', 'unit')}", f"seed {r.get('seed')}") for r in results]
    note = paragraph("95 % intervals over documents in brackets; " + "; ".join(", ".join(pair) for pair in n) + ".")
    return table(("", *map(label, results)), rows) + note


def positions(results: list[dict[str, Any]]) -> Chart:
    """The loss by position in the window, a line for each evaluation."""
    series = []
    for result, color in zip(results, colors(len(results))):
        rows = objects(at(result, "positions", "groups"))[:MAX_ROWS]
        rows = [r for r in rows if is_number(r.get("from")) and estimate(r.get("nats"), "") != "–"]
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


def details(result: dict[str, Any]) -> Iterator[str]:
    """Tables of the newest evaluation."""
    rows = rows_of(at(result, "texts", "rows"))
    if rows:
        n, group = at(result, "texts", "n"), at(result, "texts", "group")
        title = f"Generated text beside held-out text, {n} texts of equal length, n-grams of {group} texts together"
        cells = [(name.replace("_", " "), *(estimate(at(row, name), ".1%") for row in rows.values())) for name in TEXTS]
        yield folded(title, table(("", *rows), cells))
    rows = rows_of(at(result, "memorisation", "rows"))
    if rows:
        lengths = list(rows_of(at(next(iter(rows.values())), "ngrams")))
        heads = ("", *(f"n = {n}" for n in lengths), "longest copy", "whole documents", "the longest copy")
        cells = [
            (
                name,
                *(estimate(at(row, "ngrams", n), ".1%") for n in lengths),
                at(row, "longest_copy"),
                estimate(at(row, "duplicates"), ".1%"),
                at(row, "copy"),
            )
            for name, row in rows.items()
        ]
        yield folded("n-grams of tokens that occur in the training text", table(heads, cells))
    rows = rows_of(result.get("probes"))
    if rows:
        cells = [
            (kind, at(row, "n"), estimate(at(row, "right"), ".1%"), estimate(at(row, "bits"), ".2f"), *_example(row))
            for kind, row in rows.items()
        ]
        heads = ("", "n", "right, 50 % by chance", "bits between the two", "true", "changed")
        yield folded("Two-choice probes", table(heads, cells))
    rows = rows_of(at(result, "stories", "seen", "skills"))
    if rows:
        there = at(result, "stories", "held_out", "skills")
        cells = [(name, estimate(value, ".2f"), estimate(at(there, name), ".2f")) for name, value in rows.items()]
        yield folded("Excess by skill, bits per story", table(("", "validation", "held-out pairs"), cells))


def _example(row: Any) -> tuple[str, str]:
    pair = at(row, "example")
    return tuple(map(str, pair)) if isinstance(pair, list) and len(pair) == 2 else ("", "")


def ablation(found: dict[str, Any]) -> str:
    """What this run saves beside another one."""
    rows = [
        (row.get("name"), estimate(row.get("saved"), ".4f"), estimate(row.get("share"), ".0%"))
        for row in objects(found.get("where"))[:MAX_ROWS]
    ]
    unit, other = found.get("unit"), next(iter(objects(found.get("models"))), {}).get("checkpoint")
    rows.append(("all", estimate(found.get("saved"), ".4f"), ""))
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
    return estimate({"mean": mean, "low": at(values, "low"), "high": at(values, "high")}, ".4f").replace("–", alone)
