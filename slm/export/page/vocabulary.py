"""Tokenizers and storyworld as the page reads them: plain data for tokenizer.js and storyworld.js."""

import base64
from typing import Any

import numpy as np

from slm.corpora.storyworld.corpus import Storyworld
from slm.corpora.storyworld.world import load_texts
from slm.errors import UserError
from slm.tokenizers import Tokenizer, is_own, pieces
from slm.tokenizers.bpe import BPETokenizer
from slm.tokenizers.bytes import ByteTokenizer
from slm.tokenizers.characters import CharacterTokenizer
from slm.tokenizers.merges import BYTES
from slm.tokenizers.sentencepiece import FIRST_BYTE, SentencePieceTokenizer
from slm.tokenizers.tiktoken import TiktokenTokenizer

UNKNOWN_PENALTY = np.float32(10)  # SentencePiece's kUnkPenalty
KNOWN = "sentencepiece, bpe, bytes, characters, gpt2"


def text(content: bytes) -> str:
    return base64.b64encode(content).decode()


def plain(tokenizer: Tokenizer) -> dict[str, Any]:
    """The tokenizer as JSON. Raises UserError for a class that tokenizer.js does not have."""
    table = pieces(tokenizer)
    if (longest := max(map(len, table))) > 255:
        raise UserError(f"format=page takes pieces of at most 255 bytes; this tokenizer has one of {longest:,}")
    lengths = bytes(map(len, table))
    return {**_kind(tokenizer), "eos": tokenizer.eos, "pieces": text(b"".join(table)), "lengths": text(lengths)}


def _kind(tokenizer: Tokenizer) -> dict[str, Any]:
    match None if is_own(type(tokenizer)) else tokenizer:
        case ByteTokenizer():
            return {"kind": "bytes"}
        case CharacterTokenizer():
            return {"kind": "characters", "first": 2}
        case BPETokenizer():
            return {"kind": "bpe", "pattern": tokenizer.settings["pattern"], "merges": _merges(tokenizer)}
        case TiktokenTokenizer(name="gpt2"):
            return {"kind": "ranks", "pattern": "gpt2"}
        case SentencePieceTokenizer():
            first, scores = FIRST_BYTE + 256, tokenizer.scores()
            facts = {"algorithm": tokenizer.settings["algorithm"], "scores": text(scores.astype("<f4").tobytes())}
            return {"kind": "sentencepiece", "first": first, **facts, "unknown": float(_unknown(scores[first:]))}
    raise UserError(f"format=page has the tokenizers {KNOWN}, not {type(tokenizer).__name__}; try format=hf")


def _unknown(scores: np.ndarray) -> np.float32:
    """The score of a character without a piece."""
    return scores.min() - UNKNOWN_PENALTY


def _merges(tokenizer: BPETokenizer) -> list[tuple[int, int, int]]:
    """The ids of both parts of each merge, and of the whole."""
    ids = {bytes([byte]): token for token, byte in enumerate(BYTES)}
    return [(ids[a], ids[b], ids.setdefault(a + b, len(ids))) for a, b in tokenizer.merges]


def world(corpus: Storyworld) -> dict[str, Any]:
    """The words and sentences of a level, with all pairs, for the checker."""
    level = corpus.all.level

    def sentences(name: str, titles: int | None = None) -> list:
        texts = list(load_texts(name).items())[:titles]
        return [(title, [lines[: level.templates] for lines in parts]) for title, parts in texts]

    return {
        "lists": corpus.all.lists,
        "frame": sentences("frame"),
        "details": sentences("details") if level.details else [],
        "plots": sentences("plots", level.plots),
        "detailCount": level.details,
        "slope": level.slope,
    }
