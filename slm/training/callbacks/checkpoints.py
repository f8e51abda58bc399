"""When checkpoints are written and which are kept."""

import json
import math
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from slm import checkpoint
from slm.errors import ResourceError, Stopped, UserError
from slm.files import atomic, run_folder
from slm.training.callbacks.signals import StopRequests


class Checkpoints(Checkpoint):
    """Writes step-000100.ckpt every `every_n_steps`, at a new best val/loss, at the end and on request.

    Keeps the newest `keep_last` and the best; last.json and best.json name them. A step whose validation is due is
    saved after it, so that resuming neither loses nor repeats a validation.
    """

    def __init__(
        self, *, every_n_steps: int, keep_last: int, folder: Path, description: dict, val_every: int, stop: StopRequests
    ):
        if every_n_steps < 1:
            raise UserError(f"callbacks.checkpoints.every_n_steps={every_n_steps} must be at least 1")
        if keep_last < 2:
            raise UserError(f"callbacks.checkpoints.keep_last={keep_last} must be at least 2: the newest may be lost")
        self.every_n_steps, self.keep_last, self.folder = every_n_steps, keep_last, folder / "checkpoints"
        self.description, self.val_every, self.stop = description, val_every, stop
        self.best: dict[str, Any] | None = None  # step, file and val/loss
        self.saved_step: int | None = None
        self.lock: int | None = None

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state: dict[str, Any]):
        self.best = state["best"]

    def on_save_checkpoint(self, trainer, module, content: dict[str, Any]):
        content["slm"] = self.description

    def on_load_checkpoint(self, trainer, module, content: dict[str, Any]):
        """Lightning counts microbatches, whose size may have changed since: the steps done say how many there are."""
        done = content["global_step"] * trainer.accumulate_grad_batches
        progress = content["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        for counts in (progress["total"], progress["current"]):
            under_way = counts["processed"] - counts["completed"]  # 1 if it was saved before the microbatch had ended
            counts |= {"ready": done, "started": done, "processed": done, "completed": done - under_way}

    def on_train_start(self, trainer, module):
        self.lock = run_folder.lock_inode(self.folder.parent)
        path = self._path(trainer.global_step)
        if path.exists():
            self.saved_step = trainer.global_step
            self._publish(path, self.best)  # a kill may have come before the pointers
        else:
            self.best = None  # another run's checkpoint: what was best there is not here

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if not step_ends(trainer, batch_idx):
            return
        if trainer.is_global_zero and run_folder.lock_inode(self.folder.parent) != self.lock:
            raise ResourceError(f"the run folder {self.folder.parent} was removed or moved away during training")
        trainer.strategy.checkpoint_io.check()
        step = trainer.global_step
        if step == trainer.max_steps:
            trainer.should_stop = True  # Lightning then validates once more, due or not
        elif step % self.val_every:
            self._finish_step(trainer, improved=False)

    def on_validation_end(self, trainer, module):
        if trainer.sanity_checking or not trainer.global_step:
            return
        loss = trainer.callback_metrics["val/loss"].item()
        improved = math.isfinite(loss) and (self.best is None or loss < self.best["val/loss"])
        if improved:
            step = trainer.global_step
            self.best = {"step": step, "file": self._path(step).name, "val/loss": loss}
        self._finish_step(trainer, improved)

    def on_train_end(self, trainer, module):
        if self.saved_step != trainer.global_step:  # stopped early
            self._save(trainer)
        trainer.strategy.checkpoint_io.wait()

    def _finish_step(self, trainer, improved: bool):
        step = trainer.global_step
        if trainer.strategy.reduce_boolean_decision(self.stop.request is not None, all=False):
            self.stop.request = self.stop.request or Stopped("another process was asked to stop", 143)
        if improved or self.stop.request or step % self.every_n_steps == 0 or step == trainer.max_steps:
            self._save(trainer)
        if self.stop.request:
            trainer.strategy.checkpoint_io.wait()
            raise self.stop.request

    def _save(self, trainer):
        path, writer = self._path(trainer.global_step), trainer.strategy.checkpoint_io
        trainer.save_checkpoint(path)
        self.saved_step = trainer.global_step
        best = dict(self.best) if self.best else None
        writer.then(lambda: (self._publish(path, best), self._prune(path, best)))

    @rank_zero_only
    def _publish(self, newest: Path, best: dict[str, Any] | None):
        atomic.write_text(self.folder / "last.json", json.dumps({"file": newest.name}))
        if best:
            atomic.write_text(self.folder / "best.json", json.dumps(best))

    @rank_zero_only
    def _prune(self, newest: Path, best: dict[str, Any] | None):
        """Leaves those of later steps alone: they are damaged, and will be written again."""
        saved = run_folder.checkpoints(self.folder.parent)
        for path in saved[saved.index(newest) + self.keep_last :]:
            if not best or path.name != best["file"]:
                path.unlink(missing_ok=True)
                atomic.digest_path(path).unlink(missing_ok=True)

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step:06d}.ckpt"


class DurableCheckpointIO(CheckpointIO):
    """Lightning's door to the disk, through slm.checkpoint, which writes a copy in a thread while training goes on.

    What has been logged is flushed before: no power cut must leave a checkpoint whose log is lost. What goes wrong
    is raised by the next call of any method.
    """

    def __init__(self, folder: Path):
        self.folder, self.thread = folder, ThreadPoolExecutor(1, "checkpoints")
        self.under_way: Future | None = None

    def save_checkpoint(self, content: dict[str, Any], path, storage_options=None):
        self.wait()
        self.under_way = self.thread.submit(self._write, copied(content), Path(path))

    def then(self, act: Callable[[], Any]):
        """Does something more once what is being written is there."""
        if written := self.under_way:
            self.under_way = self.thread.submit(lambda: (written.result(), act()))

    def wait(self):
        if self.under_way:
            under_way, self.under_way = self.under_way, None
            under_way.result()

    def check(self):
        """Does not wait."""
        if self.under_way and self.under_way.done():
            self.wait()

    def load_checkpoint(self, path, map_location=None, weights_only=None) -> dict[str, Any]:
        return checkpoint.read(Path(path))

    def remove_checkpoint(self, path):
        Path(path).unlink(missing_ok=True)

    def teardown(self):
        self.thread.shutdown()

    def _write(self, content: dict[str, Any], path: Path):
        for log in self.folder.glob("*.jsonl"):
            atomic.flush(log)
        atomic.flush(self.folder)
        checkpoint.save(content, path)


def copied(value: Any, known: dict[tuple, Tensor] | None = None) -> Any:
    """Nested values with tensors of their own, on the CPU; what was one tensor, as tied weights are, stays one."""
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


def step_ends(trainer, batch_idx: int) -> bool:
    """True where a microbatch was the last of its optimizer step."""
    return (batch_idx + 1) % trainer.accumulate_grad_batches == 0
