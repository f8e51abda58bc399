"""The composition root of a training: from a configuration to a finished run folder."""

import contextlib
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from slm import ranks
from slm.errors import Stopped, UserError, one_line
from slm.files import claim, jsonl, run_folder
from slm.hardware import Hardware, check_open_files, is_first_process, launched_processes
from slm.planning.microbatch import largest_microbatch
from slm.run import resume
from slm.run.changes import differences
from slm.run.config import RunConfig
from slm.run.failures import explain
from slm.run.fork import describe_fork, point_of
from slm.run.init_from import source_of
from slm.run.plan import with_plan
from slm.run.prepare import Job, choose_hardware, prepare_job
from slm.run.process import command_start
from slm.run.record import begin_run, close_run, complete_report, describe_run, preset_differences
from slm.run.summary import conclude, print_summary
from slm.system import end_with_parent

SECONDS_TO_PRINT = 2.0  # that the first process has before the others end


def train(config: RunConfig, *, run_dir: Path, overrides: list[str], again: str | None = None) -> float | None:
    """Starts or resumes the run in run_dir. Returns the objective: the lowest value of a val/ metric.

    `again` is the override with which the same command goes on after an interruption; run_dir=... unless given.
    Raises UserError, ResourceError, Diverged, or Stopped after a signal.
    """
    claim.check_folder(run_dir, "run")
    from slm.training.process import torch_settings_kept  # imports Lightning

    held = claim.claimed(run_dir, "run") if is_first_process(config.trainer) else contextlib.nullcontext()
    with held, torch_settings_kept():
        return run_once(config, run_dir, overrides, again or f"run_dir={run_dir}")


def run_once(config: RunConfig, run_dir: Path, overrides: list[str], again: str) -> float | None:
    """One attempt of a run: from its newest checkpoint to its end or an interruption."""
    first = is_first_process(config.trainer)  # read now: the end of a distributed run clears the environment
    if not first and ranks.local_rank():
        end_with_parent()
    before = run_folder.read_run_json(run_dir)
    if before and (first or config.resume != "never"):  # the first process has written it for the others
        resume.check_again(config, run_dir, before)
        if before["status"] == "done" and not differences(before["budget"], config.plain["budget"], ()):
            return found_done(config, run_dir, first)
        resume.check_corpus(run_dir, before, config)
    hardware, microbatch = choose_hardware(config)
    trunk = point_of(config, run_dir, before)
    start = resume.find_start(config, run_dir, before, trunk)
    source = source_of(config, before, start)
    from slm.run.trainer import assemble, build_callbacks, early_facts  # imports Lightning

    callbacks: dict[str, Any] = {}
    build_callbacks(config, early_facts(config, run_dir), callbacks)
    job, deadline = prepared_in_time(config, run_dir, before, hardware, microbatch)
    step, earlier = resume.check_start(start, job, before)
    job = replace(job, splits=resume.as_begun(job.splits, before, earlier), source=source)
    job, plan = with_plan(job, before, step, deadline)
    run_info = describe_run(job, before, step) | describe_fork(trunk, before, earlier, job) | {"plan": plan}
    if before and "init" in before:
        run_info["init"] = before["init"]
    assembled = assemble(job, run_info, callbacks)
    if first and config.report is True:
        run_info |= preset_differences(config.plain, overrides)
    check_open_files(assembled.data.workers)
    open_again = begin_run(job, run_info, overrides, step, trunk, before) if first else lambda: None
    if first:
        print_summary(job, run_info, start)

    def restored(trainer):
        if start:
            resume.check_optimizer(trainer.optimizers[0])
            resume.apply_settings(callbacks, earlier, config)
        open_again()

    from slm.training.callbacks.opening import Opening

    opening = Opening(restored)
    assembled.trainer.callbacks.insert(0, opening)
    try:
        stopped, objective = fit_and_close(assembled, start, job, run_info, lambda: first and opening.opened)
    except BaseException:
        if first and not before and not opening.opened:
            claim.discard(run_dir)
        raise
    if first:  # an error of another process would make Lightning kill this one
        conclude(job, objective, stopped, again)
    return objective


def found_done(config: RunConfig, run_dir: Path, first: bool) -> float | None:
    """Completes the report of a run that has ended, in the first process, and returns the objective."""
    if first and config.report is True:
        complete_report(run_dir)
    objective = lowest(run_dir, config.optimized_metric)
    print(f"{run_dir} is done: {config.optimized_metric} {objective}")
    return objective


