"""The windows of a training step, from seed and position alone, with the loss of each of their tokens."""

import codecs
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from slm.data.store import TokenStore
from slm.data.windows import Documents, Windows, split_windows
from slm.errors import UserError
from slm.files import run_folder
from slm.generation.text_loss import window_nats
from slm.loss import IGNORE
from slm.model import GPT
from slm.tokenizers import Tokenizer

MARKED = 0.05, 3  # share of a window's tokens that are the most surprising ones, and the least number of them


@dataclass(frozen=True)
class Reading:
    """One window of a step. Token t + 1 is the target at position t."""

    index: int  # of the window in the training split
    document: int  # of the training split, that its first token is in
    offset: int  # of its first token in that document, in tokens
    tokens: list[str]  # texts; a token that ends within a character has none, the next one has the character
    nats: list[float]  # of tokens[1:]

    @property
    def mean(self) -> float:
        return sum(self.nats) / len(self.nats)

    def __str__(self) -> str:
        place = f"window {self.index:,}, document {self.document:,} from token {self.offset:,}"
        return f"{place}: {self.mean:.4f} nats per token"

    def worst(self) -> list[int]:
        """The numbers of the most surprising tokens, the worst first."""
        share, least = MARKED
        count = max(least, round(share * len(self.nats)))
        return sorted(range(1, len(self.tokens)), key=lambda t: -self.nats[t - 1])[:count]


def step_readings(
    info: dict[str, Any], step: int, model: GPT, tokenizer: Tokenizer, store: TokenStore
) -> list[Reading]:
    """The windows of a step of the run with this run.json, in their order.

    Raises: UserError: if the store has another number of windows than the run read.
    """
    data = info["config"]["data"]
    settings = {key: data[key] for key in ("layout", "train_windows", "order", "stride") if key in data}
    splits = split_windows(store, tokenizer.eos, context=model.config.context, **settings)
    splits = replace(splits, offsets=info.get("offsets", 1))
    windows, chosen = splits.train, splits.chosen
    if len(chosen) != info["windows"]:
        raise UserError(f"{store.folder} has {len(chosen):,} windows, and the run read {info['windows']:,}")
    order = splits.order(info["seed"]).indices(run_folder.windows_until(info, step - 1))
    indices = [*itertools.islice(order, data["batch_windows"])]
    if len(chosen) < len(windows):
        indices = [chosen[index] for index in indices]
    ids = windows.__getitems__(indices)  # (B, T + 1)
    nats = window_nats(model, ids)
    readings = []
    for index, place, row, its in zip(indices, places(windows, indices, tokenizer.eos), ids.tolist(), nats.tolist()):
        kept = [token for token in row if token != IGNORE]
        readings.append(Reading(index, *place, texts(tokenizer, kept), its[: len(kept) - 1]))
    return readings


def places(windows: Windows | Documents, indices: Sequence[int], eos: int) -> Iterable[tuple[int, int]]:
    """The document of each window's first token, and the place of that token in it."""
    if isinstance(windows, Documents):
        return [(windows.first_document(index), 0) for index in indices]
    ends = np.concatenate(
        [np.flatnonzero(shard == eos) + start for shard, start in zip(windows.shards, windows.starts)]
    )
    starts = np.append(0, ends + 1)  # of documents, in ids of the split
    firsts = np.array([windows.start(index) for index in indices])
    documents = np.searchsorted(starts, firsts, side="right") - 1
    return [*zip(documents.tolist(), (firsts - starts[documents]).tolist())]


def texts(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    """The text of each id. A character of several ids is that of the last one; a control id is <id>."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    found = []
    for token in ids:
        content = tokenizer.token_bytes(token)
        found.append(decoder.decode(content) if content else "<eos>" if token == tokenizer.eos else f"<{token}>")
    return found
