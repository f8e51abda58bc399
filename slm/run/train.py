"""The composition root of a training: from a configuration to a finished run folder."""

import contextlib
import os
import shlex
import sys
from pathlib import Path
from typing import Any

from slm import checkpoint
from slm.errors import ResourceError, Stopped, UserError
from slm.estimate import parameters
from slm.files import jsonl, run_folder
from slm.hardware import (
    Hardware,
    choose_microbatch,
    is_out_of_memory,
    keep_freed_memory,
    largest_microbatch,
    resolve_hardware,
    smaller_microbatch,
)
from slm.run.config import RunConfig
from slm.run.prepare import Prepared, prepare_data
from slm.run.resume import (
    check_disk_space,
    check_start,
    check_unchanged,
    close_run,
    describe_run,
    find_start,
    note_machine_changes,
    open_run,
)


def train(config: RunConfig, *, run_dir: Path, overrides: list[str]) -> float | None:
    """Starts or resumes the run in run_dir. Returns the objective: the lowest value of a val/ metric.

    Raises UserError, ResourceError, Diverged, or Stopped after a signal.
    """
    run_folder.check_is_run_folder(run_dir)
    with run_folder.claimed(run_dir) if is_first_process(config) else contextlib.nullcontext():
        return run_once(config, run_dir, overrides)


def run_once(config: RunConfig, run_dir: Path, overrides: list[str]) -> float | None:
    """One attempt of a run: from its newest checkpoint to its end or an interruption."""
    first = is_first_process(config)  # read now: the end of a distributed run clears the environment
    before = run_folder.read_run_json(run_dir)
    if before and (first or config.resume != "never"):  # the first process has written it for the others
        check_unchanged(before, config, run_dir)
        if before["status"] == "done" and before["budget"] == config.plain["budget"]:
            print(f"{run_dir} is done: {config.optimized_metric} {before['objective']}")
            return before["objective"]
    keep_freed_memory()
    settings = config.trainer
    hardware = resolve_hardware(settings.accelerator, settings.devices, settings.num_nodes, settings.precision)
    microbatch = choose_microbatch(
        settings.microbatch, settings.accumulate_grad_batches, config.data.batch_windows, hardware
    )
    start = find_start(config, run_dir)
    from slm.run.trainer import assemble, build_callbacks, early_facts, teardown  # imports Lightning

    callbacks: dict[str, Any] = {}
    build_callbacks(config, early_facts(config, run_dir), callbacks)
    prepared = prepare_data(config)
    if settings.auto_microbatch:
        microbatch = find_microbatch(config, hardware, prepared, before)
    step = check_start(start, prepared, run_dir, before)
    run_info = describe_run(config, hardware, microbatch, prepared, run_dir, before, step)
    description = checkpoint.describe(prepared.model, prepared.tokenizer_folder, config.plain, run_info)
    assembled = assemble(config, hardware, prepared, run_dir, run_info, description, callbacks)
    run_info["windows"] = len(assembled.data.train)
    if first:
        if before:
            note_machine_changes(before, run_info)
        check_disk_space(config, prepared, run_dir)
        open_run(run_info, prepared, run_dir, overrides, step)
        print_summary(config, hardware, prepared, run_dir, run_info, start)

    from slm.training.loggers import for_each_logger

    status, stopped, inode = "failed", None, run_folder.lock_inode(run_dir)
    try:
        for_each_logger(assembled.trainer, lambda logger: logger.log_hyperparams(config.plain))
        stopped = fit(assembled, start, config, hardware, microbatch, run_dir)
        status = "stopped" if stopped else "done"
    finally:
        objective = lowest(run_dir, config.optimized_metric)
        teardown(assembled.trainer)
        if first and run_folder.lock_inode(run_dir) == inode:
            close_run(run_dir, {**run_info, "status": status, "objective": objective})
    if first:  # an error of another process would make Lightning kill this one
        conclude(run_dir, config, objective, stopped)
    return objective


def find_microbatch(config: RunConfig, hardware: Hardware, prepared: Prepared, before: dict[str, Any] | None) -> int:
    """For trainer.auto_microbatch: the one of the previous attempt, else the largest that fits. Raises UserError for
    a distributed run."""
    share = config.data.batch_windows // hardware.devices
    found = before and before["config"]["trainer"].get("auto_microbatch") and before["microbatch"]
    if found and share % found == 0:
        return found
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and "LOCAL_RANK" in os.environ:
        raise UserError("trainer.auto_microbatch=true tries one device, not many processes; give trainer.microbatch")
    size = largest_microbatch(prepared.model, share, hardware)
    print(f"trainer.microbatch={size} is the largest that fits")
    return size


