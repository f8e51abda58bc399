"""Sweep folders: what lies where, sweep.json, and the names of the run folders in it.

sweep.json  results.csv  multirun.yaml  lr-0.001_width-128/ (a run folder per job)  lr-0.001_width-128.log (of workers)
"""

import contextlib
import hashlib
import json
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from slm.errors import UserError
from slm.files import atomic
from slm.files.run_folder import file_name
from slm.security import NAME, is_bounded

STATUSES = ("waiting", "running", "done", "failed", "stopped")
THREADS = threading.Lock()  # a file lock keeps only processes apart
DIVERGED = 3  # exit code of a run that would diverge again
TYPES = {
    **{"folder": str, "values": dict, "status": str, "objective": int | float | None, "failure": str | None},
    **{"seconds": int | float | None, "exit_code": int | None, "process": str | None},
}


@dataclass(kw_only=True)
class SweepJob:
    """One combination of swept values."""

    folder: str  # name of its run folder in the sweep folder
    values: dict[str, str]  # swept key -> value as typed
    status: str = "waiting"
    objective: float | None = None
    failure: str | None = None  # one line
    seconds: float | None = None  # of training, over all attempts
    exit_code: int | None = None  # of the run
    process: str | None = None  # host:pid while it runs

    @property
    def is_final(self) -> bool:
        """True for a job that another start of the sweep skips: done, or diverged, which it would again."""
        return self.status == "done" or (self.status == "failed" and self.exit_code == DIVERGED)


@dataclass(kw_only=True)
class Sweep:
    """The content of sweep.json."""

    created: str = field(default_factory=lambda: time.strftime("%Y-%m-%dT%H:%M:%S%z"))
    command: list[str] = field(default_factory=list)  # overrides of the newest command
    objective: str | None = None  # name of the metric
    swept: list[str] = field(default_factory=list)  # keys, in the order of their columns
    jobs: list[SweepJob] = field(default_factory=list)
    stopping: bool = False  # a signal has ended the sweep: waiting jobs do not start
    answers: list[str] = field(default_factory=list)  # of an ablation, so far
    metric: str | None = None  # of the answers

    def job(self, folder: str) -> SweepJob:
        """The job of a run folder. Raises KeyError."""
        for job in self.jobs:
            if job.folder == folder:
                return job
        raise KeyError(folder)

    def add(self, *combinations: Mapping[str, str]) -> list[SweepJob]:
        """The jobs of these values, new ones unless they are there."""
        known = {frozenset(job.values.items()): job for job in self.jobs}
        taken = {job.folder.casefold() for job in self.jobs}
        for values in combinations:
            if (key := frozenset(values.items())) not in known:
                self.swept += [name for name in values if name not in self.swept]
                known[key] = SweepJob(folder=job_name(values, self.swept, taken), values=dict(values))
                taken.add(known[key].folder.casefold())
                self.jobs.append(known[key])
        return [known[frozenset(values.items())] for values in combinations]


def read(folder: Path) -> Sweep | None:
    """The sweep of a folder, or None if it has no sweep.json. Raises UserError if that file is damaged."""
    path = folder / "sweep.json"
    if not path.exists():
        return None
    content = atomic.read_object(path)
    if content is None or not is_bounded({**content, "jobs": None}):
        raise UserError(f"{path} is damaged; give another sweep_dir")
    try:
        jobs = [_read_job(job) for job in content["jobs"]]
        texts = content["created"], *content["command"], *content["swept"], content["objective"] or ""
        texts += *content.get("answers", ()), content.get("metric") or ""
        if not all(isinstance(text, str) for text in texts):
            raise ValueError("a text is something else")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path} is damaged ({type(error).__name__}: {error}); give another sweep_dir") from None
    known = {entry.name for entry in fields(Sweep)} - {"jobs"}
    return Sweep(**{key: value for key, value in content.items() if key in known}, jobs=jobs)


def require(folder: Path) -> Sweep:
    """The sweep of a folder. Raises UserError if it is not a sweep folder."""
    sweep = read(folder)
    if sweep is None:
        raise UserError(f"{folder} is not a sweep folder: it has no sweep.json")
    return sweep


def _read_job(content: Mapping[str, Any]) -> SweepJob:
    values = {key: value for key, value in content.items() if key in TYPES}
    for key, value in values.items():
        if not isinstance(value, TYPES[key]):
            raise ValueError(f"{key}={value!r:.100}")
    folder = values["folder"]
    if not NAME.fullmatch(folder) or folder in (".", "..") or len(folder) > 255:
        raise ValueError(f"{folder!r:.100} is not the name of a folder")
    if values["status"] not in STATUSES or not all(isinstance(value, str) for value in values["values"].values()):
        raise ValueError(f"status={values['status']!r:.100} or a value of {folder}")
    return SweepJob(**values)


@contextlib.contextmanager
def changed(folder: Path) -> Iterator[Sweep]:
    """The sweep, written at the end of the block; one process at a time. Raises UserError if it is damaged."""
    with THREADS, atomic.locked(folder / ".sweep.lock", wait=True):
        sweep = read(folder) or Sweep()
        yield sweep
        atomic.write_text(folder / "sweep.json", _text(sweep))


def _text(sweep: Sweep) -> str:
    """sweep.json with a line per job; json's own indentation takes eight times as long."""
    jobs = ",\n".join(json.dumps(vars(job), ensure_ascii=False) for job in sweep.jobs)
    facts = json.dumps({key: value for key, value in vars(sweep).items() if key != "jobs"}, ensure_ascii=False)
    return f'{facts[:-1]}, "jobs": [\n{jobs}\n]}}\n'


def short_keys(keys: Sequence[str]) -> dict[str, str]:
    """Each dotted key with as many of its last parts as tell it from the others: optimizer.lr -> lr."""
    short = {}
    for key in keys:
        parts = key.split(".")
        tails = (".".join(parts[-count:]) for count in range(1, len(parts) + 1))
        short[key] = next((tail for tail in tails if sum(f".{k}".endswith(f".{tail}") for k in keys) == 1), key)
    return short


def job_name(values: Mapping[str, str], keys: Sequence[str], taken: set[str]) -> str:
    """A short folder name of these swept values, different from the `taken` ones, which are in lower case."""
    short = short_keys(keys)
    whole = "_".join(f"{short[key]}-{value}" for key, value in values.items()) or "run"
    name = file_name(whole, 10**6).strip("-.")
    if len(name) > 80 or name.casefold() in taken:
        digest = hashlib.sha256(json.dumps(dict(values)).encode()).hexdigest()[:8]
        name = f"{name[:80]}-{digest}"
    return name
