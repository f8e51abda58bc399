"""Tokenizers of slm as tokenizer.json of Hugging Face's `tokenizers`, with the same ids.

What has no exact counterpart: words of more than 16,384 characters, which slm cuts, and characters of a Unicode version
that only one of the two libraries knows. The export compares the ids on thousands of strings.
"""

import json
import re
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

from slm.classes import optional
from slm.errors import UserError
from slm.tokenizers import Tokenizer
from slm.tokenizers.bpe import BPETokenizer, in_characters
from slm.tokenizers.bytes import ByteTokenizer
from slm.tokenizers.characters import PAD, UNK, CharacterTokenizer
from slm.tokenizers.huggingface import EOS, HuggingFaceTokenizer
from slm.tokenizers.sentencepiece import SPACE, SentencePieceTokenizer
from slm.tokenizers.sentencepiece_model import SentencePieceModel
from slm.tokenizers.split import PATTERNS
from slm.tokenizers.tiktoken import ENCODINGS, TiktokenTokenizer

Names = dict[str, str]  # bos_token, eos_token, pad_token, unk_token


def converted(tokenizer: Tokenizer, eos_first: bool) -> tuple[Any, Names]:
    """The library's tokenizer and its special tokens. With `eos_first` its template puts eos, as bos, before a text.

    Raises: UserError: for a class of tokenizers from outside slm, or without the library.
    """
    library = optional("tokenizers", "hf", "a tokenizer.json")
    make = MAKERS.get(next((kind for kind in type(tokenizer).__mro__ if kind in MAKERS), object))
    if make is None:
        raise UserError(
            f"{type(tokenizer).__name__} is a tokenizer from outside slm, which transformers lacks; use format=weights"
        )
    made, names = make(library, tokenizer)
    made.add_special_tokens([library.AddedToken(name, special=True, normalized=False) for name in set(names.values())])
    eos = names["eos_token"]
    made.post_processor = None
    if eos_first:
        names["bos_token"] = eos
        ids = {"special_tokens": [(eos, tokenizer.eos)]}
        made.post_processor = library.processors.TemplateProcessing(single=f"{eos} $A", pair=f"{eos} $A $B", **ids)
    return made, {"pad_token": eos} | names


def of_sentencepiece(library: Any, tokenizer: SentencePieceTokenizer) -> tuple[Any, Names]:
    """Pieces hold spaces themselves and not U+2581, so that a literal U+2581 is written as its bytes."""
    made = _by_transformers(tokenizer.model, lambda piece: piece.replace(SPACE, " "))
    pieces = ["<pad>", "<unk>", "<s>", "</s>"]
    made.normalizer = None
    if tokenizer.settings["algorithm"] == "unigram":  # its search would find the names of control ids in a text
        names = "|".join(re.escape(name[1:]) for name in pieces)
        pattern = library.Regex(rf"<(?={names}|0x[0-9A-F]{{2}}>)")
        made.pre_tokenizer = library.pre_tokenizers.Split(pattern, "isolated")
    made.decoder = library.decoders.Sequence([library.decoders.ByteFallback(), library.decoders.Fuse()])
    made.add_special_tokens([library.AddedToken(piece, special=True, normalized=False) for piece in pieces])
    return made, {"pad_token": "<pad>", "unk_token": "<unk>", "eos_token": "</s>"}


def of_model(library: Any, tokenizer: SentencePieceModel) -> tuple[Any, Names]:
    made = _by_transformers(tokenizer.model, lambda piece: piece)
    processor = tokenizer._processor
    if tokenizer.eos == processor.vocab_size():  # an id that slm added
        return made, {"eos_token": EOS, "unk_token": processor.id_to_piece(processor.unk_id())}
    names = {"eos_token": processor.eos_id(), "unk_token": processor.unk_id()}
    return made, {name: processor.id_to_piece(number) for name, number in names.items()}


def _by_transformers(model: bytes, rename: Callable[[str], str]) -> Any:
    """A SentencePiece model by the converter of transformers."""
    convert = optional("transformers.convert_slow_tokenizer", "hf", "format=hf")
    proto = convert.import_protobuf().ModelProto()
    proto.ParseFromString(model)
    unigram = proto.trainer_spec.model_type == proto.trainer_spec.UNIGRAM
    pieces = [(rename(piece.piece), piece.score) for piece in proto.pieces]
    vocabulary = pieces if unigram else {piece: number for number, (piece, _) in enumerate(pieces)}
    return convert.SpmConverter.build_tokenizer_from_spm_proto(proto, vocabulary, legacy=True)


