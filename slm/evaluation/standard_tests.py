"""Standard tests of a model: the tasks of lm-evaluation-harness (extra "eval") with their own code and data sets.

python -m slm.evaluate RUN tasks=[blimp,hellaswag,arc_easy,lambada] [key=value ...]

limit=N documents of each task; fewshot=N examples before each question; tasks_path=FOLDER with YAML files of one's own;
eos_first=false: texts do not begin with eos as documents in training do. Results are added to evaluation.json.
"""

import contextlib
import logging
import os
import random
import re
import socket
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import yaml

from slm.classes import did_you_mean, optional
from slm.errors import UserError, notice, one_line, printable
from slm.evaluation import record
from slm.evaluation.intervals import share
from slm.files import atomic, json_line, run_folder
from slm.generation.language_model import Device, LanguageModel, load
from slm.tables import columns

RESAMPLES = 1000  # of the documents, for standard errors that have no formula; harness takes 100,000
SHARES = ("acc", "acc_norm", "acc_bytes", "exact_match", "em")  # metrics that are the share of right documents
FEWSHOT_SEED = 1234  # harness's own seeds, also below, for equal examples


@dataclass(frozen=True, kw_only=True)
class Tests:
    """Which tasks, and how. Raises: UserError: for a value out of range."""

    tasks: list[str] | str
    tasks_path: str | None = None  # a folder of YAML files, beside harness's own tasks
    limit: int | None = None  # documents of each task, the first ones; None: all
    fewshot: int | None = None  # examples before a question; None: as each task says
    eos_first: bool | None = None  # None: as the model was trained
    device: Device = "auto"

    def __post_init__(self):
        if not all(self.names):
            raise UserError(f"tasks={self.tasks} must be a name or a list such as [blimp,lambada]")
        for key, least in {"limit": 1, "fewshot": 0}.items():
            if (value := getattr(self, key)) is not None and value < least:
                raise UserError(f"{key}={value} must be at least {least}")
        if self.tasks_path is not None and not atomic.expanded(self.tasks_path).is_dir():
            raise UserError(f"tasks_path={self.tasks_path} is not a folder; it takes one with the YAML files of tasks")

    @property
    def names(self) -> list[str]:
        return [self.tasks] if isinstance(self.tasks, str) else self.tasks or [""]


def command(paths: Sequence[Path], tests: Tests, **own: Callable):
    """Runs the tests, prints a table and adds to evaluation.json. `own`: classes of the model. Raises UserError."""
    if len(paths) != 1:
        raise UserError(f"tasks= takes one RUN, not {len(paths)}")
    model = load(paths[0], device=tests.device, **own)
    results = run(tests, model)
    print(printable(page(results)))
    json_line.note(checkpoint=str(model.path), step=model.step, tasks=results)
    for path in save(results, run_folder.folder_of(model.path)):
        print(path)


def run(tests: Tests, language_model: LanguageModel) -> dict[str, dict[str, Any]]:
    """Task or group of tasks -> metrics with standard errors, n, fewshot, version, ties, and what they depend on.

    Raises: UserError: if harness is not installed, for an unknown task, and if its data cannot be had.
    """
    os.environ["DISABLE_MULTIPROC"] = "1"  # harness's bootstrap in this process, not in one for each core
    if not _reaches_hub():
        os.environ["HF_HUB_OFFLINE"] = "1"  # no request is repeated
    harness = optional("lm_eval", "eval", "tasks=")
    from slm.evaluation.harness import Harness

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    loaded = _load(tests)
    eos_first = language_model.eos_first if tests.eos_first is None else tests.eos_first
    adapter = Harness(language_model, eos_first=eos_first)
    random.seed(0)
    np.random.seed(FEWSHOT_SEED)
    with contextlib.redirect_stdout(sys.stderr):
        found = harness.evaluate(adapter, loaded, limit=tests.limit, bootstrap_iters=RESAMPLES, log_samples=False)
    facts = {
        "checkpoint": str(language_model.path),
        "step": language_model.step,
        "eos_first": eos_first,
        "limit": tests.limit,
        "cut": adapter.cut,
        "harness": harness.__version__,
    }
    names = dict.fromkeys([*found.get("groups", {}), *found["results"]])
    return {name: {**_result(name, found), "ties": adapter.ties.get(name), **facts} for name in names}


def _load(tests: Tests) -> Mapping[str, Any]:
    """The tasks with their data and examples. Raises UserError."""
    from lm_eval.tasks import TaskManager

    folder = tests.tasks_path and str(atomic.expanded(tests.tasks_path))
    manager = TaskManager(include_path=folder, include_defaults=False) if folder else None
    if not (manager and all(manager.match_tasks([name]) for name in tests.names)):
        _check_names([name for name in tests.names if not (manager and manager.match_tasks([name]))])
        notice("the tasks of lm-evaluation-harness are read: some 14,000 files")
        manager = TaskManager(include_path=folder)
    if unknown := [name for name in tests.names if not manager.match_tasks([name])]:
        raise _unknown(unknown[0], manager.all_tasks)
    tasks = manager.match_tasks(tests.names)
    with _one_line(tests):
        loaded = manager.load(tasks)
    for task in loaded["tasks"].values():
        own = task.get_config("num_fewshot")
        if own is None or (own and tests.fewshot is not None):  # a task's 0 is never changed
            task.set_config(key="num_fewshot", value=tests.fewshot or 0)
        task.set_fewshot_seed(seed=FEWSHOT_SEED)
    return loaded


