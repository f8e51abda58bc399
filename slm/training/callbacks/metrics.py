"""Training metrics: loss, learning rate, gradient norm, speed, memory."""

import contextlib
import math
import time
from pathlib import Path

import torch
from lightning.pytorch.callbacks import Callback

from slm import system
from slm.energy import EnergyMeter, counters
from slm.errors import UserError
from slm.estimate import device_peak, training_flops_per_token
from slm.files import jsonl
from slm.training.callbacks import step_ends
from slm.training.callbacks.guard import flush_checks
from slm.training.callbacks.work import OwnWork
from slm.training.loggers import write_metrics

DRIVER_SECONDS = 5.0  # between two readings from a GPU's driver, which can take as long as several steps


class TrainingMetrics(Callback):
    """Logs train/... , tokens_per_second, mfu and device/... every `every_n_steps` steps, at the first and the last.

    train/loss is the mean over the targets of that step, train/tokens the number of targets of all steps. Speed is
    that of the steps since the previous line, without validations, samples and checkpoints in between. `seconds`, and
    `energy_joules` where the device counts it, include these, over all attempts of which metrics.jsonl in `folder` has
    lines; on CUDA energy and utilisation are in lines at least five seconds apart. Of several processes the first one
    logs, and speed is that of all together; slowest_process has the longest own work in this step, slowest_over_others
    times as long as the median of the others. Raises UserError if every_n_steps is below 1.
    """

    def __init__(self, *, every_n_steps: int, folder: Path | None = None):
        if every_n_steps < 1:
            raise UserError(f"log_every_n_steps={every_n_steps} must be at least 1")
        self.every_n_steps, self.folder = every_n_steps, folder
        self.begin: float | None = None  # of the training, on time.perf_counter, as if all attempts were one
        self.start: tuple[float, int, int] | None = None  # time, targets and steps before those since the previous line
        self.work = OwnWork()
        self.driver_read = -math.inf  # last, on time.perf_counter
        self.latest: dict[str, float] = {}  # the newest line

    def on_train_start(self, trainer, module):
        self.begin = time.perf_counter() - self._earlier("seconds")
        self.energy = EnergyMeter(counters(module.device, trainer.device_ids if trainer.num_nodes == 1 else []))
        self.joules = self._earlier("energy_joules")
        self.flops_per_token = training_flops_per_token(module.model.config)
        self.peak_flops = device_peak(module.device, "16" in str(trainer.precision))
        if module.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(module.device)

    def _earlier(self, name: str) -> float:
        """The highest value in metrics.jsonl, that of all attempts before this one."""
        return max(jsonl.numbers(self.folder / "metrics.jsonl", name), default=0) if self.folder else 0

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if self.start is None:
            self.start = time.perf_counter(), targets_so_far(trainer), trainer.global_step

    def on_before_backward(self, trainer, module, loss):
        if trainer.world_size > 1 and self._is_due(trainer, trainer.global_step + 1):
            self.work.add(module)

    def _is_due(self, trainer, step: int) -> bool:
        return step % self.every_n_steps == 0 or step in (1, trainer.max_steps)

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if step_ends(trainer, batch_idx) and self._is_due(trainer, trainer.global_step):
            self._publish(trainer, module)
            self.start = None

    def on_validation_end(self, trainer, module):
        self.start = None

    def spent(self, energy: bool = True) -> dict[str, float]:
        """`seconds`, and `energy_joules` if it is known, until now; nothing before a training."""
        if self.begin is None:
            return {}
        spent = {"seconds": round(time.perf_counter() - self.begin, 3)}
        if energy and (joules := self.energy.joules()) is not None:
            spent["energy_joules"] = round(self.joules + joules, 1)
        return spent

    def _publish(self, trainer, module):
        flush_checks(trainer)
        sums = trainer.strategy.reduce(torch.stack([module.nats, module.targets]), reduce_op="sum")
        nats, targets = sums.tolist()  # waits for the device
        (begin, before, step), tokens = self.start, targets_so_far(trainer)
        now = time.perf_counter()
        seconds = now - begin
        rate = (tokens - before) / seconds
        is_last = trainer.global_step == trainer.max_steps
        if reads := module.device.type != "cuda" or is_last or now - self.driver_read >= DRIVER_SECONDS:
            self.driver_read = now
        values = {
            "train/loss": nats / targets,
            "train/lr": trainer.optimizers[0].param_groups[0]["lr"],
            "train/grad_norm": module.grad_norm.item(),
            "train/tokens": tokens,
            "tokens_per_second": round(rate, 1),
            **self.spent(reads),
        }
        if self.peak_flops:
            values["mfu"] = round(rate * self.flops_per_token / self.peak_flops / trainer.world_size, 4)
        if trainer.world_size > 1:
            values |= self.work.compared(trainer, seconds / (trainer.global_step - step))
        # for callbacks that monitor them; module.log_dict would take milliseconds
        trainer.callback_metrics.update({name: torch.tensor(float(value)) for name, value in values.items()})
        self.latest = {"step": trainer.global_step, **values}
        write_metrics(trainer, {**values, **device_metrics(module.device, reads)})


def targets_so_far(trainer) -> int:
    """Targets of all steps done, on all devices and in all attempts."""
    return trainer.datamodule.targets_at(trainer.global_step)


def device_metrics(device: torch.device, utilization: bool) -> dict[str, float]:
    """Peak memory in GB (10^9 bytes); on MPS that held now, which seldom falls. On CUDA, where the driver reports it,
    `utilization` in percent as well."""
    if device.type == "mps":
        return {"device/memory_gb": round(torch.mps.driver_allocated_memory() / 1e9, 3)}
    if device.type != "cuda":
        return {"device/memory_gb": round(system.peak_memory() / 1e9, 3)}
    values = {"device/memory_gb": round(torch.cuda.max_memory_allocated(device) / 1e9, 3)}
    if utilization:
        with contextlib.suppress(Exception):  # NVIDIA's management library, which some machines do not allow
            values["device/utilization"] = torch.cuda.utilization(device)
    return values
