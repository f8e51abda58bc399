"""Conversion of text to token ids and back, without torch.

A tokenizer class has the methods of `Tokenizer` and two constructors: `build(documents, **settings)`, which may learn
from the documents, and `load(folder)`, the inverse of `save`.
"""

import hashlib
import json
import os
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from slm.errors import UserError, file_operation, printable
from slm.files import atomic
from slm.security import is_file_name

KINDS = {  # the "kind" in tokenizer.json -> module:class
    "sentencepiece": "slm.tokenizers.sentencepiece:SentencePieceTokenizer",
    "characters": "slm.tokenizers.characters:CharacterTokenizer",
    "bytes": "slm.tokenizers.bytes:ByteTokenizer",
    "bpe": "slm.tokenizers.bpe:BPETokenizer",
    "huggingface": "slm.tokenizers.huggingface:HuggingFaceTokenizer",
    "tiktoken": "slm.tokenizers.tiktoken:TiktokenTokenizer",
    "sentencepiece_model": "slm.tokenizers.sentencepiece_model:SentencePieceModel",
    "gpt2": "slm.tokenizers.gpt2:GPT2Tokenizer",
}


LATER = "path", "character_coverage"  # settings that caches of earlier versions do not name


class Damaged(UserError):
    """A folder without a tokenizer that can be loaded."""


class UnknownKind(Damaged):
    """A saved tokenizer whose kind is not in KINDS. Only its own class can load it."""


class Tokenizer(Protocol):
    """The interface of a tokenizer. `encode` never returns control ids: text that spells a special token stays text.
    Only the token store adds `eos`, and only a model generates it."""

    vocab_size: int
    eos: int  # the id that ends a document
    adds_space: bool = False  # `encode` puts a space before a text, and `decode` removes it
    threads: int = os.cpu_count() or 1  # that `encode_batch` may use
    in_processes: bool = False  # `encode_batch` is safe to call in forked processes
    _bytes: Sequence[bytes]  # of every id, for `token_bytes`

    def encode(self, text: str) -> list[int]: ...

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """One int32 array of ids per text, equal to `encode` of each."""
        return [np.array(self.encode(text), dtype=np.int32) for text in texts]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of the ids. Control ids have no text; invalid UTF-8 becomes U+FFFD."""
        text = b"".join(map(self.token_bytes, ids)).decode("utf-8", errors="replace")
        return text.removeprefix(" ") if self.adds_space else text

    def token_bytes(self, token: int) -> bytes:
        """The UTF-8 bytes of one id, empty for a control id. Raises IndexError or ValueError above the vocabulary."""
        return self._bytes[token]

    def save(self, folder: Path) -> None:
        """Writes all files that `load` needs; the KINDS write their kind into tokenizer.json. Deterministic."""


def identity(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What names a tokenizer in the cache: its settings, with the digest of a local file, without a null of LATER."""
    settings = {key: value for key, value in settings.items() if key not in LATER or value is not None}
    if not isinstance(path := settings.get("path"), str):
        return settings
    local, names = atomic.expanded(path), ("tokenizer.json", "tokenizer_config.json")
    files = [local, *(local / name for name in names), local.with_name(names[1])]
    return {**settings, "sha256": [atomic.sha256(file) for file in files if file.is_file()]}


def is_own(kind: type) -> bool:
    """True for a class of tokenizers from outside slm."""
    return f"{kind.__module__}:{kind.__qualname__}" not in KINDS.values()


def pieces(tokenizer: Tokenizer) -> np.ndarray:
    """The UTF-8 bytes of every id, as objects (V,)."""
    table = np.empty(tokenizer.vocab_size, dtype=object)
    table[:] = [tokenizer.token_bytes(token) for token in range(tokenizer.vocab_size)]
    return table


def text_lengths(tokenizer: Tokenizer) -> np.ndarray:
    """The bytes of text of every id (2, V), within a document and at its start: there without the space that the
    tokenizer adds, so that the sum over a document is the size of its text."""
    table = pieces(tokenizer)
    within = np.array([*map(len, table)])
    added = [tokenizer.adds_space and piece.startswith(b" ") for piece in table]
    return np.stack([within, within - np.array(added)])


