"""The folder of a run, from the start of an attempt to its end: logs, run.json, pictures and the report."""

import hashlib
import json
import math
import platform
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import hydra
import torch
import yaml
from omegaconf import OmegaConf

from slm import report
from slm.chat_template import chat_template
from slm.errors import ResourceError, UserError, file_operation
from slm.estimate import parameters, training_flops_per_token
from slm.files import atomic, jsonl, run_folder
from slm.files.kept import checkpoint_files
from slm.run.changes import PATHS, recorded_sources
from slm.run.code import classes, source_code
from slm.run.compose import hydra_of_its_own, one_line_composition, plain
from slm.run.fork import Point, copy_history
from slm.run.overrides import GROUPS, flattened, key_of, normalized
from slm.run.prepare import Job
from slm.security import differing

MACHINE = ("device", "devices", "precision", "compiled", "threads", "microbatch", "torch")  # change the last digits
PLACES = ("name", "tags", "run_dir", "runs_dir", "sweep_dir", "cache_dir", "resume", "dial")  # not what a run is
PACKAGES = ("torch", "lightning", "hydra-core", "omegaconf", "numpy", "sentencepiece", "torchmetrics")


def describe_run(job: Job, before: dict[str, Any] | None, step: int) -> dict[str, Any]:
    """The content of run.json. `before` is that of the previous attempt, `step` the step to start from.

    Raises UserError if the tokenizer is another one than before.
    """
    config, hardware, run_dir, manifest = job.config, job.hardware, job.run_dir, job.store.manifest
    if before and before["tokenizer"] != manifest["tokenizer"]:
        raise UserError(f"the tokenizer of {run_dir} is another one; give the same data, or another run_dir")
    intervals, commits = (before.get(key, []) if before else [] for key in ("intervals", "commits"))
    code = source_code()
    commit = " with changes ".join(value[:12] for value in code.values() if value)
    logged = [config.log_every_n_steps, config.val_every_n_steps]
    return {
        "run_id": before["run_id"] if before else f"{run_folder.file_name(run_dir.name)[-40:]}-{time.time_ns():x}",
        "name": run_dir.name,
        "created": before["created"] if before else time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        **code,
        "commits": commits if commits[-1:] == [commit] else [*commits, commit],
        "config_hash": config_hash(config.plain),
        "seed": config.seed,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "corpus": manifest["corpus"],
        "tokenizer": manifest["tokenizer"],
        "eos_first": config.data.layouts != {"packed"} or job.store.eos_is_trained(job.model.context),
        "device": hardware.name,
        "devices": hardware.devices,
        "precision": hardware.precision,
        "compiled": False,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "microbatch": job.microbatch,
        "parameters": parameters(job.model).total,
        "flops_per_token": training_flops_per_token(job.model),
        "windows": len(job.splits.chosen),
        "arrangements": job.splits.arrangements,
        **recorded_sources(job, before),
        "steps": job.steps,
        "budget": config.plain["budget"],
        "first_step": before.get("first_step", 0) if before else max(step, 0),
        "attempts": before["attempts"] + 1 if before else 1,
        "intervals": intervals if logged in intervals else [*intervals, logged],
        "status": "running",
        "objective": None,
        "failure": None,
        "classes": classes(config.plain),
        "config": config.plain,
    }


def begin_run(
    job: Job,
    run_info: dict[str, Any],
    overrides: list[str],
    step: int,
    trunk: Point | None,
    before: dict[str, Any] | None,
) -> Callable[[], None]:
    """Opens the folder of a new run. Returns what opens that of an earlier attempt once its state is restored.

    `before` is run.json of that attempt. Raises ResourceError if the disk is too small.
    """
    check_disk_space(job)
    open_folder = partial(open_run, job, run_info, overrides, step, trunk)
    if before:
        note_machine_changes(before, run_info)
        return open_folder
    open_folder()
    return lambda: None


