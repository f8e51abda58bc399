"""One text that grows by tokens, cut at its first stop sequence; what a client has not yet seen of it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from slm.generation.completion import TextDecoder, held_back
from slm.generation.scores import Scored
from slm.tokenizers import Tokenizer


@dataclass(frozen=True)
class Piece:
    """A part of a text with the tokens that it completes."""

    text: str
    tokens: list[tuple[Scored, int]]  # with the place of the token's first character in the text
    finish_reason: str | None  # of the last piece: stop (eos or a stop sequence) or length


class Choice:
    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str], skip: int):
        self.decoder, self.stops, self.eos = TextDecoder(tokenizer, skip), stops, tokenizer.eos
        self.text, self.sent, self.count = "", 0, 0  # count: tokens
        self.pending: list[tuple[Scored, int, int]] = []  # with first and last place, not yet sent
        self.finish_reason: str | None = None

    def add(self, scored: Scored, stop_at_eos: bool) -> Piece:
        """The piece that this token completes, often empty."""
        start, self.count = len(self.text), self.count + 1
        if stop_at_eos and scored.token == self.eos:
            return self.end("stop")
        self.text += self.decoder.text(scored.token)
        self.pending.append((scored, start, len(self.text)))
        places = [self.text.find(stop, max(0, start - len(stop) + 1)) for stop in self.stops]
        if found := [place for place in places if place >= 0]:
            self.text, self.finish_reason = self.text[: min(found)], "stop"
            return self.piece(len(self.text))
        return self.piece(len(self.text) - held_back(self.text, self.stops))

    def end(self, reason: str) -> Piece:
        self.text, self.finish_reason = self.text + self.decoder.end(), reason
        return self.piece(len(self.text))

    def piece(self, end: int) -> Piece:
        """The text up to a place, as far as it was not sent, and its tokens."""
        last = self.finish_reason is not None
        ready = [item for item in self.pending if (item[1] < end or item[2] == end if last else item[2] <= end)]
        text, self.pending = self.text[self.sent : end], self.pending[len(ready) :]
        self.sent = max(self.sent, end)
        return Piece(text, [(scored, start) for scored, start, _ in ready], self.finish_reason)


def token_text(tokenizer: Tokenizer, token: int) -> str:
    """A token for people: <eos>, <id> of another control id, bytes:\\xc3 of a part of a character."""
    content = tokenizer.token_bytes(token)
    if not content:
        return "<eos>" if token == tokenizer.eos else f"<{token}>"
    try:
        return content.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in content)


def joined(pieces: Iterator[Piece]) -> Piece:
    """All pieces of a text as one."""
    found = list(pieces)
    tokens = [token for piece in found for token in piece.tokens]
    return Piece("".join(piece.text for piece in found), tokens, found[-1].finish_reason if found else None)
