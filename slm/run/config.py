"""The typed, validated configuration of a run. conf/train.yaml and the files of its groups explain each key."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from slm.errors import UserError
from slm.model import GPT
from slm.optim.adamw import AdamW
from slm.optim.muon import Muon
from slm.own_model import AnyConfig, OwnConfig
from slm.run.instantiate import Node
from slm.run.sections import Budget, DataConfig, TrainerConfig
from slm.security import NAME, refuse_url

VALIDATED = "loss", "perplexity", "bits_per_byte", "text_bits_per_byte", "excess_bits_per_story"
METRICS = (*(f"val/{name}" for name in VALIDATED), "train/loss")
ORDER = (  # prefixes of the keys that decide which windows a run reads
    *("seed.", "tokenizer.", "model.context.", "data.corpus.", "data.sources.", "data.train_windows."),
    *("data.batch_windows.", "data.layout.", "data.order.", "data.stride.", "data.deduplicate.", "data.joined."),
)
EARLY_FACTS = ("folder", "config", "corpus", "layout")
LATE_FACTS = ("tokenizer", "data", "store", "model_config", "steps")  # unknown before the data is prepared


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """All choices of a run, checked. Facts that data or hardware decide are not in it."""

    name: str | None
    tags: list[str]
    variant: str | None
    seed: int
    log_every_n_steps: int
    val_every_n_steps: int
    optimized_metric: str
    run_dir: str | None
    runs_dir: str
    cache_dir: str
    fork: str | None
    init_from: str | None
    resume: str
    allow_changes: list[str]
    verify_resume: bool
    report: bool | Literal["sweep"]
    prepare: bool
    plan: bool | Literal["measure", "parameters"]
    lint: bool
    price_per_hour: float | None
    log_windows: bool
    on_nonfinite: Literal["stop", "skip"]
    on_spike: Literal["warn", "skip"]
    budget: Budget
    model: AnyConfig  # vocab_size is 1 until the tokenizer is known
    data: DataConfig
    tokenizer: Node  # builds from documents
    optimizer: Callable[[GPT], torch.optim.Optimizer]
    schedule: Callable[[int, int], float]  # steps done, steps in all -> multiplier of the learning rate
    trainer: TrainerConfig
    callbacks: dict[str, Node]
    logger: dict[str, Node]
    dial: dict[str, Any] | None = None  # of model=dial: how it was `set`, and the keys that were `chosen`
    plain: dict[str, Any]  # for config.yaml and checkpoints; values of the environment as interpolations

    def __post_init__(self):
        if fixed := [key for key in self.allow_changes if f"{key}.".startswith(ORDER) or key in ("data", "model")]:
            raise UserError(
                f"allow_changes={fixed[0]}: the order and content of windows depend on it; start another run"
            )
        if self.name is not None and not NAME.fullmatch(self.name):
            raise UserError(f"name={self.name} must consist of letters, digits, dots, hyphens and underscores")
        if (stride := self.data.stride) is not None and stride > self.model.context:
            raise UserError(
                f"data.stride={stride} must be at most model.context={self.model.context}: it would skip text"
            )
        for key in ("run_dir", "runs_dir", "cache_dir"):
            refuse_url(key, getattr(self, key))
        if not 0 <= self.seed < 2**32:
            raise UserError(f"seed={self.seed} must be at least 0 and below 2**32")
        sources = getattr(self.data.corpus, "sources", ())
        metrics = (*METRICS, *(f"val/{source}/{name}" for source in sources for name in VALIDATED[:4]))
        if self.optimized_metric not in metrics:
            known = ", ".join(metrics)
            raise UserError(f"optimized_metric={self.optimized_metric} is not one of {known}")
        for key in ("log_every_n_steps", "val_every_n_steps"):
            if getattr(self, key) < 1:
                raise UserError(f"{key}={getattr(self, key)} must be at least 1")
        if self.fork is not None:
            self._check_fork(self.fork)
        self._check_weights()
        kind = getattr(self.model, "parametrization", "standard")
        if kind != "standard" and not isinstance(self.optimizer, AdamW | Muon):
            target = self.plain["optimizer"]["_target_"]
            raise UserError(
                f"model.parametrization={kind} gives each kind of weight its own learning rate, which optimizer=adamw "
                f"and optimizer=muon do, and {target} does not; give one of them"
            )
        if self.verify_resume and self.trainer.fast_dev_run:
            raise UserError("verify_resume=true and trainer.fast_dev_run exclude one another: the latter keeps nothing")
        others = {f"plan={str(self.plan).lower()}": self.plan, "verify_resume=true": self.verify_resume}
        if self.prepare and (other := next((name for name, given in others.items() if given), None)):
            raise UserError(f"prepare=true and {other} exclude one another: prepare first, then give the other alone")
        if self.price_per_hour is not None and not 0 <= self.price_per_hour < math.inf:
            raise UserError(f"price_per_hour={self.price_per_hour} must be at least 0 and finite")
        self._check_callbacks()

    def _check_fork(self, fork: str):
        folder, _, step = fork.rpartition("@")
        if not (Path(folder).is_absolute() and step.isdecimal()):  # as slm.run.fork writes it
            raise UserError(f"fork={fork} must stand on the command line, not in a file")
        others = {
            f"resume={self.resume}": self.resume not in ("auto", "never"),
            "verify_resume=true": self.verify_resume,
            "trainer.fast_dev_run": bool(self.trainer.fast_dev_run),
        }
        for other in (name for name, given in others.items() if given):
            raise UserError(f"fork={fork} and {other} exclude one another: a fork starts from that checkpoint")

    def _check_weights(self):
        source, lora = self.init_from, getattr(self.model, "lora", None)
        if source is not None and not Path(source.removeprefix("hf:")).is_absolute():  # as slm.run.init_from writes it
            raise UserError(f"init_from={source} must stand on the command line, not in a file")
        if source is not None and self.resume not in ("auto", "never"):
            raise UserError(f"init_from={source} and resume={self.resume} exclude one another; give one of them")
        if lora and not (source or self.fork or self.plan or self.resume not in ("auto", "never")):
            raise UserError(f"model.lora.rank={lora.rank} adapts a trained model: give it with init_from=RUN")
        if self.trainer.strategy == "fsdp" and (lora or isinstance(self.model, OwnConfig)):
            what = f"model.lora.rank={lora.rank}" if lora else "a model of a class outside slm"
            raise UserError(f"trainer.strategy=fsdp divides the weights of slm's GPT, not {what}; give ddp")
        if lora and isinstance(self.optimizer, Muon):
            raise UserError(
                "optimizer=muon is for whole matrices, and model.lora trains thin ones; give optimizer=adamw"
            )

    def _check_callbacks(self):
        if "checkpoints" not in self.callbacks:
            raise UserError("callbacks.checkpoints cannot be left out: it also ends runs; raise its every_n_steps")
        if "guard" not in self.callbacks and (self.on_nonfinite, self.on_spike) != ("stop", "warn"):
            raise UserError("on_nonfinite and on_spike need callbacks.guard; give it, or leave them at stop and warn")
        if self.optimized_metric == "val/excess_bits_per_story" and "stories" not in self.callbacks:
            raise UserError("optimized_metric=val/excess_bits_per_story is only measured on data=storyworld")
