"""Run folders: what lies where, run.json, and how to find a run's checkpoint.

run.json  config.yaml  overrides.yaml  tokenizer/  metrics.jsonl  samples.jsonl  samples.md  events.jsonl  loss.png
report.html  report/curves.png
checkpoints/step-000500.ckpt  step-000500.ckpt.sha256  last.json  best.json

A checkpoint is a file, or a folder with a part from each process of the training (a sharded one).
"""

import json
import os
import re
import secrets
import shutil
import sys
from pathlib import Path
from typing import Any

import yaml

from slm.errors import UserError, file_operation
from slm.files import archive, atomic, jsonl
from slm.security import NAME, is_bounded, leaves, refuse_url

SCHEMA = {  # the fields of run.json that a resumed run reads
    **dict.fromkeys(("run_id", "created", "status", "corpus", "tokenizer"), str),
    **{"config": dict, "budget": dict, "attempts": int},
}
LATER = {  # those that a run has found out, or that a later version has added
    "intervals": list,
    "commits": list,
    **dict.fromkeys(("first_step", "microbatch", "windows", "arrangements", "steps"), int),
}
LOGS = ("windows.jsonl", "metrics.jsonl", "samples.jsonl")
OWN_FILES = re.compile(
    r"(run|last|best|revisions|crash|evaluation|tokenizer)\.json|(config|overrides)\.yaml|step-\d+\.ckpt(\.sha256)?|"
    r"(metrics|samples|windows|events)\.jsonl|metrics\.csv|samples\.md|report\.html|(loss|curves|dynamics)\.png|sentencepiece\.model|merges\.txt|huggingface\.json|ranks\.tiktoken"
)
PARTIAL_FILE = re.compile(rf"({OWN_FILES.pattern})\.\d+\.partial")  # of slm.files.atomic
MAX_CHARACTERS = 10**6  # of overrides.yaml
NO_FORK = {"run": "", "run_id": "", "step": 0, "consumed": 0, "changed": {}}
STEP_FILE = re.compile(r"step-(\d+)\.ckpt")
PARTIAL_FOLDER = re.compile(rf"{STEP_FILE.pattern}\.\d+\.partial")
PLAIN_PART = "training.ckpt"  # of a sharded checkpoint: all but the tensors that are divided


def file_name(text: str, length: int = 100) -> str:
    """The text without characters that are special in a file name; cut to `length` characters."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text)[:length]


def new_folder(root: Path, name: str, time: str) -> Path:
    return root / f"{time}_{file_name(name)}-{secrets.token_hex(2)}"


def read_run_json(folder: Path) -> dict[str, Any] | None:
    """run.json, or None if the folder has none. Raises UserError if it is damaged or from an older version."""
    path = folder / "run.json"
    if not path.exists():
        return None
    info = atomic.read_object(path) or {}
    if "lives" in info:
        raise UserError(f"{folder} was written by slm 0.1, which this version cannot continue; give another run_dir")
    valid = is_bounded(info) and all(isinstance(info.get(key), kind) for key, kind in SCHEMA.items())
    if not valid or not all(isinstance(info.get(key, kind()), kind) for key, kind in LATER.items()):
        raise UserError(f"{path} is damaged; give another run_dir")
    if not (NAME.fullmatch(info["status"]) and isinstance(info.get("objective"), float | int | None)):
        raise UserError(f"{path} is damaged: status or objective is not valid; give another run_dir")
    if not _is_fork(info.get("fork", NO_FORK)):
        raise UserError(f"{path} is damaged: fork is not valid; give another run_dir")
    if not NAME.fullmatch(info["run_id"]):
        raise UserError(f"{path} is damaged: run_id={info['run_id']!r} is not a name; give another run_dir")
    return info


def _is_fork(value: Any) -> bool:
    """True for the field `fork` of run.json: the trunk, the step that both share last, and the windows until then."""
    kinds = {"run": str, "run_id": str, "step": int, "consumed": int, "changed": dict}
    return isinstance(value, dict) and all(type(value.get(key)) is kind for key, kind in kinds.items())


def windows_until(info: dict[str, Any], step: int) -> int:
    """Position in the order of windows at which a run's `step` ends, from the step of its fork on. `info`: run.json."""
    fork = info.get("fork", NO_FORK)
    return fork["consumed"] + (step - fork["step"]) * info["config"]["data"]["batch_windows"]