def _check_names(names: Sequence[str]):
    """Raises UserError for a name, not a pattern, that stands in no file of harness's tasks, ten times as quickly as
    harness, which parses them."""
    from lm_eval import tasks

    files = (path for path in Path(tasks.__file__).parent.rglob("*") if path.suffix in ("", ".yaml", ".yml"))
    text = "\n".join(path.read_text(encoding="utf-8", errors="replace") for path in files if path.is_file())
    for name in names:
        if not set("*?[") & set(name) and not re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", text):
            raise _unknown(name, re.findall(r"^(?:task|group|tag): *[\"']?([\w.-]+)", text, re.MULTILINE))


def _unknown(name: str, known: Sequence[str]) -> UserError:
    hint = did_you_mean(name, sorted({*known})) or "; lm_eval ls tasks lists them"
    return UserError(f"tasks={name} is no task of lm-evaluation-harness{hint}")


@contextlib.contextmanager
def _one_line(tests: Tests) -> Iterator[None]:
    """Turns what loading a task may raise for data, files and packages that are missing into UserError."""
    try:
        yield
    except ImportError as error:
        package = error.name or one_line(error, 100)
        raise UserError(f"tasks={','.join(tests.names)} need the package {package}; pip install it") from None
    except (OSError, yaml.YAMLError) as error:  # ConnectionError, FileNotFoundError, those of datasets
        raise UserError(
            f"tasks={','.join(tests.names)}: {one_line(error, 200).rstrip('.')}; run this command once where there is "
            "a network, with HF_HOME=FOLDER and limit=1, and copy FOLDER, or give tasks_path= with files of your own"
        ) from None


def _reaches_hub() -> bool:
    """False if the address of the Hugging Face Hub gives no connection. Behind a proxy it is not asked."""
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return True
    address = urlsplit(os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
    try:
        socket.create_connection((address.hostname, address.port or 443), timeout=5).close()
    except OSError:
        return False
    return True


def _result(name: str, found: Mapping[str, Any]) -> dict[str, Any]:
    """What harness found for a task, or for a group of tasks, as plain numbers."""
    values = {**found["results"].get(name, {}), **found.get("groups", {}).get(name, {})}
    n, metrics = found.get("n-samples", {}).get(name, {}).get("effective") or values.get("sample_len"), {}
    for key, value in values.items():
        metric, comma, kind = key.partition(",")
        if not comma or metric.endswith("_stderr") or isinstance(value, str):
            continue
        error = values.get(f"{metric}_stderr,{kind}")
        shown = metric if kind == "none" else f"{metric} ({kind})"
        error = None if isinstance(error, str | None) else float(error)
        metrics[shown] = {"value": float(value), "stderr": error, **_interval(metric, float(value), error, n)}
    return {
        "metrics": metrics,
        "n": n,
        "fewshot": found.get("n-shot", {}).get(name),
        "version": found.get("versions", {}).get(name),
    }


def _interval(metric: str, value: float, stderr: float | None, n: int | None) -> dict[str, float]:
    """`low` and `high` of the 95 % interval, where it is known: Wilson's for a share of n documents, which has one for
    0 % and 100 %, too; else the normal one."""
    if metric in SHARES and n and abs(value * n - round(value * n)) < 1e-6:
        interval = share(round(value * n), n)
        return {"low": interval["low"], "high": interval["high"]}
    return {} if stderr is None else {"low": value - 1.96 * stderr, "high": value + 1.96 * stderr}


def page(results: Mapping[str, Mapping[str, Any]]) -> str:
    """The results as text for a console."""
    rows = [["task", "metric", "value", "stderr", "95 %", "n", "few-shot", "version"]]
    for name, result in results.items():
        for metric, its in result["metrics"].items():
            error = "–" if its["stderr"] is None else f"{its['stderr']:.4f}"
            facts = ("–" if result[key] is None else f"{result[key]}" for key in ("n", "fewshot", "version"))
            interval = f"[{its['low']:.4f}, {its['high']:.4f}]" if "low" in its else "–"
            rows.append([name, metric, f"{its['value']:.4f}", error, interval, *facts])
    first = next(iter(results.values()))
    lines = [
        f"{first['checkpoint']}, step {first['step']}",
        f"lm-evaluation-harness {first['harness']}, {'eos' if first['eos_first'] else 'nothing'} before each text"
        + (f", the first {first['limit']:,} documents of each task" if first["limit"] else ""),
        "",
        columns(rows),
    ]
    if first["cut"]:
        lines.append(f"{first['cut']:,} texts are longer than the context of the model and have lost their start")
    for name, ties in ((name, result["ties"]) for name, result in results.items() if result["ties"]):
        lines.append(f"{name}: of {ties:,} documents the best two choices are equally likely; the first one counts")
    return "\n".join(lines)


def save(results: Mapping[str, Mapping[str, Any]], folder: Path) -> Iterator[Path]:
    """Adds the results to `tasks` in evaluation.json of a folder, by checkpoint and task. Yields the files written."""
    content = atomic.read_object(folder / record.NAME) or {}
    tasks = content["tasks"] if isinstance(content.get("tasks"), dict) else {}
    name = Path(next(iter(results.values()))["checkpoint"]).name
    before = tasks[name] if isinstance(tasks.get(name), dict) else {}
    return record.written(folder, content | {"tasks": {**tasks, name: {**before, **results}}})
