"""The charts of a run, from its metrics."""

import re
from dataclasses import replace

import numpy as np

from slm.analysis.charts import Axis, Chart, Series, colors
from slm.analysis.curves import AXES, Curves, thinned

POINTS = 600  # of a line; of 100 lines in one chart, 60
MAX_OTHERS = 24  # charts of further metrics
UNITS = {
    "train/loss": "nats per token",
    "val/loss": "nats per token",
    "train/lr": "learning rate",
    "train/grad_norm": "norm before clipping",
    "tokens_per_second": "tokens per second",
    "val/bits_per_byte": "bits per byte of text",
    "val/text_bits_per_byte": "bits per byte of text",
    "val/excess_bits_per_story": "bits per story",
    "val/excess": "bits per story",
    "sample": "share of samples",
    "device/memory_gb": "GB (10^9 bytes)",
    "device/utilization": "per cent",
    "mfu": "share of the device's peak",
    "weight_norm": "Euclidean norm",
    "grad_norm": "Euclidean norm",
    "update_norm": "Euclidean norm",
    "update_ratio": "norm of update / norm of weights",
    "activation_rms": "root mean square",
    "dead_share": "share of hidden units",
    "mean": "mean",
    "std": "standard deviation",
    "rms": "root mean square",
    "zeros": "share of zeros",
    "max_abs": "largest absolute value",
    "attention_entropy": "nats",
    "attention_entropy_min": "nats",
    "gradient_noise_scale": "windows",
}
MAIN = {  # title -> metrics
    "Loss": ("train/loss", "val/loss"),
    "Bits per byte": ("val/bits_per_byte", "val/text_bits_per_byte"),
    "Learning rate": ("train/lr",),
    "Gradient norm": ("train/grad_norm",),
    "Throughput": ("tokens_per_second",),
    "Memory": ("device/memory_gb",),
}
LAYERED = ("dynamics/", "activations/")
LEFT_OUT = {"train/tokens", "seconds", "val/perplexity", "val/floor_bits_per_byte"}  # axes, and other views of a chart


def main_charts(curves: Curves) -> list[Chart]:
    """Loss, bits per byte, learning rate, gradient norm, throughput: those that were measured."""
    floors = {"Loss": loss_floor(curves), "Bits per byte": last(curves, "val/floor_bits_per_byte")}
    charts = []
    for title, names in MAIN.items():
        if found := [name for name in names if name in curves]:
            charts.append(_chart(curves, title, UNITS[names[0]], found, floor=floors.get(title)))
        if title == "Bits per byte":
            charts += source_charts(curves)[:1]
    return charts


def source_charts(curves: Curves) -> list[Chart]:
    """For a mixture a chart per metric of its validation, a line per source and one of all; bits per byte first."""
    sources = sources_of(curves)
    charts = []
    for metric in ("bits_per_byte", "loss", "text_bits_per_byte"):
        names = [f"val/{place}{metric}" for place in ("", *(f"{source}/" for source in sources))]
        if sources and (found := [name for name in names if name in curves]):
            chart = _chart(curves, f"{metric.replace('_', ' ')} of each source".capitalize(), UNITS[names[0]], found)
            labels = dict(zip(names, ("all", *sources)))
            charts.append(replace(chart, series=[replace(s, name=labels[n]) for n, s in zip(found, chart.series)]))
    return charts


def sources_of(curves: Curves) -> list[str]:
    """The names of the sources of a mixture; empty for any other run."""
    return sorted(name.split("/")[1] for name in curves.values if re.fullmatch("val/[^/]+/perplexity", name))


def loss_charts(curves: Curves) -> list[Chart]:
    """The losses with their lowest values in the legend, and the share of valid samples; empty without losses."""
    charts = [chart for chart in main_charts(curves) if chart.title == "Loss"]
    for chart in charts:
        for place, line in enumerate(chart.series):
            at, steps = int(line.y.argmin()), line.x["steps"]
            chart.series[place] = replace(line, name=f"{line.name} (lowest {line.y[at]:.3f} at step {steps[at]:.0f})")
    charts += source_charts(curves)[:1] if charts else []
    if charts and "sample/valid_share" in curves:
        valid = _chart(curves, "Valid samples", UNITS["sample"], ["sample/valid_share"])
        charts.append(replace(valid, limits=(-0.02, 1.02)))
    return charts


