"""The vocabulary of GPT-2 through tiktoken, an optional extra. `build` needs OpenAI's two files, from tiktoken's cache
or from the network; a saved tokenizer needs neither.
"""

import base64
import hashlib
import os
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Self

import numpy as np

from slm.errors import UserError
from slm.files import atomic
from slm.tokenizers import Tokenizer, damaged, read_file, write_settings

try:
    import requests
    import tiktoken
    from tiktoken_ext import openai_public
except ImportError:
    tiktoken = None

SOURCE = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/"  # tiktoken's
FILES = ("vocab.bpe", "encoder.json")
RANKS = "ranks.tiktoken"  # equal to OpenAI's r50k_base.tiktoken
RANKS_SHA256 = "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930"


class GPT2Tokenizer(Tokenizer):
    vocab_size = 50257
    eos = 50256

    def __init__(self, ranks: dict[bytes, int]):
        """`ranks` maps the bytes of each of the first 50,256 ids to that id."""
        self._bytes = [*sorted(ranks, key=ranks.get), b""]
        self._encoding = tiktoken.Encoding(
            "gpt2",
            pat_str=openai_public.r50k_pat_str,
            mergeable_ranks=ranks,
            special_tokens={"<|endoftext|>": self.eos},
            explicit_n_vocab=self.vocab_size,
        )

    @classmethod
    def build(cls, documents: Iterable[str]) -> Self:
        """Does not read the documents. Raises: UserError: without tiktoken, or without network and cache."""
        require_tiktoken()
        return cls(fetch_ranks())

    @classmethod
    def load(cls, folder: Path) -> Self:
        """The inverse of `save`. Raises: Damaged: if the ranks are missing or changed; UserError: without tiktoken."""
        require_tiktoken()
        content = read_file(folder, RANKS)
        if hashlib.sha256(content).hexdigest() != RANKS_SHA256:
            raise damaged(folder, RANKS)
        return cls({base64.b64decode(token): int(rank) for token, rank in map(bytes.split, content.splitlines())})

    def save(self, folder: Path) -> None:
        write_settings(folder, {"kind": "gpt2"})
        lines = (base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(self._bytes[: self.eos]))
        atomic.write(folder / RANKS, b"".join(lines))

    def encode(self, text: str) -> list[int]:
        return self._encoding.encode_ordinary(text)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        batch = self._encoding.encode_ordinary_batch(list(texts), num_threads=os.cpu_count())
        return [np.array(ids, dtype=np.int32) for ids in batch]

    def token_bytes(self, token: int) -> bytes:
        return self._bytes[token]


def require_tiktoken() -> None:
    """Raises: UserError: if tiktoken is not installed."""
    if tiktoken is None:
        raise UserError(
            'tokenizer=gpt2 needs tiktoken: pip install "slm[gpt2]", in a checkout pip install -e ".[gpt2]"'
        )


def fetch_ranks() -> dict[bytes, int]:
    """Bytes of each of the first 50,256 ids -> id, from tiktoken's cache, or downloaded into it.

    Raises: UserError: if there is no network and no cached file, or a file cannot be written or is damaged.
    """
    default = os.environ.get("DATA_GYM_CACHE_DIR", Path(tempfile.gettempdir(), "data-gym-cache"))
    cache = Path(os.environ.get("TIKTOKEN_CACHE_DIR", default))
    cached = {file: cache / hashlib.sha1((SOURCE + file).encode()).hexdigest() for file in FILES}
    try:
        if not all(path.is_file() for path in cached.values()):
            requests.head(SOURCE + FILES[0], timeout=3).raise_for_status()  # seconds; tiktoken has no timeout
        return openai_public.gpt2()["mergeable_ranks"]
    except (OSError, ValueError) as error:  # network, missing file, permission, checksum
        places = " and ".join(f"{file} as {path}" for file, path in cached.items())
        raise UserError(
            f"tokenizer=gpt2 cannot get GPT-2's files ({type(error).__name__}): connect to the network once, "
            f"or save OpenAI's {places} (set TIKTOKEN_CACHE_DIR for another folder)"
        ) from None
