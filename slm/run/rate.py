"""How long a training takes here, measured by a short one that is thrown away, and how long it may take.

For budget.minutes and plan=measure; for budget.max_time and max_cost.
"""

import contextlib
import gc
import io
import shutil
import time
from bisect import bisect
from dataclasses import dataclass, replace

import torch

from slm.errors import UserError
from slm.files import jsonl
from slm.planning.devices import price_of
from slm.run.config import RunConfig
from slm.run.prepare import Job
from slm.run.sections import UNKNOWN

MEASURED_STEPS = 10  # for a plan
SHARE = 0.05  # of the minutes, for the measured steps


@dataclass(frozen=True, kw_only=True)
class Intervals:
    """Steps between two of them."""

    validation: int
    samples: int | None  # None: no samples
    checkpoint: int

    @classmethod
    def of(cls, config: RunConfig) -> "Intervals":
        every = {name: node.settings.get("every_n_steps") for name, node in config.callbacks.items()}
        return cls(
            validation=config.val_every_n_steps,
            samples=every.get("samples"),
            checkpoint=every["checkpoints"] or UNKNOWN,
        )


@dataclass(frozen=True, kw_only=True)
class Rate:
    """Seconds of the parts of a run."""

    begin: float  # before the first step: the model, restored state, first samples
    step: float
    samples: float  # once
    validation: float  # once, with what follows it: samples of stories, a checkpoint
    checkpoint: float  # once
    end: float  # after the last step: loss.png, the report, the final files

    def total(self, steps: int, every: Intervals) -> float:
        """Seconds of a run of so many steps; the last one is always validated and sampled."""
        validations, samples = -(-steps // every.validation), -(-steps // (every.samples or steps))
        saved_alone = max(steps // every.checkpoint - validations, 0)
        often = steps * self.step + validations * self.validation + samples * self.samples
        return self.begin + often + saved_alone * self.checkpoint + self.end


def measured(job: Job, seconds: float, steps: int | None = None) -> Rate:
    """Trains a new model for so many seconds or steps, in a folder that is deleted. Nothing of it stays in this
    process: weights, random numbers and order of a later training are the same.

    Raises UserError for several devices; Stopped after a signal.
    """
    if job.hardware.devices > 1:
        raise UserError("budget.minutes and plan=measure take one device; give budget.steps, or trainer.devices=1")
    from slm.run.record import close_run, describe_run, open_run  # imports matplotlib
    from slm.run.trainer import assemble  # imports Lightning
    from slm.training.callbacks.stopwatch import Stopwatch
    from slm.training.process import teardown

    folder = job.run_dir / ".measured"
    shutil.rmtree(folder, ignore_errors=True)  # of a killed process
    short = replace(job, run_dir=folder, steps=UNKNOWN, config=_without_observers(job.config))
    try:
        folder.mkdir(parents=True)
        with contextlib.redirect_stdout(io.StringIO()):
            watch = Stopwatch(seconds, time.monotonic, steps)
            run_info = describe_run(short, None, -1)
            assembled = assemble(short, run_info, {})
            open_run(short, run_info, [], -1, None)
            assembled.trainer.callbacks.insert(0, watch)
            try:
                assembled.trainer.fit(assembled.module, assembled.data)
                fitted = time.monotonic()
            finally:
                assembled.data.close()
                teardown(assembled.trainer)
            close_run(folder, {**run_info, "status": "done"})
            end = time.monotonic() - fitted
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    del assembled
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    parts = {"begin": watch.begin, "step": watch.step, "samples": watch.samples, "end": end}
    return Rate(**parts, validation=watch.validation + fitted - watch.validated, checkpoint=fitted - watch.saved)


def _without_observers(config: RunConfig) -> RunConfig:
    """Without loggers and a progress bar, and with nothing periodic but the metrics, so that a step is only a step."""
    callbacks = {name: node for name, node in config.callbacks.items() if name != "progress"}
    for name, node in callbacks.items():
        if "every_n_steps" in node.settings and name != "metrics":
            settings = {key: value for key, value in node.settings.items() if key != "keep_at"}
            callbacks[name] = replace(node, settings={**settings, "every_n_steps": UNKNOWN})
    return replace(config, callbacks=callbacks, logger={}, val_every_n_steps=UNKNOWN)


def steps_in(rate: Rate, seconds: float, every: Intervals) -> int:
    """The most steps whose training ends within so many seconds; at least 1."""
    candidates = range(1, max(2, int(seconds / rate.step) + 2))
    return max(bisect(candidates, seconds, key=lambda steps: rate.total(steps, every)), 1)


def steps_for_minutes(job: Job, deadline: float) -> tuple[int, Rate]:
    """The steps of a run that ends at `deadline`, on time.monotonic, and the rate. Prints them."""
    minutes = job.config.budget.minutes
    rate = measured(job, SHARE * 60 * minutes)
    steps = steps_in(rate, deadline - time.monotonic(), Intervals.of(job.config))
    print(
        f"budget.minutes={minutes:g}: {steps:,} steps of {rate.step:.3g} s, validations of "
        f"{rate.validation:.2g} s, samples of {rate.samples:.2g} s"
    )
    return steps, rate


def time_limit(job: Job) -> tuple[float | None, str]:
    """The seconds of this attempt, by budget.max_time or what earlier attempts have left of budget.max_cost, whichever
    ends first, and its name. None: no limit.

    Raises UserError for a device without a price, or if the cost is reached.
    """
    budget, limit = job.config.budget, job.config.budget.max_seconds()
    if budget.max_cost is None:
        return limit, "budget.max_time"
    price = price_of(job.hardware, job.config.price_per_hour)
    if not price:
        raise UserError(
            f"budget.max_cost={budget.max_cost:g} needs a price, and conf/devices.yaml has none for "
            f"{job.hardware.name}; give price_per_hour=<of this machine>"
        )
    spent = max(jsonl.numbers(job.run_dir / "metrics.jsonl", "seconds"), default=0.0)
    left = 3600 * budget.max_cost / price - spent
    if left <= 0:
        raise UserError(
            f"earlier attempts of {job.run_dir} have used up budget.max_cost={budget.max_cost:g} "
            f"({spent / 3600:.3g} hours at {price:g}); give more"
        )
    return (limit, "budget.max_time") if limit is not None and limit < left else (left, "budget.max_cost")
