"""What a run prints: itself in six lines at its start, the result and the next commands at its end."""

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from slm.classes import name_of
from slm.errors import Stopped
from slm.estimate import parameters
from slm.files import jsonl
from slm.own_model import OwnConfig, shape
from slm.results import Run
from slm.run.fork import shown
from slm.run.prepare import Job, shown_passes
from slm.system import quoted
from slm.tables import clock
from slm.tokenizers import is_own
from slm.transfer import described


def print_summary(job: Job, run_info: dict[str, Any], start: Path | None):
    """The run in six lines."""
    model, counts, batch = job.model, parameters(job.model), job.config.data.batch_windows
    epochs = job.steps * batch / run_info["windows"]
    print(
        f"run:    {job.run_dir}" + (f", from {start.name}" if start else "") + fork_line(run_info.get("fork")),
        f"data:   {job.store.tokens('train'):,} train tokens, {job.store.tokens('validation'):,} validation tokens",
        f"model:  {counts.total:,} parameters ({counts.non_embedding:,} without embeddings), "
        f"{shape(model)}, context {model.context}, vocabulary {model.vocab_size:,}",
        f"budget: {job.steps:,} steps of {batch} windows = {job.tokens:,} tokens, {epochs:.2f} epochs"
        + (f"\n        reads {shown_passes(job.passes)}" if job.passes else ""),
        f"batch:  microbatch {job.microbatch} x {job.hardware.devices} device(s) x accumulation {job.accumulation}",
        f"device: {job.hardware.name}, {job.hardware.precision}"
        + (", compiled (the first step takes longer; trainer.compile=false: not)" if run_info["compiled"] else ""),
        *start_lines(job, run_info, start),
        sep="\n",
        flush=True,
    )


def start_lines(job: Job, run_info: dict[str, Any], start: Path | None) -> list[str]:
    """With init_from=: the source, what was taken from it and what was not; and the share that LoRA trains."""
    lines = [] if start or "init" not in run_info else described(run_info["init"])
    lines = [f"{'init:   ' if number == 0 else '        '}{line}" for number, line in enumerate(lines)]
    if lora := getattr(job.model, "lora", None):
        trained, total = (parameters(replace(job.model, lora=config)).total for config in (lora, None))
        lines.append(
            f"lora:   rank {lora.rank} on {', '.join(lora.targets or ['attention', 'mlp'])}: {trained - total:,}"
            f" of {trained:,} parameters are trained"
        )
    return lines


def fork_line(fork: dict[str, Any] | None) -> str:
    """The trunk of a fork and what it changes, on a line of its own."""
    if not fork:
        return ""
    changed = shown(fork["changed"], list(fork["changed"])) or "nothing changed"
    return f"\nfork:   of {Path(fork['run']).name} at step {fork['step']:,}; {changed}"


def conclude(job: Job, objective: float | None, stopped: Stopped | None, again: str):
    """Prints the result and the next commands. Raises Stopped if the run was stopped by a signal."""
    from slm.training.callbacks.signals import requeue, submitit_signal

    config, folder = job.config, quoted(str(job.run_dir))
    if stopped:
        print(f"{stopped.reason}; the same command with {quoted(again)} goes on from here", flush=True)
        if stopped.requeue and (config.run_dir or submitit_signal()):
            requeue()
        elif stopped.requeue:
            print("not requeued: without run_dir=<folder> the same command would start another run", file=sys.stderr)
        if stopped.exit_code:
            raise stopped
        return
    if config.trainer.fast_dev_run:
        print(f"done: fast_dev_run ran {config.budget.steps} step(s) with validation; nothing was kept")
        return
    generate, evaluate = "python generate.py", "python -m slm.evaluate"
    if "SLM_COMMAND" in os.environ:
        generate, evaluate = "slm generate", "slm evaluate"
    classes = own_classes(job)
    sample = next(jsonl.lines(job.run_dir / "samples.jsonl"), None)
    prompt = f" prompt={quoted(sample['prompt'])}" if sample else ""
    print(f"done:   {config.optimized_metric} {objective:.4f}" if objective is not None else "done")
    if line := outcome(job.run_dir):
        print(f"        {line}")
    picture = {True: "report.html", False: "loss.png", "sweep": "metrics.jsonl"}[config.report]
    print(f"        {job.run_dir / picture}")
    print(f"        {generate} ckpt={folder}" + "".join(f" {n}_class={path}" for n, path in classes.items()) + prompt)
    if "stories" in config.callbacks:
        print(f"        {evaluate} {folder}" + "".join(f" --{n}-class {path}" for n, path in classes.items()))


def outcome(folder: Path) -> str | None:
    """A line that sets the plan of a run against what happened; None if one of the two is not known."""
    run, found = Run(folder), []
    plan, seconds, memory = run.info.get("plan") or {}, run.summary["seconds"], run.series("device/memory_gb")
    if plan.get("seconds") and seconds:
        found.append(f"planned {clock(plan['seconds'])}, took {clock(seconds)}")
    if plan.get("peak_memory_bytes") and memory:
        found.append(f"memory {max(memory.values()):.2f} GB of {plan['peak_memory_bytes'] / 1e9:.2f} planned")
    return "; ".join(found) or None


def own_classes(job: Job) -> dict[str, str]:
    """The classes of model and tokenizer that a checkpoint does not know, by part; none for those of slm."""
    owner = type(job.tokenizer)
    found = {"model": job.model.target} if isinstance(job.model, OwnConfig) else {}
    if is_own(owner):
        found["tokenizer"] = name_of(owner)
    return found
