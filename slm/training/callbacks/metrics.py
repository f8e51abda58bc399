"""What watches a training: numbers, randomness, early stopping. Each can be taken out without touching the rest."""

import contextlib
import math
import resource
import sys
import time

import lightning.pytorch as L
import torch
from lightning.pytorch.callbacks import Callback

from slm.errors import UserError
from slm.training.callbacks.checkpoints import step_ends
from slm.training.loggers import for_each_logger


class Seeding(Callback):
    """Reseeds torch before every microbatch from (seed, microbatch, rank), so that dropout needs no saved state.

    Saved generator states are not enough to resume exactly: iterators and validation draw from the global generator
    a different number of times after a resume.
    """

    def __init__(self, seed: int):
        self.seed = seed

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        torch.manual_seed(((self.seed * 1_000_003 + batch_idx) * 8191 + trainer.global_rank) % 2**63)


class EarlyStopping(L.callbacks.EarlyStopping):
    """Stops after `patience` validations without a val/loss that is lower by `min_delta`. None: never."""

    def __init__(self, *, patience: int | None, min_delta: float):
        if patience is not None and patience < 1:
            raise UserError(f"callbacks.early_stopping.patience={patience} must be at least 1, or null for never")
        if not 0 <= min_delta < math.inf:
            raise UserError(f"callbacks.early_stopping.min_delta={min_delta} must be at least 0 and finite")
        self.enabled = patience is not None
        super().__init__(
            "val/loss", min_delta, patience or 1, mode="min", check_finite=False, check_on_train_epoch_end=False
        )

    def load_state_dict(self, state):
        if self.enabled:
            super().load_state_dict({**state, "patience": self.patience})

    def on_train_start(self, trainer, module):
        if self.enabled and self.wait_count >= self.patience:  # it had stopped; Lightning does not remember that
            trainer.should_stop = True

    def _run_early_stopping_check(self, trainer):
        if self.enabled:
            super()._run_early_stopping_check(trainer)
            if trainer.should_stop and self.wait_count >= self.patience and trainer.is_global_zero:
                print(f"no better val/loss in {self.patience} validations: stopping at step {trainer.global_step}")


class TrainingMetrics(Callback):
    """Every `every_n_steps` steps: loss, learning rate, gradient norm, tokens, speed, MFU, memory; and each validation.

    train/loss is the mean over that step's targets. Speed is taken over the steps since the last line, without
    what runs between two lines (validations, samples and checkpoints that fall on the same steps).
    """

    def __init__(self, *, every_n_steps: int, tokens_per_step: int, flops_per_token: int, peak_flops: float | None):
        if every_n_steps < 1:
            raise UserError(f"log_every_n_steps={every_n_steps} must be at least 1")
        self.every_n_steps, self.tokens_per_step = every_n_steps, tokens_per_step
        self.flops_per_token, self.peak_flops = flops_per_token, peak_flops
        self.start: float | None = None  # of the steps since the last line
        self.steps = 0
        self.latest: dict[str, float] = {}  # as published last

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if self.start is None:
            self.start = time.perf_counter()

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if not step_ends(trainer, batch_idx):
            return
        self.steps += 1
        last = trainer.global_step == trainer.max_steps
        if trainer.global_step % self.every_n_steps == 0 or trainer.global_step == 1 or last:
            self._publish(trainer, module)
            self.start, self.steps = None, 0

    def on_validation_end(self, trainer, module):
        if not trainer.sanity_checking:
            values = {k: v.item() for k, v in trainer.callback_metrics.items() if k.startswith("val/")}
            write_metrics(trainer, values)
        self.start, self.steps = None, 0

    def _publish(self, trainer, module):
        module.settle()
        sums = trainer.strategy.reduce(torch.stack([module.nats, module.targets]), reduce_op="sum")
        nats, targets = sums.tolist()  # waits for the device
        rate = self.steps * self.tokens_per_step / (time.perf_counter() - self.start)
        values = {
            "train/loss": nats / targets,
            "train/lr": trainer.optimizers[0].param_groups[0]["lr"],
            "train/grad_norm": module.grad_norm.item(),
            "train/tokens": trainer.global_step * self.tokens_per_step,
            "tokens_per_second": round(rate, 1),
        }
        if self.peak_flops:
            values["mfu"] = round(rate * self.flops_per_token / self.peak_flops / trainer.world_size, 4)
        module.log_dict({k: float(v) for k, v in values.items()}, logger=False)  # for other callbacks
        self.latest = {"step": trainer.global_step, **values}
        write_metrics(trainer, {**values, **device_metrics(module.device)})


def write_metrics(trainer, values: dict[str, float]):
    """To every logger, under the number of optimizer steps done."""
    for_each_logger(trainer, lambda logger: logger.log_metrics(values, step=trainer.global_step))


def device_metrics(device: torch.device) -> dict[str, float]:
    """Peak memory in GB of 10^9 bytes, and on CUDA, where the driver tells, utilisation in percent."""
    if device.type != "cuda":
        unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in KiB on Linux
        return {"device/memory_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9, 3)}
    values = {"device/memory_gb": round(torch.cuda.max_memory_allocated(device) / 1e9, 3)}
    with contextlib.suppress(Exception):  # of NVIDIA's management library, which some machines do not let one ask
        values["device/utilization"] = torch.cuda.utilization(device)
    return values
