"""The windows of a training step, from seed and position alone, with the loss of each of their tokens."""

import codecs
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from slm import tokenizers
from slm.chat_template import chat_template
from slm.data.instructions import Answers
from slm.data.mixture import recorded_order
from slm.data.store import TokenStore
from slm.data.windows import Documents, Rearranged, Splits, Windows, split_windows
from slm.errors import UserError
from slm.files import run_folder
from slm.generation.text_loss import window_nats
from slm.loss import IGNORE, ids_of
from slm.model import GPT
from slm.tokenizers import Tokenizer

WINDOWS = "layout", "train_windows", "order", "stride", "batch_windows"  # keys of data that decide them
MARKED = 0.05, 3  # share of a window's tokens that are the most surprising ones, and the least number of them


@dataclass(frozen=True)
class Reading:
    """One window of a step. Token t + 1 is the target at position t."""

    index: int  # of the window in the training split
    document: int  # of the training split, that its first token is in
    offset: int  # of its first token in that document, in tokens
    tokens: list[str]  # texts; a token that ends within a character has none, the next one has the character
    nats: list[float]  # of tokens[1:]
    source: str = ""  # of a mixture

    @property
    def mean(self) -> float:
        return sum(self.nats) / len(self.nats)

    def __str__(self) -> str:
        place = f"window {self.index:,}, document {self.document:,} from token {self.offset:,}"
        return f"{self.source} {place}: {self.mean:.4f} nats per token".lstrip()

    def worst(self) -> list[int]:
        """The numbers of the most surprising tokens, the worst first."""
        share, least = MARKED
        count = max(least, round(share * len(self.nats)))
        return sorted(range(1, len(self.tokens)), key=lambda t: -self.nats[t - 1])[:count]


def step_readings(
    info: dict[str, Any], step: int, model: GPT, tokenizer: Tokenizer, stores: Mapping[str, TokenStore]
) -> list[Reading]:
    """The windows of a step of the run with this run.json, in their order. `stores`: of each source; "" for one corpus.

    Raises: UserError: if a store has another number of windows than the run read.
    """
    names, start = list(stores), run_folder.windows_until(info, step - 1)
    parts = [splits_read(info, name, model.config.context, tokenizer, store) for name, store in stores.items()]
    order = recorded_order(info["sources"], info["seed"]) if "sources" in info else parts[0].order(info["seed"])
    indices = [*itertools.islice(order.indices(start), info["config"]["data"]["batch_windows"])]
    readings: list[Reading | None] = [None] * len(indices)
    for source, splits in enumerate(parts):
        rows = [row for row, index in enumerate(indices) if index % len(parts) == source]
        own = [indices[row] // len(parts) for row in rows]
        if len(splits.chosen) < len(splits.train):
            own = [splits.chosen[index] for index in own]
        for row, reading in zip(rows, window_readings(splits.train, own, model, tokenizer, names[source])):
            readings[row] = reading
    return readings


def splits_read(info: dict[str, Any], source: str, context: int, tokenizer: Tokenizer, store: TokenStore) -> Splits:
    """The windows that a run has of a source, "" for its one corpus. Raises UserError for another number of them."""
    data = info["config"]["data"]
    settings = {key: data[key] for key in WINDOWS if key in data}
    if layout := source and data["sources"][source].get("layout"):
        settings["layout"] = layout
    if settings.get("layout") == "instructions" and (chat := chat_template(info["config"], source)):
        settings["answers"] = Answers(tokenizers.pieces(tokenizer), chat)
    splits = split_windows(store, tokenizer.eos, context=context, **settings)
    facts = info["sources"][source] if source else info
    if len(splits.chosen) != facts["windows"]:
        raise UserError(f"{store.folder} has {len(splits.chosen):,} windows, and the run read {facts['windows']:,}")
    return replace(splits, arrangements=facts.get("arrangements", 1))


def window_readings(
    windows: Windows | Documents, indices: Sequence[int], model: GPT, tokenizer: Tokenizer, source: str
) -> Iterator[Reading]:
    """The windows with the loss of each token."""
    if not indices:
        return
    ids = windows.__getitems__(indices)  # (B, T + 1)
    lengths, ids = ((ids != IGNORE).sum(1) - 1).tolist(), torch.where(ids == IGNORE, IGNORE, ids_of(ids))
    nats = window_nats(model, ids)
    rows = zip(indices, places(windows, indices, tokenizer.eos), lengths, ids.tolist(), nats.tolist())
    for index, place, length, row, its in rows:
        kept = row[: length + 1]
        yield Reading(index, *place, texts(tokenizer, kept), its[: len(kept) - 1], source)


def places(windows: Windows | Documents, indices: Sequence[int], eos: int) -> Iterable[tuple[int, int]]:
    """The document of each window's first token, and the place of that token in it."""
    if isinstance(windows, Documents | Rearranged):
        return [windows.place(index) for index in indices]
    store, split, *_ = windows.arguments
    starts = store.bounds(split, eos)  # of documents, in ids of the split
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
