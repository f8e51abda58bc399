"""Lossless subwords trained on the documents with SentencePiece, by BPE or unigram.

SentencePiece writes a space as U+2581 and cannot distinguish the two; `encode` writes a literal U+2581 as its bytes.
The model is a pure function of documents and settings: the documents are sampled here, and the threads are fixed.
"""

import io
import re
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Literal, Self, get_args

import numpy as np
import sentencepiece

from slm.errors import UserError, printable
from slm.tokenizers import Tokenizer, damaged, read_saved, write_saved
from slm.tokenizers.sample import sample
from slm.tokenizers.sentencepiece_model import FILE, SPACE, SentencePieceModel
from slm.tokenizers.words import WordEncoder

Algorithm = Literal["bpe", "unigram"]

EOS = 3  # after SentencePiece's pad, unk and bos
FIRST_BYTE = 4  # the ids of the bytes 0 to 255 follow the control ids
RESERVED = "\u2585"  # SentencePiece skips documents that contain it
CHUNK_CHARACTERS = 2**14  # encoded at a time
SOLID = re.compile(r"[^ ]{512}")  # a word of more characters is cut for training: unigram's sums over it underflow

LOSSLESS = {  # SentencePiece's defaults lose or change spaces, rare characters and long documents
    "normalization_rule_name": "identity",
    "remove_extra_whitespaces": False,
    "add_dummy_prefix": False,
    "byte_fallback": True,
    "required_chars": SPACE,  # also if no document has a space: as bytes it would be a literal U+2581
    "max_sentence_length": 2**30,  # bytes of the longest document; SentencePiece's largest value
    "input_sentence_size": 0,  # all documents
    "shuffle_input_sentence": False,
    "pad_id": 0,
    "unk_id": 1,
    "bos_id": 2,
    "eos_id": EOS,
    "num_threads": 8,  # fixed: the unigram model depends on it
    "minloglevel": 2,  # errors only
}


class SentencePieceTokenizer(Tokenizer):
    eos, in_processes = EOS, True

    def __init__(self, model: bytes, settings: dict):
        self.model = model  # the bytes of sentencepiece.model
        self.settings = settings  # the arguments of `build`
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        self.vocab_size = self._processor.vocab_size()
        pieces = map(self._processor.id_to_piece, range(FIRST_BYTE + 256, self.vocab_size))
        self._bytes = [b""] * FIRST_BYTE + [bytes([byte]) for byte in range(256)]
        self._bytes += [piece.replace(SPACE, " ").encode() for piece in pieces]
        # BPE merges within a word; unigram scores a complete text, and ties between segmentations depend on it
        self._words = WordEncoder(self._encode) if settings["algorithm"] == "bpe" else None

    @classmethod
    def build(
        cls,
        documents: Iterable[str],
        *,
        vocab_size: int,
        algorithm: Algorithm,
        sample_documents: int,
        seed: int,
        character_coverage: float | None = None,
        path: str | None = None,
    ) -> Tokenizer:
        """Trains on `sample_documents` documents, sampled from the first 4 x `sample_documents`; reads no others.

        Characters beyond `character_coverage`, the share of the text that gets ids of its own, are written as bytes.
        With the `path` of a model the other settings have no effect.
        Raises: UserError: for a vocabulary size that these documents do not allow, or documents without text; for a
        `path` without a model.
        """
        if path is not None:
            return SentencePieceModel.read(path)
        if algorithm not in get_args(Algorithm):
            raise UserError(f"tokenizer.algorithm={algorithm}: must be bpe or unigram")
        if character_coverage is not None and not 0.98 <= character_coverage <= 1:
            raise UserError(f"tokenizer.character_coverage={character_coverage} must be from 0.98 to 1, or null for 1")
        settings = {
            "vocab_size": vocab_size,
            "algorithm": algorithm,
            "sample_documents": sample_documents,
            "seed": seed,
        }
        if (coverage := character_coverage or 1.0) < 1:
            settings["character_coverage"] = coverage
        documents = [text.replace(RESERVED, " ") for text in sample(documents, sample_documents, seed)]
        parts = [part for text in documents for part in SOLID.sub(rf"\g<0>{RESERVED}", text).split(RESERVED)]
        return cls(train(parts, vocab_size, algorithm, coverage), settings)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """The inverse of `save`. Raises: Damaged: if the model is missing, changed, or loses text."""
        settings, model = read_saved(folder, FILE)
        if not model:
            raise damaged(folder, FILE)
        if settings.get("algorithm") not in get_args(Algorithm) or not (tokenizer := cls(model, settings))._is_exact():
            raise damaged(folder, "tokenizer.json")
        return tokenizer

    def save(self, folder: Path) -> None:
        write_saved(folder, {"kind": "sentencepiece", **self.settings}, FILE, self.model)

    def scores(self) -> np.ndarray:
        """The score of every id, float32 (V,): of bpe the order of merges, of unigram log-probabilities."""
        return np.array([*map(self._processor.get_score, range(self.vocab_size))], dtype=np.float32)

    def encode(self, text: str) -> list[int]:
        return self.encode_batch([text])[0].tolist()

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        if self._words:
            return self._words.encode_batch(texts)
        split = [chunks(text) for text in texts]
        ids = iter(self._processor.encode(list(chain.from_iterable(split)), num_threads=self.threads))
        return [
            np.concatenate([np.array(self._exact(part, next(ids)), dtype=np.int32) for part in parts])
            for parts in split
        ]

    def _encode(self, text: str) -> list[int]:
        return [token for part in chunks(text) for token in self._exact(part, self._processor.encode(part))]

    def _exact(self, text: str, ids: list[int]) -> list[int]:
        """The library's `ids` of the text, but with each literal U+2581 as its three bytes."""
        if SPACE not in text:
            return ids
        first, *others = map(self._processor.encode, text.split(SPACE))
        for more in others:
            first += [FIRST_BYTE + byte for byte in SPACE.encode()] + more
        return first

    def _is_exact(self) -> bool:
        """True for the ids of LOSSLESS, and for a model that restores a difficult text."""
        names = [*("<pad>", "<unk>", "<s>", "</s>"), *(f"<0x{byte:02X}>" for byte in range(256))]
        text = " Two  spaces,\ttab\n\n\0 \u00e9e\u0301\ufb01\u00bd \u2581\U0001f600 "
        return (
            self._processor.id_to_piece(list(range(len(names)))) == names
            and b"".join(map(self.token_bytes, self.encode(text))) == text.encode()
        )


