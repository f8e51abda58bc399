"""fork=RUN@STEP: a run with the configuration of another one, the trunk, and its history up to a kept checkpoint.

The trunk's overrides are replayed before those of the command line, so options of groups and interpolations keep their
meaning. Then the run starts from the trunk's checkpoint like a resumed one, in a folder of its own.
"""

from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Override

from slm import checkpoint
from slm.errors import UserError
from slm.files import atomic, jsonl, run_folder
from slm.run.changes import OPTIMIZER, PATHS, differences
from slm.run.compose import composed
from slm.run.config import RunConfig
from slm.run.overrides import GROUPS, SHARED_KEYS, exclusive_budget, flattened, key_of, parsed, quoted
from slm.run.prepare import Job
from slm.run.replay import OWN, recorded_overrides, refuse_foreign


@dataclass(frozen=True)
class Point:
    """A kept checkpoint of a run folder: FOLDER@STEP."""

    folder: Path
    step: int

    @classmethod
    def read(cls, text: str) -> "Point":
        folder, _, step = text.rpartition("@")
        return cls(Path(folder), int(step))

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoints" / f"step-{self.step:06d}.ckpt"

    def __str__(self) -> str:
        return f"{self.folder}@{self.step}"


def with_trunk(overrides: Sequence[str], flags: Namespace | None = None) -> list[str]:
    """The overrides of the run that fork= names, then the given ones, with fork=FOLDER@STEP. Without fork= the latter.

    `flags` are Hydra's. An option of a group on the command line replaces all settings of that group. Raises UserError
    if there is no such run or checkpoint, or if files of conf/ that the trunk was composed from have changed.
    """
    given = {override.key_or_group: override for override in parsed(overrides)}
    if not (text := "fork" in given and given["fork"].value()):
        return list(overrides)
    run_dir = "run_dir" in given and given["run_dir"].value()
    before = run_folder.read_run_json(atomic.expanded(run_dir)) if run_dir else None
    began = (before or {}).get("fork")
    point = find_point(text, overrides, began)
    gone = began and not (point.folder / "run.json").exists()  # deleted since this fork began, which has its settings
    source = atomic.expanded(run_dir) if gone else point.folder
    trunk = recorded_overrides(source)
    refuse_foreign(source, trunk, given)
    if not began:
        refuse_changed_files(point.folder, trunk, given, flags)
    kept = [word for word in trunk if not is_replaced(word, given)]
    info = run_folder.read_run_json(point.folder) or {}
    if (info.get("budget") or {}).get("minutes"):  # its length is that of the steps that the minutes have fixed
        kept += exclusive_budget([f"budget.steps={info['steps']}"])
    return [*kept, *(word for word in overrides if key_of(word) != "fork"), quoted(f"fork={point}")]


def find_point(text: str, overrides: Sequence[str], began: Mapping[str, Any] | None) -> Point:
    """The checkpoint that fork= means. `began` is the field `fork` of run.json if the fork has begun: its trunk and
    step are meant where the text leaves them open, or where the trunk is gone. Raises UserError."""
    name, at, step = text.rpartition("@")
    if not at or atomic.expanded(text).is_dir():
        name, step = text, ""
    elif not step.isdecimal():
        raise UserError(f"fork={text}: the step after @ must be a number; fork=RUN takes the newest checkpoint")
    folder = atomic.expanded(name).resolve()
    if began and (name == "latest" or not folder.is_dir()):
        return Point(Path(began["run"]), began["step"])
    if name == "latest" or not folder.is_dir():
        paths = [word for word in overrides if key_of(word) in ("runs_dir", "local")]
        runs_dir = Path(composed("train", paths)[0]["runs_dir"])
        if name == "latest":
            folder = run_folder.find_checkpoint("latest", runs_dir, key="fork").resolve().parents[1]
        elif (runs_dir / name).is_dir():
            folder = (runs_dir / name).resolve()
        else:
            raise UserError(f"fork={text}: there is no run folder {name}, also not in {runs_dir}")
    first = run_folder.require_run_json(folder).get("fork", run_folder.NO_FORK)["step"]
    kept = sorted(number for path in run_folder.checkpoints(folder) if (number := run_folder.step_of(path)) >= first)
    if not step:
        step = began["step"] if began else kept and run_folder.step_of(run_folder.newest_intact(folder))
    if not began and int(step or 0) not in kept:
        there = f"checkpoints of steps {', '.join(map(str, kept))}" if kept else "no checkpoint"
        raise UserError(
            f"fork={text}: {folder} keeps {there}; a run keeps those of chosen steps with "
            f"callbacks.checkpoints.keep_at=[{step or 'log2'}]"
        )
    return Point(folder, int(step))


def is_replaced(word: str, given: Mapping[str, Override]) -> bool:
    """True for an override of the trunk whose key the command line gives, or a setting of an option that it replaces.

    Settings that every option of the group has stay: of models, trainers and callbacks, and those of all data."""
    key = key_of(word)
    group, *names = key.split(".")
    option = given[group].value() if group in given and group in GROUPS else None
    if key in given and not word.startswith("+"):
        return True
    if option is None or isinstance(option, dict) or (group == "data" and names[0] in SHARED_KEYS):
        return False
    return group not in ("model", "trainer", "callbacks") or option == "none"


