"""Conversations as windows, of which only the answers are targets.

Shapes: B windows of a microbatch, D documents, N windows of a split.
"""

import re
from bisect import bisect_left
from dataclasses import dataclass

import numpy as np

from slm.chat_template import ChatTemplate
from slm.corpora import Split
from slm.data.documents import Documents
from slm.data.store import TokenStore
from slm.errors import UserError
from slm.loss import PROMPT
from slm.tokenizers import Tokenizer

CHUNK = 2**20  # ids whose text is in memory at a time, and a conversation more


@dataclass(frozen=True)
class Answers:
    """Where the answers are in the ids of conversations: from the marker of an answer to the next turn of the user,
    whose marker ends the answer, or to the end of the document, with its eos. `pieces` are the bytes of each id (V,).

    An id that holds the end of a marker and the start of an answer belongs to the answer.
    """

    pieces: np.ndarray
    chat: ChatTemplate

    def of(self, ids: np.ndarray, bounds: np.ndarray) -> np.ndarray:
        """True for the ids (T,) of answers, for whole documents that begin and end at bounds (D + 1,)."""
        texts = self.pieces[ids]
        places = np.cumsum([0, *map(len, texts)])  # in bytes
        starts, ends = places[:-1], places[1:]
        markers = [re.escape(marker.encode()) for marker in (self.chat.assistant.rstrip(), self.chat.stop)]
        found = [*re.finditer(b"(%b)|%b" % tuple(markers), b"".join(texts))]
        over = [its.end() for its in found if not its[1]]
        closing = sorted([*zip(over, np.searchsorted(starts, over)), *zip(ends[bounds[1:] - 1], bounds[1:])])
        changes = np.zeros(len(ids) + 1, dtype=np.int64)
        for place in (its.end() for its in found if its[1]):
            changes[np.searchsorted(ends, place, side="right")] += 1
            changes[closing[bisect_left(closing, (place,))][1]] -= 1
        return changes[:-1].cumsum() > 0


class Conversations(Documents):
    """One conversation per window, as `Documents`, in which the ids of prompts are PROMPT - id: no targets.

    A conversation longer than the context is truncated, and left out if no answer is left: `left_out`.
    `targets` are the numbers of targets. Raises: UserError: if no conversation has any.
    """

    def __init__(self, store: TokenStore, split: Split, context: int, eos: int, answers: Answers):
        super().__init__(store, split, context, eos)
        self.arguments = store, split, context, eos, answers
        lengths, starts = self.lengths, self.bounds[:-1]
        self.is_answer = np.concatenate([*self._marked(answers)])
        before = np.append(0, np.cumsum(self.is_answer))
        counts = before[starts + np.minimum(lengths, context)] - before[starts]
        self.documents = np.flatnonzero(counts)
        self.left_out, self.targets = len(counts) - len(self.documents), counts[self.documents].astype(np.int32)
        if not len(self.documents):
            raise UserError(
                f"no conversation of the {split} split has an answer within model.context={context}: give more, "
                "or a tokenizer that keeps the markers data.user and data.assistant"
            )

    def _marked(self, answers: Answers):
        """The answers of all documents, some documents at a time."""
        first = 0
        while first < len(self.bounds) - 1:
            end = int(np.searchsorted(self.bounds, self.bounds[first] + CHUNK)) + 1
            bounds = self.bounds[first:end] if end < len(self.bounds) else self.bounds[first:]
            ids = [self._document(document, int(self.bounds[-1])) for document in range(first, first + len(bounds) - 1)]
            yield answers.of(np.concatenate(ids), bounds - bounds[0])
            first += len(bounds) - 1

    def place(self, index: int) -> tuple[int, int]:
        return int(self.documents[index]), 0

    def _ids(self, index: int) -> np.ndarray:
        document = self.documents[index]
        ids, start = self._document(document).astype(np.int64), self.bounds[document]
        return np.where(self.is_answer[start : start + len(ids)], ids, PROMPT - ids)

    def prompt(self, index: int, tokenizer: Tokenizer) -> str:
        """What a conversation begins with, up to its first answer."""
        row = self[index].numpy()[1:]
        return tokenizer.decode((PROMPT - row[: np.argmax(row >= 0)]).tolist())

    @property
    def report(self) -> str | None:
        """How many conversations are too long, for people."""
        cut = int((self.lengths > self.context).sum()) - self.left_out
        if not (cut or self.left_out):
            return None
        return (
            f"of {len(self.lengths):,} conversations {cut:,} are longer than model.context={self.context} and are cut, "
            f"and {self.left_out:,} are left out, since their first answer begins behind it"
        )
