"""The loss on held-out text: in all, by position, by frequency of the token in training, and how calibrated it is.

Shapes: N windows, T targets of a window, U units of the bootstrap, K groups of targets.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from slm.data.store import TokenStore
from slm.evaluation.intervals import Bootstrap, by_unit, scaled
from slm.evaluation.scores import TEMPERATURES, Scores
from slm.loss import text_sizes
from slm.tokenizers import Tokenizer, text_lengths

BINS = 15  # of confidence (Guo et al., arXiv:1706.04599)
COUNTED = 2**28  # train ids whose frequencies are counted
RANKS = 10, 100, 1000, 10_000  # bounds of the groups by frequency


class Targets:
    """The targets of all windows in a row, with the unit, the loss and the text of each."""

    def __init__(self, windows: Tensor, units: np.ndarray, scores: Scores, tokenizer: Tokenizer, lossless: bool):
        sizes, is_text = text_sizes(windows, torch.from_numpy(text_lengths(tokenizer)))
        kept = self.kept = scores.kept
        self.ids, self.position = windows[:, 1:].numpy()[kept], np.broadcast_to(np.arange(kept.shape[1]), kept.shape)
        self.lengths = np.broadcast_to(kept.sum(1, keepdims=True), kept.shape)[kept]  # of its window
        self.position = self.position[kept]
        _, self.units = np.unique(units[kept], return_inverse=True)
        self.nats, self.confidence, self.correct = (
            values[kept] for values in (scores.nats, scores.confidence, scores.correct)
        )
        self.sizes, self.is_text, self.lossless = sizes.numpy()[kept], is_text.numpy()[kept], lossless
        self.count = int(self.units.max()) + 1

    def sums(self, values: np.ndarray) -> np.ndarray:
        """Of a value per target, for each unit (U,)."""
        return np.bincount(self.units, values, self.count)

    def bits(self) -> np.ndarray:
        """Bits of each unit (U,)."""
        return self.sums(self.nats) / math.log(2)


def overall(targets: Targets, bootstrap: Bootstrap) -> dict[str, Any]:
    """Nats per token, perplexity, and bits per byte with the ends of documents, without them, and of them alone."""
    ones, ends = np.ones(len(targets.nats)), ~targets.is_text
    nats, size = bootstrap.ratio(targets.sums(targets.nats), targets.sums(ones)), targets.sums(targets.sizes)
    found: dict[str, Any] = {
        "tokens": len(targets.nats),
        "bytes": int(targets.sizes.sum()),
        "ends": int(ends.sum()),
        "nats": nats,
        "perplexity": scaled(nats, math.exp),
        "nats_per_end": bootstrap.ratio(targets.sums(targets.nats * ends), targets.sums(ends)) if ends.any() else None,
        "accuracy": bootstrap.ratio(targets.sums(targets.correct), targets.sums(ones)),
    }
    if targets.lossless and targets.sizes.any():
        text = targets.sums(targets.nats * targets.is_text) / math.log(2)
        found["bits_per_byte"] = bootstrap.ratio(targets.bits(), size)
        found["text_bits_per_byte"] = bootstrap.ratio(text, size)
    return found


def groups(targets: Targets, bootstrap: Bootstrap, of: np.ndarray, names: list[str]) -> list[dict[str, Any]]:
    """Nats per token of each group that has targets. `of`: the group of each target."""
    count = len(names)
    above, below = (by_unit(targets.units, v, of, count) for v in (targets.nats, np.ones(len(of))))
    return [
        {"group": name, "tokens": int(below[:, k].sum()), "nats": bootstrap.ratio(above[:, k], below[:, k])}
        for k, name in enumerate(names)
        if below[:, k].any()
    ]


def by_position(targets: Targets, bootstrap: Bootstrap, context: int) -> dict[str, Any]:
    """The loss by position in the window, in octaves, and the in-context gain.

    The gain is the mean loss at positions from 1/16 to 1/8 of the context minus that in the last half (Olsson et al.,
    arXiv:2209.11895, compare tokens 50 and 500 of 512), in windows that reach the last quarter.
    """
    octave = np.frexp(targets.position + 0.5)[1].clip(min=0)  # 0; 1; 2, 3; 4 to 7; ...
    starts = [0, *(2**k for k in range(int(octave.max())))]
    ends = [*starts[1:], context]
    names = [str(low) if high - low < 2 else f"{low}–{high - 1}" for low, high in zip(starts, ends)]
    early = (targets.position >= context // 16) & (targets.position < context // 8)
    late = targets.position >= context // 2
    reach = targets.lengths >= 3 * context // 4
    columns = [targets.sums(v * (part & reach)) for part in (early, late) for v in (targets.nats, np.ones(len(reach)))]
    difference: Callable[[np.ndarray], np.ndarray] = lambda s: s[:, 0] / s[:, 1] - s[:, 2] / s[:, 3]  # noqa: E731
    gain = bootstrap.estimate(np.stack(columns, 1), difference) if (late & reach).any() else None
    rows = groups(targets, bootstrap, octave, names)
    for row, low, high in zip(rows, starts, ends):
        row["from"], row["to"] = low, high - 1
    early_at, late_at = [context // 16, context // 8 - 1], [context // 2, context - 1]
    return {"groups": rows, "in_context_gain": gain, "early": early_at, "late": late_at}


def by_frequency(targets: Targets, bootstrap: Bootstrap, train: TokenStore, vocab_size: int) -> dict[str, Any]:
    """The loss by the rank of the target among all ids by their count in train."""
    counts, left = np.zeros(vocab_size, np.int64), COUNTED
    for shard in train.shards("train"):
        for start in range(0, min(len(shard), left), 2**24):
            counts += np.bincount(shard[start : min(start + 2**24, left)], minlength=vocab_size)
        left -= min(len(shard), left)
    rank = np.empty(vocab_size, np.int64)
    rank[np.argsort(-counts, kind="stable")] = np.arange(vocab_size)
    group = np.searchsorted(RANKS, rank, side="right")
    group[counts == 0] = len(RANKS) + 1
    lows = [1, *(bound + 1 for bound in RANKS)]
    names = [*(f"{low}–{bound}" for low, bound in zip(lows, RANKS)), f"{lows[-1]} and later", "not in train"]
    return {"counted": int(counts.sum()), "groups": groups(targets, bootstrap, group[targets.ids], names)}


def calibration(targets: Targets, scores: Scores, units: np.ndarray, bootstrap: Bootstrap) -> dict[str, Any]:
    """The reliability of the most probable id, the expected calibration error, and the temperature of the least loss.

    The error is the mean distance of confidence and accuracy over BINS equal bins, by their targets.
    """
    of = np.minimum((targets.confidence * BINS).astype(int), BINS - 1)
    columns = [targets.confidence, targets.correct.astype(float), np.ones(len(of))]
    sums = np.concatenate([by_unit(targets.units, column, of, BINS) for column in columns], 1)

    def error(sums: np.ndarray) -> np.ndarray:
        confidence, correct, count = np.split(sums, 3, 1)
        return np.abs(confidence - correct).sum(1) / count.sum(1)

    confidence, correct, count = np.split(sums.sum(0), 3)
    rows = [
        {"confidence": c / n, "accuracy": a / n, "tokens": int(n)} for c, a, n in zip(confidence, correct, count) if n
    ]
    return {"bins": rows, "ece": bootstrap.estimate(sums, error), **_best_temperature(scores, units, bootstrap)}


def _best_temperature(scores: Scores, units: np.ndarray, bootstrap: Bootstrap) -> dict[str, Any]:
    """By a parabola through the lowest point of the grid and its neighbours, in the logarithm of the temperature."""
    kept, used = scores.kept[: scores.tempered.shape[1]], scores.tempered
    _, of = np.unique(units[: len(kept)][kept], return_inverse=True)
    sums = np.stack([np.bincount(of, nats[kept]) for nats in used], 1)  # (U, K)
    logs = np.log(TEMPERATURES)

    def lowest(sums: np.ndarray) -> np.ndarray:
        place = sums.argmin(1).clip(1, len(logs) - 2)
        below, at, above = (np.take_along_axis(sums, place[:, None] + k, 1)[:, 0] for k in (-1, 0, 1))
        curve = above - 2 * at + below
        shift = np.where(curve > 0, (below - above) / (2 * np.where(curve > 0, curve, 1)), 0)
        return np.exp(logs[place] + shift.clip(-1, 1) * (logs[1] - logs[0]))

    own = bootstrap if len(sums) == bootstrap.weights.shape[1] else Bootstrap(len(sums), 0)
    found = own.estimate(sums, lowest)
    gain = (sums[:, TEMPERATURES == 1].sum() - sums.sum(0).min()) / kept.sum()
    return {"best_temperature": found, "temperature_gain_nats": float(gain), "temperature_tokens": int(kept.sum())}
