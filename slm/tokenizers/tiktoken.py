"""OpenAI's vocabularies by name through tiktoken, an optional extra.

`build` needs OpenAI's files, from tiktoken's cache or from the network; a saved tokenizer needs neither. Of the special
tokens only <|endoftext|> has an id here.
"""

import base64
import hashlib
import os
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self, get_args

import numpy as np

from slm.errors import UserError
from slm.tokenizers import Tokenizer, read_saved, require, write_saved
from slm.tokenizers.split import PATTERNS

try:
    import requests
    import tiktoken as library
    from tiktoken.load import load_tiktoken_bpe
    from tiktoken_ext import openai_public
except ImportError:
    library = None

Name = Literal["gpt2", "cl100k_base", "o200k_base"]
Ranks = dict[bytes, int]  # the bytes of an id -> that id

OPENAI = "https://openaipublic.blob.core.windows.net/"
RANKS = "ranks.tiktoken"
EOS = "<|endoftext|>"
ENDING = "(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
UPPER, LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"


@dataclass(frozen=True)
class Known:
    """A published vocabulary."""

    files: tuple[str, ...]  # URLs after OPENAI
    sha256: str  # of the only file
    ranks: int  # ids of bytes
    eos: int
    pattern: str  # how a text is cut into words


ENCODINGS: dict[Name, Known] = {
    "gpt2": Known(
        files=("gpt-2/encodings/main/vocab.bpe", "gpt-2/encodings/main/encoder.json"),
        sha256="306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930",  # r50k_base.tiktoken
        ranks=50256,
        eos=50256,
        pattern=PATTERNS["gpt2"],
    ),
    "cl100k_base": Known(
        files=("encodings/cl100k_base.tiktoken",),
        sha256="223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7",
        ranks=100256,
        eos=100257,
        pattern=PATTERNS["gpt4"],
    ),
    "o200k_base": Known(
        files=("encodings/o200k_base.tiktoken",),
        sha256="446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d",
        ranks=199998,
        eos=199999,
        pattern=rf"[^\r\n\p{{L}}\p{{N}}]?[{UPPER}]*[{LOWER}]+{ENDING}|[^\r\n\p{{L}}\p{{N}}]?[{UPPER}]+[{LOWER}]*{ENDING}|"
        r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ),
}


class TiktokenTokenizer(Tokenizer):
    in_processes = True

    def __init__(self, name: Name, ranks: Ranks):
        """Raises: ValueError: unless the ranks are those of distinct pieces, with all bytes, from 0 on."""
        self.name, known = name, ENCODINGS[name]
        self._bytes = sorted(ranks, key=ranks.get)
        single = {piece for piece in ranks if len(piece) == 1}
        if [*ranks.values()] != [*range(known.ranks)] or len(single) != 256 or b"" in ranks:
            raise ValueError(f"no ranks of {name}")
        self._bytes += [b""] * (known.eos + 1 - known.ranks)
        self.eos, self.vocab_size = known.eos, known.eos + 1
        self._encoding = library.Encoding(
            name, pat_str=known.pattern, mergeable_ranks=ranks, special_tokens={EOS: known.eos}
        )

    @classmethod
    def build(cls, documents: Iterable[str], *, encoding: Name) -> "TiktokenTokenizer":
        """Does not read the documents. Raises: UserError: without tiktoken, or without network and cache."""
        if encoding not in get_args(Name):
            raise UserError(f"tokenizer.encoding={encoding}: must be {', '.join(get_args(Name))}")
        return cls(encoding, fetch_ranks(encoding))

    @classmethod
    def load(cls, folder: Path) -> Self:
        """The inverse of `save`. Raises: Damaged: if the ranks are missing or changed; UserError: without tiktoken."""
        settings, ranks = read_ranks(folder)
        return cls(settings["encoding"], ranks)

    def save(self, folder: Path) -> None:
        write_saved(folder, {"kind": "tiktoken", "encoding": self.name}, RANKS, self._content())

    def _content(self) -> bytes:
        pieces = self._bytes[: ENCODINGS[self.name].ranks]
        return b"".join(base64.b64encode(piece) + b" %d\n" % rank for rank, piece in enumerate(pieces))

    def encode(self, text: str) -> list[int]:
        return self._encoding.encode_ordinary(text)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        if self.threads == 1:
            batch = map(self._encoding.encode_ordinary, texts)
        else:
            batch = self._encoding.encode_ordinary_batch(list(texts), num_threads=self.threads)
        return [np.array(ids, dtype=np.int32) for ids in batch]


def read_ranks(folder: Path, sha256: str | None = None) -> tuple[dict, Ranks]:
    """Saved settings and ranks. Raises: Damaged: if they are missing or changed; UserError: without tiktoken."""
    require(library, "tiktoken", "gpt2")
    settings, content = read_saved(folder, RANKS, sha256)
    return settings, {base64.b64decode(piece): int(rank) for piece, rank in map(bytes.split, content.splitlines())}


def fetch_ranks(name: Name) -> Ranks:
    """The ranks of an encoding, from tiktoken's cache, or downloaded into it.

    Raises: UserError: without tiktoken; if there is no network and no cached file, or a file cannot be written or is
    damaged.
    """
    require(library, "tiktoken", "gpt2")
    known = ENCODINGS[name]
    urls = [OPENAI + file for file in known.files]
    default = os.environ.get("DATA_GYM_CACHE_DIR", Path(tempfile.gettempdir(), "data-gym-cache"))
    cache = Path(os.environ.get("TIKTOKEN_CACHE_DIR", default))
    cached = {url: cache / hashlib.sha1(url.encode()).hexdigest() for url in urls}
    try:
        if not all(path.is_file() for path in cached.values()):
            requests.head(urls[0], timeout=3).raise_for_status()  # seconds; tiktoken has no timeout
        if name == "gpt2":
            return openai_public.gpt2()["mergeable_ranks"]
        return load_tiktoken_bpe(urls[0], expected_hash=known.sha256)
    except (OSError, ValueError) as error:  # network, missing file, permission, checksum
        places = " and ".join(f"{url.rpartition('/')[2]} as {path}" for url, path in cached.items())
        raise UserError(
            f"tiktoken cannot get the files of {name} ({type(error).__name__}): connect to the network once, or save "
            f"OpenAI's {places} (set TIKTOKEN_CACHE_DIR for another folder)"
        ) from None
