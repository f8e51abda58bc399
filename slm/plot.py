"""Plots of a run, from the files in its folder."""

import sys
import warnings
from pathlib import Path

from slm.errors import printable
from slm.files import atomic, jsonl


def loss_curve(folder: Path) -> Path | None:
    """Draws loss.png from metrics.jsonl and returns its path; None without losses, or with a warning if it fails."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about characters that no font has
            return draw(folder)
    except Exception as error:  # of a library or a disk: a run does not end with its picture
        reason = printable(" ".join(f"{type(error).__name__}: {error}".split()), 300)
        print(f"warning: loss.png was not drawn ({reason})", file=sys.stderr)
        return None


def draw(folder: Path) -> Path | None:
    """loss.png: losses, on a corpus of known entropy its floor, and the share of valid samples."""
    logged = list(jsonl.lines(folder / "metrics.jsonl"))
    series = {
        name: [(event["step"], event[name]) for event in logged if event.get(name) is not None]
        for name in ("train/loss", "val/loss", "sample/valid_share")
    }
    valid = series.pop("sample/valid_share")
    if not any(series.values()):
        return None

    from matplotlib.figure import Figure  # pyplot would need a display

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    styles = {"train/loss": {"alpha": 0.6, "linewidth": 1}, "val/loss": {"marker": "o", "markersize": 4}}
    for name, points in series.items():
        if points:
            step, loss = min(points, key=lambda point: point[1])
            label = f"{name} (lowest {loss:.3f} at step {step})"
            axes.plot(*zip(*points, strict=True), label=label, **styles[name])
    if floor := entropy(logged):
        axes.axhline(floor, color="black", linestyle=":", label=f"floor {floor:.3f}: the entropy of the corpus")
        axes.set_yscale("log")  # the last improvements towards the floor are small
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("{x:g}")
        axes.set_ylim(0.95 * floor, max(4 * floor, *(loss for _, loss in series["val/loss"])))
    axes.set(xlabel="optimizer steps", ylabel="loss (nats per token)")
    axes.set_title(printable(folder.name, 80), parse_math=False)
    axes.grid(alpha=0.3)
    if valid:
        steps, shares = zip(*valid, strict=True)
        axes.plot([], [], "s:", color="tab:green", markersize=4, label="valid samples")  # for the legend
        right = axes.twinx()
        right.plot(steps, [100 * share for share in shares], "s:", color="tab:green", markersize=4)
        right.set(ylim=(0, 100), ylabel="valid samples (%)")
    axes.legend()
    with atomic.replacing(folder / "loss.png") as file:
        figure.savefig(file, dpi=120)
    return folder / "loss.png"


def entropy(logged: list[dict]) -> float | None:
    """The entropy of the validation stories in nats per token; None for corpora of unknown entropy."""
    for event in reversed(logged):
        if event.get("val/floor_bits_per_byte") and event.get("val/bits_per_byte"):
            return event["val/loss"] * event["val/floor_bits_per_byte"] / event["val/bits_per_byte"]
    return None
