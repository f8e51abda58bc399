"""format=llama2c: model.bin and tokenizer.bin for run.c of github.com/karpathy/llama2.c, a model in one file of C.

run.c fixes what its files leave open: RMSNorm's epsilon is 1e-5 and the base of RoPE 10,000; id 1 stands before each
prompt and ends the text; a character without an id becomes its UTF-8 bytes, each with the id 3 + byte. So the ids get
another order here, and with them the rows of the embedding and the head.
"""

import struct
from collections.abc import Sequence
from pathlib import Path

import torch

from slm.errors import UserError, file_operation
from slm.export.fitting import LLAMA, fitting
from slm.export.gguf_tokenizer import require_bpe
from slm.export.llama import named_tensors
from slm.generation.language_model import LanguageModel
from slm.tokenizers import Tokenizer, pieces
from slm.tokenizers.bytes import ByteTokenizer
from slm.tokenizers.sentencepiece import SentencePieceTokenizer
from slm.tokenizers.sentencepiece_model import SentencePieceModel

BORDER, FIRST_BYTE = 1, 3  # ids of run.c
LAST_BYTE = 0xF4  # of UTF-8
ORDER = (  # of the tensors, each kind with its layers
    *("attn_norm", "attn_q", "attn_k", "attn_v", "attn_output"),
    *("ffn_norm", "ffn_gate", "ffn_down", "ffn_up"),
)


def export(model: LanguageModel, folder: Path) -> list[str]:
    """The two files, of float32 numbers. Raises: UserError: for a model or tokenizer that run.c does not compute."""
    fitting(model.model, "llama2c", {"llama": {**LLAMA, "norm_eps": [1e-5], "rope_base": [1e4], "bias": [False]}})
    order = renumbered(model.tokenizer)
    with file_operation("write", folder / "model.bin"):
        (folder / "model.bin").write_bytes(checkpoint(model, order))
    with file_operation("write", folder / "tokenizer.bin"):
        (folder / "tokenizer.bin").write_bytes(vocabulary(model.tokenizer, order))
    notes = {
        "run.c puts a space before each prompt, unlike training; docs/runtimes.md": model.tokenizer.adds_space,
        "run.c puts the end of a document before each prompt, unlike training": model.eos_first,
    }
    lines = [f"version 0, {len(order):,} ids in another order: {BORDER} ends a document"]
    return [*lines, *(note for note, holds in notes.items() if not holds)]


def checkpoint(model: LanguageModel, order: Sequence[int]) -> bytes:
    """Version 0 of the format: seven whole numbers, then the tensors one after another."""
    config, tensors = model.model.config, named_tensors(model.model, interleave=True)
    size = config.vocab_size if config.tied else -config.vocab_size  # the sign says whether the head is apart
    heads = config.heads, config.kv_heads or config.heads
    header = struct.pack("<7i", config.width, config.hidden_width, config.depth, *heads, size, config.context)
    layers = [tensors[f"blk.{layer}.{kind}.weight"] for kind in ORDER for layer in range(config.depth)]
    angles = torch.zeros(config.context, config.head_dim)  # run.c computes them
    every = [tensors["token_embd.weight"][order], *layers, tensors["output_norm.weight"], angles]
    every += [] if config.tied else [tensors["output.weight"][order]]
    return header + b"".join(tensor.float().numpy().astype("<f4").tobytes() for tensor in every)


def renumbered(tokenizer: Tokenizer) -> list[int]:
    """The id of slm for each id of run.c: eos is BORDER, a byte without a text of its own FIRST_BYTE + byte.

    Raises: UserError: for a tokenizer that run.c does not apply exactly.
    """
    fixed = {BORDER: tokenizer.eos}
    fixed |= {FIRST_BYTE + byte: token for byte, token in fallback(tokenizer).items() if byte <= LAST_BYTE}
    rest = sorted(set(range(tokenizer.vocab_size)) - set(fixed.values()))
    return [fixed[new] if new in fixed else rest.pop(0) for new in range(tokenizer.vocab_size)]


def fallback(tokenizer: Tokenizer) -> dict[int, int]:
    """The id for each byte that is written alone where a character has no id."""
    if isinstance(tokenizer, ByteTokenizer):
        return {byte: byte for byte in range(128, 256)}  # the others are characters
    if isinstance(tokenizer, SentencePieceTokenizer | SentencePieceModel):
        processor = require_bpe(tokenizer, "llama2c")
        return {byte: processor.piece_to_id(f"<0x{byte:02X}>") for byte in range(256)}
    raise UserError(
        f"format=llama2c has no counterpart of the tokenizer {type(tokenizer).__name__}, because run.c merges over the "
        "borders of words; train with tokenizer=sentencepiece or bytes"
    )


def vocabulary(tokenizer: Tokenizer, order: Sequence[int]) -> bytes:
    """The longest text, then score, length and text of each id; "<0x0A>" is a byte that run.c does not look up."""
    table, bytewise = pieces(tokenizer), {token: byte for byte, token in fallback(tokenizer).items()}
    processor, entries = getattr(tokenizer, "_processor", None), []
    unknown = processor.unk_id() if processor else None
    for token in order:
        text = table[token] or b"\0"  # run.c refuses an empty text
        if token == unknown:
            text = b"\0"
        elif token == tokenizer.eos:
            text = b"\n</s>\n"  # run.c merges neighbours whose joined text has an id
        elif token in bytewise:
            text = b"<0x%02X>" % bytewise[token]
        scored = processor and token < processor.vocab_size()
        score = processor.get_score(token) if scored else 0.0  # of two merges of run.c the one with more is first
        entries.append(struct.pack("<fi", score, len(text)) + text)
    longest = max(len(entry) for entry in entries) - struct.calcsize("<fi")
    return struct.pack("<i", longest) + b"".join(entries)
