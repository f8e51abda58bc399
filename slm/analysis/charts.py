"""Charts as data: drawn by report.js in the page, and by matplotlib in slm.analysis.figures."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from slm.errors import UserError

# Okabe and Ito, "Color universal design", without yellow and black; lighter blue and green on a dark page
CATEGORIES = {
    "light": ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"],
    "dark": ["#4fa3e0", "#ee7b30", "#2fc296", "#e09cc2", "#f0b83c", "#8fd0f5"],
}
RAMP = 12  # shades of viridis, for ordered values
RAMP_ENDS = {"light": (0.0, 0.82), "dark": (0.3, 1.0)}  # of viridis: readable on white, on black


@dataclass(frozen=True)
class Axis:
    """A horizontal axis: its label with the unit, and whether it is logarithmic."""

    label: str
    log: bool = False


@dataclass(frozen=True)
class Series:
    """A line, an optimum with its interval (x, low and high on the x axis; one y), or places x of failed runs.

    x: per axis of the chart (N,), y: (N,), low and high: the band around y (N,). color: c0 to c5, or v0 to v11. Several
    lines may share their name, and with it their entry in the legend; `detail` then tells them apart.
    """

    name: str
    x: dict[str, np.ndarray]
    y: np.ndarray
    color: str = "c0"
    style: Literal["line", "thin", "optimum", "failed"] = "line"
    low: np.ndarray | None = None
    high: np.ndarray | None = None
    detail: str = ""


@dataclass(frozen=True)
class Chart:
    """One chart, whose horizontal axis may be chosen among `axes`."""

    title: str
    unit: str
    axes: dict[str, Axis]
    series: list[Series]
    log: bool = False
    limits: tuple[float, float] | None = None  # of y
    floor: float | None = None
    floor_label: str = ""
    grid: bool = False  # x has few values, those of a sweep, which are its ticks
    note: str = ""

    def plain(self) -> dict[str, Any]:
        """The chart as JSON for report.js, numbers rounded to six digits, what is not finite as null."""
        return {
            "title": self.title,
            "unit": self.unit,
            "axes": {name: [axis.label, axis.log] for name, axis in self.axes.items()},
            "log": bool(self.log),
            "limits": self.limits and list(map(float, self.limits)),
            "floor": self.floor,
            "floorLabel": self.floor_label,
            "grid": self.grid,
            "series": [_plain(series) for series in self.series],
        }


def along(charts: Sequence[Chart], axis: str) -> list[Chart]:
    """The charts with this axis first, on which they are drawn. Raises UserError if it was not recorded."""
    if missing := [chart for chart in charts if axis not in chart.axes]:
        raise UserError(f"--x {axis} was not recorded; the curves have {', '.join(missing[0].axes)}")
    return [replace(chart, axes={axis: chart.axes[axis], **chart.axes}) for chart in charts]


def _plain(series: Series) -> dict[str, Any]:
    band = series.low is not None and series.high is not None
    return {
        "name": series.name,
        "color": series.color,
        "style": series.style,
        "detail": series.detail or series.name,
        "x": {axis: rounded(values) for axis, values in series.x.items()},
        "y": rounded(series.y),
        **({"low": rounded(series.low), "high": rounded(series.high)} if band else {}),
    }


def rounded(values: Sequence[float]) -> list[float | int | None]:
    """Six significant digits, whole numbers as such."""
    short = (float(f"{value:.6g}") for value in values)
    return [None if not np.isfinite(v) else int(v) if v.is_integer() and abs(v) < 1e15 else v for v in short]


def palette(theme: Literal["light", "dark"]) -> dict[str, str]:
    """Name of a color -> #rrggbb."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    ramp = colormaps["viridis"](np.linspace(*RAMP_ENDS[theme], RAMP))
    shades = {f"v{i}": to_hex(color) for i, color in enumerate(ramp)}
    return {f"c{i}": color for i, color in enumerate(CATEGORIES[theme])} | shades


def colors(count: int, ordered: bool = False) -> list[str]:
    """Names of colors for so many lines: of the ramp if their order means something or there are many."""
    if count <= len(CATEGORIES["light"]) and not ordered:
        return [f"c{i}" for i in range(count)]
    return [f"v{round(i * (RAMP - 1) / max(count - 1, 1))}" for i in range(count)]