def preset_differences(written: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """What a run differs in from the options that it has chosen, for run.json: `choices`, group -> option, and
    `changed`, key -> [value of these options, value]. Empty if an option is in a folder of the user's own."""
    sizes = ("model.size", "model.depth") if written.get("dial") else ()
    groups = [override for override in normalized(overrides) if key_of(override) in (*GROUPS, *sizes)]
    try:
        with one_line_composition(), hydra_of_its_own():
            cfg = hydra.compose("train", groups, return_hydra_config=True)
        choices = OmegaConf.to_container(cfg.hydra.runtime.choices)
        changed = differing(*(flattened(tree, PLACES) for tree in (plain(cfg, choices, groups)[1], written)))
    except UserError:
        return {}
    return {"choices": {key: option for key, option in choices.items() if "/" not in key}, "changed": changed}


def note_machine_changes(before: dict[str, Any], run_info: dict[str, Any]):
    """Prints what differs between the code and the machines of two attempts."""
    codes = [run_info["commits"][-1], *before.get("commits", [])[-1:]]
    if codes[0] != codes[-1]:
        print(f"note: the code has changed since the attempt before: {codes[-1]} -> {codes[0]}")
    if others := [key for key in MACHINE if run_info[key] != before.get(key, run_info[key])]:
        shown = ", ".join(f"{key} {before[key]} -> {run_info[key]}" for key in others)
        print(f"note: {shown}: the windows stay the same, the numbers may differ in their last digits")


def check_disk_space(job: Job):
    """Raises ResourceError if the disk cannot hold the checkpoints: weights and two moments, 4 bytes each."""
    run_dir, size = job.run_dir, parameters(job.model).total
    files = checkpoint_files(job.config.callbacks["checkpoints"].settings, job.steps)
    present = sum(file.stat().st_size for path in run_folder.checkpoints(run_dir) for file in run_folder.files_of(path))
    needed = files * 12 * size - present
    if (free := shutil.disk_usage(run_dir).free) < needed:
        raise ResourceError(
            f"{run_dir} has {free / 1e9:.3f} GB of disk left, and {files} checkpoints take {needed / 1e9:.3f} GB more; "
            "make room, or give another runs_dir"
        )


def open_run(job: Job, run_info: dict[str, Any], overrides: list[str], step: int, trunk: Point | None):
    """Cuts the logs of a run folder back to `step`, and writes run.json, configuration and tokenizer into it.

    A fork that is at the step of its trunk takes over the history last: an attempt may have ended in between.
    """
    run_dir = job.run_dir
    run_folder.remove_partial_files(run_dir)
    for file in run_folder.LOGS:
        jsonl.truncate_after(run_dir / file, step)
    jsonl.truncate_after(run_dir / "events.jsonl", math.inf)  # keeps all attempts; removes a torn line
    if not run_folder.checkpoints(run_dir):
        for name in ("last.json", "best.json"):  # of checkpoints that were deleted
            atomic.remove(run_dir / "checkpoints" / name)
    run_folder.write_run_json(run_dir, run_info)
    for folder in (run_dir / "tokenizer", run_dir / "checkpoints"):
        with file_operation("write", folder):
            folder.mkdir(exist_ok=True)
            if folder.name == "tokenizer":
                job.tokenizer.save(folder)
                if chat := chat_template(run_info["config"]):
                    atomic.write_text(folder / "chat_template.jinja", chat.jinja())
    for file, content in (("config.yaml", run_info["config"]), ("overrides.yaml", overrides)):
        text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
        atomic.write_text(run_dir / file, text)
    if trunk and step == trunk.step:
        copy_history(trunk, run_dir, run_info["run_id"])


def close_run(run_dir: Path, run_info: dict[str, Any]):
    """Draws loss.png, writes the final run.json and the report. After a failed run, a second disk error is ignored."""
    try:
        if run_info["config"]["report"] != "sweep":
            report.loss_curve(run_dir)
        run_folder.write_run_json(run_dir, run_info)  # a run that is done is not opened again
        if run_info["config"]["report"] is True:
            report.write(run_dir)
    except OSError:
        if run_info["status"] != "failed":
            raise


def complete_report(run_dir: Path):
    """Writes the report of a run that was killed after it was done."""
    if not (run_dir / "report.html").exists():
        run_folder.remove_partial_files(run_dir)
        report.write(run_dir)


def config_hash(config: dict[str, Any]) -> str:
    """Equal for equal configurations, wherever their files lie."""
    values = flattened(config, without=(*PATHS, "dial"))
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
