"""train.py with one guarantee broken, to see whether the tests notice: SLM_BROKEN=order python broken.py ..."""

import contextlib
import io
import os
import signal
import time

from slm.files import atomic, jsonl
from slm.run.cli import train_main
from slm.training.callbacks.checkpoints import Checkpoints
from slm.training.callbacks.seeding import Seeding
from slm.training.datamodule import WindowsData
from slm.training.module import Pretraining


def order():
    """The order of the data starts anew after a resume."""
    WindowsData.load_state_dict = lambda self, state: None


def randomness():
    """Dropout uses the global generator as it happens to be."""
    Seeding.on_train_batch_start = lambda *args: None


def history():
    """Log lines after the checkpoint are kept."""
    jsonl.truncate_after = lambda path, step: None


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


def validation():
    """A checkpoint is written before the validation of its step, in which the first attempt is killed."""
    finish, validate = Checkpoints.on_train_batch_end, Pretraining.validation_step

    def finish_before(self, *args):
        self.validation_steps = 10**9
        finish(self, *args)

    def step(self, windows, index):
        if os.environ.get("SLM_ATTEMPT") == "1" and self.trainer.global_step == 12:
            self.trainer.strategy.checkpoint_io.wait()
            os.kill(os.getpid(), signal.SIGKILL)
        return validate(self, windows, index)

    Checkpoints.on_train_batch_end, Pretraining.validation_step = finish_before, step


def retention():
    """Old checkpoints are deleted before the new one is written."""
    save = Checkpoints._save

    def prune_first(self, trainer):
        for path in self.folder.glob("*.ckpt"):
            path.unlink()
        time.sleep(0.2)
        save(self, trainer)

    Checkpoints._save = prune_first


if __name__ == "__main__":
    globals()[os.environ["SLM_BROKEN"]]()
    train_main()