def refuse_changed_files(folder: Path, trunk: list[str], given: Mapping[str, Override], flags: Namespace | None):
    """Raises UserError if the trunk's overrides do not give the configuration in its run.json any more, but for keys
    that the command line gives and options that were added since."""
    if flags and (flags.config_name or flags.config_path):  # files that only Hydra's own program composes
        return
    places = [f"hydra.searchpath=['file://{Path(flags.config_dir).absolute()}']"] if flags and flags.config_dir else []
    then = flattened(run_folder.require_run_json(folder)["config"], without=(*PATHS, *OWN))
    now = flattened(composed("train", [*trunk, *places, quoted(f"fork={folder}@0")])[1])
    for key, value in then.items():
        sections = [key[:end] for end, char in enumerate(f"{key}.") if char == "."]
        if now.get(key) != value and not any(section in given for section in sections):
            raise UserError(
                f"fork={folder}: files of conf/ have changed since that run: {key} was {value} and is {now.get(key)}; "
                f"give {key}={value} to keep it, or another value"
            )


def point_of(config: RunConfig, run_dir: Path, before: Mapping[str, Any] | None) -> Point | None:
    """Where the run in `run_dir` forks, None if it does not; `before` is its run.json. Raises UserError if that has
    another fork than the configuration."""
    asked, began = config.fork and Point.read(config.fork), (before or {}).get("fork")
    if before and asked:
        trunk = run_folder.read_run_json(asked.folder)  # None if it was deleted since
        if not began or began["step"] != asked.step or (trunk and trunk["run_id"] != began["run_id"]):
            its = f"a fork of {began['run']}@{began['step']}" if began else "a run that is no fork"
            raise UserError(f"{run_dir} holds {its}; give another run_dir for fork={asked}")
    return asked or (Point(Path(began["run"]), began["step"]) if began else None)


def check_fork(point: Point, config: RunConfig):
    """Raises UserError for a change that the state of the checkpoint does not allow: of the optimizer's class, the
    tokenizer, or the shapes of the weights."""
    content = checkpoint.read(point.checkpoint, outline=True)
    described = content["slm"]
    changed = differences(described["config"], config.plain, PATHS)
    for part, section in {"optimizer's class": OPTIMIZER, "tokenizer": "tokenizer"}.items():
        if found := [key for key in changed if f"{key}.".startswith(f"{section}.")]:
            raise UserError(f"{shown(changed, found)}: a fork keeps the {part} of its trunk; start another run")
    try:
        model = replace(config.model, vocab_size=described["model"]["vocab_size"])
        checkpoint.check_weights(point.checkpoint, model, content["state_dict"])
    except UserError as error:
        found = [key for key in changed if key.startswith("model.")]
        raise UserError(f"{shown(changed, found)}: a fork keeps the shapes of its trunk's weights; {error}") from None


def shown(changed: Mapping[str, Sequence[Any]], keys: Sequence[str]) -> str:
    """These changes in a sentence. Of a node with another `_target_` the other settings are not named."""
    nodes = [key.removesuffix("_target_") for key in keys if key.endswith("._target_")]
    named = [key for key in keys if not any(key.startswith(node) and key != f"{node}_target_" for node in nodes)]
    return ", ".join(f"{key} {changed[key][0]} -> {changed[key][1]}" for key in named)


def describe_fork(
    point: Point | None, before: Mapping[str, Any] | None, earlier: Mapping[str, Any], job: Job
) -> dict[str, Any]:
    """The field `fork` of run.json, that of `before` once the fork has begun; nothing for a run that is no fork.

    `earlier` is the configuration in the checkpoint. `consumed` is the number of windows until there, and `changed`
    holds [before, after] by key.
    """
    if not point or (before and "fork" in before):
        return {"fork": before["fork"]} if point else {}
    trunk = run_folder.require_run_json(point.folder)
    changed = differences(earlier, job.config.plain, (*PATHS, *OWN, "data.corpus.sources"))  # those of data.sources
    if trunk["corpus"] != (corpus := job.store.manifest["corpus"]):
        changed["data.corpus"] = [trunk["corpus"], corpus]
    consumed = run_folder.windows_until(trunk, point.step)
    facts = {"run": str(point.folder), "run_id": trunk["run_id"], "step": point.step}
    return {"fork": {**facts, "consumed": consumed, "changed": changed}}


def copy_history(point: Point, run_dir: Path, run_id: str):
    """Copies the trunk's logs up to the fork, and its best checkpoint if that is not a later one, into `run_dir`."""
    for file in (*run_folder.LOGS, "events.jsonl"):
        jsonl.copy_until(point.folder / file, run_dir / file, point.step)
    pointer = point.folder / "checkpoints" / "best.json"
    best = run_folder.pointed(pointer) if pointer.exists() else None
    if best and best.exists() and run_folder.step_of(best) <= point.step:
        content = checkpoint.read(best)
        content["slm"]["run_id"] = run_id
        checkpoint.save(content, run_dir / "checkpoints" / best.name)