def chunks(text: str) -> list[str]:
    """The text split before a space after CHUNK_CHARACTERS or more, or anywhere after twice as many.

    Encoding takes linear time this way: seconds instead of minutes for a line of 50 MB. No piece crosses the start of
    a space, so the ids stay the same. (Ties between two unigram segmentations may be resolved differently.)
    """
    parts, start = [], 0
    while len(text) - start > 2 * CHUNK_CHARACTERS:
        cut = text.find(" ", start + CHUNK_CHARACTERS, start + 2 * CHUNK_CHARACTERS)
        cut = cut if cut >= 0 else start + 2 * CHUNK_CHARACTERS
        parts.append(text[start:cut])
        start = cut
    return [*parts, text[start:]]


def train(documents: list[str], vocab_size: int, algorithm: Algorithm, coverage: float = 1.0) -> bytes:
    """A trained SentencePiece model of exactly `vocab_size` ids, as bytes.

    Raises: UserError: for documents without text; for a `vocab_size` that is too small or too large for them.
    """
    no_text = UserError("the documents contain no text to train the tokenizer on; check the corpus")
    if not any(document.strip("\0") for document in documents):  # SentencePiece ignores NUL
        raise no_text
    too_small = (
        f"tokenizer.vocab_size={vocab_size} is too small: it must hold {FIRST_BYTE} control ids, 256 bytes and "
        "every character of the documents"
    )
    if vocab_size < FIRST_BYTE + 256 + 1:
        raise UserError(f"{too_small}, at least {FIRST_BYTE + 256 + 1}")
    model, settings = io.BytesIO(), {"vocab_size": vocab_size, "model_type": algorithm, **LOSSLESS}
    settings["character_coverage"] = coverage
    try:
        sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(documents), model_writer=model, **settings)
    except (RuntimeError, ValueError) as error:
        if found := re.search(r"too high .* <= (\d+)", str(error)):
            raise UserError(
                f"tokenizer.vocab_size={vocab_size} is too large for these documents; "
                f"use tokenizer.vocab_size={found[1]} or less, or more text"
            ) from None
        if found := re.search(r"smaller than required_chars\. \d+ vs (\d+)", str(error)):
            raise UserError(f"{too_small}; use tokenizer.vocab_size={found[1]} or more") from None
        if "sentences_.empty()" in str(error):
            raise no_text from None
        raise UserError(
            f"SentencePiece cannot learn tokenizer.algorithm={algorithm} tokenizer.vocab_size={vocab_size} from these "
            f"documents ({printable(str(error), 200).strip()}); try another of these two, or tokenizer=bytes"
        ) from None
    return model.getvalue()
