"""Jumps of the loss, from the logs of a run folder."""

import math
import re
import statistics
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from slm.errors import UserError
from slm.files import atomic, jsonl

RECENT = 10  # logged losses
NUMBER = r"\d+(?:\.\d+)?(?:e[+-]?\d+)?"


def largest_jump(folder: Path) -> tuple[int, str]:
    """The step at which the loss rose most above the recent ones, and that as a sentence.

    Of the logged losses, the Guard's events, and crash.json. Raises UserError if no loss rose.
    """
    found = [*jumps(folder), *guarded(folder)]
    if not found:
        raise UserError(f"the loss of {folder} never rose above the recent ones; give a step")
    _, step, loss, before, source = max(found, key=lambda jump: jump[0])
    after = "" if before is None else f" after {before:.4g} in the steps before"
    return step, f"largest jump of the loss: step {step}, {loss:.4g}{after} ({source})"


def jumps(folder: Path) -> Iterator[tuple[float, int, float, float, str]]:
    """Rise, step, loss and median for each logged train/loss above the median of the RECENT logged ones before it.

    A mean would be far above the recent losses where they fall fast, at the start of a training.
    """
    recent: deque[float] = deque(maxlen=RECENT)
    for line in jsonl.lines(folder / "metrics.jsonl"):
        loss = line.get("train/loss")
        if isinstance(loss, int | float):
            if recent and loss > (median := statistics.median(recent)):
                yield loss - median, line["step"], loss, median, "train/loss in metrics.jsonl"
            recent.append(loss)


def guarded(folder: Path) -> Iterator[tuple[float, int, float, float | None, str]]:
    """The same from what the Guard wrote; a loss that is not finite rose by infinity."""
    records = [(line, "events.jsonl", line.get("facts")) for line in jsonl.lines(folder / "events.jsonl")]
    crash = atomic.read_object(folder / "crash.json") or {}
    records.append((crash, "crash.json", crash.get("reason")))
    for record, source, text in records:
        found = re.match(rf"loss ({NUMBER}|nan|inf)(?: after a mean of ({NUMBER}))?", str(text))
        if found and isinstance(record.get("step"), int):
            loss, mean = float(found[1]), float(found[2]) if found[2] else None
            if mean is not None:
                yield loss - mean, record["step"], loss, mean, source
            elif not math.isfinite(loss):
                yield math.inf, record["step"], loss, None, source
