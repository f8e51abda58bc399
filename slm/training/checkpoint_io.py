"""Lightning's CheckpointIO over slm.checkpoint: durable files, written by a thread while training goes on."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO
from torch import Tensor

from slm import checkpoint
from slm.files import atomic


class DurableCheckpointIO(CheckpointIO):
    """Copies a checkpoint and writes the copy in a thread, after flushing the logs of the run folder to disk.

    An error of the thread is raised by the next call of any method.
    """

    def __init__(self, folder: Path):
        self.folder, self.thread = folder, ThreadPoolExecutor(1, "checkpoints")
        self.pending: Future | None = None

    def save_checkpoint(self, content: dict[str, Any], path, storage_options=None):
        self.wait()
        self.pending = self.thread.submit(self._write, copied(content), Path(path))

    def then(self, call: Callable[[], Any]):
        """Calls a function in the thread once the pending write has succeeded."""
        if written := self.pending:
            self.pending = self.thread.submit(lambda: (written.result(), call()))

    def wait(self):
        """Waits for the pending write. Raises its error."""
        if self.pending:
            pending, self.pending = self.pending, None
            pending.result()

    def check(self):
        """Raises the error of a write that has ended; does not wait."""
        if self.pending and self.pending.done():
            self.wait()

    def load_checkpoint(self, path, map_location=None, weights_only=None) -> dict[str, Any]:
        return checkpoint.read(Path(path))

    def remove_checkpoint(self, path):
        self.wait()
        for file in (Path(path), atomic.digest_path(Path(path))):
            file.unlink(missing_ok=True)

    def teardown(self):
        self.thread.shutdown()

    def _write(self, content: dict[str, Any], path: Path):
        for log in self.folder.glob("*.jsonl"):
            atomic.flush(log)
        atomic.flush(self.folder)
        path.parent.mkdir(parents=self.folder not in path.parents, exist_ok=True)  # never a removed run folder
        checkpoint.save(content, path)


def copied(value: Any, known: dict[tuple, Tensor] | None = None) -> Any:
    """Nested values with tensors copied to the CPU; tensors that share memory, such as tied weights, still do."""
    known = {} if known is None else known
    if isinstance(value, Tensor):
        place = value.data_ptr(), value.dtype, value.shape, value.stride()
        if place not in known:
            known[place] = value.detach().to("cpu", copy=True)
        return known[place]
    if isinstance(value, dict):
        return {key: copied(item, known) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(copied(item, known) for item in value)
    return value
