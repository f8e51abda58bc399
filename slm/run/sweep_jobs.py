"""The jobs of a sweep: their state in sweep.json, and those that launchers run side by side in other processes."""

import contextlib
import math
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from hydra.core.utils import env_override
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig

from slm import system
from slm.errors import Stopped
from slm.files import atomic, sweep_folder
from slm.files.sweep_folder import SweepJob


@dataclass(frozen=True)
class Outcome:
    """The end of one job: a run of its own or one of a sweep."""

    objective: float | None
    exit_code: int
    failure: str | None = None  # one line
    stopped: bool = False  # by a signal


def process_name() -> str:
    return f"{socket.gethostname()}:{os.getpid()}"


def is_alive(process: str | None) -> bool:
    """True for a process of this machine that has not ended; False for one of another machine."""
    host, _, number = (process or "").rpartition(":")
    if host != socket.gethostname():
        return False
    return system.is_running(int(number))


def is_listed(folder: Path) -> bool:
    """True if a run folder belongs to a job of sweep.json beside it."""
    sweep = sweep_folder.read(folder.parent)
    return sweep is not None and any(job.folder == folder.name for job in sweep.jobs)


def recorded_job(folder: Path, is_worker: bool, run: Callable[[], Outcome]) -> float:
    """Runs the job of a run folder, with its state in sweep.json. Returns the objective, or infinity.

    In a worker, another process than that of the sweep, a job prints into a file beside its folder. Elsewhere a signal
    to the job ends the sweep.
    """
    with sweep_folder.changed(folder.parent) as sweep:
        if sweep.stopping:
            return math.inf
        job = sweep.job(folder.name)
        job.status, job.process, job.failure, job.exit_code = "running", process_name(), None, None
    log = folder.with_name(f"{folder.name}.log")
    with worker_output(log) if is_worker else contextlib.nullcontext():
        outcome = run()
    if is_worker and outcome.exit_code == 1:
        outcome = replace(outcome, failure=f"{outcome.failure}; traceback in {log.name}")
    with sweep_folder.changed(folder.parent) as sweep:
        note(sweep.job(folder.name), folder, outcome)
    if outcome.stopped and not is_worker:
        sys.exit(outcome.exit_code)
    return math.inf if sweep.job(folder.name).objective is None else outcome.objective


def note(job: SweepJob, folder: Path, outcome: Outcome):
    """Enters the end of a job. One that has used up budget.max_time is stopped, too, and has an objective."""
    info = atomic.read_object(folder / "run.json") or {}
    interrupted = outcome.stopped or (not outcome.exit_code and info.get("status") == "stopped")
    job.status = "stopped" if interrupted else "failed" if outcome.exit_code else "done"
    known = outcome.objective is not None and math.isfinite(outcome.objective) and not outcome.exit_code
    job.objective = outcome.objective if known else None
    failure = outcome.failure and outcome.failure.replace(str(folder), "the run folder")  # the same in all jobs
    job.failure, job.exit_code, job.process = failure, outcome.exit_code, None


@contextlib.contextmanager
def worker_output(path: Path) -> Iterator[None]:
    """Sends what this process and its children print to the end of a file; turns signals, and the end of the process
    that started this one, into Stopped."""

    def on_signal(number, frame):  # before a training, which has its own
        raise Stopped(f"stopped by {signal.Signals(number).name}", 128 + number)

    def stop_with_parent():
        while not ended.wait(1):
            if os.getppid() != parent or (system.WINDOWS and not system.is_running(parent)):
                return system.signal_self(signal.SIGTERM)

    ended, parent = threading.Event(), os.getppid()
    threading.Thread(target=stop_with_parent, daemon=True).start()
    handlers = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    sys.stdout.flush()
    sys.stderr.flush()
    saved = [(number, os.dup(number)) for number in (1, 2)]
    with open(path, "ab", buffering=0) as file:
        for number, _ in saved:
            os.dup2(file.fileno(), number)
    try:
        yield
    finally:
        ended.set()
        sys.stdout.flush()
        sys.stderr.flush()
        for number, copy in saved:
            os.dup2(copy, number)
            os.close(copy)
        for number, handler in handlers.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def parallel_jobs(launcher, jobs: int) -> Iterator[None]:
    """Divides the cores among the jobs that a RecordingLauncher runs in the block, announces each that finishes, and
    hands a signal on to them."""
    ended = threading.Event()

    def watch():
        passed_on = False
        while True:
            last = ended.wait(0.3)
            launcher.announce()
            if launcher.stopped_by and not passed_on:
                passed_on = True
                stop_jobs(launcher.folder)
            if last:
                return

    def on_signal(number, frame):
        if launcher.stopped_by and number == signal.SIGINT:
            os._exit(130)
        launcher.stopped_by = launcher.stopped_by or number
        os.write(2, f"{signal.Signals(number).name}: the running jobs save their state; Ctrl-C ends at once\n".encode())

    handlers = {number: signal.signal(number, on_signal) for number in system.STOP_SIGNALS}
    monitor = threading.Thread(target=watch)
    monitor.start()
    try:
        with env_override(divided_threads(launcher.config.hydra.launcher, jobs)):
            yield
    finally:
        ended.set()
        monitor.join()
        for number, handler in handlers.items():
            signal.signal(number, handler)


def start_ray(launcher: Launcher):
    """Starts Ray, which replaces the handler of SIGTERM, before parallel_jobs sets its own. Other launchers: no-op."""
    if hasattr(launcher, "ray_cfg"):
        from hydra_plugins.hydra_ray_launcher import _core  # the launcher finds Ray started

        launcher.ray_cfg.init.setdefault("object_store_memory", 75 * 2**20)  # the launcher's own value
        _core.start_ray(launcher.ray_cfg.init)


def stop_jobs(folder: Path):
    """Sends SIGTERM to the running jobs of this machine, and keeps the waiting ones from starting."""
    with sweep_folder.changed(folder) as sweep:
        sweep.stopping = True
    for job in sweep.jobs:
        if is_alive(job.process):
            system.ask_to_stop(int(job.process.rpartition(":")[2]))


def divided_threads(launcher: DictConfig, jobs: int) -> dict[str, str]:
    """OMP_NUM_THREADS for new processes, so that jobs side by side share the cores; yours stays as it is.

    SLURM and Ray do that themselves.
    """
    cores = system.cores()
    if (asked := launcher.get("n_jobs")) is not None:  # joblib, with negative numbers counted from all cores
        side_by_side = min(jobs, asked if asked > 0 else max(1, cores + 1 + asked))
    else:  # submitit_local starts all at once
        side_by_side = jobs if launcher._target_.endswith("LocalLauncher") else None
    if side_by_side is None or "OMP_NUM_THREADS" in os.environ:
        return {}
    return {"OMP_NUM_THREADS": str(max(1, cores // side_by_side))}