def lost_bytes(pieces: np.ndarray, texts: Sequence[str], arrays: Sequence[np.ndarray]) -> int:
    """UTF-8 bytes of the characters of the texts that their ids do not contain: replaced, changed or left out.

    At least 1 for each text that its ids do not restore exactly, so 0 means that the ids contain all texts. A space
    that a tokenizer puts before or after each text is no loss.
    """
    lost = 0
    for text, ids in zip(texts, arrays, strict=True):
        restored, exact = b"".join(pieces[ids]), text.encode()
        if restored != exact and restored not in (b" " + exact, exact + b" "):
            missing = Counter(text) - Counter(restored.decode("utf-8", errors="replace"))
            lost += max(1, sum(len(character.encode()) * count for character, count in missing.items()))
    return lost


def files(tokenizer: Tokenizer) -> dict[str, bytes]:
    """The files that `save` writes, by name: whatever else lies in a folder is no part of the tokenizer.

    Raises: UserError: if it writes a folder or a hidden file, which would be lost in a checkpoint.
    """
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save(Path(folder))
        paths = sorted(Path(folder).iterdir())
        if odd := [path.name for path in paths if not (path.is_file() and is_file_name(path.name))]:
            raise UserError(f"{type(tokenizer).__name__}.save wrote {odd[0]!r}, and may write visible files only")
        return {path.name: path.read_bytes() for path in paths}


def load(folder: Path) -> Tokenizer:
    """Loads a saved tokenizer of one of the KINDS; imports nothing that the folder names.

    Raises: Damaged: if a file is missing or holds anything but such a tokenizer; UnknownKind: for a tokenizer class
    that is not part of slm; OSError: if a file cannot be read.
    """
    kind = read_settings(folder).get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        shown = printable(repr(kind), 100)
        raise UnknownKind(f"{folder} holds a tokenizer of kind {shown}, not {', '.join(KINDS)}; give its own class")
    module, name = KINDS[kind].split(":")
    tokenizer = getattr(import_module(module), name)
    try:
        return tokenizer.load(folder)
    except (UserError, OSError):
        raise
    except Exception:  # malformed content has no common error: keys, types, ids, UTF-8, the library's own
        raise damaged(folder, "tokenizer.json") from None


def write_settings(folder: Path, settings: dict) -> None:
    """Writes tokenizer.json; creates the folder if it is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    atomic.write_text(folder / "tokenizer.json", json.dumps(settings, indent=2) + "\n")


def read_settings(folder: Path) -> dict:
    """The inverse of `write_settings`. Raises: Damaged: if tokenizer.json is missing or not a JSON object."""
    try:
        settings = json.loads(read_file(folder, "tokenizer.json"))
    except (ValueError, RecursionError):  # JSON that is no JSON, too large a number, too many brackets
        settings = None
    if not isinstance(settings, dict):
        raise damaged(folder, "tokenizer.json")
    return settings


def write_saved(folder: Path, settings: dict, file: str, content: bytes) -> None:
    """Writes a file, and tokenizer.json with the settings and its sha256: a damaged model may load without an error."""
    write_settings(folder, {**settings, "sha256": hashlib.sha256(content).hexdigest()})
    atomic.write(folder / file, content)


def read_saved(folder: Path, file: str, sha256: str | None = None) -> tuple[dict, bytes]:
    """The inverse of `write_saved`, without kind and sha256. `sha256`: that of the file, if tokenizer.json has none.

    Raises: Damaged: if one of the two is missing or changed.
    """
    settings, content = read_settings(folder), read_file(folder, file)
    written = settings.pop("sha256", None)
    if hashlib.sha256(content).hexdigest() != (sha256 or written):
        raise damaged(folder, file)
    settings.pop("kind", None)
    return settings, content


def read_file(folder: Path, file: str) -> bytes:
    """A file of a saved tokenizer. Raises: Damaged: if there is none; OSError: if it cannot be read."""
    try:
        with file_operation("read", folder / file):
            return (folder / file).read_bytes()
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise damaged(folder, file) from None


def require(library: Any, name: str, extra: str) -> None:
    """Raises: UserError: for an optional library that is not installed, which is None."""
    if library is None:
        raise UserError(
            f'this tokenizer needs {name}: pip install "slm[{extra}]", in a checkout pip install -e ".[{extra}]"'
        )


def damaged(folder: Path, file: str) -> Damaged:
    """The exception for a missing or damaged file of a saved tokenizer."""
    return Damaged(f"{folder / file} is missing or damaged; delete the folder to build the tokenizer again")
