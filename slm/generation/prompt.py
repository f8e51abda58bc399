"""Prompts as token ids, tokenized as the same text is within a longer one."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

from slm.errors import CONTROL, UserError
from slm.tokenizers import Tokenizer


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """What the model reads, and the bytes `rest` of the prompt that the first generated tokens must spell.

    The last `generated` ids are the text so far: it continues with the random numbers that follow theirs.
    """

    ids: Sequence[int]
    rest: bytes = b""
    vocabulary: Sequence[bytes] = ()  # the bytes of every id; only needed with a rest
    generated: int = 0

    def followed_by(self, ids: Sequence[int]) -> Self:
        """The prompt and a text after it, which were generated with it or chosen in its place."""
        rest = self.rest
        for token in ids if rest else ():
            rest = rest[len(self.vocabulary[token]) :]
        return replace(self, ids=[*self.ids, *ids], rest=rest, generated=self.generated + len(ids))


def encode_prompt(tokenizer: Tokenizer, text: str, eos_first: bool = True) -> Prompt:
    """The start of a document. As in training, it begins with eos; without `eos_first` only an empty prompt does.

    A token often holds a space and the word after it. A space at the end of a prompt is not such a token, so the model
    would have to continue what it never saw in training. White space at the end is therefore left to the model, as far
    as a longer token of the vocabulary begins with it. Raises: UserError: as `typed_text`.
    """
    text = typed_text("the prompt", text)
    ids, end, rest = tokenizer.encode(text), None, b""
    before = [tokenizer.eos] if eos_first or not ids else []
    if not text[-1:].isspace():
        return Prompt(ids=[*before, *ids])
    vocabulary = list(map(tokenizer.token_bytes, range(tokenizer.vocab_size)))
    tail, longest = b"", max(map(len, vocabulary))
    for place in range(len(ids) - 1, -1, -1):
        tail = vocabulary[ids[place]] + tail
        if not tail.isspace() or len(tail) >= longest:
            break
        if any(token.startswith(tail) and len(token) > len(tail) for token in vocabulary):
            end, rest = place, tail
    return Prompt(ids=[*before, *ids[:end]] or [tokenizer.eos], rest=rest, vocabulary=vocabulary)


def typed_text(name: str, text: str) -> str:
    """The text that was typed. Where the encoding of the terminal lacks a character, as in a C locale, Python hands
    over its bytes as surrogates. Raises: UserError: if these bytes are not UTF-8."""
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8")
    except UnicodeError:
        raise UserError(
            f"{name} is not UTF-8 text; give it in the encoding of the terminal, or a prompts_file"
        ) from None


def spells(token: bytes, rest: bytes) -> bool:
    """True if a text that must begin with `rest` may begin with this token."""
    return token.startswith(rest) or (token != b"" and rest.startswith(token))


def opening(document: str) -> str:
    """A prompt from a document: the first words of its first line, at most four, forty characters and half the line."""
    line = next((line for line in re.split(r"[\n\ufffd]|" + CONTROL.pattern, document) if line.strip()), "").strip()
    words = max(1, min(4, len(line.split()) // 2))
    start = re.match(rf"(\S+\s*){{0,{words}}}", line)[0].strip()
    if start == line:  # without a space between words
        return line[: max(1, min(12, len(line) // 2))]
    return start if len(start) <= 40 else start[:40].rsplit(None, 1)[0]
