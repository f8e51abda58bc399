"""When checkpoints are written and which are kept."""

import contextlib
import json
import math
from collections.abc import Collection
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities import rank_zero_only

from slm import system
from slm.checkpoint.shards import require_safetensors
from slm.data.words import Words
from slm.errors import ResourceError, UserError, notice
from slm.files import atomic, claim, run_folder
from slm.files.kept import kept_steps, kept_words, revision
from slm.training.callbacks import step_ends
from slm.training.callbacks.signals import StopSignals


class Checkpoints(Checkpoint):
    """Writes step-000100.ckpt every `every_n_steps`, at a new best val/loss, at the end and on a request to stop.

    Keeps the newest `keep_last` and the best, which last.json and best.json name, and those of the steps of `keep_at`
    (`kept_steps`), which are always written, and of the first steps that end after its numbers of words (`kept_words`),
    which revisions.json names. A step with a validation is saved after it, so a resume neither skips nor repeats a
    validation. With `sharded`, each of several processes of FSDP2 writes its part, into a folder. Raises UserError for
    settings out of range.
    """

    def __init__(
        self,
        *,
        every_n_steps: int,
        keep_last: int,
        keep_at: list[int | str] | None = None,
        sharded: bool = False,
        folder: Path,
    ):
        if every_n_steps < 1:
            raise UserError(f"callbacks.checkpoints.every_n_steps={every_n_steps} must be at least 1")
        if keep_last < 2:
            raise UserError(f"callbacks.checkpoints.keep_last={keep_last} must be at least 2: the newest may be lost")
        if sharded:
            require_safetensors()
        self.keep_at, self.sharded = keep_at or [], sharded
        kept_steps(self.keep_at, 0)  # checks them before any work
        self.every_n_steps, self.keep_last, self.folder = every_n_steps, keep_last, folder / "checkpoints"
        self.best: dict[str, Any] | None = None  # step, file and val/loss
        self.kept: set[int] = set()  # steps that keep_at named when they were saved: another keep_at spares them
        self.words: int | None = None  # that all devices have read, if keep_at asks for them
        self.unread: Any = 0  # words of the microbatches of the current step on this device
        self.revisions: dict[str, dict[str, Any]] = {}  # name -> file, and words until its end
        self.saved_step: int | None = None
        self.lock: int | None = None

    def state_dict(self) -> dict[str, Any]:
        by_words = {} if self.words is None else {"words": self.words, "revisions": self.revisions}
        return {"best": self.best, "kept": sorted(self.kept), **by_words}

    def load_state_dict(self, state: dict[str, Any]):
        self.kept = set(state.get("kept", ()))
        match state.get("words"), state.get("revisions", {}):
            case (None | int()) as words, dict() as revisions:
                self.words, self.revisions = words, revisions
            case _:
                raise UserError("the state of callbacks.checkpoints is damaged: words; take another checkpoint")
        match state["best"]:
            case None | {"step": int(), "file": str(), "val/loss": float()} as best:
                self.best = best
            case _:
                raise UserError("the state of callbacks.checkpoints is damaged: best; take another checkpoint")

    def on_load_checkpoint(self, trainer, module, content: dict[str, Any]):
        """Recomputes Lightning's microbatch counts from the steps done: the microbatch may have changed."""
        done = content["global_step"] * trainer.accumulate_grad_batches
        progress = content["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        for counts in (progress["total"], progress["current"]):
            unfinished = counts["processed"] - counts["completed"]  # 1 if saved within the last hook of a microbatch
            counts |= {"ready": done, "started": done, "processed": done, "completed": done - unfinished}

    def on_train_start(self, trainer, module):
        self.lock = claim.lock_inode(self.folder.parent)
        self.steps_to_keep = kept_steps(self.keep_at, trainer.max_steps)
        self.words_to_keep = kept_words(self.keep_at)
        self._begin_words(trainer)
        self.validation_steps = trainer.val_check_interval // trainer.accumulate_grad_batches
        there = self.best is not None and (self.folder / self.best["file"]).exists()
        # else a start from another run, whose best is not in this folder
        self.best = trainer.strategy.broadcast(self.best if there else None)
        path = self._path(trainer.global_step)
        if path.exists():
            self.saved_step = trainer.global_step
            self._publish(path, self.best, self.revisions)  # a kill may have come before last.json was written

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        # the step that loggers receive, which Lightning miscounts after a resume from a validation out of turn
        trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if self.words_to_keep:
            self.unread = self.unread + self.counter.count(batch)
        if not step_ends(trainer, batch_idx):
            return
        if self.words_to_keep:
            self.words += int(trainer.strategy.reduce(self.unread, reduce_op="sum"))
            self.unread = 0
        if trainer.is_global_zero and claim.lock_inode(self.folder.parent) != self.lock:
            raise ResourceError(
                f"the run folder {self.folder.parent} or its .lock was removed or moved away during training"
            )
        trainer.strategy.checkpoint_io.check(trainer.strategy)
        step = trainer.global_step
        if step == trainer.max_steps:
            trainer.should_stop = True  # Lightning then validates once more
        elif step % self.validation_steps or not trainer.enable_validation:
            trainer._logger_connector.update_train_step_metrics()  # Lightning would write them after the checkpoint
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
        if self.saved_step != trainer.global_step:  # early stopping
            self._save(trainer)
        trainer.strategy.checkpoint_io.wait()
        if self.words is not None and trainer.is_global_zero:
            notice(f"{self.words:,} words read; checkpoints by words: {', '.join(self.revisions) or 'none'}")

    def on_fit_end(self, trainer, module):
        if self.saved_step is None:  # Lightning has skipped the training: its last step was saved, no more
            self.on_train_start(trainer, module)
            if self.saved_step is not None:
                self._prune(self._path(self.saved_step), self.best, self.kept)

    def _finish_step(self, trainer, improved: bool):
        """Saves if it is time to, and stops the run if that was requested. Raises Stopped."""
        step, signals = trainer.global_step, next(c for c in trainer.callbacks if isinstance(c, StopSignals))
        request = signals.agreed(trainer.strategy)
        if kept := bool(self._name(step)) or step in self.steps_to_keep:
            self.kept.add(step)
        if improved or kept or request or step % self.every_n_steps == 0 or step == trainer.max_steps:
            self._save(trainer)
        if request:
            trainer.strategy.checkpoint_io.wait()
            raise request

    def _begin_words(self, trainer):
        """Raises UserError if steps were done whose words nobody has counted."""
        if not self.words_to_keep:
            self.words = None  # from here on they are not counted
            return
        if trainer.global_step and self.words is None:
            raise UserError(
                f"callbacks.checkpoints.keep_at={self.keep_at} counts words from the first step on, and the checkpoint "
                f"of step {trainer.global_step} has no count; begin a new run with it"
            )
        self.words = self.words or 0
        self.counter = Words(trainer.datamodule.tokenizer, trainer.strategy.root_device)

    def _name(self, step: int) -> list[str]:
        """Gives the checkpoint of this step the names of the numbers of words that it is the first to reach."""
        reached = [revision(words) for words in self.words_to_keep if words <= self.words]
        new = [name for name in reached if name not in self.revisions]
        self.revisions |= {name: {"file": self._path(step).name, "words": self.words} for name in new}
        return new

    def _save(self, trainer):
        path, writer = self._path(trainer.global_step), trainer.strategy.checkpoint_io
        trainer.save_checkpoint(path, storage_options={"sharded": self.sharded})  # for slm.training.sharded
        self.saved_step = trainer.global_step
        best, kept, revisions = dict(self.best) if self.best else None, frozenset(self.kept), dict(self.revisions)
        writer.then(lambda: (self._publish(path, best, revisions), self._prune(path, best, kept)))

    @rank_zero_only
    def _publish(self, newest: Path, best: dict[str, Any] | None, revisions: dict[str, Any]):
        atomic.write_text(self.folder / "last.json", json.dumps({"file": newest.name}))
        # those of the trunk of a fork are in its folder
        if revisions := {name: its for name, its in revisions.items() if (self.folder / its["file"]).exists()}:
            atomic.write_text(self.folder / "revisions.json", json.dumps(revisions, indent=1))
        if best:
            atomic.write_text(self.folder / "best.json", json.dumps(best))

    @rank_zero_only
    def _prune(self, newest: Path, best: dict[str, Any] | None, kept: Collection[int]):
        """Deletes old checkpoints. Those of later steps are damaged and will be overwritten."""
        saved = run_folder.checkpoints(self.folder.parent)
        for path in saved[saved.index(newest) + self.keep_last :]:
            if run_folder.step_of(path) not in kept and not (best and path.name == best["file"]):
                with contextlib.suppress(system.IN_USE):  # one that is read now goes with the next save
                    run_folder.remove_checkpoint(path)

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step:06d}.ckpt"
