"""Tokenizers in the metadata of GGUF: a vocabulary, and the way in which llama.cpp cuts a text.

llama.cpp has SentencePiece's BPE ("llama"), for which a literal U+2581 is a space, and byte-level BPE within the words
of a pattern ("gpt2"). The keys of a vocabulary are those of the methods `add_...` of GGUFWriter.
"""

import json
from collections.abc import Mapping, Sequence
from functools import singledispatch
from typing import Any

from slm.errors import UserError
from slm.export.tokenizer_json import halves
from slm.tokenizers import Tokenizer, pieces
from slm.tokenizers.bpe import BPETokenizer, in_characters
from slm.tokenizers.bytes import ByteTokenizer
from slm.tokenizers.huggingface import HuggingFaceTokenizer
from slm.tokenizers.sentencepiece import SentencePieceTokenizer
from slm.tokenizers.sentencepiece_model import NORMALIZATIONS, SentencePieceModel
from slm.tokenizers.split import PATTERNS
from slm.tokenizers.tiktoken import TiktokenTokenizer

NORMAL, UNKNOWN, CONTROL, UNUSED, BYTE = 1, 2, 3, 5, 6  # gguf.TokenType
WORDS = {"gpt2": "gpt-2", "gpt4": "dbrx", "cl100k_base": "dbrx", "o200k_base": "gpt-4o"}  # pattern -> llama.cpp's name
NO_MERGES = ["\u2400 \u2400"]  # llama.cpp needs one; no text in GPT-2's notation of bytes contains this character
EOS = "<|endoftext|>"


def vocabulary(tokenizer: Tokenizer) -> dict[str, Any]:
    """The metadata of a tokenizer. Before a prompt and after a document stands `eos`, as in training.

    Raises: UserError: for a tokenizer without a counterpart in llama.cpp.
    """
    return {**_of(tokenizer), "bos_token_id": tokenizer.eos, "eos_token_id": tokenizer.eos}


def refused(what: str) -> UserError:
    return UserError(f"format=gguf has no counterpart of {what}; train with tokenizer=sentencepiece, bpe or bytes")


@singledispatch
def _of(tokenizer: Tokenizer) -> dict[str, Any]:
    raise refused(f"the tokenizer {type(tokenizer).__name__}")


@_of.register(SentencePieceTokenizer | SentencePieceModel)
def _of_sentencepiece(tokenizer: SentencePieceTokenizer | SentencePieceModel) -> dict[str, Any]:
    processor = require_bpe(tokenizer, "gguf")
    ids = range(processor.vocab_size())
    texts, scores = [*map(processor.id_to_piece, ids)], [*map(processor.get_score, ids)]
    kinds = {UNKNOWN: processor.is_unknown, CONTROL: processor.is_control, UNUSED: processor.is_unused}
    kinds[BYTE] = processor.is_byte
    types = [next((kind for kind, holds in kinds.items() if holds(token)), NORMAL) for token in ids]
    if tokenizer.vocab_size > len(texts):  # an end of a document that the model itself does not have
        texts, scores, types = [*texts, EOS], [*scores, 0.0], [*types, CONTROL]
    found = {"tokenizer_model": "llama", "token_list": texts, "token_scores": scores, "token_types": types}
    return {**found, "unk_token_id": processor.unk_id(), "add_space_prefix": tokenizer.adds_space}


def require_bpe(tokenizer: SentencePieceTokenizer | SentencePieceModel, name: str) -> Any:
    """The processor of a SentencePiece model that other programs apply exactly: BPE, with bytes, without normalization.

    Raises: UserError: for another one.
    """
    processor = tokenizer._processor
    changes = [effect for (text, part), effect in NORMALIZATIONS.items() if part not in processor.normalize(text)]
    scores = [processor.get_score(token) for token in range(processor.vocab_size()) if _is_text(processor, token)]
    problem = f"its normalization {changes[0]}" if changes else ""
    if any(score != int(score) for score in scores):  # ranks in BPE, log-probabilities in unigram
        problem = "algorithm=unigram"
    elif not processor.is_byte(processor.piece_to_id("<0x0A>")):
        problem = "no ids for bytes"
    if problem:
        raise UserError(
            f"format={name} has no counterpart of this SentencePiece model ({problem}); train with "
            "tokenizer=sentencepiece tokenizer.algorithm=bpe"
        )
    return processor


def _is_text(processor: Any, token: int) -> bool:
    return not any(kind(token) for kind in (processor.is_unknown, processor.is_control, processor.is_byte))


@_of.register
def _of_bpe(tokenizer: BPETokenizer) -> dict[str, Any]:
    merges = [f"{in_characters(left)} {in_characters(right)}" for left, right in tokenizer.merges]
    return byte_level(tokenizer, merges, WORDS[tokenizer.settings["pattern"]])


@_of.register
def _of_tiktoken(tokenizer: TiktokenTokenizer) -> dict[str, Any]:
    ranks = {piece: rank for rank, piece in enumerate(pieces(tokenizer)) if piece}
    merges = [" ".join(map(in_characters, halves(ranks, piece))) for piece in ranks if len(piece) > 1]
    return byte_level(tokenizer, merges, WORDS[tokenizer.name])


@_of.register
def _of_bytes(tokenizer: ByteTokenizer) -> dict[str, Any]:
    return byte_level(tokenizer, NO_MERGES, WORDS["gpt2"])


@_of.register
def _of_huggingface(tokenizer: HuggingFaceTokenizer) -> dict[str, Any]:
    settings = json.loads(tokenizer.content)
    model, odd = settings["model"], ("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix")
    pattern = _pattern(settings.get("pre_tokenizer"))
    if model["type"] != "BPE" or any(map(model.get, odd)) or settings.get("normalizer") or pattern is None:
        raise refused("this tokenizer.json, which is no byte-level BPE with the words of GPT-2 or GPT-4")
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    special = {token["id"]: token["content"] for token in settings["added_tokens"] if token["special"]}
    return byte_level(tokenizer, merges or NO_MERGES, WORDS[pattern], special)


def _pattern(pre_tokenizer: Mapping[str, Any] | None) -> str | None:
    """The name of the pattern with which a tokenizer.json cuts a text into words before byte-level BPE."""
    steps = (pre_tokenizer or {}).get("pretokenizers", [pre_tokenizer or {"type": ""}])
    last = steps[-1]
    if last["type"] != "ByteLevel" or last["add_prefix_space"] or len(steps) > 2:
        return None
    if len(steps) == 1:
        return "gpt2" if last.get("use_regex", True) else None
    split, own = steps[0], not last.get("use_regex", True)
    known = {pattern: name for name, pattern in PATTERNS.items()}
    exact = own and split["type"] == "Split" and split["behavior"] == "Isolated" and not split["invert"]
    return known.get(split["pattern"].get("Regex")) if exact else None


def byte_level(
    tokenizer: Tokenizer, merges: Sequence[str], words: str, special: Mapping[int, str] | None = None
) -> dict[str, Any]:
    """A vocabulary in GPT-2's notation of bytes, with its merges, llama.cpp's name of the pattern for words, and the
    names of control ids."""
    table, special = pieces(tokenizer), special or {tokenizer.eos: EOS}
    texts = [in_characters(piece) if piece else f"<|unused_{token}|>" for token, piece in enumerate(table)]
    types = [NORMAL if piece else UNUSED for piece in table]
    for token, name in special.items():
        texts[token], types[token] = name, CONTROL
    found = {"tokenizer_model": "gpt2", "tokenizer_pre": words, "token_list": texts, "token_types": types}
    return {**found, "token_merges": merges}
