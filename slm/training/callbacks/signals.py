"""Requests to stop: signals, an elapsed time budget, a cluster that ends the job."""

import os
import re
import signal
import subprocess
import sys
import time
from typing import Any

from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import Strategy

from slm.errors import Stopped
from slm.system import SLURM_SIGNALS, STOP_SIGNALS, mask_signals


class StopSignals(Callback):
    """Turns STOP_SIGNALS, those of a cluster and an elapsed time budget into a request to stop; ignored ones (nohup)
    stay so.

    Checkpoints reads `request` between two steps, saves, and stops the run. A second SIGINT stops at once.
    """

    def __init__(self, max_seconds: float | None, limit: str = "budget.max_time"):
        self.max_seconds, self.limit, self.started = max_seconds, limit, time.monotonic()
        self.process = os.getpid()
        self.request: Stopped | None = None
        self.previous: dict[signal.Signals, Any] = {}  # handlers to restore

    def setup(self, trainer, module, stage):
        numbers = STOP_SIGNALS + requeue_signals()
        handlers = {number: signal.getsignal(number) for number in numbers}  # before Lightning adds its own
        self.previous = {number: handler for number, handler in handlers.items() if handler != signal.SIG_IGN}

    def on_train_start(self, trainer, module):
        for number in self.previous:
            signal.signal(number, self._on_signal)
        mask_signals("SIG_UNBLOCK", self.previous)  # delivers signals that arrived before training

    def teardown(self, trainer, module, stage):
        for number, handler in self.previous.items():
            signal.signal(number, handler)
        self.previous = {}

    def on_exception(self, trainer, module, exception):
        self.teardown(trainer, module, "fit")  # Lightning does not call it after an exception

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if self.max_seconds is not None and time.monotonic() - self.started >= self.max_seconds:
            self.request = self.request or Stopped(f"{self.limit} is used up", 0)

    def _on_signal(self, number, frame):
        if os.getpid() != self.process:  # a forked child with an inherited handler
            return
        if self.request and number == signal.SIGINT:
            if sys.stdout.isatty():
                os.write(1, b"\033[?25h\n")  # shows the cursor that a progress bar hides
            os.write(2, b"stopped at once; earlier checkpoints are complete\n")
            os._exit(130)
        name = signal.Signals(number).name
        if not self.request:
            os.write(2, f"{name}: finishing this step and saving it; Ctrl-C stops at once\n".encode())
        if number in requeue_signals():
            self.request = Stopped(f"stopped by {name} before the end of the job's time", 143, requeue=True)
        else:
            self.request = self.request or Stopped(f"stopped by {name}", 128 + number)

    def agreed(self, strategy: Strategy) -> Stopped | None:
        """The request of this or any other process; the job is queued again if one of them has received that signal."""
        if not strategy.reduce_boolean_decision(self.request is not None, all=False):
            return None
        requeue = strategy.reduce_boolean_decision(self.request is not None and self.request.requeue, all=False)
        if self.request is None or self.request.requeue != requeue:
            end = " before the end of the job's time" if requeue else ""
            self.request = Stopped(f"another process was asked to stop{end}", 143, requeue)
        return self.request


def requeue_signals() -> tuple[signal.Signals, ...]:
    """Those by which SLURM, and submitit in the jobs of a sweep, announce the end of a job's time."""
    return (*(SLURM_SIGNALS if slurm_job() else ()), *filter(None, [submitit_signal()]))


def submitit_signal() -> signal.Signals | None:
    """The signal on which submitit queues the job of this process again; None in other processes."""
    name = "SIG" + os.environ.get("SUBMITIT_PREEMPT_SIGNAL", "USR2")  # submitit's default
    return getattr(signal, name, None) if "SUBMITIT_EXECUTOR" in os.environ else None


def slurm_job() -> str | None:
    """The job's name for `scontrol requeue`; None outside SLURM."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    job = f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID", "")
    return job if re.fullmatch(r"\d+(_\d+)?", job) else None


def requeue():
    """Asks SLURM, or submitit in the job of a sweep, to queue this job again, which then resumes its run folder."""
    if number := submitit_signal():
        signal.raise_signal(number)  # submitit's handler ends this process
    try:
        subprocess.run(["scontrol", "requeue", slurm_job()], check=True, timeout=60)
        print(f"SLURM queues job {slurm_job()} again")
    except (OSError, subprocess.SubprocessError) as error:
        print(f"warning: SLURM did not requeue job {slurm_job()} ({error}); submit it again", file=sys.stderr)


def ignore_signals(worker: int):
    """In a loader process: a signal to the process group is meant for the training process."""
    for number in STOP_SIGNALS + requeue_signals():
        signal.signal(number, signal.SIG_IGN)