def print_summary(
    config: RunConfig,
    hardware: Hardware,
    prepared: Prepared,
    run_dir: Path,
    run_info: dict[str, Any],
    start: Path | None,
):
    """The run in five lines."""
    model, counts = prepared.model, parameters(prepared.model)
    batch, microbatch = config.data.batch_windows, run_info["microbatch"]
    train_tokens, tokens = prepared.store.tokens("train"), prepared.tokens(prepared.steps * batch)
    print(
        f"run:    {run_dir}" + (f", from {start.name}" if start else ""),
        f"data:   {train_tokens:,} train tokens, {prepared.store.tokens('validation'):,} validation tokens",
        f"model:  {counts.total:,} parameters ({counts.non_embedding:,} without embeddings), "
        f"{model.depth} x {model.width}, context {model.context}, vocabulary {model.vocab_size:,}",
        f"budget: {prepared.steps:,} steps of {batch} windows = {tokens:,} tokens, "
        f"{tokens / train_tokens:.2f} epochs; microbatch {microbatch} x {hardware.devices} device(s) "
        f"x accumulation {batch // (microbatch * hardware.devices)}",
        f"device: {hardware.name}, {hardware.precision}"
        + (", compiled (the first step takes longer)" if run_info["compiled"] else ""),
        sep="\n",
        flush=True,
    )


def fit(
    assembled, start: Path | None, config: RunConfig, hardware: Hardware, microbatch: int, run_dir: Path
) -> Stopped | None:
    """Trains to the end, or to a requested stop, which is returned. Raises UserError for failures of the machine."""
    try:
        checkpoint_path = str(start) if start else None
        assembled.trainer.fit(assembled.module, assembled.data, ckpt_path=checkpoint_path, weights_only=True)
    except Stopped as stopped:
        return stopped
    except Exception as error:
        if explanation := explain(error, config, hardware, microbatch, run_dir, loaders=assembled.data.workers):
            raise explanation from None
        raise
    finally:
        assembled.data.close()
    return None


def explain(
    error: Exception, config: RunConfig, hardware: Hardware, microbatch: int, run_dir: Path, loaders: int
) -> UserError | None:
    """A failure of the machine during training as one line; None for any other error. `loaders`: processes."""
    text = str(error)
    if is_out_of_memory(error):
        less = smaller_microbatch(microbatch, config.data.batch_windows, hardware)
        remedies = ["model.gradient_checkpointing=true"]
        if microbatch > 1 and not config.trainer.auto_microbatch:
            remedies.insert(0, "trainer.auto_microbatch=true")
        if less < microbatch:
            remedies.insert(0, f"trainer.microbatch={less}")
        return ResourceError(
            f"out of memory with {microbatch} windows per forward pass; the same training needs less with "
            f"{' or '.join(remedies)}"
        )
    if isinstance(error, UserError) and "Original Traceback" in text:  # raised in a loader process
        return type(error)(text.strip().splitlines()[-1].partition(": ")[2])
    if isinstance(error, RuntimeError) and "DataLoader timed out" in text:
        return ResourceError(
            f"a loader process took more than data.timeout={config.data.timeout} seconds; check the disk"
        )
    killed = isinstance(error, RuntimeError) and text.startswith("DataLoader worker (pid")
    if loaders and (killed or isinstance(error, ConnectionResetError | EOFError)):  # a pipe to it has closed
        return ResourceError(
            f"a loader process was killed ({' '.join(text.split())}); out of memory? try data.workers=0"
        )
    if isinstance(error, FileNotFoundError) and not run_dir.is_dir():
        return ResourceError(f"the run folder {run_dir} was removed or moved away during training")
    if isinstance(error, ModuleNotFoundError) and "slm" not in text:  # a callback or logger of Lightning
        return UserError(f"a package is missing: {text}")
    return None


def lowest(run_dir: Path, metric: str) -> float | None:
    """The lowest value of a val/ metric in metrics.jsonl, the last value of any other."""
    values = [line[metric] for line in jsonl.lines(run_dir / "metrics.jsonl") if line.get(metric) is not None]
    return None if not values else min(values) if metric.startswith("val/") else values[-1]


def conclude(run_dir: Path, config: RunConfig, objective: float | None, stopped: Stopped | None):
    """Prints the result and the next commands. Raises Stopped if the run was stopped by a signal."""
    from slm.training.callbacks.signals import requeue

    if stopped:
        if stopped.requeue and config.run_dir:
            requeue()
        elif stopped.requeue:
            print("not requeued: without run_dir=<folder> the same command would start another run", file=sys.stderr)
        print(f"{stopped.reason}; the same command with run_dir={shlex.quote(str(run_dir))} goes on from here")
        if stopped.exit_code:
            raise stopped
        return
    if config.trainer.fast_dev_run:
        print(f"done: fast_dev_run ran {config.budget.steps} step(s) with validation; nothing was kept")
        return
    generate, evaluate = "python generate.py", "python -m slm.evaluate"
    if "SLM_COMMAND" in os.environ:
        generate, evaluate = "slm generate", "slm evaluate"
    samples = config.callbacks.get("samples")
    prompt = ((samples and samples.settings.get("prompts")) or ["Once upon a time"])[0]
    print(f"done:   {config.optimized_metric} {objective:.4f}" if objective is not None else "done")
    print(f"        {run_dir / 'loss.png'}")
    print(f"        {generate} ckpt={shlex.quote(str(run_dir))} prompt={shlex.quote(prompt)}")
    if "stories" in config.callbacks:
        print(f"        {evaluate} {shlex.quote(str(run_dir))}")


def is_first_process(config: RunConfig) -> bool:
    """True in the one process of a distributed run that prints and writes for all."""
    if config.trainer.devices == config.trainer.num_nodes == 1:
        return True  # whatever the environment contains
    return all(os.environ.get(name, "0") == "0" for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"))
