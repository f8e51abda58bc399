"""Windows of several sources in one order.

Shapes: B windows of a microbatch, S sources.
"""

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from slm.corpora import Split
from slm.corpora.mixture import Mixture
from slm.data.order import Order, make_order
from slm.data.quotas import Quotas
from slm.data.store import TokenStore
from slm.data.windows import Splits
from slm.errors import UserError
from slm.loss import IGNORE

Sizes = Mapping[str, tuple[int, float]]  # source -> its windows, and their mean number of targets


class MixtureOrder(Order):
    """The positions of a training divided among the orders of S sources: index i * S + s is index i of source s."""

    def __init__(self, orders: Sequence[Order], quotas: Quotas):
        self.orders, self.quotas = orders, quotas

    def _from(self, start: int) -> Iterator[int]:
        counts = self.quotas.counts(start)
        own = [order.indices(count) for order, count in zip(self.orders, counts)]
        for source in self.quotas.sources(counts):
            yield next(own[source]) * len(own) + source

    def targets_before(self, position: int) -> int:
        counts = self.quotas.counts(position)
        return sum(order.targets_before(count) for order, count in zip(self.orders, counts))


class Joined(Dataset):
    """The windows of S sources: index i * S + s is index i of source s. Shorter rows of a batch end in IGNORE."""

    def __init__(self, parts: Sequence[Dataset]):
        self.parts = parts
        self.context, self.longest = parts[0].context, max(part.longest for part in parts)

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def __getitems__(self, indices: list[int]) -> Tensor:
        """Ids (B, T + 1), int64, where T is the number of targets of the longest."""
        found = []
        for source, part in enumerate(self.parts):
            rows = [row for row, index in enumerate(indices) if index % len(self.parts) == source]
            if rows:
                found.append((rows, part.__getitems__([indices[row] // len(self.parts) for row in rows])))
        ids = torch.full((len(indices), max(part.shape[1] for _, part in found)), IGNORE)
        for rows, part in found:
            ids[rows, : part.shape[1]] = part
        return ids


@dataclass(frozen=True)
class Stores:
    """The token stores of several sources as one."""

    parts: Mapping[str, TokenStore]
    corpus: str  # the fingerprint of the mixture

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """The counts of all sources together."""
        manifests = [store.manifest for store in self.parts.values()]
        counted = ("documents", "bytes", "tokens", "lost_bytes")
        splits = {
            split: {key: sum(its["splits"][split][key] for its in manifests) for key in counted}
            for split in ("train", "validation")
        }
        return {"corpus": self.corpus, "tokenizer": manifests[0]["tokenizer"], "splits": splits}

    def tokens(self, split: Split) -> int:
        return sum(store.tokens(split) for store in self.parts.values())

    def eos_is_trained(self, context: int) -> bool:
        return any(store.eos_is_trained(context) for store in self.parts.values())


@dataclass(frozen=True)
class MixedSplits(Splits):
    """The windows of all sources of a mixture, for a run that reads so many `positions`."""

    mixture: Mixture = field(default_factory=lambda: Mixture(sources={}))
    parts: Mapping[str, Splits] = field(default_factory=dict)
    positions: int = 1

    @cached_property
    def sizes(self) -> Sizes:
        return {name: (len(part.chosen), part.targets_per_window) for name, part in self.parts.items()}

    @property
    def targets_per_window(self) -> float:
        """The mean over a run in which no source ends before the others."""
        means = np.array([mean for _, mean in self.sizes.values()])
        times, shares = zip(*window_shares(self.mixture, self.sizes))
        return float(np.trapezoid([*(np.array(shares) @ means), np.array(shares[-1]) @ means], [*times, 1.0]))

    @cached_property
    def quotas(self) -> Quotas:
        return make_quotas(self.mixture, self.sizes, self.positions)

    def by_source(self) -> dict[str, Splits]:
        return dict(self.parts)

    def over(self, positions: int) -> Self:
        return replace(self, positions=positions)

    def order(self, seed: int) -> Order:
        return MixtureOrder([part.order(seed_of(seed, name)) for name, part in self.parts.items()], self.quotas)

    def record(self) -> dict[str, Any]:
        """What decides the order, for run.json."""
        knots = window_shares(self.mixture, self.sizes)
        return {
            name: {
                "corpus": part.store.manifest["corpus"],
                "windows": (windows := len(part.chosen)),
                "order": part.order_name,
                "arrangements": part.arrangements,
                "shares": [[time * self.positions, shares[number]] for time, shares in knots],
                "limit": limit_of(self.mixture, name, windows),
            }
            for number, (name, part) in enumerate(self.parts.items())
        }


def recorded_order(sources: Mapping[str, Any], seed: int) -> MixtureOrder:
    """The order of a run from `sources` of its run.json. Raises: UserError: if they are damaged."""
    try:
        orders = [
            make_order(its["order"], np.broadcast_to(1, its["windows"]), seed_of(seed, name), its["arrangements"])
            for name, its in sources.items()
        ]
        knots = [
            (places[0][0], [share for _, share in places])
            for places in zip(*(its["shares"] for its in sources.values()))
        ]
        limits = [math.inf if its["limit"] is None else its["limit"] for its in sources.values()]
        return MixtureOrder(orders, Quotas(knots, limits))
    except (TypeError, ValueError, KeyError, IndexError, AttributeError, ArithmeticError):
        raise UserError("run.json is damaged: its sources are not valid") from None


def mixed(mixture: Mixture, parts: Mapping[str, Splits]) -> MixedSplits:
    """The windows of the sources of a mixture, `parts`, with its weights."""
    train = Joined([part.chosen_windows for part in parts.values()])
    return MixedSplits(
        store=Stores({name: part.store for name, part in parts.items()}, mixture.fingerprint()),
        train=train,
        validation=Joined([part.validation for part in parts.values()]),
        chosen=range(len(train)),
        mixture=mixture,
        parts=parts,
    )


def window_shares(mixture: Mixture, sizes: Sizes) -> list[tuple[float, list[float]]]:
    """The share of each source in the windows, at shares of the steps. Weights are of targets."""
    found = []
    for time in mixture.shares_of_steps:
        weights = [
            windows if (source := mixture.sources[name]).weight is None else source.weight_at(time) / targets
            for name, (windows, targets) in sizes.items()
        ]
        found.append((time, [weight / sum(weights) for weight in weights]))
    return found


def limit_of(mixture: Mixture, source: str, windows: int) -> int | None:
    """The most windows of a source that a run reads, by its epochs."""
    epochs = mixture.sources[source].epochs
    return None if epochs is None else max(1, round(epochs * windows))


def make_quotas(mixture: Mixture, sizes: Sizes, positions: int) -> Quotas:
    """The quotas of a run that reads so many windows."""
    limits = [limit_of(mixture, name, windows) for name, (windows, _) in sizes.items()]
    knots = [(time * positions, shares) for time, shares in window_shares(mixture, sizes)]
    return Quotas(knots, [math.inf if limit is None else limit for limit in limits])


def passes(mixture: Mixture, sizes: Sizes, positions: int, batch_windows: int) -> dict[str, float]:
    """How often a run that reads so many windows reads each source.

    Raises: UserError: if the epochs of all sources end a step or more before.
    """
    quotas = make_quotas(mixture, sizes, positions)
    if quotas.end <= positions - batch_windows:
        raise UserError(
            f"the epochs of data.sources allow {quotas.end:,.0f} windows, and the run reads {positions:,}: give "
            f"budget.steps={max(int(quotas.end / batch_windows), 1)}, or epochs=null for a source"
        )
    return {name: count / windows for (name, (windows, _)), count in zip(sizes.items(), quotas.counts(positions))}


def seed_of(seed: int, source: str) -> int:
    """Of the order of a source: another for each name, whatever the other sources are."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{source}".encode()).digest()[:4])
