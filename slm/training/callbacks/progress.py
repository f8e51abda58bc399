"""Progress on the console: a live bar on a terminal, plain lines elsewhere."""

import sys
import time

from lightning.pytorch.callbacks import Callback
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from slm.tables import clock
from slm.training.callbacks import step_ends
from slm.training.callbacks.metrics import TrainingMetrics

SECONDS_BETWEEN_LINES = 5.0


class ProgressBar(Callback):
    """Shows loss, tokens per second and remaining time; prints a line for every validation.

    Without a terminal, or beside a progress bar of Lightning, there is no live bar.
    """

    def __init__(self):
        self.bar: Progress | None = None
        self.metrics: TrainingMetrics | None = None  # the source of the numbers, without a device synchronisation
        self.printed, self.tokens = 0.0, None  # time of the last plain line, and its tokens
        self.started: tuple[int, float] | None = None  # step and time after the first step, which may have compiled

    def on_train_start(self, trainer, module):
        if not trainer.is_global_zero:
            return
        self.metrics = next((c for c in trainer.callbacks if isinstance(c, TrainingMetrics)), None)
        if sys.stdout.isatty() and not trainer.progress_bar_callback:
            columns = (
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.description}"),
                TimeElapsedColumn(),
                TextColumn("ETA"),
                TimeRemainingColumn(),
            )
            self.bar = Progress(*columns)
            self.task = self.bar.add_task("", total=trainer.max_steps, completed=trainer.global_step)
            self.bar.start()

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if not trainer.is_global_zero or not step_ends(trainer, batch_idx):
            return
        if self.bar:
            self.bar.update(self.task, completed=trainer.global_step, description=self._describe())
        elif not trainer.progress_bar_callback and self._line_is_due(trainer):
            logged = self.metrics.latest.get("step") if self.metrics else None
            of = f" (of step {logged})" if logged not in (None, trainer.global_step) else ""
            print(f"step {trainer.global_step}/{trainer.max_steps}  {self._describe()}{of}{self._eta(trainer)}")
        self.started = self.started or (trainer.global_step, time.monotonic())

    def on_validation_end(self, trainer, module):
        if trainer.is_global_zero and not trainer.sanity_checking:
            value = trainer.callback_metrics
            bits = value.get("val/bits_per_byte")  # where bytes are known
            excess = value.get("val/excess_bits_per_story")  # on a corpus of known entropy
            name = "loss" if bits is None else "bits_per_byte"
            sources = [f"{source} {value[f'val/{source}/{name}']:.4f}" for source in getattr(module, "sources", ())]
            print(
                f"step {trainer.global_step}: val/loss {value['val/loss']:.4f}, "
                f"perplexity {value['val/perplexity']:.2f}"
                + (f", {bits:.4f} bits per byte" if bits is not None else "")
                + (f", {excess:.2f} bits per story above the floor" if excess is not None else "")
                + (f" ({', '.join(sources)})" if sources else "")
            )

    def teardown(self, trainer, module, stage):
        if self.bar:
            self.bar.stop()
            self.bar = None

    def on_exception(self, trainer, module, exception):
        self.teardown(trainer, module, "fit")  # Lightning does not call it after an exception

    def _describe(self) -> str:
        if not (value := self.metrics.latest if self.metrics else {}):
            return "first steps"
        mfu = f"  MFU {value['mfu']:.0%}" if "mfu" in value else ""
        return f"loss {value['train/loss']:.4f}  {value['tokens_per_second']:,.0f} tokens/s{mfu}"

    def _line_is_due(self, trainer) -> bool:
        """True for new numbers after a pause, for any step after a long one, and for the last step."""
        tokens = self.metrics.latest.get("train/tokens") if self.metrics else None
        silence = time.monotonic() - self.printed
        wait = SECONDS_BETWEEN_LINES if tokens != self.tokens else 6 * SECONDS_BETWEEN_LINES
        if silence < wait and trainer.global_step < trainer.max_steps:
            return False
        self.tokens, self.printed = tokens, time.monotonic()
        return True

    def _eta(self, trainer) -> str:
        if not self.started:
            return ""
        step, start = self.started
        seconds = (time.monotonic() - start) / (trainer.global_step - step)
        return f"  ETA {clock(seconds * (trainer.max_steps - trainer.global_step))}"
