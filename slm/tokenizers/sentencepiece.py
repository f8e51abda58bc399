"""Subwords learned from the documents by SentencePiece, BPE or unigram, without losing a single character.

SentencePiece writes a space as U+2581 and so cannot tell the two apart; `encode` gives a genuine U+2581 by its bytes.
The model is a pure function of the documents and the settings: the sample is drawn here, and threads are pinned.
"""

import hashlib
import io
import os
import random
import re
from collections.abc import Iterable, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Literal, Self

import numpy as np
import sentencepiece

from slm.errors import UserError
from slm.tokenizers import Tokenizer, damaged, read_settings, write_settings
from slm.tokenizers.words import Words

EOS = 3  # after the pad, unk and bos that SentencePiece wants
FIRST_BYTE = 4  # the ids of the bytes 0 to 255 follow the control ids
SPACE = "\u2581"  # how a piece writes a space
RESERVED = "\u2585"  # SentencePiece trains on no document that holds it

PIECE_CHARACTERS = 2**14  # encoded at a time
MAX_VOCABULARY = 1_000_000  # ids
MAX_SAMPLE = 10**9  # documents

LOSSLESS = {  # SentencePiece's defaults lose or change text: spaces, rare characters, whole documents
    "normalization_rule_name": "identity",
    "remove_extra_whitespaces": False,
    "add_dummy_prefix": False,
    "byte_fallback": True,
    "character_coverage": 1.0,
    "max_sentence_length": 2**30,  # bytes of the longest document; no greater value is accepted
    "input_sentence_size": 0,  # take all documents given
    "shuffle_input_sentence": False,
    "pad_id": 0,
    "unk_id": 1,
    "bos_id": 2,
    "eos_id": EOS,
    "num_threads": 8,  # pinned: the unigram model depends on it
    "minloglevel": 2,  # errors only, and those are raised
}


class SentencePieceTokenizer(Tokenizer):
    eos = EOS

    def __init__(self, model: bytes, settings: dict):
        self.model = model  # the bytes of sentencepiece.model
        self.settings = settings  # what `build` was given
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        self.vocab_size = self._processor.vocab_size()
        self._bytes = [self._bytes_of(token) for token in range(self.vocab_size)]
        # BPE merges within a word; unigram weighs a whole text, whose equal segmentations may change places
        self._words = Words(self._encode) if settings["algorithm"] == "bpe" else None

    def _bytes_of(self, token: int) -> bytes:
        if token < FIRST_BYTE:
            return b""
        if token < FIRST_BYTE + 256:
            return bytes([token - FIRST_BYTE])
        return self._processor.id_to_piece(token).replace(SPACE, " ").encode()

    @classmethod
    def build(
        cls,
        documents: Iterable[str],
        *,
        vocab_size: int,
        algorithm: Literal["bpe", "unigram"],
        sample_documents: int,
        seed: int,
    ) -> Self:
        """Learns from `sample_documents` documents drawn from the first 4 x `sample_documents`; reads no more."""
        if algorithm not in ("bpe", "unigram"):
            raise UserError(f"tokenizer.algorithm={algorithm}: must be bpe or unigram")
        if not 1 <= sample_documents <= MAX_SAMPLE:
            raise UserError(
                f"tokenizer.sample_documents={sample_documents}: must be at least 1, at most {MAX_SAMPLE:,}"
            )
        if vocab_size > MAX_VOCABULARY:
            raise UserError(f"tokenizer.vocab_size={vocab_size} is too large: at most {MAX_VOCABULARY:,}")
        settings = {
            "vocab_size": vocab_size,
            "algorithm": algorithm,
            "sample_documents": sample_documents,
            "seed": seed,
        }
        sample = reservoir(islice(documents, 4 * sample_documents), sample_documents, random.Random(seed))
        return cls(train([document.replace(RESERVED, " ") for document in sample], vocab_size, algorithm), settings)

    @classmethod
    def load(cls, folder: Path) -> Self:
        settings = read_settings(folder)
        settings.pop("kind")
        try:
            model = (folder / "sentencepiece.model").read_bytes()
        except OSError:
            raise damaged(folder, "sentencepiece.model") from None
        if hashlib.sha256(model).hexdigest() != settings.pop("sha256", None):
            raise damaged(folder, "sentencepiece.model")
        try:
            return cls(model, settings)
        except RuntimeError:  # what the library says of bytes that are no model of its own
            raise damaged(folder, "sentencepiece.model") from None

    def save(self, folder: Path) -> None:
        sha256 = hashlib.sha256(self.model).hexdigest()  # a damaged model can load without an error
        write_settings(folder, {"kind": "sentencepiece", **self.settings, "sha256": sha256})
        (folder / "sentencepiece.model").write_bytes(self.model)

    def encode(self, text: str) -> list[int]:
        return self.encode_batch([text])[0].tolist()

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        if self._words:
            return self._words.ids(texts)
        cut = [pieces(text) for text in texts]
        ids = iter(self._processor.encode(list(chain.from_iterable(cut)), num_threads=os.cpu_count()))
        return [
            np.concatenate([np.array(self._exact(part, next(ids)), dtype=np.int32) for part in parts]) for parts in cut
        ]

    def _encode(self, text: str) -> list[int]:
        return [token for part in pieces(text) for token in self._exact(part, self._processor.encode(part))]

    def _exact(self, text: str, ids: list[int]) -> list[int]:
        """The ids of the text, for which the library gave `ids`, with every genuine U+2581 by its bytes."""
        if SPACE not in text:
            return ids
        first, *others = map(self._processor.encode, text.split(SPACE))
        for more in others:
            first += [FIRST_BYTE + byte for byte in SPACE.encode()] + more
        return first

    def token_bytes(self, token: int) -> bytes:
        return self._bytes[token]


