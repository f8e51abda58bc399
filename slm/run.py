"""The composition root of a training: from a resolved configuration to a finished run folder."""

import contextlib
import os
import shlex
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import torch
import yaml

from slm import checkpoint, durable, events, runs
from slm.assemble import assemble, check_watchers, leave
from slm.errors import Diverged, ResourceError, Rewind, Stopped, UserError
from slm.estimate import parameters
from slm.plan import Plan, make_plan
from slm.prepare import Prepared, prepare_data, settle_microbatch
from slm.report.curves import loss_curve
from slm.training.hardware import smaller

MACHINE = ("device", "devices", "precision", "threads", "microbatch", "torch")  # on them last digits depend
TRAINING_STATE = ("loops", "callbacks", "optimizer_states", "lr_schedulers", "WindowsData")  # beside the weights


def train(config: dict[str, Any], *, run_dir: Path, overrides: list[str]) -> float | None:
    """Trains, or goes on training, in run_dir. Returns the objective: the best value of a val/ metric."""
    plan = make_plan(config)
    runs.refuse_foreign(run_dir)
    with runs.claimed(run_dir) if is_first_process() else contextlib.nullcontext():
        while True:
            try:
                return live(plan, run_dir, overrides)
            except Rewind as rewind:
                note_rewind(plan, run_dir, rewind)


def live(plan: Plan, run_dir: Path, overrides: list[str]) -> float | None:
    """One life of a run, from its newest checkpoint to its end or to whatever interrupts it."""
    first = is_first_process()  # asked now: the end of a distributed run clears what tells it
    config, card = plan.config, runs.read_card(run_dir)
    if card and (first or config["resume"] != "never"):  # the first has written the card of the others
        refuse_changes(card, config, run_dir)
        if card["status"] == "done" and card["budget"] == config["budget"]:
            print(f"{run_dir} is done: {config['optimized_metric']} {card['objective']}")
            return card["objective"]
    start = start_checkpoint(config, run_dir)
    check_watchers(config, run_dir)
    prepared = prepare_data(plan)
    plan = settle_microbatch(plan, prepared, card)
    step = check_start(start, prepared, run_dir)
    card = make_card(plan, prepared, run_dir, card, step)
    trainer, module, data = assemble(plan, prepared, run_dir, card)
    card["windows"] = len(data.train)
    if first:
        check_room(config, prepared, run_dir)
        open_run(card, prepared, run_dir, overrides, step)
        describe(plan, prepared, run_dir, start)

    from slm.training.logger import for_each_logger

    status, stopped = "failed", None
    try:
        for_each_logger(trainer, lambda logger: logger.log_hyperparams(runs.flatten(config)))
        stopped = fit(trainer, module, data, start, plan, run_dir)
        status = "stopped" if stopped else "done"
    finally:
        objective = best(run_dir, config["optimized_metric"])
        leave(trainer)
        if first:
            close_run(run_dir, {**card, "status": status, "objective": objective})
    if first:  # another process must not end in an error, or Lightning kills the first one
        conclude(run_dir, config, objective, stopped)
    return objective


def note_rewind(plan: Plan, run_dir: Path, rewind: Rewind):
    """Has the next life pass over the windows from its checkpoint to the step that raised the loss."""
    card, newest = runs.read_card(run_dir), runs.newest_intact(run_dir)
    to = checkpoint.read(newest)["global_step"] if newest else 0
    before = card["rewinds"][-1] if card["rewinds"] else {"to": -1, "skipped": 0}
    if before["to"] == to:
        raise Diverged(
            f"{rewind.reason} at step {rewind.step}, again after rewinding to step {to} and taking other windows; "
            "lower optimizer.lr"
        )
    skipped = before["skipped"] + (rewind.step - to) * plan.data.batch_windows
    card["rewinds"].append({"step": rewind.step, "to": to, "skipped": skipped, "reason": rewind.reason})
    runs.write_card(run_dir, card)
    print(f"rewinding to step {to}, passing over {rewind.step - to} steps' windows", file=sys.stderr)


def refuse_changes(card: dict[str, Any], config: dict[str, Any], run_dir: Path):
    if config["resume"] == "never":
        raise UserError(f"{run_dir} holds a run already; use resume=auto to go on with it, or another run_dir")
    if changed := runs.changes(card["config"], config):
        raise UserError(
            f"{run_dir} was trained with another configuration ({'; '.join(changed)}); "
            "give the same one, or another run_dir"
        )