def other_charts(curves: Curves) -> list[Chart]:
    """All further metrics; those below one name, such as val/excess/hero, in one chart."""
    shown = {name for names in MAIN.values() for name in names} | LEFT_OUT
    shown |= {name for name in curves.values if name.startswith(tuple(f"val/{s}/" for s in sources_of(curves)))}
    groups: dict[str, list[str]] = {}
    for name in sorted(curves.values.keys() - shown):
        if not name.startswith(LAYERED):
            groups.setdefault(name.rpartition("/")[0] if name.count("/") > 1 else name, []).append(name)
    charts = [_chart(curves, name, UNITS.get(name, ""), names) for name, names in list(groups.items())[:MAX_OTHERS]]
    return source_charts(curves)[1:] + charts


def dynamics_charts(curves: Curves) -> list[Chart]:
    """A chart per quantity of dynamics/<tensor or block>/<quantity>, a line per tensor or block, by depth; likewise
    of activations/<block>/<part>/<statistic>, whose quantity is the part's statistic."""
    groups: dict[str, list[str]] = {}
    for name in sorted(curves.values, key=natural):
        if name.startswith(LAYERED):
            groups.setdefault(name.split("/", 2)[2] if name.count("/") > 1 else name, []).append(name)
    return [
        _chart(curves, quantity, UNITS.get(quantity.rpartition("/")[2], ""), names, layers=True)
        for quantity, names in list(groups.items())[: 2 * MAX_OTHERS]
    ]


def natural(name: str) -> list:
    """A key that sorts block 2 before block 10."""
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d{1,18})", name)]


def loss_floor(curves: Curves) -> float | None:
    """The entropy of the validation stories in nats per token; None for corpora of unknown entropy."""
    loss, bits, floor = (last(curves, f"val/{name}") for name in ("loss", "bits_per_byte", "floor_bits_per_byte"))
    return loss * floor / bits if loss and bits and floor else None


def last(curves: Curves, name: str) -> float | None:
    return float(curves.values[name][1][-1]) if name in curves else None


def run_series(curves: Curves, name: str, label: str, color: str, limit: int = POINTS, **style) -> Series:
    """One metric of a run on all its axes, at most `limit` points of it."""
    steps, values = curves.values[name]
    kept = thinned(values, limit)
    return Series(label, curves.at(steps[kept]), values[kept], color, **style)


def _chart(
    curves: Curves, title: str, unit: str, names: list[str], floor: float | None = None, layers: bool = False
) -> Chart:
    limit = max(40, min(POINTS, 6000 // len(names)))
    common = names[0].rpartition("/")[0] + "/" if len(names) > 1 and not layers else ""
    series = []
    for name, color in zip(names, colors(len(names), ordered=layers and len(names) > 2)):
        label = name.split("/")[1] if layers else name
        label = label if layers or title in MAIN else label.removeprefix(common)
        style = "thin" if name.startswith("train/") or name == "tokens_per_second" else "line"
        series.append(run_series(curves, name, label or name, color, limit, style="line" if layers else style))
    values = np.concatenate([line.y for line in series])
    log = bool((floor and floor > 0) or (layers and (values > 0).all() and values.max() > 20 * values.min()))
    limits = None
    if floor and (validated := [line.y for line in series if line.name.startswith("val/")]):
        limits = 0.95 * floor, max(4 * floor, *(1.1 * values.max() for values in validated))
    axes = {axis: Axis(AXES[axis]) for axis in curves.axes}
    label = f"floor {floor:.4g}: the entropy of the corpus" if floor else ""
    return Chart(title, unit, axes, series, log and values.min() > 0, limits, floor, label)