def of_bytes(library: Any, tokenizer: ByteTokenizer) -> tuple[Any, Names]:
    return _byte_level(library, [bytes([byte]) for byte in range(256)], [], None), {"eos_token": EOS}


def of_bpe(library: Any, tokenizer: BPETokenizer) -> tuple[Any, Names]:
    pattern = PATTERNS[tokenizer.settings["pattern"]]
    return _byte_level(library, tokenizer._bytes[:-1], tokenizer.merges, pattern), {"eos_token": EOS}


def of_tiktoken(library: Any, tokenizer: TiktokenTokenizer) -> tuple[Any, Names]:
    """Merges by the ranks, and gaps before eos, which no text uses, as added tokens."""
    known = ENCODINGS[tokenizer.name]
    pieces = tokenizer._bytes[: known.ranks]
    ranks = {piece: rank for rank, piece in enumerate(pieces)}
    merges = [halves(ranks, piece) for piece in pieces if len(piece) > 1]
    made = _byte_level(library, pieces, merges, known.pattern, ignore_merges=True)
    made.add_special_tokens([f"<|unused_{token}|>" for token in range(known.ranks, known.eos)])
    return made, {"eos_token": EOS}


def halves(ranks: dict[bytes, int], piece: bytes) -> tuple[bytes, bytes]:
    """The two pieces whose merge makes `piece`: those that all merges of lower ranks leave."""
    parts = [piece[place : place + 1] for place in range(len(piece))]
    while len(parts) > 2:
        joined = map(b"".join, pairwise(parts))
        found = ((ranks.get(both, ranks[piece]), place) for place, both in enumerate(joined))
        rank, place = min(found)
        if rank >= ranks[piece]:
            raise UserError("the ranks of this vocabulary are no order of merges; format=weights takes it")
        parts[place : place + 2] = [parts[place] + parts[place + 1]]
    return parts[0], parts[1]


def _byte_level(
    library: Any, pieces: Sequence[bytes], merges: Sequence[tuple[bytes, bytes]], pattern: str | None, **settings
) -> Any:
    """Byte-pair encoding of bytes, within the words that the pattern finds."""
    vocabulary = {in_characters(piece): number for number, piece in enumerate(pieces)}
    pairs = [(in_characters(left), in_characters(right)) for left, right in merges]
    made, pre = library.Tokenizer(library.models.BPE(vocabulary, pairs, **settings)), library.pre_tokenizers
    steps = [pre.Split(library.Regex(pattern), "isolated")] if pattern else []
    made.pre_tokenizer = pre.Sequence([*steps, pre.ByteLevel(add_prefix_space=False, use_regex=False)])
    made.decoder = library.decoders.ByteLevel()
    return made


def of_characters(library: Any, tokenizer: CharacterTokenizer) -> tuple[Any, Names]:
    vocabulary = {"<PAD>": PAD, "<UNK>": UNK} | {one: number for number, one in enumerate(tokenizer.characters, 2)}
    made = library.Tokenizer(library.models.BPE(vocabulary, [], unk_token="<UNK>", fuse_unk=False))
    made.decoder = library.decoders.Sequence([library.decoders.Replace("<UNK>", "\ufffd"), library.decoders.Fuse()])
    return made, {"eos_token": "<PAD>"}


def of_huggingface(library: Any, tokenizer: HuggingFaceTokenizer) -> tuple[Any, Names]:
    """The file as it is, without template, truncation and padding."""
    made = library.Tokenizer.from_str(json.dumps({**json.loads(tokenizer.content), "post_processor": None}))
    made.no_truncation()
    made.no_padding()
    return made, {"eos_token": tokenizer.eos_token}


MAKERS: dict[type, Callable[[Any, Any], tuple[Any, Names]]] = {
    SentencePieceTokenizer: of_sentencepiece,
    SentencePieceModel: of_model,
    ByteTokenizer: of_bytes,
    BPETokenizer: of_bpe,
    TiktokenTokenizer: of_tiktoken,  # and GPT2Tokenizer
    CharacterTokenizer: of_characters,
    HuggingFaceTokenizer: of_huggingface,
}
