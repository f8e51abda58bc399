"""Tiny Shakespeare (Karpathy 2015, char-rnn): one text of 1,115,394 characters, local or downloaded once."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

from slm.corpora import Split
from slm.corpora.download import fetch
from slm.corpora.text import Text
from slm.errors import UserError
from slm.files import atomic

SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
DOWNLOAD_SECONDS = 10.0


class Shakespeare:
    """`path`: a local copy; None: `url`, downloaded into the folder `cache`. The first `train_ratio` is train."""

    def __init__(self, *, path: str | None, url: str, cache: str, train_ratio: float):
        self.path, self.url, self.cache, self.train_ratio = path, url, cache, train_ratio

    def documents(self, split: Split) -> Iterator[str]:
        """One document. Raises: UserError: if the download or its sha256 fails, or the file is unreadable."""
        return self._text().documents(split)

    def fingerprint(self) -> str:
        return self._text().fingerprint()

    def _text(self) -> Text:
        path = self.path or str(self._downloaded())
        return Text(path=path, separator=None, split="contiguous", train_ratio=self.train_ratio, seed=0)

    def _downloaded(self) -> Path:
        file = Path(self.cache) / "shakespeare" / "input.txt"
        if not file.exists():
            remedy = f"place the file at {file}, or give data.path=<file>"
            try:
                content = fetch(self.url, seconds=DOWNLOAD_SECONDS)
            except OSError as error:
                raise UserError(f"cannot download {self.url} ({error}): {remedy}") from error
            if hashlib.sha256(content).hexdigest() != SHA256:
                raise UserError(f"the content of {self.url} is not tiny Shakespeare (another sha256): {remedy}")
            file.parent.mkdir(parents=True, exist_ok=True)
            atomic.write(file, content)
        return file