def start_checkpoint(config: dict[str, Any], run_dir: Path) -> Path | None:
    """The checkpoint to go on from: this run's newest intact one, else the one that resume= names."""
    newest = runs.newest_intact(run_dir)
    if newest is None and config["resume"] not in ("auto", "never"):
        newest = runs.find_start(config["resume"], Path(config["runs_dir"]))
        other = checkpoint.read(newest)["slm"]["config"]
        if changed := runs.changes(other, config):
            raise UserError(
                f"{newest} was trained with another configuration ({'; '.join(changed)}); give the same one"
            )
    if newest is None and runs.checkpoints(run_dir):
        raise UserError(f"no checkpoint in {run_dir / 'checkpoints'} is intact; move the folder away to start anew")
    return newest


def check_start(start: Path | None, prepared: Prepared, run_dir: Path) -> int:
    """The step that training goes on from, -1 for a new run, if the checkpoint fits the data.

    The same configuration on another corpus makes other ids, which the checkpoint's weights would not know.
    """
    if start is None:
        return -1
    content = checkpoint.read(start)
    step = content["global_step"]
    checkpoint.check_weights(start, prepared.model, content["state_dict"])
    if missing := [key for key in TRAINING_STATE if key not in content]:
        raise UserError(f"{start} holds no {missing[0]}, so training cannot go on from it; take a whole checkpoint")
    if content["slm"]["tokenizer"] != checkpoint.tokenizer_files(prepared.tokenizer_folder):
        raise UserError(f"{start} was trained with another tokenizer; give the same data")
    if start.parent.parent != run_dir and step >= prepared.steps:
        raise UserError(f"{start} is at step {step} of {prepared.steps} already; give more steps")
    return step


def make_card(
    plan: Plan, prepared: Prepared, run_dir: Path, before: dict[str, Any] | None, step: int
) -> dict[str, Any]:
    """run.json: who the run is and how it stands; `before` is the card of its earlier life, `step` its checkpoint's."""
    manifest = prepared.store.manifest
    for key in ("corpus", "tokenizer"):
        if before and before[key] != manifest[key]:
            raise UserError(f"the {key} of {run_dir} is another one; give the same data, or another run_dir")
    card = {
        "run_id": before["run_id"] if before else f"{runs.file_name(run_dir.name)[-40:]}-{time.time_ns():x}",
        "name": run_dir.name,
        "created": before["created"] if before else time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        **runs.identity(plan.config),
        "corpus": manifest["corpus"],
        "tokenizer": manifest["tokenizer"],
        "device": plan.hardware.name,
        "devices": plan.hardware.devices,
        "precision": plan.hardware.precision,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "microbatch": plan.microbatch,
        "parameters": parameters(prepared.model).total,
        "steps": prepared.steps,
        "budget": plan.config["budget"],
        "first_step": before.get("first_step", 0) if before else max(step, 0),
        "lives": before["lives"] + 1 if before else 1,
        "rewinds": [rewind for rewind in before.get("rewinds", []) if rewind["to"] <= max(step, 0)] if before else [],
        "status": "running",
        "objective": None,
        "config": plan.config,
    }
    if before and (others := [key for key in MACHINE if card[key] != before.get(key)]):
        shown = ", ".join(f"{key} {before.get(key)} -> {card[key]}" for key in others)
        print(f"note: {shown}: the windows stay the same, the numbers may differ in their last digits")
    return card


def open_run(card: dict[str, Any], prepared: Prepared, run_dir: Path, overrides: list[str], step: int):
    """Fills the run folder, or takes it up again at the step of its checkpoint."""
    runs.write_card(run_dir, card)  # before all else: it says whose folder this is
    runs.remove_torn(run_dir)
    for file in ("metrics.jsonl", "samples.jsonl", "windows.jsonl"):
        events.cut(run_dir / file, step)
    for folder in ("tokenizer", "checkpoints"):
        (run_dir / folder).mkdir(exist_ok=True)
    prepared.tokenizer.save(run_dir / "tokenizer")
    for file, content in (("config.yaml", card["config"]), ("overrides.yaml", overrides)):
        text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
        durable.write_text(run_dir / file, text)


def close_run(run_dir: Path, card: dict[str, Any]):
    """Writes down how it ended; a disk that has just failed may do so again, which is no news."""
    try:
        runs.write_card(run_dir, card)
        loss_curve(run_dir)
    except OSError:
        if card["status"] != "failed":
            raise


def check_room(config: dict[str, Any], prepared: Prepared, run_dir: Path):
    """Raises ResourceError if the disk cannot hold the checkpoints: weights and two moments, 4 bytes each."""
    files = config["callbacks"]["checkpoints"]["keep_last"] + 2  # the best, and the one that is being written
    there = sum(path.stat().st_size for path in runs.checkpoints(run_dir))
    needed = files * 12 * parameters(prepared.model).total - there
    if (free := shutil.disk_usage(run_dir).free) < needed:
        raise ResourceError(
            f"{run_dir} has {free / 1e9:.3f} GB of disk left, and {files} checkpoints take {needed / 1e9:.3f} GB more; "
            "make room, or give another runs_dir"
        )


