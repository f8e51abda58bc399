"""The composition root of a training: from a resolved configuration to a finished run folder."""

import contextlib
import os
import shlex
import sys
from pathlib import Path
from typing import Any

from slm.errors import ResourceError, Rewind, Stopped, UserError
from slm.estimate import parameters
from slm.files import jsonl, run_folder
from slm.hardware import smaller
from slm.run.config import Plan, make_plan
from slm.run.prepare import Prepared, prepare_data, settle_microbatch
from slm.run.resume import (
    check_room,
    check_start,
    close_run,
    make_card,
    note_rewind,
    open_run,
    refuse_changes,
    start_checkpoint,
)
from slm.run.trainer import assemble, check_watchers, leave


def train(config: dict[str, Any], *, run_dir: Path, overrides: list[str]) -> float | None:
    """Trains, or goes on training, in run_dir. Returns the objective: the best value of a val/ metric."""
    run_folder.check_is_run_folder(run_dir)
    with run_folder.claimed(run_dir) if is_first_process(config) else contextlib.nullcontext():
        while True:
            try:
                return live(config, run_dir, overrides)
            except Rewind as rewind:
                note_rewind(config, run_dir, rewind)


def live(config: dict[str, Any], run_dir: Path, overrides: list[str]) -> float | None:
    """One life of a run, from its newest checkpoint to its end or to whatever interrupts it."""
    first = is_first_process(config)  # asked now: the end of a distributed run clears what tells it
    card = run_folder.read_run_json(run_dir)
    if card and (first or config["resume"] != "never"):  # the first has written the card of the others
        refuse_changes(card, config, run_dir)
        if card["status"] == "done" and card["budget"] == config["budget"]:
            print(f"{run_dir} is done: {config['optimized_metric']} {card['objective']}")
            return card["objective"]
    plan = make_plan(config)
    start = start_checkpoint(config, run_dir)
    check_watchers(config, run_dir)
    prepared = prepare_data(plan)
    plan = settle_microbatch(plan, prepared, card)
    step, skipped = check_start(start, prepared, run_dir, card)
    card = make_card(plan, prepared, run_dir, card, step, skipped)
    trainer, module, data = assemble(plan, prepared, run_dir, card)
    card["windows"] = len(data.train)
    if first:
        check_room(config, prepared, run_dir)
        open_run(card, prepared, run_dir, overrides, step)
        describe(plan, prepared, run_dir, start)

    from slm.training.loggers import for_each_logger

    status, stopped, lock = "failed", None, run_folder.lock_inode(run_dir)
    try:
        for_each_logger(trainer, lambda logger: logger.log_hyperparams(run_folder.flatten(config)))
        stopped = fit(trainer, module, data, start, plan, run_dir)
        status = "stopped" if stopped else "done"
    finally:
        objective = best(run_dir, config["optimized_metric"])
        leave(trainer)
        if first and run_folder.lock_inode(run_dir) == lock:
            close_run(run_dir, {**card, "status": status, "objective": objective})
    if first:  # another process must not end in an error, or Lightning kills the first one
        conclude(run_dir, config, objective, stopped)
    return objective


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
        f"device: {plan.hardware.name}, {plan.hardware.precision}"
        + (", compiled (which the first step waits for)" if plan.compiled else ""),
        sep="\n",
        flush=True,
    )


def fit(trainer, module, data, start: Path | None, plan: Plan, run_dir: Path) -> Stopped | None:
    """Trains to the end or to a requested stop, which is returned."""
    from slm.training.callbacks.signals import StopRequests

    try:
        trainer.fit(module, data, ckpt_path=str(start) if start else None, weights_only=True)
    except Stopped as stopped:
        return stopped
    except Rewind:
        if request := next(c.request for c in trainer.callbacks if isinstance(c, StopRequests)):
            return request  # the next life will come to the same step and rewind
        raise
    except Exception as error:
        if explained := explain(error, plan, run_dir, loaders=data.workers):
            raise explained from None
        raise
    finally:
        data.close()
    return None


def explain(error: Exception, plan: Plan, run_dir: Path, loaders: int) -> UserError | None:
    """What a failure of the machine under training means, None for any other. `loaders` are processes."""
    from slm.hardware import is_out_of_memory

    text = str(error)
    if is_out_of_memory(error):
        less = smaller(plan.microbatch, plan.data.batch_windows, plan.hardware)
        remedies = ["model.gradient_checkpointing=true"]
        if plan.microbatch > 1 and not plan.trainer.auto_microbatch:
            remedies.insert(0, "trainer.auto_microbatch=true")
        if less < plan.microbatch:
            remedies.insert(0, f"trainer.microbatch={less}")
        return ResourceError(
            f"out of memory with {plan.microbatch} windows per forward pass; the same training fits into less with "
            f"{' or '.join(remedies)}"
        )
    if isinstance(error, UserError) and "Original Traceback" in text:  # as it comes from a loader process
        return type(error)(text.strip().splitlines()[-1].partition(": ")[2])
    if isinstance(error, RuntimeError) and "DataLoader timed out" in text:
        return ResourceError(
            f"a loader process took more than data.timeout={plan.data.timeout} seconds; is the disk well?"
        )
    killed = isinstance(error, RuntimeError) and text.startswith("DataLoader worker (pid")
    if loaders and (killed or isinstance(error, ConnectionResetError | EOFError)):  # as the news of its end comes
        return ResourceError(
            f"a loader process was killed ({' '.join(text.split())}); out of memory? try data.workers=0"
        )
    if isinstance(error, FileNotFoundError) and not run_dir.is_dir():
        return ResourceError(f"the run folder {run_dir} was removed or moved away during training")
    return None


def best(run_dir: Path, metric: str) -> float | None:
    """The lowest value of a val/ metric, the last value of any other, from metrics.jsonl."""
    values = [event[metric] for event in jsonl.lines(run_dir / "metrics.jsonl") if event.get(metric) is not None]
    return None if not values else min(values) if metric.startswith("val/") else values[-1]


def conclude(run_dir: Path, config: dict[str, Any], objective: float | None, stopped: Stopped | None):
    from slm.training.callbacks.signals import requeue

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


def is_first_process(config: dict[str, Any]) -> bool:
    """True in the one process that speaks and writes for all of a distributed run."""
    if config["trainer"]["devices"] == config["trainer"]["num_nodes"] == 1:
        return True  # whatever the environment says
    return all(os.environ.get(name, "0") == "0" for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"))
