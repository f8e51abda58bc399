"""python train.py -m: a sweep that its own command resumes.

A RecordingLauncher stands between Hydra's sweeper and launcher, whichever they are. It names the run folder of each job
by its swept values, keeps sweep.json and results.csv, and launches only the jobs that are not finished.
"""

import contextlib
import math
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig

from slm import ranks, report, system
from slm.errors import UserError
from slm.files import claim, json_line, sweep_folder
from slm.files.sweep_folder import Sweep, SweepJob
from slm.run.overrides import quoted
from slm.run.sweep_command import check_command, fixed_keys, swept_values
from slm.run.sweep_jobs import is_alive, parallel_jobs, start_ray
from slm.run.sweep_results import facts, finished_line, table, write_results

ATTEMPTS = 2  # in one command, of a job whose process ends without an answer, such as by the system's lack of memory


@contextlib.contextmanager
def recording(command: Sequence[str]) -> Iterator[list["RecordingLauncher"]]:
    """Puts a RecordingLauncher around the launcher that Hydra builds in the block, and lists it.

    Jobs of which nothing is kept have Hydra's own launcher.
    """
    original, launchers = Plugins.instantiate_launcher, []
    with contextlib.ExitStack() as held:

        def instantiate(plugins, hydra_context, task_function, config):
            inner = original(plugins, hydra_context, task_function, config)
            if config.trainer.get("fast_dev_run") or any(map(config.get, ("verify_resume", "plan", "prepare"))):
                return inner
            launchers.append(RecordingLauncher(inner, config, command, held))
            return launchers[-1]

        Plugins.instantiate_launcher = instantiate
        try:
            yield launchers
        finally:
            Plugins.instantiate_launcher = original