def prepared_in_time(
    config: RunConfig, run_dir: Path, before: dict[str, Any] | None, hardware: Hardware, microbatch: int
) -> tuple[Job, float]:
    """The job, and when its minutes end, on time.monotonic: they begin with the command, and stand still while data is
    prepared."""
    deadline, begin = command_start() + 60 * (config.budget.minutes or 0), time.monotonic()
    job = prepare_job(config, run_dir, hardware, microbatch)
    deadline += time.monotonic() - begin
    if config.trainer.auto_microbatch:
        job = replace(job, microbatch=find_microbatch(job, before))
    return job, deadline


def fit_and_close(
    assembled, start: Path | None, job: Job, run_info: dict[str, Any], opened: Callable[[], bool]
) -> tuple[Stopped | None, float | None]:
    """Trains, and closes the run folder if it was opened. Returns the requested stop, if any, and the objective."""
    from slm.training.callbacks.metrics import TrainingMetrics
    from slm.training.loggers import for_each_logger
    from slm.training.process import teardown

    config, run_dir, status, stopped, failure = job.config, job.run_dir, "failed", None, None
    inode = claim.lock_inode(run_dir)
    try:
        facts = {
            key: run_info[key] for key in ("parameters", "device", "precision", "corpus", "tokenizer", "git_commit")
        }
        for_each_logger(assembled.trainer, lambda logger: logger.log_hyperparams({**config.plain, "run": facts}))
        stopped = fit(assembled, start, job)
        status = "stopped" if stopped else "done"
    except BaseException as error:
        failure = one_line(f"{type(error).__name__}: {error}")
        raise
    finally:
        objective = lowest(run_dir, config.optimized_metric)
        teardown(assembled.trainer, failed=failure is not None)
        if opened() and claim.lock_inode(run_dir) == inode:
            spent = next((c.spent() for c in assembled.trainer.callbacks if isinstance(c, TrainingMetrics)), {})
            close_run(run_dir, {**run_info, "status": status, "objective": objective, "failure": failure, **spent})
    return stopped, objective


def find_microbatch(job: Job, before: dict[str, Any] | None) -> int:
    """For trainer.auto_microbatch: the one of the previous attempt, else the largest that fits. Raises UserError for
    a distributed run."""
    share = job.config.data.batch_windows // job.hardware.devices
    found = before and before["config"]["trainer"].get("auto_microbatch") and before["microbatch"]
    if found and share % found == 0:
        return found
    if job.hardware.devices > 1 and launched_processes(job.config.trainer) > 1:
        raise UserError("trainer.auto_microbatch=true tries one device, not many processes; give trainer.microbatch")
    size = largest_microbatch(job.model, share, job.hardware)
    print(f"trainer.microbatch={size} is the largest that fits")
    return size


def fit(assembled, start: Path | None, job: Job) -> Stopped | None:
    """Trains to the end, or to a requested stop, which is returned. Raises UserError for failures of the machine. What
    all processes notice (UserError.everywhere, the end of another one) the first one raises; the others raise
    SystemExit."""
    from slm.training.process import lost_process

    trainer = assembled.trainer
    try:
        checkpoint_path = str(start) if start else None
        trainer.fit(assembled.module, assembled.data, ckpt_path=checkpoint_path, weights_only=True)
    except Stopped as stopped:
        return stopped
    except Exception as error:
        everywhere = getattr(error, "everywhere", False)
        shared = error if everywhere else lost_process(error, trainer)
        if shared and not trainer.is_global_zero:
            time.sleep(SECONDS_TO_PRINT * everywhere)  # a launcher may end the first one with this one
            raise SystemExit(shared.exit_code) from None
        if explanation := shared or explain(error, job, start, loaders=assembled.data.workers):
            raise explanation from error  # SLM_DEBUG=1 shows both
        raise
    finally:
        assembled.data.close()
    return None


def lowest(run_dir: Path, metric: str) -> float | None:
    """The lowest value of a val/ metric in metrics.jsonl, the last value of any other."""
    values = list(jsonl.numbers(run_dir / "metrics.jsonl", metric))
    return None if not values else min(values) if metric.startswith("val/") else values[-1]
