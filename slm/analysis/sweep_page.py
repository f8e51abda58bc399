"""report.html and PNGs of a sweep."""

import itertools
import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from slm.analysis import figures, html
from slm.analysis.answers import answers_section
from slm.analysis.charts import along
from slm.analysis.html import Markup, Page, escaped, facts, folded, number, paragraph, picture, section, shown, table
from slm.analysis.optimum import AT_THE_EDGE
from slm.analysis.rate_transfer import COARSE, transfers
from slm.analysis.sweep import BESIDE_FAILURES, Sweep, read
from slm.analysis.sweep_charts import BAND, MAX_LINES, Found, curve_charts, objective_charts
from slm.files import atomic

MAX_ROWS, MAX_MAPS, MAX_CELLS = 2000, 4, 900
INTERNAL = re.compile(r"^(\+\+)?hydra\.sweeper\.(?=variants\.|seeds=|detect=)")  # keys of an ablation
SAFE = re.compile(r"[\w.+/@:,=-]+|[\w.+/@-]+='[^']*'")  # as it is in a shell


def write(folder: Path, axis: str = "steps"):
    """Writes report.html, and objective.png, heatmap.png and curves.png in report/, as far as there is something to
    draw; curves along this axis. Raises UserError for a folder without runs, or whose runs lack the axis."""
    sweep = read(folder)
    objective, optima = objective_charts(sweep)
    curves, maps = along(curve_charts(sweep), axis), list(heat_maps(sweep))
    pictures = folder / "report"
    pictures.mkdir(exist_ok=True)
    if objective:
        figures.save(pictures / "objective.png", objective, folder.name)
    if maps:
        figures.heat_map(pictures / "heatmap.png", maps[0], sweep.objective, folder.name)
    if curves:
        figures.save(pictures / "curves.png", curves, folder.name)
    page, seeds = Page(folder.name), f"{BAND}." if sweep.seeds > 1 else ""
    most = f"The {MAX_LINES} lines with the lowest objective." if len(sweep.cells) > MAX_LINES else ""
    sections = [
        answers_section(sweep),
        section(
            f"{sweep.objective or 'Objective'} against what was swept",
            page.group(objective, wide=len(objective) == 1),
            picture(pictures / "objective.png", "objective against the swept keys"),
            paragraph(seeds if objective else "", "quiet"),
            optimum_table(optima),
        ),
        section("Table", cell_table(sweep), folded(f"all {len(sweep.jobs)} jobs", job_table(sweep))),
        section("Heat map", *map(heat_table, maps)),
        section(
            "Curves",
            page.group(curves),
            picture(pictures / "curves.png", "curves of the runs"),
            paragraph(f"{seeds} {most}".strip(), "quiet"),
        ),
        scaling_section(pictures / "scaling.png"),
        section("Failures", failures(sweep)),
        section("Command", f"<pre>{escaped(typed(sweep.command), 4000)}</pre>" if sweep.command else ""),
    ]
    atomic.write_text(folder / "report.html", page.html(header(sweep, optima), sections, ""))


def scaling_section(path: Path) -> str:
    """The picture of slm.scaling, if it was drawn."""
    return section("Scaling law", shown(path, "parabolas at equal FLOPs, best sizes, loss and residuals of the law"))


def typed(command: Sequence[str]) -> str:
    """A sweep's command for a shell, without what this program adds to the words that were typed."""
    words = (INTERNAL.sub("", word) for word in command if not re.fullmatch(r"budget\.\w+=null", word))
    return " ".join(["python train.py -m", *(word if SAFE.fullmatch(word) else shlex.quote(word) for word in words)])


def header(sweep: Sweep, optima: list[Found]) -> str:
    """The answer in a sentence, and the main numbers."""
    states = [job.status for job in sweep.jobs]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    line = f'<p class="quiet">{escaped(sweep.created)} · {escaped(counts)}</p>'
    best = next((cell for cell in sweep.cells if cell.objectives), None)
    if best is None:
        return line + paragraph("No job has an objective yet.", "answer")
    values = ", ".join(f"{key}={value}" for key, value in best.values.items())
    over = f", {'mean of ' if len(best.objectives) > 1 else ''}{best.count} seeds" if len(best.jobs) > 1 else ""
    place = f" at {values}" if values else ""
    text = f"{'Lowest ' if values else ''}{sweep.objective}: {number(best.mean)}{place}{over}."
    boxes = {f"lowest {sweep.objective}": number(best.mean), "jobs": f"{states.count('done')} of {len(states)} done"}
    boxes |= {sweep.short[key]: f"{len(sweep.levels(key))} values" for key in sweep.swept}
    if sweep.noise:
        boxes["noise of one seed"] = number(sweep.noise, 2)
    return line + paragraph(text, "answer") + "".join(sentences(sweep, optima)) + facts(boxes)


def sentences(sweep: Sweep, optima: list[Found]) -> Iterator[str]:
    """The transfer of the learning rate, a sentence per panel; or the optima of the first key, a sentence per line."""
    if found := transfers(sweep):
        yield from (paragraph(f"{each.sentence()}.") for each in found)
        return
    for found in [found for found in optima if found.key == optima[0].key][:6]:
        yield paragraph(f"{found.line}: {describe(found)}")


def describe(found: Found) -> str:
    """Where the optimum is, in words."""
    best = found.optimum
    coarse = f"; coarse grid, a neighbour is {best.rise:.0%} higher: refine it" if best.rise > COARSE else ""
    if best.low is not None:
        return f"best {found.key} {best.x:.3g} [{best.low:.3g}, {best.high:.3g}], there {number(best.y)}{coarse}."
    if best.problem == BESIDE_FAILURES:
        return f"lowest at {found.key} {best.x:.3g}, beside failed jobs: no interval; refine the grid between them."
    if best.problem == AT_THE_EDGE:
        return f"lowest at {found.key} {best.x:.3g}, the edge of the grid: no interval; widen the grid."
    return f"best {found.key} {best.x:.3g}, there {number(best.y)} ({best.problem}{coarse})."


