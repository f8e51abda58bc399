"""Tiny Shakespeare (Karpathy 2015, char-rnn): one text of 1,115,394 characters, local or downloaded once."""

import hashlib
from pathlib import Path

from slm.corpora.download import fetch
from slm.corpora.text import Text
from slm.errors import UserError
from slm.files import atomic

SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
CHARACTERS = 1_115_394  # of one byte each
DOWNLOAD_SECONDS = 10.0


class Shakespeare(Text):
    """`path`: a local copy; None: `url`, downloaded into the folder `cache`. The first `train_ratio` is train.

    Raises: UserError: as Text; if the download or its sha256 fails.
    """

    def __init__(self, *, path: str | None, url: str, cache: str, train_ratio: float):
        self.url, self.download = url, Path(cache) / "shakespeare" / "input.txt"
        path = path or str(self.download)
        super().__init__(path=path, separator=None, split="contiguous", train_ratio=train_ratio, seed=0)

    def is_local(self) -> bool:
        """False if reading it would download it."""
        return self.path != str(self.download) or self.download.exists()

    def size(self) -> tuple[int, int] | None:
        """Documents and bytes of the train split, without a download."""
        return super().size() if self.is_local() else (1, round(self.train_ratio * CHARACTERS))

    def files(self) -> list[Path]:
        if self.path == str(self.download) and not self.download.exists():
            remedy = f"place the file at {self.download}, or give data.path=<file>"
            try:
                content = fetch(self.url, seconds=DOWNLOAD_SECONDS)
            except OSError as error:
                raise UserError(f"cannot download {self.url} ({error}): {remedy}") from error
            if hashlib.sha256(content).hexdigest() != SHA256:
                raise UserError(f"the content of {self.url} is not tiny Shakespeare (another sha256): {remedy}")
            self.download.parent.mkdir(parents=True, exist_ok=True)
            atomic.write(self.download, content)
        return super().files()
