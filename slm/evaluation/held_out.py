"""The documents that a model is judged on, and their windows.

Shapes: N windows, T targets of a window.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
from torch import Tensor

from slm.chat_template import ChatTemplate
from slm.corpora import Corpus, Split
from slm.data.instructions import Answers
from slm.data.store import TokenStore
from slm.errors import UserError
from slm.generation.text_loss import padded, slices
from slm.loss import PROMPT
from slm.tokenizers import Tokenizer, pieces

FEW = 20  # with fewer documents, the units of a bootstrap are windows


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """The first documents of a split, as ids without eos."""

    name: str  # for people
    split: Split
    documents: list[np.ndarray]
    whole: bool  # these are all of the split
    has_ends: bool  # eos follows each document
    lossless: bool  # the ids restore the text
    layout: str  # packed, or documents in windows of their own: "documents" or "instructions"
    cut: bool = False  # documents longer than the context are cut, as in training; else they go on in further windows
    answers: Answers | None = None  # of conversations, the only targets

    def __post_init__(self):
        if not any(len(ids) for ids in self.documents):
            raise UserError(f"{self.name} has no text; give another file or split")

    @property
    def tokens(self) -> int:
        return sum(map(len, self.documents))

    def windows(self, context: int, eos: int) -> tuple[Tensor, np.ndarray]:
        """Ids (N, T + 1), filled with IGNORE, as in a validation, and the unit of each target (N, T).

        In the packed layout each id but the first is a target once, also in the last, incomplete window. In the others
        a document begins behind eos, and ids of prompts are PROMPT - id. A unit is a document, or a window if documents
        are few. Raises: UserError: if there is no target.
        """
        end = [np.array([eos])] if self.has_ends else []
        if self.layout == "packed":
            parts = [np.concatenate([ids, *end]) for ids in self.documents]
            stream, owners = np.concatenate(parts), np.repeat(np.arange(len(parts)), [*map(len, parts)])
            rows, units = slices(stream, context), slices(owners, context)
        else:
            parts = [np.append(eos, self._without_prompts(np.append(ids, eos))) for ids in self.documents]
            parts = [ids[: context + 1] for ids in parts] if self.cut else parts
            numbered = [(number, row) for number, ids in enumerate(parts) for row in slices(ids, context)]
            rows, units = [row for _, row in numbered], [np.full(len(row), number) for number, row in numbered]
        if not any((row[1:] >= 0).any() for row in rows):
            raise UserError(f"{self.name} has no target within the context: one token, or no answer; give more text")
        if len(self.documents) < FEW:
            units = [np.full(len(row), number) for number, row in enumerate(rows)]
        owner = np.zeros((len(rows), max(map(len, rows)) - 1), np.int64)
        for place, of in enumerate(units):
            owner[place, : len(of) - 1] = of[1:]
        return padded([row.astype(np.int64) for row in rows]), owner

    def _without_prompts(self, ids: np.ndarray) -> np.ndarray:
        """The ids of a document and its eos, marked where they are no targets."""
        return np.where(self.answers.of(ids, np.array([0, len(ids)])), ids, PROMPT - ids) if self.answers else ids

    def pieces(self, length: int) -> Iterator[np.ndarray]:
        """Disjoint stretches of up to `length` ids of single documents, at least a quarter as long, in their order."""
        for ids in self.documents:
            for start in range(0, len(ids), length):
                piece = ids[start : start + length]
                if start == 0 or len(piece) * 4 >= length:
                    yield piece


def from_store(
    name: str,
    store: TokenStore,
    split: Split,
    tokenizer: Tokenizer,
    tokens: int,
    layout: str,
    chat: ChatTemplate | None,
) -> HeldOut:
    """The first whole documents of a token store with at most so many ids; the beginning of the first, if longer.

    `chat`: of conversations, in which only the answers are targets.
    """
    total = store.tokens(split)
    stream = _first(store.shards(split), min(total, tokens))
    if store.has_ends:
        ends = np.flatnonzero(stream == tokenizer.eos)
        documents = np.split(stream, ends + 1)[: max(len(ends), 1)]
        documents = [ids[:-1] if len(ids) and ids[-1] == tokenizer.eos else ids for ids in documents]
    else:
        documents = [stream]
    return HeldOut(
        name=name,
        split=split,
        documents=documents,
        whole=total <= tokens,
        has_ends=store.has_ends,
        lossless=not store.manifest["splits"][split]["lost_bytes"],
        layout=layout,
        cut=layout != "packed",
        answers=chat and Answers(pieces(tokenizer), chat),
    )


def from_corpus(
    name: str,
    corpus: Corpus,
    split: Split,
    tokenizer: Tokenizer,
    tokens: int,
    layout: str,
    chat: ChatTemplate | None = None,
) -> HeldOut:
    """The same of a corpus, of which no more is read and encoded. Raises: UserError: from the corpus."""
    documents, lossless, room, whole = [], True, tokens, True
    for ids, exact in _encoded(corpus.documents(split), tokenizer):
        if len(ids) + 1 > room:
            whole = False
            documents += [] if documents else [ids[:room]]
            break
        documents.append(ids)
        room, lossless = room - len(ids) - 1, lossless and exact
    return HeldOut(
        name=name,
        split=split,
        documents=documents,
        whole=whole,
        has_ends=getattr(corpus, "has_ends", True),
        lossless=lossless,
        layout=layout,
        answers=chat and Answers(pieces(tokenizer), chat),
    )


def _encoded(texts: Iterable[str], tokenizer: Tokenizer) -> Iterator[tuple[np.ndarray, bool]]:
    """The ids of each text, and whether they restore it."""
    texts = iter(texts)
    while batch := list(islice(texts, 64)):
        for text, ids in zip(batch, tokenizer.encode_batch(batch)):
            yield ids, tokenizer.decode(ids.tolist()) == text


def _first(shards: Iterable[np.ndarray], count: int) -> np.ndarray:
    parts = []
    for shard in shards:
        parts.append(np.asarray(shard[:count], np.int64))
        count -= len(parts[-1])
        if not count:
            break
    return np.concatenate(parts)


def first_pieces(held_out: HeldOut, length: int, count: int, least: int = 1) -> list[np.ndarray]:
    """The first `count` pieces with at least `least` ids."""
    return list(islice((piece for piece in held_out.pieces(length) if len(piece) >= least), count))
