"""Tokenizers in the metadata of GGUF: a vocabulary, and the way in which llama.cpp cuts a text.

llama.cpp has SentencePiece's BPE ("llama"), for which a literal U+2581 is a space, and byte-level BPE within the words
of a pattern ("gpt2"). The keys of a vocabulary are those of the methods `add_...` of GGUFWriter.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from slm.errors import UserError
from slm.export.tokenizer_json import converted
from slm.tokenizers import Tokenizer, pieces
from slm.tokenizers.bpe import in_characters
from slm.tokenizers.sentencepiece import SentencePieceTokenizer
from slm.tokenizers.sentencepiece_model import NORMALIZATIONS, SentencePieceModel
from slm.tokenizers.split import PATTERNS
from slm.tokenizers.tiktoken import ENCODINGS

NORMAL, UNKNOWN, CONTROL, UNUSED, BYTE = 1, 2, 3, 5, 6  # gguf.TokenType
WORDS = {  # pattern -> llama.cpp's name
    PATTERNS["gpt2"]: "gpt-2",
    PATTERNS["gpt4"]: "dbrx",
    ENCODINGS["o200k_base"].pattern: "gpt-4o",
}
NO_MERGES = ["\u2400 \u2400"]  # llama.cpp needs one; no text in GPT-2's notation of bytes contains this character
EOS = "<|endoftext|>"


def vocabulary(tokenizer: Tokenizer) -> dict[str, Any]:
    """The metadata of a tokenizer. Before a prompt and after a document stands `eos`, as in training.

    Raises: UserError: for a tokenizer without a counterpart in llama.cpp.
    """
    is_sentencepiece = isinstance(tokenizer, SentencePieceTokenizer | SentencePieceModel)
    found = _of_sentencepiece(tokenizer) if is_sentencepiece else _of_byte_level(tokenizer)
    return {**found, "bos_token_id": tokenizer.eos, "eos_token_id": tokenizer.eos}


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


def _of_byte_level(tokenizer: Tokenizer) -> dict[str, Any]:
    """By way of tokenizer.json. The vocabulary is in GPT-2's notation of bytes."""
    settings = json.loads(converted(tokenizer, eos_first=False)[0].to_str())
    model, odd = settings["model"], ("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix")
    merges = [" ".join(pair) for pair in model.get("merges", ())]
    words = _words(settings["pre_tokenizer"], merges)
    if model["type"] != "BPE" or any(map(model.get, odd)) or settings["normalizer"] or words is None:
        raise UserError(
            f"format=gguf has no counterpart of the tokenizer {type(tokenizer).__name__}, unless it is byte-level BPE "
            "with the words of GPT-2 or GPT-4; train with tokenizer=sentencepiece, bpe or bytes"
        )
    table = pieces(tokenizer)
    texts = [in_characters(piece) if piece else f"<|unused_{token}|>" for token, piece in enumerate(table)]
    types = [NORMAL if piece else UNUSED for piece in table]
    for token in settings["added_tokens"]:
        if token["special"]:
            texts[token["id"]], types[token["id"]] = token["content"], CONTROL
    found = {"tokenizer_model": "gpt2", "tokenizer_pre": words, "token_list": texts, "token_types": types}
    return {**found, "token_merges": merges or NO_MERGES}


def _words(pre_tokenizer: Mapping[str, Any] | None, merges: Sequence[str]) -> str | None:
    """llama.cpp's name of the pattern with which a tokenizer.json cuts a text into words, if it is one of WORDS."""
    steps = pre_tokenizer.get("pretokenizers", [pre_tokenizer]) if pre_tokenizer else []
    *splits, last = steps or [{"type": ""}]
    if last["type"] != "ByteLevel" or last["add_prefix_space"] or len(splits) > 1:
        return None
    if not splits:
        return WORDS[PATTERNS["gpt2"]] if last["use_regex"] or not merges else None
    split = splits[0]
    exact = split["type"] == "Split" and split["behavior"] == "Isolated" and not split["invert"]
    return WORDS.get(split["pattern"].get("Regex")) if exact and not last["use_regex"] else None
