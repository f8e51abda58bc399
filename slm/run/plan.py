"""plan=true: what a run will take, without training, without a run folder and without a download."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from slm.cache import place
from slm.data.store import TokenStore, store_identity, tokenizer_identity
from slm.data.windows import Splits
from slm.estimate import training_flops_per_token
from slm.hardware import Hardware, resident_bytes
from slm.model import GPTConfig
from slm.planning.data import Text, estimated_text
from slm.planning.devices import Device, Work, this_device, utilisation
from slm.planning.memory import Memory, training_memory
from slm.run.config import RunConfig
from slm.run.prepare import (
    Job,
    TokenizerPlan,
    choose_hardware,
    optimizer_of,
    prepare_job,
    recipe_warnings,
    warn,
    windows_of,
)
from slm.run.rate import MEASURED_STEPS, Rate, measured, samples_every, steps_for_minutes
from slm.run.sections import UNKNOWN
from slm.tables import clock
from slm.tokenizers import Tokenizer

COUNTED: dict[str, Memory] = {}  # by what determines them


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run will take. None: not known before the data is there."""

    config: RunConfig
    hardware: Hardware
    microbatch: int
    model: GPTConfig
    text: Text
    steps: int | None
    memory: Memory
    work: Work | None
    device: Device
    seconds: float | None  # on this device
    tokens_per_second: float | None
    measured: bool  # the rate, not assumed

    @property
    def tokens(self) -> int | None:
        """Targets of the whole run."""
        if self.steps is None:
            return None
        per_window = self.text.targets_per_window or self.model.context
        return round(self.steps * self.config.data.batch_windows * per_window)

    @property
    def epochs(self) -> float | None:
        if None in (self.steps, self.text.windows):
            return None
        return self.steps * self.config.data.batch_windows / self.text.windows

    @property
    def checkpoint_bytes(self) -> float:
        return self.memory.weights + self.memory.optimizer


def with_plan(job: Job, before: dict[str, Any] | None, step: int, deadline: float) -> tuple[Job, dict[str, Any] | None]:
    """The job with the steps that its minutes allow until the deadline, from `step` on, and its plan for run.json.

    Both are those of the attempt before if that had the same budget.
    """
    same, rate = before and before["budget"] == job.config.plain["budget"], None
    if job.config.budget.minutes:
        steps, rate = (before["steps"], None) if same else steps_for_minutes(job, deadline)
        job = replace(job, steps=steps if same else max(step, 0) + steps)
        warn(job, recipe_warnings(job))
    return job, before.get("plan") if same else plan_of(job, rate)


def plan_of(job: Job, rate: Rate | None) -> dict[str, Any]:
    """For run.json: what the job at hand should take. `rate` if it was measured. On a CPU the peak is that of the
    process, with what it holds now, before the model is built."""
    config = job.config
    if rate:
        seconds = rate.total(job.steps, config.val_every_n_steps, samples_every(config))
    else:
        text = text_of(job.splits, job.tokenizer)
        work = work_of(config, job.model, text, job.steps, job.microbatch)
        seconds = this_device(job.hardware, config.price_per_hour).seconds(work)
    try:
        peak = memory_of(config, job.model, job.hardware, job.microbatch).peak
        peak = round(peak + (resident_bytes() if job.hardware.accelerator == "cpu" else 0))
    except (RuntimeError, NotImplementedError):  # of an operator that needs content
        peak = None
    return {
        "seconds": seconds,
        "measured": rate is not None,
        "utilisation": None if rate else utilisation(),
        "tokens_per_second": seconds and job.tokens / seconds,
        "peak_memory_bytes": peak,
    }


def outcome(plan: dict[str, Any], seconds: float | None, memory_gb: float | None) -> str | None:
    """A line that sets a plan against what happened; None if one of the two is not known."""
    found = []
    if plan.get("seconds") and seconds:
        found.append(f"planned {clock(plan['seconds'])}, took {clock(seconds)}")
    if plan.get("peak_memory_bytes") and memory_gb:
        found.append(f"memory {memory_gb:.2f} GB of {plan['peak_memory_bytes'] / 1e9:.2f} planned")
    return "; ".join(found) or None


