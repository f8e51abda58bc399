"""Sections of a configuration whose keys all runs share: data, trainer, budget. conf/train.yaml explains each key."""

import math
import os
import re
from dataclasses import dataclass, field
from typing import Any, Literal

from slm.corpora import Corpus
from slm.corpora.mixture import Mixture, by_source
from slm.data.order import ANY_LAYOUT, Name
from slm.data.windows import Layout
from slm.errors import UserError
from slm.run.overrides import LENGTHS


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """conf/data: the keys that all corpora share. The keys of one corpus go to its constructor."""

    corpus: Corpus
    deduplicate: Literal["exact"] | None
    joined: bool | None
    layout: Layout
    order: Name
    stride: int | None
    attention_across_documents: bool
    batch_windows: int
    train_windows: int | None
    validation_windows: int | None
    validated_train_windows: int | None
    workers: int | None
    timeout: float

    @property
    def layouts(self) -> set[Layout]:
        """The layouts that windows have, of which the sources of a mixture may have several."""
        if not isinstance(self.corpus, Mixture):
            return {self.layout}
        return {source.layout or self.layout for source in self.corpus.sources.values()}

    @property
    def varies_in_length(self) -> bool:
        """True if the microbatches have several lengths."""
        return not self.layouts.isdisjoint({"documents", "instructions"})

    def __post_init__(self):
        if self.batch_windows < 1:
            raise UserError(f"data.batch_windows={self.batch_windows} must be at least 1")
        if others := sorted(self.layouts - {"packed"}):
            if self.order not in ANY_LAYOUT:
                remedy = "give data.order=shuffle, too"
                raise UserError(f"data.order={self.order} needs data.layout=packed, not {others[0]}; {remedy}")
            if "instructions" in others and not any(hasattr(it, "chat") for it in by_source(self.corpus).values()):
                raise UserError(
                    "data.layout=instructions needs conversations, as data=instructions has; or give another"
                )
            if self.joined:
                raise UserError(f"data.joined=true has no ends of documents, which data.layout={others[0]} needs")
        if self.joined and not self.attention_across_documents:
            raise UserError("data.joined=true has no ends of documents, which attention_across_documents=false needs")
        if self.stride is not None and self.order != "strided":
            raise UserError(f"data.stride={self.stride} is for data.order=strided, not {self.order}")
        for name in ("train_windows", "validation_windows", "validated_train_windows", "stride"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise UserError(f"data.{name}={value} must be at least 1, or null")
        cores = os.cpu_count() or 1
        if self.workers is not None and not 0 <= self.workers <= 8 * cores:
            raise UserError(
                f"data.workers={self.workers} must be from 0 to {8 * cores} (8 for each of {cores} cores), or null"
            )
        if not 0 < self.timeout < math.inf:
            raise UserError(f"data.timeout={self.timeout} must be above 0 (seconds)")


@dataclass(frozen=True, kw_only=True)
class TrainerConfig:
    """conf/trainer. `lightning` holds the keywords that go to Lightning's Trainer unchanged."""

    accelerator: str
    devices: int | str
    num_nodes: int
    strategy: str
    precision: str | int
    microbatch: int | None
    auto_microbatch: bool
    accumulate_grad_batches: int | None
    compile: bool | None
    tf32: bool
    gradient_clip_val: float | None
    fast_dev_run: bool | int
    lightning: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        if self.gradient_clip_val is not None and not self.gradient_clip_val > 0:
            raise UserError(f"trainer.gradient_clip_val={self.gradient_clip_val} must be above 0, or null for no limit")
        asked = {
            "trainer.microbatch": self.microbatch,
            "trainer.accumulate_grad_batches": self.accumulate_grad_batches,
            "trainer.auto_microbatch": self.auto_microbatch or None,
        }
        given = [f"{key}={value}" for key, value in asked.items() if value is not None]
        if len(given) > 1:
            raise UserError(f"{' and '.join(given)} exclude one another; give one")
        if re.search("fork|spawn|notebook", self.strategy):
            raise UserError(
                f"trainer.strategy={self.strategy} copies a process that has threads, which can hang; "
                "use trainer.strategy=ddp, with run_dir=<folder> in a notebook"
            )
        if self.strategy not in ("auto", "ddp", "fsdp"):
            raise UserError(f"trainer.strategy={self.strategy} must be auto, ddp or fsdp")
        if self.fast_dev_run < 0:
            raise UserError(f"trainer.fast_dev_run={self.fast_dev_run} must be true, false or a number of steps")


UNKNOWN = 10**9  # steps of a run whose rate is not measured yet: a schedule stays in its warmup


@dataclass(frozen=True, kw_only=True)
class Budget:
    """The length of a training: one of steps, tokens, epochs, minutes and flops; one epoch if none is given.

    max_time and max_cost stop it earlier.
    """

    steps: int | None
    tokens: float | None
    epochs: float | None
    minutes: float | None = None
    flops: float | None = None
    max_time: str | int | None
    max_cost: float | None = None

    def __post_init__(self):
        given = {name: getattr(self, name) for name in LENGTHS if getattr(self, name) is not None}
        if len(given) > 1:
            shown = " and ".join(f"budget.{name}={value}" for name, value in given.items())
            raise UserError(f"{shown} exclude one another; give one of {', '.join(f'budget.{n}' for n in LENGTHS)}")
        if self.max_cost is not None:
            given["max_cost"] = self.max_cost
        for name, value in given.items():
            if not 0 < value < math.inf:
                raise UserError(f"budget.{name}={value} must be above 0 and finite")
        self.max_seconds()

    def max_seconds(self) -> float | None:
        """budget.max_time in seconds. Raises UserError unless it is hh:mm:ss."""
        if self.max_time is None:
            return None
        if isinstance(self.max_time, int):  # what YAML makes of 1:30:00 without quotes
            minutes, seconds = divmod(self.max_time, 60)
            time = f"{minutes // 60:02}:{minutes % 60:02}:{seconds:02}"
            raise UserError(f'budget.max_time={self.max_time} must be hh:mm:ss, in a file with quotes: "{time}"')
        if not (parts := re.fullmatch(r"(\d{1,9}):(\d{1,2}):(\d{1,2})", self.max_time)):
            raise UserError(f"budget.max_time={self.max_time} must be hh:mm:ss, such as 00:30:00")
        hours, minutes, seconds = map(int, parts.groups())
        if not (total := 3600 * hours + 60 * minutes + seconds):
            raise UserError(f"budget.max_time={self.max_time} must be above 0; give more, or null for no limit")
        return float(total)

    def total_steps(
        self, windows_per_step: int, windows: float, targets_per_window: float, flops_per_token: float
    ) -> int:
        """Optimizer steps for a training split of so many windows; UNKNOWN with minutes, until they are measured.

        Raises UserError for fewer FLOPs than half of a step.
        """
        if self.steps is not None:
            return self.steps
        if self.minutes is not None:
            return UNKNOWN
        if self.tokens is not None:
            return max(1, round(self.tokens / targets_per_window / windows_per_step))
        if self.flops is not None:
            step = flops_per_token * targets_per_window * windows_per_step
            if not (steps := round(self.flops / step)):
                raise UserError(f"budget.flops={self.flops:g} is less than a step, which takes {step:.3g}; give more")
            return steps
        return max(1, round(windows * (1 if self.epochs is None else self.epochs) / windows_per_step))
