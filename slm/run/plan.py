"""plan=true: what a run will take, without training, without a run folder and without a download."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from slm.cache import place
from slm.data.store import TokenStore, store_identity, tokenizer_identity
from slm.data.windows import evenly_spaced, split_windows
from slm.estimate import device_table, parameters, parts, training_flops_per_token
from slm.hardware import Hardware
from slm.model import GPTConfig
from slm.planning.data import PREPARATION, Text, estimated_text
from slm.planning.devices import Device, Work, known_devices, this_device
from slm.planning.memory import Memory, training_memory
from slm.planning.table import clock, columns, gigabytes
from slm.run.config import RunConfig
from slm.run.prepare import TokenizerPlan, choose_hardware, optimizer_of
from slm.run.sections import UNKNOWN

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

    def record(self) -> dict[str, Any]:
        """For run.json."""
        return {
            "seconds": self.seconds,
            "tokens_per_second": self.tokens_per_second,
            "measured": self.measured,
            "peak_memory_bytes": round(self.memory.peak),
            "parameters": parameters(self.model).total,
            "steps": self.steps,
            "tokens": self.tokens,
        }


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
    rate = plan.tokens / seconds if seconds and plan.tokens else None
    return replace(plan, tokens_per_second=rate)


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
    where = {"layout": config.data.layout, "context": config.model.context, "eos": tokenizer.eos}
    train, validation = (split_windows(store, split, **where) for split in ("train", "validation"))
    targets = train.targets[evenly_spaced(len(train), config.data.train_windows)]
    return Text(
        vocab_size=tokenizer.vocab_size,
        tokens=store.tokens("train"),
        windows=len(targets),
        targets_per_window=float(targets.mean()),
        validation_windows=len(validation),
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
    averaged = any("WeightAveraging" in str(node.target) for node in config.callbacks.values())
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


def shown(plan: Plan) -> str:
    """The plan of one run for people."""
    return "\n".join([*_model_lines(plan), *_data_lines(plan), *_memory_lines(plan), "", _device_table(plan)])


def _model_lines(plan: Plan) -> Iterator[str]:
    model = plan.model
    counts = ", ".join(f"{part} {count:,}" for part, count in parts(model).items())
    yield f"model:  {parameters(model).total:,} parameters: {counts}"
    yield (
        f"        {model.depth} x {model.width}, context {model.context}, vocabulary {model.vocab_size:,}; "
        f"{training_flops_per_token(model) / 1e6:,.2f} MFLOP per token, forward and backward"
    )


def _data_lines(plan: Plan) -> Iterator[str]:
    text, config = plan.text, plan.config
    if text.tokens is None:
        yield "data:   tokens unknown until the data is downloaded, which a plan does not do"
    else:
        source = "in the cache" if text.cached else "estimated: not in the cache"
        yield f"data:   {text.tokens:,} train tokens ({source})"
    if not text.cached and text.bytes:
        yield (
            f"        {clock(text.bytes / PREPARATION)} to prepare {text.bytes / 1e6:,.0f} MB of text once, at "
            f"{PREPARATION / 1e6:.0f} MB/s for tokenizer and encoding together"
        )
    if plan.steps is None:
        yield "budget: steps unknown; give budget.steps for time and cost"
        return
    epochs = f", {plan.epochs:.2f} epochs" if plan.epochs is not None else ""
    windows = config.data.batch_windows
    yield f"budget: {plan.steps:,} steps of {windows} windows = {plan.tokens:,} tokens{epochs}"


def _memory_lines(plan: Plan) -> Iterator[str]:
    memory, model = plan.memory, plan.model
    held = ", ".join(f"{name} {gigabytes(size)}" for name, size in vars(memory).items() if size >= 5e5)
    yield (
        f"memory: {gigabytes(memory.peak)} of {gigabytes(plan.device.memory)} GB at the peak, microbatch "
        f"{plan.microbatch}, {plan.hardware.precision}: {held}"
    )
    other = replace(model, gradient_checkpointing=not model.gradient_checkpointing)
    less = memory_of(plan.config, other, plan.hardware, plan.microbatch)
    switched = f"model.gradient_checkpointing={str(other.gradient_checkpointing).lower()}"
    yield f"        {gigabytes(less.peak)} GB with {switched}"
    files = 2 + plan.config.callbacks["checkpoints"].settings.get("keep_last", 2)
    free = shutil.disk_usage(_existing(Path(plan.config.run_dir or plan.config.runs_dir))).free
    yield (
        f"disk:   {files} checkpoints of {gigabytes(plan.checkpoint_bytes)} GB at most, {gigabytes(free)} GB are free"
    )


def _existing(folder: Path) -> Path:
    """The folder, or the nearest above it that exists."""
    folder = folder.absolute()
    return next(place for place in (folder, *folder.parents) if place.is_dir())


def _device_table(plan: Plan) -> str:
    """A line per device: peak, memory, time and cost."""
    rows = [["device", "TFLOP/s", "memory", "time", "cost"]]
    for device in (plan.device, *known_devices()):
        seconds = plan.seconds if device is plan.device else plan.work and device.seconds(plan.work)
        cost = device.cost(seconds)
        fits = device.memory is None or plan.memory.peak < device.memory
        rows.append(
            [
                device.name,
                f"{device.flops / 1e12:.3g}" if device.flops else "?",
                f"{device.memory / 1e9:.0f} GB" if device.memory else "?",
                (clock(seconds) if seconds else "?") if fits else "too small",
                "?" if cost is None or not fits else f"{cost:.2f}",
            ]
        )
    assumed = device_table()
    rate = "measured on this one; " if plan.measured else ""
    return (
        f"{columns(rows)}\nTime: {rate}{assumed['utilisation']:.0%} of the peak assumed, 16 bits on GPUs, training and "
        f"validation.\nCost: dollars, prices of {assumed['assumed_on']} in conf/devices.yaml (price_per_hour=...)."
    )
