"""print=json: one line of JSON on stdout at the end of a command, and all else that it prints on stderr."""

import contextlib
import json
import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from slm.errors import UserError, explain, one_line
from slm.files import sweep_folder

_facts: dict[str, Any] = {}  # of the command so far; a sweep's folder is more than those of its jobs
RUN_FIELDS = "run_id", "name", "seed", "steps", "attempts", "device", "precision", "git_commit"  # of run.json


def note(**facts: Any):
    """Adds facts to the line: `folder` of a run, `sweep` folder, or values of a command that leaves none."""
    _facts.update(facts)


@contextlib.contextmanager
def printed(arguments: list[str]) -> Iterator[None]:
    """Removes print=json from the arguments, and prints the line when the block ends, however it ends.

    The block's standard output, also that of the processes that it starts, goes to stderr. Raises UserError for a value
    other than json and text.
    """
    _facts.clear()
    asked = [word for word in arguments if word.startswith("print=")]
    arguments[:] = [word for word in arguments if word not in asked]
    if wrong := [word for word in asked if word not in ("print=json", "print=text")]:
        raise UserError(f"{wrong[0]} must be print=text or print=json")
    if asked[-1:] != ["print=json"]:
        yield
        return
    end: BaseException | None = None
    try:
        with _stdout_to_stderr():
            yield
    except BaseException as error:
        end = error
        raise
    finally:
        print(json.dumps(_finite(_content(end)), ensure_ascii=False, allow_nan=False), flush=True)


@contextlib.contextmanager
def _stdout_to_stderr() -> Iterator[None]:
    sys.stdout.flush()
    saved = os.dup(1)
    os.dup2(2, 1)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(saved, 1)
        os.close(saved)


def _content(end: BaseException | None) -> dict[str, Any]:
    """Exit code and error of the command, and what its folder holds."""
    code = end.code if isinstance(end, SystemExit) else 0 if end is None else 1
    content: dict[str, Any] = {"exit_code": code if isinstance(code, int) else int(code is not None)}
    problem = end.__context__ if isinstance(end, SystemExit) else end
    if content["exit_code"] and problem is not None and not isinstance(problem, SystemExit):
        content["error"] = one_line(explain(problem) or f"{type(problem).__name__}: {problem}")
    facts = dict(_facts)
    if folder := facts.pop("sweep", None):
        return content | _sweep(Path(folder))
    return content | facts | _run(Path(facts.get("folder", "")))


def _run(folder: Path) -> dict[str, Any]:
    """Identity and numbers of a run folder; empty without one."""
    from slm.results import Run

    try:
        run = Run(folder)
        return {**{name: run.info.get(name) for name in RUN_FIELDS}, **run.summary}
    except UserError:
        return {}


def _sweep(folder: Path) -> dict[str, Any]:
    """The jobs of a sweep folder, as in results.csv."""
    from slm.run.sweep_results import row

    found = sweep_folder.read(folder)
    jobs = [row(folder, found, job) for job in found.jobs] if found else []
    return {"folder": str(folder), "optimized_metric": found and found.objective, "jobs": jobs}


def _finite(value: Any) -> Any:
    """The values with None for each number that JSON lacks."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