def describe(plan: Plan, prepared: Prepared, run_dir: Path, start: Path | None):
    """What is about to happen, in five lines."""
    model, counts = prepared.model, parameters(prepared.model)
    train_tokens, tokens = prepared.store.tokens("train"), prepared.tokens(prepared.steps * plan.data.batch_windows)
    print(
        f"run:    {run_dir}" + (f", from {start.name}" if start else ""),
        f"data:   {train_tokens:,} train tokens, {prepared.store.tokens('validation'):,} validation tokens",
        f"model:  {counts.total:,} parameters ({counts.non_embedding:,} without embeddings), "
        f"{model.depth} x {model.width}, context {model.context}, vocabulary {model.vocab_size:,}",
        f"budget: {prepared.steps:,} steps of {plan.data.batch_windows} windows = {tokens:,} tokens, "
        f"{tokens / train_tokens:.2f} epochs; microbatch {plan.microbatch} x {plan.hardware.devices} device(s) "
        f"x accumulation {plan.accumulation}",
        f"device: {plan.hardware.name}, {plan.hardware.precision}",
        sep="\n",
        flush=True,
    )


def fit(trainer, module, data, start: Path | None, plan: Plan, run_dir: Path) -> Stopped | None:
    """Trains to the end or to a requested stop, which is returned."""
    try:
        trainer.fit(module, data, ckpt_path=str(start) if start else None, weights_only=True)
    except Stopped as stopped:
        return stopped
    except Exception as error:
        if explained := explain(error, plan, run_dir):
            raise explained from None
        raise
    finally:
        data.close()
    return None


def explain(error: Exception, plan: Plan, run_dir: Path) -> UserError | None:
    """What a failure of the machine under training means, None for any other."""
    from slm.training.memory import is_out_of_memory

    text = str(error)
    if is_out_of_memory(error):
        less = smaller(plan.microbatch, plan.data.batch_windows, plan.hardware)
        return ResourceError(
            f"out of memory with {plan.microbatch} windows per forward pass; the same training fits into less with "
            f"trainer.microbatch={less}, trainer.auto_microbatch=true or model.gradient_checkpointing=true"
        )
    if isinstance(error, UserError) and "Original Traceback" in text:  # as it comes from a loader process
        return type(error)(text.strip().splitlines()[-1].partition(": ")[2])
    if isinstance(error, RuntimeError) and "DataLoader timed out" in text:
        return ResourceError(
            f"a loader process took more than data.timeout={plan.data.timeout} seconds; is the disk well?"
        )
    killed = isinstance(error, RuntimeError) and text.startswith("DataLoader worker (pid")
    if killed or isinstance(error, ConnectionResetError | EOFError):  # as the news of its end comes
        return ResourceError(
            f"a loader process was killed ({' '.join(text.split())}); out of memory? try data.workers=0"
        )
    if isinstance(error, FileNotFoundError) and not run_dir.is_dir():
        return ResourceError(f"the run folder {run_dir} was removed during training; nothing is left to go on from")
    return None


def best(run_dir: Path, metric: str) -> float | None:
    """The lowest value of a val/ metric, the last value of any other, from metrics.jsonl."""
    values = [event[metric] for event in events.lines(run_dir / "metrics.jsonl") if event.get(metric) is not None]
    return None if not values else min(values) if metric.startswith("val/") else values[-1]


def conclude(run_dir: Path, config: dict[str, Any], objective: float | None, stopped: Stopped | None):
    from slm.training.stopping import requeue

    if stopped:
        if stopped.requeue and config["run_dir"]:
            requeue()
        elif stopped.requeue:
            print("not requeued: without run_dir=<folder> the same command would begin another run", file=sys.stderr)
        print(f"{stopped.reason}; the same command with run_dir={shlex.quote(str(run_dir))} goes on from here")
        if stopped.exit_code:
            raise stopped
    else:
        prompt = ((config["callbacks"].get("samples") or {}).get("prompts") or ["Once upon a time"])[0]
        print(f"done:   {config['optimized_metric']} {objective:.4f}" if objective is not None else "done")
        print(f"        {run_dir / 'loss.png'}")
        print(f"        python generate.py ckpt={shlex.quote(str(run_dir))} prompt={shlex.quote(prompt)}")
        if config["callbacks"].get("stories"):
            print(f"        python -m slm.evaluate {shlex.quote(str(run_dir))}")


def is_first_process() -> bool:
    """True in the one process that speaks and writes for all of a distributed run."""
    return all(os.environ.get(name, "0") == "0" for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"))
