"""One guarantee of train.py broken, to see whether the tests notice: each function breaks it in this process."""

import contextlib
import io
import time

from slm.files import atomic
from slm.training.callbacks.checkpoints import Checkpoints


def atomicity():
    """Files are written in place, slowly."""

    @contextlib.contextmanager
    def in_place(path, *, digest=False):
        buffer = io.BytesIO()
        yield buffer
        content = buffer.getvalue()
        with open(path, "wb", buffering=0) as file:
            file.write(content[: len(content) // 2])
            time.sleep(0.2)
            file.write(content[len(content) // 2 :])
        if digest:
            atomic.write(atomic.digest_path(path), f"{atomic.sha256(path)}  {path.name}\n".encode())

    atomic.replacing = in_place


def retention():
    """Old checkpoints are deleted before the new one is written."""
    save = Checkpoints._save

    def prune_first(self, trainer):
        for path in self.folder.glob("*.ckpt"):
            path.unlink()
        time.sleep(0.2)
        save(self, trainer)

    Checkpoints._save = prune_first