class RecordingLauncher(Launcher):
    """Launches the unfinished jobs of each batch through `inner`, and answers for the others from sweep.json.

    Holds the sweep folder's lock. Raises UserError if it is in use, or if the sweep was started with other settings.
    """

    def __init__(self, inner: Launcher, config: DictConfig, command: Sequence[str], held: contextlib.ExitStack):
        self.inner, self.config, self.command = inner, config, list(command)
        self.folder = Path(config.hydra.sweep.dir)
        self.parallel = not config.hydra.launcher._target_.endswith("BasicLauncher")
        check_processes(config, self.parallel)
        claim.check_folder(self.folder, "sweep")
        held.enter_context(claim.claimed(self.folder, "sweep"))
        self.before = sweep_folder.read(self.folder) or Sweep()
        if not any(self._has_run(job) for job in self.before.jobs):
            self.before = Sweep()  # nothing was trained: it may start again with other settings
        check_command(self.folder, self.before, self.command)
        json_line.note_at_end(lambda: facts(self.folder))
        self.is_open = False
        self.names: dict[str, None] = {}  # of this command's jobs
        self.crashes: dict[str, int] = {}
        self.announced: set[str] = set()  # jobs whose end was printed
        self.skipped, self.launched = set[str](), set[str]()  # finished before this command; jobs of this command
        self.reported = False
        self.stopped_by = 0  # number of the signal

    def setup(self, **facts):
        """Part of Hydra's interface; `inner` is set up already."""

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """The results of a batch: objectives, and +infinity for a failed job."""
        names = self._add(job_overrides)
        overrides = dict(zip(reversed(names), reversed(job_overrides)))  # equal jobs run once
        finished = {job.folder for job in sweep_folder.require(self.folder).jobs if job.is_final}
        self.announced |= finished
        self.skipped |= (finished & overrides.keys()) - self.launched
        todo = {name: overrides[name] for name in dict.fromkeys(names) if name not in finished}
        if todo:
            self.tell_skipped()
        self.launched |= todo.keys()
        self._run(todo, initial_job_idx)
        jobs = {job.folder: job for job in sweep_folder.require(self.folder).jobs}
        return [answer(jobs[name], overrides[name]) for name in names]

    def tell_skipped(self):
        """Prints how many jobs were finished before this command: once, though sweepers may ask for each alone."""
        if self.skipped and not self.reported:
            print(f"sweep:  {len(self.skipped)} of {len(self.names)} jobs are finished already, in {self.folder}")
            self.reported = True

    def _run(self, overrides: Mapping[str, Sequence[str]], initial_job_idx: int):
        """Launches the jobs, those whose process is killed again. Ends the program after a signal."""
        todo, place = list(overrides), quoted(f"hydra.sweep.dir={self.folder.absolute()}")
        while todo and not self.stopped_by:
            batch = [[*overrides[name], place, f"hydra.sweep.subdir='{name}'"] for name in todo]
            try:
                self._launch(batch, initial_job_idx)
                todo = []
            except Exception as error:
                if not self.parallel or not (todo := self.stopped_by or self._without_answer(todo)):
                    raise
                print(f"warning: {type(error).__name__}: {error}"[:300], file=sys.stderr)
        if self.stopped_by:
            self._end()

    def _launch(self, batch: Sequence[Sequence[str]], initial_job_idx: int):
        """Launches jobs side by side, or one after another, and announces each that ends."""
        if self.parallel:
            start_ray(self.inner)
            with parallel_jobs(self, len(batch)):
                self.inner.launch(batch, initial_job_idx)
            return
        for number, overrides in enumerate(batch, initial_job_idx):
            try:
                self.inner.launch([overrides], number)
            finally:
                self.announce()

    def _add(self, job_overrides: Sequence[Sequence[str]]) -> list[str]:
        """The names of a batch's jobs, which sweep.json lists from now on."""
        fixed = fixed_keys(self.command) - set(self.before.swept)
        with sweep_folder.changed(self.folder) as sweep:
            if not self.is_open:
                sweep.jobs, sweep.swept, sweep.created = self.before.jobs, self.before.swept, self.before.created
                sweep.command, sweep.objective, sweep.stopping = self.command, self.config.optimized_metric, False
                sweep.answers, sweep.metric = [], None
                for job in sweep.jobs:
                    if not job.is_final or not self._has_run(job):  # of a killed sweep, or deleted
                        job.status = "stopped" if self._has_run(job) else "waiting"
                        job.process = job.exit_code = None
                self.is_open = True
            jobs = sweep.add(*(swept_values(overrides, fixed) for overrides in job_overrides))
        names = [job.folder for job in jobs]
        self.names |= dict.fromkeys(names)
        return names

    def _has_run(self, job: SweepJob) -> bool:
        return (self.folder / job.folder / "run.json").exists()

    def _without_answer(self, names: Sequence[str]) -> list[str]:
        """The jobs to launch again after processes were killed, once each; empty if none was killed."""
        while any(is_alive(job.process) for job in self._running(names)):
            time.sleep(0.5)
        lost = [job.folder for job in self._running(names)]
        with sweep_folder.changed(self.folder) as sweep:
            for job in (job for job in sweep.jobs if job.folder in lost):
                self.crashes[job.folder] = self.crashes.get(job.folder, 0) + 1
                job.status, job.process = "waiting", None
                if self.crashes[job.folder] == ATTEMPTS:
                    job.status, job.exit_code = "failed", 4
                    job.failure = "its process was killed; out of memory?"
            return [job.folder for job in sweep.jobs if job.folder in names and job.status == "waiting"] if lost else []

    def _running(self, names: Sequence[str]) -> list[SweepJob]:
        return [job for job in sweep_folder.require(self.folder).jobs if job.folder in names and job.process]

    def announce(self):
        """Prints a line for each job of this command that has finished since, and rewrites results.csv."""
        sweep = sweep_folder.require(self.folder)
        for number, job in enumerate(sweep.jobs, 1):
            ended = job.status in ("done", "failed", "stopped") and job.exit_code is not None
            if ended and job.folder in self.names and job.folder not in self.announced:
                self.announced.add(job.folder)
                write_results(self.folder)
                print(finished_line(sweep, job, number), flush=True)

    def _end(self):
        """Ends the program after a signal to a parallel sweep."""
        with sweep_folder.changed(self.folder) as sweep:
            for job in sweep.jobs:
                if job.folder in self.names and job.process:
                    job.status, job.process = "stopped", None
        write_results(self.folder)
        name, again = signal.Signals(self.stopped_by).name, system.quoted(f"sweep_dir={self.folder}")
        print(f"stopped by {name}; the same command with {again} goes on from here", flush=True)
        sys.exit(128 + self.stopped_by)

    def conclude(self) -> int:
        """Prints the table of the sweep, and returns the highest exit code of this command's jobs. Without jobs, 0."""
        if not self.names:
            return 0
        self.tell_skipped()
        write_results(self.folder)
        sweep = sweep_folder.require(self.folder)
        for job in (job for job in sweep.jobs if job.status == "done" and job.failure):
            print(f"warning: {job.folder}: {job.failure}", file=sys.stderr)
        print(f"\n{table(self.folder, sweep)}\n\n{self.folder / 'results.csv'}")
        if self.config.report and (page := report.write(self.folder)):
            print(page)
        return max((job.exit_code or 0 for job in sweep.jobs if job.folder in self.names), default=0)


def check_processes(config: DictConfig, parallel: bool):
    """Raises UserError for a sweep that several processes were started for, or whose jobs would start some."""
    if (count := ranks.processes()) > 1:
        raise UserError(f"-m in {count} processes is not supported; give trainer.devices=<n> instead")
    if config.hydra.launcher.get("n_jobs") == 0:
        raise UserError("hydra.launcher.n_jobs=0 must be at least 1, or -1 for as many jobs at a time as cores")
    if not parallel:
        return
    from slm.hardware import AUTOMATIC, devices_here  # imports torch

    single = {None, 1, "1", *(AUTOMATIC if devices_here(config.trainer.accelerator) < 2 else ())}
    if several := [key for key in ("devices", "num_nodes") if config.trainer.get(key) not in single]:
        raise UserError(
            f"trainer.{several[0]}={config.trainer[several[0]]} needs processes of its own, which this launcher's jobs "
            "cannot start; use hydra/launcher=basic, or trainer.devices=1"
        )


def answer(job: SweepJob, overrides: Sequence[str]) -> JobReturn:
    """What a sweeper receives of a job."""
    value = math.inf if job.objective is None else job.objective
    return JobReturn(overrides=list(overrides), status=JobStatus.COMPLETED, _return_value=value)