def optimum_table(optima: list[Found]) -> str:
    """The optima of the lines: those of the first key, and folded those of the others."""
    rows = {found.key: [] for found in optima}
    for found in optima:
        best, rise = found.optimum, f"{found.optimum.rise:.1%}" if found.optimum.rise else ""
        rows[found.key].append((found.line, best.x, best.low, best.high, best.y, rise, best.problem))
    note = (
        "Optimum of the parabola through the lowest mean and its two neighbours, in the logarithm of the key. The 95 % "
        "interval (Fieller) comes from the residuals of the seeds; it holds for this budget, and for a parabola "
        "between these points: where the rise to a neighbour is large, refine the grid."
    )
    heads = "optimum", "95 % from", "to", "objective there", "rise to a neighbour", ""
    first, *others = [(key, table((key, *heads), found)) for key, found in rows.items()] or [("", "")]
    folds = "".join(folded(f"optima of {key}", found) for key, found in others)
    return first[1] + paragraph(note, "quiet") + folds if rows else ""


def cell_table(sweep: Sweep) -> str:
    """The combinations of the swept keys, sorted by their mean objective."""
    cells, noise = sweep.cells[:MAX_ROWS], sweep.noise or 0.0
    best = cells[0].mean if cells else 0
    several = sweep.seeds > 1
    heads = [*sweep.factors, sweep.objective or "objective", "difference"]
    heads += ["in standard errors", "seeds", "lowest", "highest"] if several else []
    rows = []
    for cell in cells:
        difference = cell.mean - best if cell.objectives else None
        row = [*cell.values.values(), cell.mean if cell.objectives else "failed" if cell.failed else None, difference]
        if several:
            ends = (min(cell.objectives), max(cell.objectives)) if cell.objectives else (None, None)
            row += [sweep.in_errors(cell), cell.count, *ends]
        rows.append(row)
    note = (
        f"Noise: a standard deviation of {number(noise, 2)} between seeds, by the median over all combinations. "
        "Standard errors are those of the difference to the first row."
    )
    return table(heads, rows, sortable=True, best=1) + (paragraph(note, "quiet") if noise else "")


def job_table(sweep: Sweep) -> str:
    """Each run, sorted by its objective."""
    jobs = sorted(sweep.jobs, key=lambda job: (job.objective is None, job.objective))[:MAX_ROWS]
    rows = []
    for job in jobs:
        link = f'<a href="{quote(job.folder)}/report.html">{escaped(job.folder)}</a>'
        rows.append((Markup(link), *(job.values.get(key) for key in sweep.swept), job.objective, job.status))
    return table(("run", *sweep.swept, sweep.objective or "objective", "status"), rows, sortable=True)


def failures(sweep: Sweep) -> str:
    jobs = [job for job in sweep.jobs if job.status in ("failed", "stopped") or job.failure]
    rows = [(job.folder, job.status, job.failure) for job in jobs]
    return table(("run", "status", "why"), rows[:MAX_ROWS]) if rows else ""


def heat_maps(sweep: Sweep) -> Iterator[tuple[str, str, list, list, np.ndarray]]:
    """Pairs of keys with the means of the objective, the best over all other keys; rows have the fewer values."""
    factors = [key for key in sweep.factors if len(sweep.levels(key)) > 1]
    for pair in list(itertools.combinations(factors, 2))[:MAX_MAPS]:
        row_key, column_key = sorted(pair, key=lambda key: len(sweep.levels(key)))
        rows, columns = sweep.levels(row_key), sweep.levels(column_key)
        if len(rows) * len(columns) > MAX_CELLS:
            continue
        means = np.full((len(rows), len(columns)), np.inf)
        for cell in sweep.cells:
            at = tuple(sweep.ranks[key][str(cell.values[key])] for key in (row_key, column_key))
            means[at] = min(means[at], cell.mean)
        yield row_key, column_key, rows, columns, np.where(np.isfinite(means), means, np.nan)


def heat_table(chart: tuple[str, str, list, list, np.ndarray]) -> str:
    """A heat map as a table, colored by rank."""
    import matplotlib

    row_key, column_key, rows, columns, means = chart
    colors, body = matplotlib.colormaps["viridis_r"](figures.shades(means)), []
    inks = figures.ink_on(colors)
    for row, value in enumerate(rows):
        cells = "".join(map(_heat_cell, means[row], colors[row], inks[row], itertools.repeat(np.nanmin(means))))
        body.append(f'<tr><th scope="row">{level(value)}</th>{cells}</tr>')
    head = "".join(f'<th scope="col">{level(value)}</th>' for value in columns)
    corner = f'<tr><th></th><th colspan="{len(columns)}">{escaped(column_key)}</th></tr>'
    whole = f"<thead>{corner}<tr><th>{escaped(row_key)}</th>{head}</tr></thead><tbody>{''.join(body)}</tbody>"
    return f'<div class="scroll"><table class="heat">{whole}</table></div>' + paragraph("Colors by rank.", "quiet")


def level(value: Any) -> str:
    """A swept value as the head of a row or column."""
    return number(value) if html.is_number(value) else escaped(value)


def _heat_cell(mean: float, color: np.ndarray, ink: str, best: float) -> str:
    if not np.isfinite(mean):
        return '<td class="none">–</td>'
    from matplotlib.colors import to_hex

    kind = ' class="best"' if mean == best else ""
    return f'<td{kind} style="background:{to_hex(color)};color:{ink}">{mean:.4g}</td>'