def require_run_json(folder: Path) -> dict[str, Any]:
    """run.json. Raises UserError if the folder is not a run folder."""
    info = read_run_json(folder)
    if info is None:
        raise UserError(f"{folder} is not a run folder: it has no run.json")
    return info


def overrides(folder: Path) -> list[str] | None:
    """The overrides with which a run was started; None if overrides.yaml is missing or damaged. Raises OSError."""
    path = folder / "overrides.yaml"
    with file_operation("read", path):
        text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    try:
        found = yaml.safe_load(text) if len(text) < MAX_CHARACTERS else None
    except (yaml.YAMLError, RecursionError):
        return None
    return found if isinstance(found, list) and all(isinstance(word, str) for word in found) else None


def write_run_json(folder: Path, info: dict[str, Any]):
    atomic.write_text(folder / "run.json", json.dumps(info, indent=1, ensure_ascii=False) + "\n")


def remove_partial_files(folder: Path):
    """Deletes the half-written files of a killed process, where a run writes files and nowhere else."""
    for place in (folder, folder / "checkpoints", folder / "tokenizer", folder / "report"):
        for path in atomic.entries(place):
            name, checkpoint = path.name, path.with_suffix("")
            orphaned = name.endswith(".sha256") and STEP_FILE.fullmatch(checkpoint.name) and not checkpoint.exists()
            if (orphaned or PARTIAL_FILE.fullmatch(name)) and path.is_file():
                atomic.remove(path)
            elif PARTIAL_FOLDER.fullmatch(name) and path.is_dir():
                shutil.rmtree(path, ignore_errors=True)  # of NFS, while another program reads a file in it


def checkpoints(folder: Path) -> list[Path]:
    """The step checkpoints of a run folder, newest first, intact or not. Raises OSError."""
    found = [path for path in atomic.entries(folder / "checkpoints") if STEP_FILE.fullmatch(path.name)]
    return sorted((path for path in found if is_sharded(path) or not path.is_dir()), key=step_of, reverse=True)


def is_sharded(path: Path) -> bool:
    """True for a checkpoint that is a folder."""
    return (path / PLAIN_PART).is_file()


def files_of(checkpoint: Path) -> list[Path]:
    return atomic.entries(checkpoint) if checkpoint.is_dir() else [checkpoint]


def remove_checkpoint(path: Path):
    """Deletes a checkpoint of either kind, and its sha256; at any moment the path is as it was, or absent."""
    if path.is_dir():
        removed = path.with_name(f"{path.name}.{os.getpid()}.partial")
        with file_operation("delete", path):
            path.rename(removed)
        shutil.rmtree(removed, ignore_errors=True)  # what another program reads on NFS goes with the next start
    for file in (path, atomic.digest_path(path)):
        atomic.remove(file)


def step_of(checkpoint: Path) -> int:
    return int(STEP_FILE.fullmatch(checkpoint.name)[1])


def named(text: str) -> str:
    """The run of a command's argument, for argparse: RUN, or ckpt=RUN as in generate.py."""
    return re.sub(r"^(ckpt|ckpt_path|run_dir|sweep_dir)=", "", text)


def run_of(checkpoint: Path) -> Path | None:
    """The run folder that a checkpoint lies in; None for a checkpoint elsewhere, and for a folder of transformers."""
    return checkpoint.parent.parent if checkpoint.parent.name == "checkpoints" else None


def folder_of(checkpoint: Path) -> Path:
    """The run folder of a checkpoint, else the folder that it lies in; a folder of transformers itself."""
    return run_of(checkpoint) or (checkpoint if is_of_transformers(checkpoint) else checkpoint.parent)