def make_plan(config: RunConfig) -> Plan:
    """The plan of a run, from its configuration, the cache and this machine. Raises UserError."""
    hardware, microbatch = choose_hardware(config)
    with offline():
        text = find_text(config)
    model = replace(config.model, vocab_size=text.vocab_size)
    steps = steps_of(config, text)
    work = None if steps is None else work_of(config, model, text, steps, microbatch)
    device = this_device(hardware, config.price_per_hour)
    seconds = None if work is None else device.seconds(work)
    plan = Plan(
        config=config,
        hardware=hardware,
        microbatch=microbatch,
        model=model,
        text=text,
        steps=steps,
        memory=memory_of(config, model, hardware, microbatch),
        work=work,
        device=device,
        seconds=seconds,
        tokens_per_second=None,
        measured=False,
    )
    if config.plan == "measure" and text.cached:
        seconds = measured_seconds(config, hardware, microbatch, steps)
        plan = replace(plan, seconds=seconds, measured=True)
    rate = plan.tokens / seconds if seconds and plan.tokens else None
    return replace(plan, tokens_per_second=rate)


def measured_seconds(config: RunConfig, hardware: Hardware, microbatch: int, steps: int | None) -> float:
    """By ten steps here, with a validation, samples and a checkpoint; with budget.minutes, these."""
    with tempfile.TemporaryDirectory() as folder:
        job = prepare_job(config, Path(folder), hardware, microbatch)
        rate = measured(job, 0, MEASURED_STEPS)
    if steps is None:
        return 60 * config.budget.minutes
    return rate.total(steps, config.val_every_n_steps, samples_every(config))


@contextlib.contextmanager
def offline() -> Iterator[None]:
    """No request to the Hugging Face Hub."""
    before = os.environ.get("HF_HUB_OFFLINE")
    os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        yield
    finally:
        os.environ.pop("HF_HUB_OFFLINE")
        if before is not None:
            os.environ["HF_HUB_OFFLINE"] = before


def find_text(config: RunConfig) -> Text:
    """Tokenizer and tokens from the cache; else an estimate."""
    corpus, cache_dir, chosen = config.data.corpus, Path(config.cache_dir), TokenizerPlan.of(config)
    estimate = estimated_text(corpus, chosen.name, chosen.settings, config.data.layout, config.model.context)
    if not getattr(corpus, "is_local", lambda: True)():
        return estimate
    tokenizer_folder = place(cache_dir, "tokenizers", tokenizer_identity(chosen.settings, corpus))
    if not tokenizer_folder.is_dir():
        return estimate
    tokenizer = chosen.load(tokenizer_folder)
    identity = store_identity(corpus, tokenizer)
    folder = place(cache_dir, "tokens", identity)
    if not folder.is_dir():
        return replace(estimate, vocab_size=tokenizer.vocab_size)
    store = TokenStore.open(folder, {**identity, "vocab_size": tokenizer.vocab_size})
    return text_of(windows_of(config, store, tokenizer), tokenizer)


def text_of(splits: Splits, tokenizer: Tokenizer) -> Text:
    """What a run reads of prepared tokens."""
    return Text(
        vocab_size=tokenizer.vocab_size,
        tokens=splits.store.tokens("train"),
        windows=len(splits.chosen),
        targets_per_window=splits.targets_per_window,
        validation_windows=len(splits.validation),
        cached=True,
    )


def steps_of(config: RunConfig, text: Text) -> int | None:
    if text.windows is None and config.budget.steps is None:
        return None
    per_window = text.targets_per_window or config.model.context
    steps = config.budget.total_steps(config.data.batch_windows, text.windows or 1, per_window)
    return None if steps == UNKNOWN else steps


def work_of(config: RunConfig, model: GPTConfig, text: Text, steps: int, microbatch: int) -> Work:
    """Training, and the validations: a third of a training's work for each window."""
    per_token = training_flops_per_token(model)
    per_window = text.targets_per_window or model.context
    trained = steps * config.data.batch_windows
    validations = -(-steps // config.val_every_n_steps)
    windows = min(config.data.validation_windows or 10**12, text.validation_windows or 10**12)
    validated = validations * windows if windows < 10**12 else 0
    again = 4 / 3 if model.gradient_checkpointing else 1
    return Work(
        flops=per_token * per_window * (trained * again + validated / 3),
        passes=model.depth * (trained * again + validated / 3) / microbatch,
        steps=steps,
    )


def memory_of(config: RunConfig, model: GPTConfig, hardware: Hardware, microbatch: int) -> Memory:
    """The peak memory of a run on this hardware; counted once for runs that differ in nothing that matters."""
    averaged = any(node.averages for node in config.callbacks.values())
    key = repr((model, config.plain["optimizer"]["_target_"], hardware, microbatch, averaged))
    if key not in COUNTED:
        COUNTED[key] = training_memory(
            model,
            optimizer_of(config, hardware),
            microbatch=microbatch,
            device=hardware.device,
            precision=hardware.precision,
            averaged=averaged,
            distributed=hardware.devices > 1,
        )
    return COUNTED[key]
