"""The charts of a sweep: the objective against each swept number, a panel per value of a third key, and the curves."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from slm.analysis import curves as run_curves
from slm.analysis.charts import Axis, Chart, Series, colors
from slm.analysis.curves import AXES, Curves, thinned
from slm.analysis.optimum import Optimum
from slm.analysis.run_charts import UNITS
from slm.analysis.sweep import Cell, Sweep, line_optimum
from slm.files import atomic
from slm.files.sweep_folder import SweepJob
from slm.security import is_number

MAX_LINES = 48  # of a chart
POINTS = 12_000  # of a chart
BAND = "line: mean over the seeds; band: from the lowest to the highest seed"


@dataclass(frozen=True)
class Found:
    """The optimum of one line: the key on the x axis, and the name of the line."""

    key: str
    line: str
    optimum: Optimum


def objective_charts(sweep: Sweep) -> tuple[list[Chart], list[Found]]:
    """The objective against each numeric key, a chart per panel on one scale; and the optima of all lines."""
    drawn = [_objective_chart(name, panel) for name, panel in sweep.panels]
    charts, optima = [chart for chart, _ in drawn if chart], [found for _, optima in drawn for found in optima]
    values = np.concatenate([line.y for chart in charts for line in chart.series] or [np.ones(0)])
    if len(charts) > 1 and len(values):
        low, high, log = values.min(), values.max(), bool(values.min() > 0 and values.max() > 3 * values.min())
        room = (high / low) ** 0.05 if log else 0.06 * (high - low)
        limits = (low / room, high * room) if log else (low - room, high + room)
        charts = [replace(chart, log=log, limits=limits) for chart in charts]
    return charts, optima


def _objective_chart(title: str, sweep: Sweep) -> tuple[Chart | None, list[Found]]:
    """The chart of one panel, a line per combination of the keys that are not on its x axis; their optima."""
    axes, series, optima = {}, [], []
    for key in sweep.numeric:
        log = sweep.is_log(key)
        axes[key] = Axis(key, log)
        lines = list(sweep.lines(key))[:MAX_LINES]
        ordered = len(sweep.factors) == 2 and len(lines) > 2 and all(map(is_number, sweep.levels(_other(sweep, key))))
        for (name, cells), color in zip(lines, colors(len(lines), ordered)):
            series += _line(key, name, cells, color)
            if (found := line_optimum(key, cells, log)) is not None:
                optima.append(Found(key, ", ".join(filter(None, (title, name))), found))
                if found.is_vertex:
                    place = np.array(
                        [found.x, np.nan, np.nan] if found.low is None else [found.x, found.low, found.high]
                    )
                    series.append(Series(name, {key: place}, np.array([found.y]), color, "optimum"))
    if not axes:
        return None, []
    values = np.concatenate([line.y for line in series if line.style == "line"] or [np.ones(1)])
    log = len(values) > 0 and values.min() > 0 and values.max() > 3 * values.min()
    unit = f"{sweep.objective} ({UNITS[sweep.objective]})" if sweep.objective in UNITS else sweep.objective
    return Chart(title, unit, axes, series, log, grid=True), optima


def _other(sweep: Sweep, key: str) -> str:
    return next(factor for factor in sweep.factors if factor != key)


def _line(key: str, name: str, cells: list[Cell], color: str) -> list[Series]:
    """The means of a line with their band, and the places of failed jobs, but for those that would stretch the axis."""
    known = [cell for cell in cells if cell.objectives]
    failed = [cell.values[key] for cell in cells if cell.failed]
    found = []
    if known:
        ends = [np.array([end(cell.objectives) for cell in known]) for end in (min, max)]
        repeated = any(len(cell.objectives) > 1 for cell in known)
        low, high = ends if repeated else (None, None)
        x, y = np.array([cell.values[key] for cell in known], float), np.array([cell.mean for cell in known])
        found.append(Series(name, {key: x}, y, color, low=low, high=high))
        ends = x.min() - 10 * abs(x.min()), x.max() + 10 * abs(x.max())
        failed = [place for place in failed if ends[0] <= place <= ends[1]]
    if failed:
        found.append(Series(name, {key: np.array(failed, float)}, np.array([]), color, "failed"))
    return found


def curve_charts(sweep: Sweep) -> list[Chart]:
    """The objective and train/loss of all cells during training, means over seeds with their band."""
    cells = [cell for cell in sweep.cells if cell.objectives][:MAX_LINES] or sweep.cells[:MAX_LINES]
    cells = sorted(cells, key=lambda cell: [sweep.ranks[key][str(cell.values[key])] for key in sweep.factors])
    read = [[_read(sweep.folder / job.folder) for job in shown_jobs(cell)] for cell in cells]
    names = dict.fromkeys((sweep.objective or "val/loss", "train/loss"))
    return [chart for name in names if (chart := _curve_chart(sweep, name, cells, read))]


def shown_jobs(cell: Cell) -> list[SweepJob]:
    """Those with an objective if there are any: a run that has failed early would cut the mean of the others."""
    return [job for job in cell.jobs if job.objective is not None] or cell.jobs


def _read(folder: Path) -> Curves:
    info = atomic.read_object(folder / "run.json") or {}
    return run_curves.read(folder, info.get("flops_per_token"))


def _curve_chart(sweep: Sweep, name: str, cells: list[Cell], read: list[list[Curves]]) -> Chart | None:
    series, limit = [], max(30, min(400, POINTS // max(len(cells), 1)))
    main = next(iter([*sweep.numeric, *sweep.factors]), None)  # one color per value of this key
    levels = [str(level) for level in sweep.levels(main)] if main else [""]
    shades = dict(zip(levels, colors(len(levels), ordered=main in sweep.numeric and len(levels) > 2)))
    for cell, curves in zip(cells, read):
        if with_name := [found for found in curves if name in found]:
            level = str(cell.values[main]) if main else ""
            detail = ", ".join(f"{sweep.short[key]} {value}" for key, value in cell.values.items()) or name
            label = f"{sweep.short[main]} {level}" if main else name
            series.append(_mean(name, (label, detail), with_name, shades[level], limit))
    if not series:
        return None
    common = [axis for axis in AXES if all(axis in line.x for line in series)]
    y = np.concatenate([line.y for line in series])
    axes = {axis: Axis(AXES[axis]) for axis in common}
    return Chart(name, UNITS.get(name, name), axes, series, log=bool(y.min() > 0))


def _mean(name: str, labels: tuple[str, str], curves: list[Curves], color: str, limit: int) -> Series:
    """The mean and the band of runs that differ in their seed, at the steps that all of them have logged."""
    steps = curves[0].values[name][0]
    for other in curves[1:]:
        steps = np.intersect1d(steps, other.values[name][0])
    if not len(steps):
        curves, steps = curves[:1], curves[0].values[name][0]
    rows = np.array([np.interp(steps, *found.values[name]) for found in curves])
    kept = thinned(rows.mean(0), limit)
    places = [found.at(steps[kept]) for found in curves]
    x = {axis: np.mean([place[axis] for place in places], 0) for axis in AXES if all(axis in p for p in places)}
    low, high = (rows.min(0)[kept], rows.max(0)[kept]) if len(curves) > 1 else (None, None)
    return Series(labels[0], x, rows.mean(0)[kept], color, "thin", low, high, detail=labels[1])