def find_checkpoint(ckpt: str, runs_dir: Path, key: str = "ckpt") -> Path:
    """The checkpoint that `ckpt=` means: a .ckpt, a run folder (its best, else its newest), or latest, last or best of
    the newest run; a folder of transformers is returned as it is. `key` is its name in messages. Raises UserError if
    there is none."""
    refuse_url(key, ckpt)
    if ckpt in ("latest", "last", "best"):
        found = sorted(runs_dir.glob("*/checkpoints/last.json"), key=lambda path: path.stat().st_mtime)
        if not found:
            raise UserError(f"{key}={ckpt}: no run in {runs_dir} has a checkpoint yet; train one with python train.py")
        return _of_run(found[-1].parent.parent, ("last",) if ckpt == "last" else ("best", "last"))
    path = atomic.expanded(ckpt)
    if path.is_dir():
        return path if is_of_transformers(path) or is_sharded(path) else _of_run(path, ("best", "last"))
    if not path.exists():
        raise UserError(f"{key}={ckpt} does not exist; it takes a .ckpt file, a run folder, latest, last or best")
    return path


def is_of_transformers(folder: Path) -> bool:
    """True for a folder with a model of Hugging Face's transformers; slm/huggingface reads it."""
    return (folder / "config.json").is_file() and not (folder / "run.json").exists()


def find_resume_checkpoint(resume: str, runs_dir: Path) -> Path:
    """The checkpoint that `resume=` means: a .ckpt, or the newest intact one of a run folder or of `latest`.

    Raises UserError if there is none.
    """
    path = find_checkpoint(resume, runs_dir, key="resume")
    if resume == "latest" or (atomic.expanded(resume).is_dir() and path != atomic.expanded(resume)):
        return newest_intact(path.parent.parent) or path
    return path


def newest_intact(folder: Path) -> Path | None:
    """The newest step checkpoint that matches its sha256, or, where that file is missing, the checksums inside.

    Prints the names of the damaged ones that it skips.
    """
    damaged = []
    for path in checkpoints(folder):
        alone = not atomic.digest_path(path).exists()  # copied without it: a run writes the sha256 first
        if not (path.is_file() and archive.is_complete(path) if alone else atomic.is_intact(path)):
            damaged.append(path.name)
            continue
        if damaged:
            print(f"warning: damaged, by the sha256: {', '.join(damaged)}; going on from {path.name}", file=sys.stderr)
        if alone:
            print(f"warning: {path.name} has no .sha256 beside it; the checksums inside are right", file=sys.stderr)
        return path
    return None


def pointed(pointer: Path) -> Path:
    """The step checkpoint beside it that last.json or best.json names. Raises UserError for any other content."""
    name = str((atomic.read_object(pointer) or {}).get("file"))
    if not STEP_FILE.fullmatch(name):
        raise UserError(f"{pointer} is damaged: it must name a file beside it; give ckpt=<that .ckpt file>")
    return pointer.with_name(name)


def _of_run(folder: Path, pointers: tuple[str, ...]) -> Path:
    for pointer in pointers:
        path = folder / "checkpoints" / f"{pointer}.json"
        if path.exists() and (file := pointed(path)).exists():
            return file
    if newest := newest_intact(folder):  # its pointers were deleted
        return newest
    raise UserError(f"{folder} holds no checkpoint; a run folder has them in checkpoints/")


def signs_of_training(folder: Path, info: dict[str, Any]) -> str | None:
    """What shows that a run without checkpoints had some; None if a kill may have come before the first one."""
    for name in ("last.json", "best.json"):
        if (folder / "checkpoints" / name).exists():
            return f"checkpoints/{name}"
    if info["status"] in ("done", "stopped"):
        return f"status {info['status']} in run.json"
    every = dict(leaves(info["config"])).get("callbacks.checkpoints.every_n_steps")
    step = max((record["step"] for record in jsonl.lines(folder / "metrics.jsonl")), default=0)
    if isinstance(every, int) and step - info.get("first_step", 0) > 2 * every:  # the second save waits for the first
        return f"step {step} in metrics.jsonl"
    return None
