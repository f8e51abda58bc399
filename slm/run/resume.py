"""A run's folder over its lives: begun, taken up again at the right checkpoint, closed; and what of it may change."""

import math
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import torch
import yaml

from slm import checkpoint
from slm.errors import Diverged, ResourceError, Rewind, UserError
from slm.estimate import parameters
from slm.files import atomic, jsonl, run_folder
from slm.plot import loss_curve
from slm.run.config import Plan
from slm.run.prepare import Prepared

MACHINE = ("device", "devices", "precision", "compiled", "threads", "microbatch", "torch")  # on them last digits depend
TRAINING_STATE = ("loops", "callbacks", "optimizer_states", "lr_schedulers", "WindowsData")  # beside the weights


def refuse_changes(card: dict[str, Any], config: dict[str, Any], run_dir: Path):
    if config["resume"] == "never":
        raise UserError(f"{run_dir} holds a run already; use resume=auto to go on with it, or another run_dir")
    if changed := run_folder.changes(card["config"], config):
        raise UserError(
            f"{run_dir} was trained with another configuration ({'; '.join(changed)}); "
            "give the same one, another run_dir, or allow_changes=[key]"
        )


def start_checkpoint(config: dict[str, Any], run_dir: Path) -> Path | None:
    """The checkpoint to go on from: this run's newest intact one, else the one that resume= names."""
    if newest := run_folder.newest_intact(run_dir):
        return newest
    if run_folder.checkpoints(run_dir):
        raise UserError(f"no checkpoint in {run_dir / 'checkpoints'} is intact; move the folder away to start anew")
    if config["resume"] in ("auto", "never"):
        return None
    start = run_folder.find_start(config["resume"], Path(config["runs_dir"]))
    if changed := run_folder.changes(checkpoint.read(start)["slm"]["config"], config):
        raise UserError(
            f"{start} was trained with another configuration ({'; '.join(changed)}); "
            "give the same one, or allow_changes=[key]"
        )
    return start


def check_start(start: Path | None, prepared: Prepared, run_dir: Path, card: dict[str, Any] | None) -> tuple[int, int]:
    """The step that training goes on from, -1 for a new run, and the windows passed over, if the checkpoint fits.

    The same configuration on another corpus makes other ids, which the checkpoint's weights would not know.
    """
    if start is None:
        return -1, 0
    content = checkpoint.read(start)
    step = content["global_step"]
    checkpoint.check_weights(start, prepared.model, content["state_dict"])
    if missing := [key for key in TRAINING_STATE if key not in content]:
        raise UserError(f"{start} holds no {missing[0]}, so training cannot go on from it; take a whole checkpoint")
    if content["slm"]["tokenizer"] != checkpoint.tokenizer_files(prepared.tokenizer_folder):
        raise UserError(f"{start} was trained with another tokenizer; give the same data")
    own = start.parent.parent == run_dir
    if own and card and content["slm"]["run_id"] != card["run_id"]:
        raise UserError(f"{start} is another run's ({content['slm']['run_id']}); move it away")
    if not own and step >= prepared.steps:
        raise UserError(f"{start} is at step {step} of {prepared.steps} already; give more steps")
    return step, content["WindowsData"].get("skipped", 0)


