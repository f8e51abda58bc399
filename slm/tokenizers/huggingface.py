"""Any tokenizer.json of Hugging Face's `tokenizers`, an optional extra: of a file, a folder or a repository of the Hub.

Ids are those of the library without its template, so no <s> is put before a text. Special tokens are never produced
from text, and the library's truncation and padding are off. What a normalizer changes is counted as lost text.
"""

import json
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from slm.errors import UserError, printable
from slm.tokenizers import Tokenizer, read_saved, require, write_saved
from slm.tokenizers.bpe import check_settings, too_large
from slm.tokenizers.huggingface_files import read
from slm.tokenizers.huggingface_pieces import byte_pieces
from slm.tokenizers.sample import sample
from slm.tokenizers.split import PATTERNS, Pattern

try:
    import tokenizers as library
except ImportError:
    library = None

os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")  # no warning when loaders are forked, which encode nothing

FILE = "huggingface.json"
PANIC = "PanicException"  # of Rust, which is no Exception
MAX_ID = 2**22  # vocabularies in use have less than 2**19 ids
EOS = "<|endoftext|>"
KNOWN_EOS = (EOS, "</s>", "<|end_of_text|>", "<eos>", "<|im_end|>", "<EOS>", "[EOS]", "[SEP]")


class HuggingFaceTokenizer(Tokenizer):
    in_processes = True

    def __init__(self, content: str, eos: str):
        """`content` is that of a tokenizer.json; `eos` one of its tokens. Raises: ValueError: for anything else."""
        self.content, self.eos_token = content, eos
        self._tokenizer = parsed(content)
        ids = self._tokenizer.get_vocab(with_added_tokens=True)
        if eos not in ids:
            raise ValueError(f"it has no token {printable(repr(eos), 100)}")
        self.eos, self.vocab_size = ids[eos], max(ids.values()) + 1
        added = self._tokenizer.get_added_tokens_decoder()
        special = {token for token, known in added.items() if known.special} | {self.eos}
        self._bytes = byte_pieces(json.loads(content), ids, special)
        controls = [token for token in special if not self._bytes[token]]
        self._controls = np.array(controls)
        names = sorted((self._tokenizer.id_to_token(token) for token in controls), key=len, reverse=True)
        self._inside = re.compile("|".join(f"(?<={re.escape(name[0])})(?={re.escape(name[1:])})" for name in names))
        self._tokenizer.encode_special_tokens = True  # as text
        self.adds_space = self.decode(self.encode("a")) == " a"

    @classmethod
    def build(
        cls, documents: Iterable[str], *, path: str | None, revision: str | None = None, eos: str | None = None
    ) -> Self:
        """Does not read the documents. `eos` is the token that ends a document, found unless given.

        Raises: UserError: without the library; for a file that is missing or no tokenizer; if no eos is found.
        """
        require(library, "tokenizers", "hf")
        if path is None:
            raise UserError("give tokenizer.path, a tokenizer.json, its folder or a repository of the Hub")
        content, configured = read(path, revision)
        try:
            vocabulary = parsed(content).get_vocab(with_added_tokens=True)
        except ValueError as error:
            raise UserError(f"tokenizer.path={path} holds no tokenizer that can be read: {error}") from None
        special = [token["content"] for token in json.loads(content).get("added_tokens", ()) if token["special"]]
        found = eos or next((name for name in (configured, *KNOWN_EOS) if name in vocabulary), None)
        if found is None and special:
            shown = printable(", ".join(map(repr, special[:20])), 500)
            raise UserError(f"tokenizer.path={path} names no end of a document; give tokenizer.eos, one of {shown}")
        try:
            return cls(with_special(content, found or EOS), found or EOS)
        except (ValueError, KeyError, TypeError) as error:  # of a part that the library leaves unread
            problem = error if isinstance(error, ValueError) else f"{type(error).__name__} {error} in its settings"
            raise UserError(f"tokenizer.path={path} cannot be used: {printable(str(problem), 200)}") from None

    @classmethod
    def train(
        cls, documents: Iterable[str], *, vocab_size: int, pattern: Pattern, sample_documents: int, seed: int
    ) -> Self:
        """The byte-level BPE of slm.tokenizers.bpe with the same ids, learned by the library.

        Raises: UserError: without the library; for a vocabulary size that the sampled documents do not allow.
        """
        require(library, "tokenizers", "hf")
        check_settings(vocab_size, pattern)
        new, pre = library.Tokenizer(library.models.BPE()), library.pre_tokenizers
        words = pre.Split(library.Regex(PATTERNS[pattern]), "isolated")
        new.pre_tokenizer = pre.Sequence([words, pre.ByteLevel(add_prefix_space=False, use_regex=False)])
        new.decoder = library.decoders.ByteLevel()
        alphabet = pre.ByteLevel.alphabet()
        trainer = library.trainers.BpeTrainer(
            vocab_size=vocab_size - 1, min_frequency=2, show_progress=False, initial_alphabet=alphabet
        )
        new.train_from_iterator(sample(documents, sample_documents, seed), trainer)
        if (largest := new.get_vocab_size() + 1) < vocab_size:
            raise too_large(vocab_size, largest)
        return cls(with_special(new.to_str(), EOS), EOS)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """The inverse of `save`. Raises: Damaged: if the file is missing, changed or no such tokenizer; UserError:
        without the library."""
        require(library, "tokenizers", "hf")
        settings, content = read_saved(folder, FILE)
        return cls(content.decode(), settings["eos"])

    def save(self, folder: Path) -> None:
        write_saved(folder, {"kind": "huggingface", "eos": self.eos_token}, FILE, self.content.encode())

    def encode(self, text: str) -> list[int]:
        return self.encode_batch([text])[0].tolist()

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        arrays = self._encoded(texts)
        for place, ids in enumerate(arrays):
            if np.isin(ids, self._controls).any():
                arrays[place] = self._without_controls(texts[place])
        return arrays

    def _encoded(self, texts: Sequence[str]) -> list[np.ndarray]:
        if self.threads == 1:
            os.environ["TOKENIZERS_PARALLELISM"] = "false"  # its threads are not there in a forked process
        try:
            batch = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        except BaseException as error:
            if type(error) is not Exception and type(error).__name__ != PANIC:  # the library's own have no class
                raise
            raise UserError(f"the tokenizer cannot encode this text: {printable(str(error), 200)}") from None
        return [np.array(encoding.ids, dtype=np.int32) for encoding in batch]

    def _without_controls(self, text: str) -> np.ndarray:
        """The ids of a text with the name of a control token, as a piece of its vocabulary: the name is cut in two."""
        ids = np.concatenate(self._encoded(self._inside.split(text)))
        return ids[~np.isin(ids, self._controls)]  # of a name that normalization makes


def parsed(content: str) -> Any:
    """The library's tokenizer, without truncation and padding. Raises: ValueError: for anything else."""
    try:
        tokenizer = library.Tokenizer.from_str(content)
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != PANIC:
            raise
        raise ValueError(printable(str(error), 200)) from None
    if (largest := max(tokenizer.get_vocab(with_added_tokens=True).values(), default=0)) >= MAX_ID:
        raise ValueError(f"it has an id of {largest:,}, and the largest possible one is {MAX_ID - 1:,}")
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def with_special(content: str, token: str) -> str:
    """The tokenizer with `token` as a special token; a new id if it is none of its vocabulary."""
    settings, ids = json.loads(content), parsed(content).get_vocab(with_added_tokens=True)
    added = settings.setdefault("added_tokens", [])
    known = next((entry for entry in added if entry["content"] == token), None)
    if known and known["special"]:
        return content
    number = ids.get(token, max(ids.values(), default=-1) + 1)
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    special = {"id": number, "content": token, **plain, "special": True}
    settings["added_tokens"] = sorted(
        [special, *(entry for entry in added if entry is not known)], key=lambda entry: entry["id"]
    )
    return json.dumps(settings, ensure_ascii=False)
