"""A SentencePiece model of another project: with its own ids, normalization and end of a document.

What its normalization changes or its pieces do not cover is counted as lost text.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np
import sentencepiece

from slm.errors import UserError, file_operation
from slm.files import atomic
from slm.tokenizers import Tokenizer, read_saved, write_saved

FILE = "sentencepiece.model"
SPACE = "\u2581"  # a space within a piece
MAX_BYTES = 2**27  # of a model; those in use have up to 5 MB
NORMALIZATIONS = {  # a text, the part of it that is gone -> what the normalization does
    ("\ufb01", "\ufb01"): "replaces compatibility characters (NFKC)",
    ("A", "A"): "lower-cases",
    ("a  b", SPACE * 2): "joins repeated spaces",
    ("a\nb", "\n"): "replaces line ends",
}


class SentencePieceModel(Tokenizer):
    in_processes = True

    def __init__(self, model: bytes):
        """Raises: ValueError and others: for bytes that are no model."""
        if not model:
            raise ValueError("the file is empty")
        self.model = model
        self._processor = processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        self._bytes = [piece_bytes(processor, token) for token in range(processor.vocab_size())]
        self.eos = processor.eos_id()
        if not 0 <= self.eos < len(self._bytes) or self._bytes[self.eos]:  # none, or one that is text
            self.eos = len(self._bytes)
            self._bytes.append(b"")
        self.vocab_size = len(self._bytes)
        self.adds_space = processor.normalize("a") == SPACE + "a"

    @classmethod
    def read(cls, path: str) -> Self:
        """The model of a file; prints what it does to a text. Raises: UserError: for anything but a model."""
        file = atomic.expanded(path)
        if not file.is_file():
            raise UserError(f"tokenizer.path={path} is not a file; give a .model file of SentencePiece")
        with file_operation("read", file):
            if (size := file.stat().st_size) > MAX_BYTES:
                raise UserError(f"{file} has {size:,} bytes, more than the {MAX_BYTES:,} that a model may have")
            content = file.read_bytes()
        try:
            tokenizer = cls(content)
        except (ValueError, RuntimeError, OSError):  # of the library, by its version
            raise UserError(f"tokenizer.path={path} is no model of SentencePiece; give a .model file") from None
        print(f"{file}: {tokenizer.properties()}")
        return tokenizer

    def properties(self) -> str:
        """The size of the vocabulary, eos, and what the normalization does to a text, in a line."""
        normalize = self._processor.normalize
        effects = [effect for (text, part), effect in NORMALIZATIONS.items() if part not in normalize(text)]
        effects += ["puts a space before each text"] if self.adds_space else []
        has_bytes = any(map(self._processor.is_byte, range(self._processor.vocab_size())))
        return (
            f"{self.vocab_size:,} ids, eos {self.eos}; its normalization {', '.join(effects) or 'changes nothing'}; "
            f"other characters {'are written as bytes' if has_bytes else 'are lost'}"
        )

    @classmethod
    def load(cls, folder: Path) -> Self:
        """The inverse of `save`. Raises: Damaged: if the model is missing or changed."""
        return cls(read_saved(folder, FILE)[1])

    def save(self, folder: Path) -> None:
        write_saved(folder, {"kind": "sentencepiece_model"}, FILE, self.model)

    def encode(self, text: str) -> list[int]:
        return self._processor.encode(text)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        batch = self._processor.encode(list(texts), num_threads=self.threads)
        return [np.array(ids, dtype=np.int32) for ids in batch]


def piece_bytes(processor: sentencepiece.SentencePieceProcessor, token: int) -> bytes:
    """The UTF-8 bytes of an id, empty for a control id, U+FFFD for unknown text."""
    piece = processor.id_to_piece(token)
    if processor.is_unknown(token):
        return "\ufffd".encode()
    if processor.is_control(token) or processor.is_unused(token):
        return b""
    return bytes([int(piece[3:5], 16)]) if processor.is_byte(token) else piece.replace(SPACE, " ").encode()