def pieces(text: str) -> list[str]:
    """The text, cut before a space about every PIECE_CHARACTERS, at the latest after twice as many.

    No learned piece goes across the start of a space, so that this leaves the ids as they are, and the time that the
    library takes linear: a line of 50 MB takes seconds instead of minutes. (Two segmentations by unigram of exactly
    equal probability may change places.)
    """
    parts, start = [], 0
    while len(text) - start > 2 * PIECE_CHARACTERS:
        cut = text.find(" ", start + PIECE_CHARACTERS, start + 2 * PIECE_CHARACTERS)
        cut = cut if cut >= 0 else start + 2 * PIECE_CHARACTERS
        parts.append(text[start:cut])
        start = cut
    return [*parts, text[start:]]


def reservoir(stream: Iterable[str], size: int, rng: random.Random) -> list[str]:
    """`size` items of the stream, each subset as likely as any other (Vitter 1985, algorithm R)."""
    sample = []
    for seen, item in enumerate(stream):
        if seen < size:
            sample.append(item)
        elif (slot := rng.randrange(seen + 1)) < size:
            sample[slot] = item
    return sample


def train(documents: list[str], vocab_size: int, algorithm: str) -> bytes:
    """The bytes of a model of exactly `vocab_size` ids."""
    if not any(document.strip("\0") for document in documents):  # SentencePiece learns nothing from a NUL
        raise UserError("the tokenizer found no text in the documents to learn from; check the corpus")
    smallest = FIRST_BYTE + 256 + 1
    if vocab_size < smallest:
        raise UserError(
            f"tokenizer.vocab_size={vocab_size} is too small: it must hold {FIRST_BYTE} control ids, 256 bytes and "
            f"every character of the documents, {smallest} at the very least"
        )
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(documents),
            model_writer=model,
            vocab_size=vocab_size,
            model_type=algorithm,
            **LOSSLESS,
        )
    except RuntimeError as error:
        if found := re.search(r"too high .* <= (\d+)", str(error)):
            raise UserError(
                f"tokenizer.vocab_size={vocab_size} is more than these documents can fill; "
                f"type tokenizer.vocab_size={found[1]} or less, or give more text"
            ) from None
        if found := re.search(r"smaller than required_chars\. \d+ vs (\d+)", str(error)):
            raise UserError(
                f"tokenizer.vocab_size={vocab_size} is too small: it must hold {FIRST_BYTE} control ids, 256 bytes "
                f"and every character of the documents; type tokenizer.vocab_size={found[1]} or more"
            ) from None
        raise
    return model.getvalue()
