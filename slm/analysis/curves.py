"""What a run has measured, as arrays: metrics.jsonl against steps, tokens, FLOPs and seconds."""

from array import array
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from slm.files import jsonl
from slm.security import is_number

MAX_NAMES = 2000  # metrics of one file
AXES = {"steps": "optimizer steps", "tokens": "tokens", "flops": "FLOPs", "seconds": "seconds of training"}


@dataclass(frozen=True)
class Curves:
    """The metrics of a run folder: per name the steps and the values, both (N,). `flops_per_token` is of run.json."""

    values: dict[str, tuple[np.ndarray, np.ndarray]]
    flops_per_token: float | None = None
    lines: int = 0

    def __contains__(self, name: str) -> bool:
        return name in self.values

    @cached_property
    def axes(self) -> list[str]:
        """The axes of AXES that this run has recorded."""
        known = {"tokens": "train/tokens" in self, "seconds": "seconds" in self}
        known["flops"] = known["tokens"] and bool(self.flops_per_token)
        return [axis for axis in AXES if known.get(axis, True)]

    def at(self, steps: np.ndarray) -> dict[str, np.ndarray]:
        """Those steps on every axis; between two lines of metrics.jsonl in proportion to the steps."""
        found = {"steps": steps}
        for axis, name in (("tokens", "train/tokens"), ("flops", "train/tokens"), ("seconds", "seconds")):
            if axis in self.axes:
                known, values = self.values[name]
                known, values = np.insert(known, 0, 0), np.insert(values, 0, 0.0)
                found[axis] = np.interp(steps, known, values) * (self.flops_per_token if axis == "flops" else 1)
        return found


def read(folder: Path, flops_per_token: Any = None) -> Curves:
    """The curves of a run folder, from its metrics.jsonl; empty without one. What is not a number is left out."""
    found: dict[str, tuple[array, array]] = {}
    lines = 0
    for line in jsonl.lines(folder / "metrics.jsonl"):
        lines, step = lines + 1, line["step"]
        for name, value in line.items():
            if is_number(value) and name != "step" and abs(step) < 2**53:
                if name not in found:
                    if len(found) == MAX_NAMES:
                        continue
                    found[name] = array("d"), array("d")
                found[name][0].append(step)
                found[name][1].append(value)
    usable = is_number(flops_per_token) and 0 < flops_per_token < 1e30
    return Curves(
        {name: (np.array(steps), np.array(values)) for name, (steps, values) in found.items()},
        float(flops_per_token) if usable else None,
        lines,
    )


def thinned(values: np.ndarray, limit: int) -> np.ndarray:
    """Indices of at most `limit` values: the lowest and the highest of each of limit / 2 stretches, and both ends."""
    if len(values) <= limit:
        return np.arange(len(values))
    edges = np.linspace(0, len(values), max(limit // 2 - 1, 1) + 1).astype(int)
    kept = {0, len(values) - 1}
    for start, end in pairwise(edges):
        kept |= {start + int(values[start:end].argmin()), start + int(values[start:end].argmax())}
    return np.array(sorted(kept))
