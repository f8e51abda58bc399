"""A configuration found sound, before anything expensive: typed, checked, with the machine's facts settled."""

import math
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from slm.errors import UserError
from slm.estimate import least_parameters
from slm.hardware import Hardware, keep_freed_memory, microbatch, settle
from slm.model import GPT, GPTConfig
from slm.run.instantiate import build, check, fits, is_node, locate
from slm.security import NAME, check_prefixes, refuse_url

ORDER = ("seed.", "data.batch_windows.", "data.layout.", "data.corpus.", "tokenizer.", "model.context.")
MAX_BUDGET = 1e18  # steps, tokens or epochs: what an integer of 64 bits can count with room to spare
METRICS = ("val/loss", "val/perplexity", "val/bits_per_byte", "val/excess_bits_per_story", "train/loss")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The top level of conf/train.yaml, for the types; what each means is said there."""

    name: str | None
    tags: list[str]
    seed: int
    log_every_n_steps: int
    val_every_n_steps: int
    optimized_metric: str
    run_dir: str | None
    runs_dir: str
    cache_dir: str
    resume: str
    trusted_targets: list[str]
    allow_changes: list[str]
    verify_resume: bool
    on_nonfinite: Literal["stop", "skip"]
    on_spike: Literal["warn", "skip", "rewind"]

    def __post_init__(self):
        check_prefixes(self.trusted_targets)
        if fixed := [key for key in self.allow_changes if f"{key}.".startswith(ORDER) or key in ("data", "model")]:
            raise UserError(
                f"allow_changes={fixed[0]}: what a step reads or is made of depends on it; begin another run"
            )
        if self.name is not None and not NAME.fullmatch(self.name):
            raise UserError(f"name={self.name} must consist of letters, digits, dots, hyphens and underscores")
        for key in ("run_dir", "runs_dir", "cache_dir"):
            refuse_url(key, getattr(self, key))
        if not 0 <= self.seed < 2**32:
            raise UserError(f"seed={self.seed} must be at least 0 and below 2**32")
        if self.optimized_metric not in METRICS:
            known = ", ".join(METRICS)
            raise UserError(f"optimized_metric={self.optimized_metric} is not one of {known}")
        if self.val_every_n_steps < 1:
            raise UserError(f"val_every_n_steps={self.val_every_n_steps} must be at least 1")


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """The keys of conf/data that every corpus shares."""

    layout: Literal["packed", "documents"]
    batch_windows: int
    validation_windows: int | None
    workers: int | None
    timeout: float

    def __post_init__(self):
        if self.validation_windows is not None and self.validation_windows < 1:
            raise UserError(f"data.validation_windows={self.validation_windows} must be at least 1, or null for all")
        cores = os.cpu_count() or 1
        if self.workers is not None and not 0 <= self.workers <= 8 * cores:
            raise UserError(
                f"data.workers={self.workers} must be from 0 to {8 * cores} (8 for each of {cores} cores), or null"
            )
        if not 0 < self.timeout < math.inf:
            raise UserError(f"data.timeout={self.timeout} must be above 0 (seconds)")


@dataclass(frozen=True, kw_only=True)
class TrainerSettings:
    """conf/trainer."""

    accelerator: str
    devices: int | str
    num_nodes: int
    strategy: str
    precision: str
    microbatch: int | None
    auto_microbatch: bool
    compile: bool | None
    tf32: bool
    clip: float | None
    deterministic: bool | None
    benchmark: bool | None
    detect_anomaly: bool
    profiler: str | None

    def __post_init__(self):
        if self.clip is not None and not self.clip > 0:
            raise UserError(f"trainer.clip={self.clip} must be above 0, or null for no limit")
        if self.auto_microbatch and self.microbatch is not None:
            raise UserError(
                f"trainer.auto_microbatch=true and trainer.microbatch={self.microbatch} exclude one another; give one"
            )


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How long to train: exactly one of steps, tokens and epochs."""

    steps: int | None
    tokens: float | None
    epochs: float | None
    max_time: str | None

    def __post_init__(self):
        given = {name: getattr(self, name) for name in ("steps", "tokens", "epochs") if getattr(self, name) is not None}
        if len(given) != 1:
            shown = " and ".join(f"budget.{name}={value}" for name, value in given.items()) or "none"
            raise UserError(f"exactly one of budget.steps, budget.tokens and budget.epochs must be given, not {shown}")
        ((name, value),) = given.items()
        if not 0 < value <= MAX_BUDGET:
            raise UserError(f"budget.{name}={value} must be above 0 and at most {MAX_BUDGET:g}")
        self.max_seconds()

    def max_seconds(self) -> float | None:
        if self.max_time is None:
            return None
        if not (parts := re.fullmatch(r"(\d{1,6}):(\d{1,2}):(\d{1,2})", self.max_time)):
            raise UserError(f"budget.max_time={self.max_time} must be hh:mm:ss, such as 00:30:00")
        hours, minutes, seconds = map(int, parts.groups())
        if not (total := 3600 * hours + 60 * minutes + seconds):
            raise UserError(f"budget.max_time={self.max_time} is no time at all; give more, or null for no limit")
        return float(total)

    def total_steps(self, windows_per_step: int, windows: float, targets_per_window: float) -> int:
        """For a training split of so many windows."""
        if self.tokens is not None:
            windows = self.tokens / targets_per_window
        elif self.epochs is not None:
            windows *= self.epochs
        return self.steps or max(1, round(windows / windows_per_step))


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A configuration found sound: the parts that need no data, checked and typed."""

    config: dict[str, Any]
    settings: Settings
    data: DataSettings
    trainer: TrainerSettings
    budget: Budget
    model: GPTConfig  # its vocabulary is not known yet
    hardware: Hardware
    microbatch: int

    @property
    def accumulation(self) -> int:
        return self.data.batch_windows // (self.microbatch * self.hardware.devices)

    @property
    def compiled(self) -> bool:
        return self.hardware.accelerator == "gpu" if self.trainer.compile is None else self.trainer.compile

    def windows(self, tokens: int, documents: int) -> tuple[float, float]:
        """How many windows a split of so many tokens and documents has, and how many targets each, on average."""
        context = self.model.context
        if self.data.layout == "documents":
            return documents, min(tokens / documents, context)
        return tokens / context, context

    @property
    def cache(self) -> Path:
        return Path(self.settings.cache_dir)


def make_plan(config: dict[str, Any]) -> Plan:
    """Raises UserError for whatever can be found wrong without data, Lightning or a long computation."""
    keep_freed_memory()
    settings = typed(Settings, config, "")
    data, trainer = typed(DataSettings, config["data"], "data"), typed(TrainerSettings, config["trainer"], "trainer")
    budget, trusted = typed(Budget, config["budget"], "budget"), settings.trusted_targets
    refuse_url("data.path", config["data"].get("path"))
    nodes = {key: config.get(key) for key in ("tokenizer", "optimizer", "schedule")}
    for where, node in {**nodes, "data.corpus": config["data"].get("corpus")}.items():
        if not is_node(node):
            raise UserError(f"{where} must have a _target_, the class that it makes, not be {node!r}")
    for where, node in (("tokenizer", config["tokenizer"]), ("data", config["data"]["corpus"])):
        check(locate(node["_target_"], where, trusted), node, where)
    check(GPTConfig, config["model"], "model")
    model = GPTConfig(**config["model"], vocab_size=1)
    hardware = settle(trainer.accelerator, trainer.devices, trainer.num_nodes, trainer.precision)
    check_memory(model, hardware)
    small = replace(model, context=1, depth=1, width=model.head_dim, kv_heads=None, mlp_width=None)
    # its rules, at the price of a small model
    build(config["optimizer"], "optimizer", trusted=trusted, model=GPT(small))
    build_schedule(config["schedule"], budget.steps or 10**9, trusted)
    if (final := config["schedule"].get("final", 0)) > 1:
        print(f"warning: schedule.final={final} is above 1, so the learning rate ends above its peak", file=sys.stderr)
    size = microbatch(trainer.microbatch, data.batch_windows, hardware)
    if settings.optimized_metric == "val/excess_bits_per_story" and not config["callbacks"].get("stories"):
        raise UserError("optimized_metric=val/excess_bits_per_story is only measured on data=storyworld")
    if settings.on_spike == "rewind" and hardware.devices > 1:
        raise UserError(f"on_spike=rewind works with one device, not {hardware.devices}; use on_spike=skip")
    return Plan(
        config=config,
        settings=settings,
        data=data,
        trainer=trainer,
        budget=budget,
        model=model,
        hardware=hardware,
        microbatch=size,
    )


def check_memory(model: GPTConfig, hardware: Hardware):
    """Refuses a model whose weights and gradients alone, at 4 bytes each, are more than all devices' memory."""
    count, memory = least_parameters(model), hardware.memory
    needed = count * (4 if hardware.precision.endswith("16-true") else 8)
    if memory and needed > memory:
        raise UserError(
            f"model.width={model.width}, model.depth={model.depth}, model.mlp_width={model.hidden_width} and "
            f"model.context={model.context} make {count:.3g} parameters or more: {needed / 1e9:.3g} GB of weights and "
            f"gradients, and here are {memory / 1e9:.3g} GB; give smaller ones"
        )


def build_schedule(node: Mapping[str, Any], steps: int, trusted: Sequence[str] = ()):
    """The schedule of a run of so many steps. warmup_steps wins over warmup_share."""
    share, warmup = node["warmup_share"], node["warmup_steps"]
    if warmup is None:
        if not (fits(share, float) and 0 <= share <= 1):
            raise UserError(f"schedule.warmup_share={share} must be between 0 and 1 (a share of all steps)")
        warmup = round(share * steps)
    return build({**without(node, "warmup_share"), "warmup_steps": warmup}, "schedule", trusted=trusted, steps=steps)


def without(node: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in node.items() if key not in keys}


def typed(kind: type, node: Mapping[str, Any], where: str) -> Any:
    """The dataclass from those keys of the node that it has, checked."""
    names = {field.name for field in fields(kind)}
    values = {key: value for key, value in node.items() if key in names and not is_node(value)}
    check(kind, values, where)
    return kind(**values)