def make_card(
    plan: Plan, prepared: Prepared, run_dir: Path, before: dict[str, Any] | None, step: int, skipped: int = 0
) -> dict[str, Any]:
    """run.json: who the run is and how it stands; `before` is the card of its earlier life, `step` and the windows
    `skipped` are its checkpoint's."""
    manifest = prepared.store.manifest
    for key in ("corpus", "tokenizer"):
        if before and before[key] != manifest[key]:
            raise UserError(f"the {key} of {run_dir} is another one; give the same data, or another run_dir")
    own = [plan.settings.log_every_n_steps, plan.settings.val_every_n_steps]  # of what is logged
    intervals = before.get("intervals", []) if before else []
    card = {
        "run_id": before["run_id"] if before else f"{run_folder.file_name(run_dir.name)[-40:]}-{time.time_ns():x}",
        "name": run_dir.name,
        "created": before["created"] if before else time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        **run_folder.identity(plan.config),
        "corpus": manifest["corpus"],
        "tokenizer": manifest["tokenizer"],
        "device": plan.hardware.name,
        "devices": plan.hardware.devices,
        "precision": plan.hardware.precision,
        "compiled": plan.compiled,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "microbatch": plan.microbatch,
        "parameters": parameters(prepared.model).total,
        "steps": prepared.steps,
        "budget": plan.config["budget"],
        "first_step": before.get("first_step", 0) if before else max(step, 0),
        "first_skipped": before.get("first_skipped", 0) if before else skipped,
        "lives": before["lives"] + 1 if before else 1,
        "intervals": intervals if own in intervals else [*intervals, own],
        "rewinds": [rewind for rewind in before.get("rewinds", []) if rewind["to"] <= max(step, 0)] if before else [],
        "status": "running",
        "objective": None,
        "config": plan.config,
    }
    if before and (others := [key for key in MACHINE if card[key] != before.get(key, card[key])]):
        shown = ", ".join(f"{key} {before[key]} -> {card[key]}" for key in others)
        print(f"note: {shown}: the windows stay the same, the numbers may differ in their last digits")
    return card


def check_room(config: dict[str, Any], prepared: Prepared, run_dir: Path):
    """Raises ResourceError if the disk cannot hold the checkpoints: weights and two moments, 4 bytes each."""
    files = config["callbacks"]["checkpoints"]["keep_last"] + 2  # the best, and the one that is being written
    there = sum(path.stat().st_size for path in run_folder.checkpoints(run_dir))
    needed = files * 12 * parameters(prepared.model).total - there
    if (free := shutil.disk_usage(run_dir).free) < needed:
        raise ResourceError(
            f"{run_dir} has {free / 1e9:.3f} GB of disk left, and {files} checkpoints take {needed / 1e9:.3f} GB more; "
            "make room, or give another runs_dir"
        )


def open_run(card: dict[str, Any], prepared: Prepared, run_dir: Path, overrides: list[str], step: int):
    """Fills the run folder, or takes it up again at the step of its checkpoint."""
    run_folder.write_run_json(run_dir, card)  # before all else: it says whose folder this is
    run_folder.remove_partial_files(run_dir)
    for file in ("metrics.jsonl", "samples.jsonl", "windows.jsonl"):
        jsonl.truncate_after(run_dir / file, step)
    jsonl.truncate_after(run_dir / "events.jsonl", math.inf)  # which tells of all lives; but a torn line goes
    for folder in ("tokenizer", "checkpoints"):
        (run_dir / folder).mkdir(exist_ok=True)
    prepared.tokenizer.save(run_dir / "tokenizer")
    for file, content in (("config.yaml", card["config"]), ("overrides.yaml", overrides)):
        text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
        atomic.write_text(run_dir / file, text)


def close_run(run_dir: Path, card: dict[str, Any]):
    """Writes down how it ended; a disk that has just failed may do so again, which is no news."""
    try:
        run_folder.write_run_json(run_dir, card)
        loss_curve(run_dir)
    except OSError:
        if card["status"] != "failed":
            raise


def note_rewind(config: dict[str, Any], run_dir: Path, rewind: Rewind):
    """Has the next life pass over the windows from its checkpoint to the step that raised the loss."""
    card, newest = run_folder.read_run_json(run_dir), run_folder.newest_intact(run_dir)
    to = run_folder.step_of(newest) if newest else card["first_step"]
    if any(before["to"] == to for before in card["rewinds"]):
        raise Diverged(
            f"{rewind.reason} at step {rewind.step}, again after rewinding to step {to} and taking other windows; "
            "lower optimizer.lr"
        )
    skipped = rewind.skipped + (rewind.step - to) * config["data"]["batch_windows"]
    card["rewinds"].append({"step": rewind.step, "to": to, "skipped": skipped, "reason": rewind.reason})
    run_folder.write_run_json(run_dir, card)
    print(f"rewinding to step {to}, passing over {rewind.step - to} steps' windows", file=sys.stderr)
