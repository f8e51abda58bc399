"""PNGs of charts for papers and READMEs, with matplotlib: 160 dots per inch, legible at 800 pixels, on white."""

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from slm.analysis.charts import Chart, Series, palette
from slm.errors import printable
from slm.files import atomic

DPI = 160
MAX_LEGEND = 12  # entries; more would cover the lines


def save(path: Path, charts: Sequence[Chart], title: str):
    """Draws charts, two in a row, on their first axis, into a PNG. Charts of the same series have one legend below.
    Raises OSError."""
    from matplotlib.figure import Figure  # pyplot would need a display

    columns = min(2, len(charts))
    rows = -(-len(charts) // columns)
    figure = Figure()
    places = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, chart in zip(places, charts):
        draw(axes, chart)
    for axes in places[len(charts) :]:
        axes.set_axis_off()
    width, height = (5.0, 3.4) if columns > 1 else (7.2, 4.4)  # inches of a chart with its margins
    below, entries = 0.55, [axes.get_legend_handles_labels()[1] for axes in places[: len(charts)]]
    if len(charts) > 1 and 1 < len(entries[0]) <= MAX_LEGEND and entries.count(entries[0]) == len(charts):
        in_a_row = max(int(width * columns / (0.6 + 0.065 * max(map(len, entries[0])))), 1)
        below += 0.15 + 0.15 * -(-len(entries[0]) // in_a_row)
        add_legend(figure, places[0], loc="lower center", ncols=in_a_row, frameon=False)
    else:
        for axes, chart, its in zip(places, charts, entries):
            if 1 < len(its) <= MAX_LEGEND or chart.floor is not None:
                add_legend(axes, axes, loc="best" if chart.floor is None else "upper right")
    size = width * columns, height * rows + below - 0.55
    inner = width - 0.95, height - 0.95  # fixed margins: a layout engine would draw all texts twice
    figure.set_size_inches(size)
    figure.subplots_adjust(
        left=0.8 / size[0], right=1 - 0.15 / size[0], bottom=below / size[1], top=1 - 0.55 / size[1],
        wspace=0.95 / inner[0], hspace=0.95 / inner[1],
    )  # fmt: skip
    figure.suptitle(printable(title, 90), y=1 - 0.1 / size[1], fontsize=11, parse_math=False)
    write(path, figure)


def write(path: Path, figure):
    """Writes a PNG, without warnings of characters that no font has. Raises OSError."""
    with atomic.replacing(path) as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        figure.savefig(file, dpi=DPI, format="png")


def draw(axes, chart: Chart):
    """A chart on its first axis, without a legend."""
    name = next(iter(chart.axes))
    shown, colors = [series for series in chart.series if name in series.x], palette("light")
    if chart.axes[name].log:
        axes.set_xscale("log")
    if chart.log:
        axes.set_yscale("log")
    if chart.limits:
        axes.set_ylim(*chart.limits)
    for number, series in enumerate(shown):
        named = series.name not in [other.name for other in shown[:number]]
        _draw_series(axes, series, series.x[name], colors[series.color], named)
    if chart.floor is not None:
        axes.axhline(chart.floor, color="black", linestyle=":", linewidth=1.2, label=chart.floor_label or None)
    if chart.grid:
        _grid_ticks(axes, np.unique(np.concatenate([s.x[name] for s in shown if s.style in ("line", "failed")])))
    elif chart.axes[name].log:
        _few_numbers(axes.xaxis, axes.get_xlim())
    axes.set_xlabel(_text(chart.axes[name].label), parse_math=False)
    axes.set_ylabel(_text(chart.unit), parse_math=False)
    if chart.title:
        axes.set_title(_text(chart.title), fontsize=10, parse_math=False, y=1)
    axes.grid(alpha=0.3)
    if chart.log:
        _few_numbers(axes.yaxis, axes.get_ylim(), (1, 1.5, 2, 3, 5, 7))


def add_legend(place, axes, **settings):
    """The names of the lines of `axes`, in a chart or a figure."""
    for text in place.legend(*axes.get_legend_handles_labels(), fontsize=8, **settings).get_texts():
        text.set_parse_math(False)


def _draw_series(axes, series: Series, x: np.ndarray, color: str, named: bool):
    if series.style == "failed":
        axes.plot(x, np.full(len(x), 0.97), "x", color=color, transform=axes.get_xaxis_transform())
    elif series.style == "optimum":
        if np.isfinite(x[1:]).all():
            axes.errorbar(
                x[0], series.y[0], xerr=[[x[0] - x[1]], [x[2] - x[0]]], fmt="none", ecolor=color, capsize=4, zorder=4
            )
        axes.plot(x[0], series.y[0], "D", color=color, markersize=7, markeredgecolor="white", zorder=5)
    else:
        marker = "o" if len(x) == 1 or (series.style == "line" and len(x) <= 40) else None
        width, label = 1.1 if series.style == "thin" else 1.7, _text(series.name) if named else None
        axes.plot(x, series.y, color=color, marker=marker, markersize=3.5, linewidth=width, label=label)
        if series.low is not None and series.high is not None:
            axes.fill_between(x, series.low, series.high, color=color, alpha=0.2, linewidth=0 if len(x) > 1 else 2)


def _text(text: str) -> str:
    """The text without control characters; without a leading underscore, which would hide it from a legend."""
    return printable(text, 60).lstrip("_") or "-"


def _grid_ticks(axes, values: np.ndarray):
    """The values of a sweep as ticks, every second or third of them if there are many."""
    from matplotlib.ticker import NullLocator

    shown = values[:: -(-len(values) // 9)]
    axes.set_xticks(shown, [f"{value:.4g}" for value in shown])
    axes.xaxis.set_minor_locator(NullLocator())


def _few_numbers(axis, limits: tuple[float, float], steps: tuple[float, ...] = (1, 2, 5)):
    """Some steps of each power of ten as numbers, where a logarithmic axis spans less than two decades: matplotlib
    names the powers alone, or so many numbers that they overlap."""
    from matplotlib.ticker import LogFormatterSciNotation, LogLocator

    low, high = limits
    if 0 < low < high < 100 * low:
        short = high < 1e4
        axis.set_major_locator(LogLocator(subs=steps if short else (1, 2, 5)))
        axis.set_major_formatter("{x:g}" if short else LogFormatterSciNotation(minor_thresholds=(2, 2)))
        axis.set_minor_formatter("")


def heat_map(path: Path, chart: tuple[str, str, list, list, np.ndarray], unit: str, title: str):
    """A PNG of a table of means: keys of rows and columns, their values, and the means (rows, columns), NaN if none."""
    from matplotlib.figure import Figure

    row_key, column_key, rows, columns, means = chart
    figure = Figure(figsize=(min(2.5 + 0.75 * len(columns), 14), min(1.8 + 0.5 * len(rows), 10)), layout="constrained")
    axes = figure.subplots()
    picture = axes.imshow(shades(means), cmap="viridis_r", aspect="auto", vmin=0, vmax=1)
    axes.set_xticks(range(len(columns)), [_text(str(value)) for value in columns])
    axes.set_yticks(range(len(rows)), [_text(str(value)) for value in rows])
    axes.set_xlabel(_text(column_key), parse_math=False)
    axes.set_ylabel(_text(row_key), parse_math=False)
    if len(rows) * len(columns) <= 150:
        inks = ink_on(picture.cmap(shades(means)))
        for (row, column), mean in np.ndenumerate(means):
            text, ink = (f"{mean:.4g}", inks[row, column]) if np.isfinite(mean) else ("failed", "red")
            axes.text(column, row, text, ha="center", va="center", fontsize=8, color=ink)
    axes.set_title(f"{_text(unit)}: {_text(title)}", fontsize=10, parse_math=False)
    write(path, figure)


def ink_on(colors: np.ndarray) -> np.ndarray:
    """black or white (...), whichever is legible on colors (..., RGBA)."""
    return np.where(colors[..., :3] @ (0.299, 0.587, 0.114) < 0.5, "white", "black")


def shades(means: np.ndarray) -> np.ndarray:
    """Ranks of the means between 0 (lowest) and 1, for colors: one diverged run would leave all others equal."""
    finite = np.isfinite(means)
    order = np.full(means.shape, np.nan)
    values = np.unique(means[finite])
    order[finite] = np.searchsorted(values, means[finite]) / max(len(values) - 1, 1)
    return order
