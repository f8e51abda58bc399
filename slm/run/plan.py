"""plan=true: what a run will take, without training, without a run folder and without a download."""

import contextlib
import io
import math
import tempfile
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from hydra.core.utils import env_override

from slm import system
from slm.corpora.mixture import by_source
from slm.data.mixture import passes
from slm.data.store import TokenStore, prepare
from slm.data.windows import Splits
from slm.estimate import device_table, parameters, training_flops_per_token
from slm.hardware import Hardware
from slm.model import GPTConfig
from slm.planning import lint
from slm.planning.data import Text, estimated_text
from slm.planning.devices import Device, Work, this_device, utilisation
from slm.planning.distributed import Traffic
from slm.planning.memory import Memory, training_memory
from slm.planning.random_text import RandomText, RandomTokenizer
from slm.run.changes import differences
from slm.run.config import RunConfig
from slm.run.dial import value_of
from slm.run.plan_traffic import traffic_of
from slm.run.prepare import (
    Job,
    TokenizerPlan,
    cached_tokenizer,
    choose_hardware,
    compiles,
    model_of,
    optimizer_of,
    prepare_job,
    warn,
    windows_of,
)
from slm.run.rate import MEASURED_STEPS, Intervals, Rate, measured, steps_for_minutes, steps_in
from slm.run.sections import UNKNOWN
from slm.tokenizers import Tokenizer

RANDOM_WINDOWS = 512  # documents for a measurement without the data
COUNTED: dict[str, Memory] = {}  # by what determines them: equal for many jobs of a sweep


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run will take. None: not known before the data is there."""

    config: RunConfig
    hardware: Hardware
    microbatch: int
    model: GPTConfig
    text: Text
    steps: int | None
    rate: Rate | None = None  # if it was measured

    @property
    def windows(self) -> int | None:
        """Windows of the whole run, repeated ones included."""
        return self.steps and self.steps * self.config.data.batch_windows

    @property
    def tokens(self) -> int | None:
        """Targets of the whole run."""
        return self.windows and round(self.windows * self.text.targets_per_window)

    @property
    def epochs(self) -> float | None:
        return None if None in (self.windows, self.text.windows) else self.windows / self.text.windows

    @property
    def passes(self) -> dict[str, float]:
        """How often the run reads each source of a mixture; empty if that is not known."""
        if not (self.windows and self.text.sources):
            return {}
        return passes(self.config.data.corpus, self.text.sources, self.windows, self.config.data.batch_windows)

    @cached_property
    def device(self) -> Device:
        return this_device(self.hardware, self.config.price_per_hour)

    @property
    def work(self) -> Work | None:
        """Training, and the validations: a third of a training's work for each window."""
        if self.steps is None:
            return None
        windows = self.text.validation_windows or self.config.data.validation_windows or 0
        windows += self.config.data.validated_train_windows or 0
        validated = -(-self.steps // self.config.val_every_n_steps) * windows
        windows = self.windows * (4 / 3 if self.model.gradient_checkpointing else 1) + validated / 3
        flops = training_flops_per_token(self.model) * self.text.targets_per_window * windows
        return Work(
            flops=flops,
            passes=getattr(self.model, "depth", 1) * windows / self.microbatch,
            width=self.model.width or device_table()["full_width"],
            steps=self.steps,
        )

    @cached_property
    def seconds(self) -> float | None:
        """On this device: by the measured rate, or by the assumed utilisation; as asked for, if that is minutes."""
        config = self.config
        if self.steps is None:
            return config.budget.minutes and 60 * config.budget.minutes
        if not self.rate:
            return self.device.seconds(self.work)
        return self.rate.total(self.steps, Intervals.of(config))

    @property
    def strategy(self) -> str | None:
        """ddp or fsdp; None for one device."""
        return None if self.hardware.devices == 1 else "fsdp" if self.config.trainer.strategy == "fsdp" else "ddp"

    @cached_property
    def traffic(self) -> Traffic | None:
        """What each of several devices sends in a step."""
        return traffic_of(self.config, self.hardware, self.microbatch, self.model) if self.strategy else None

    @property
    def compiled(self) -> bool:
        return compiles(self.config, self.hardware, self.model, self.steps, self.text.targets_per_window)

    @property
    def memory(self) -> Memory:
        """At the peak; counted once for runs that differ in nothing that matters."""
        config, hardware = self.config, self.hardware
        averaged = any(node.averages for node in config.callbacks.values())
        facts = self.model, config.plain["optimizer"]["_target_"], hardware, self.microbatch, averaged, self.compiled
        key = repr((facts, self.strategy))
        if key not in COUNTED:
            COUNTED[key] = training_memory(
                self.model,
                optimizer_of(config, hardware),
                microbatch=self.microbatch,
                device=hardware.device,
                precision=hardware.precision,
                averaged=averaged,
                distributed=self.strategy == "ddp",
                shards=hardware.devices if self.strategy == "fsdp" else 1,
                compiles=self.compiled,
            )
        return COUNTED[key]

    @property
    def warnings(self) -> list[str | None]:
        """What looks wrong in the settings, as far as steps and text are known."""
        config, steps, text = self.config, self.steps, self.text
        averages = [node for node in config.callbacks.values() if "EMAWeightAveraging" in str(node.target)]
        found = [lint.first_weights(node.where, node.settings, steps) for node in averages if steps]
        if config.lint and not config.trainer.fast_dev_run and None not in (steps, text.windows, text.tokens):
            found += lint.recipe(
                steps=steps,
                windows_per_step=config.data.batch_windows,
                targets_per_window=text.targets_per_window,
                windows=text.windows,
                train_tokens=text.tokens,
                model=self.model,
                schedule=config.schedule,
                optimizer=config.plain["optimizer"],
            )
            repeated = ((source, lint.many_epochs(epochs)) for source, epochs in self.passes.items())
            found += [f"{source}: {line}" for source, line in repeated if line]
        return found

    def facts(self) -> dict[str, Any]:
        """The plan in numbers, for print=json: `cost` in dollars, on this device. None for what is not known."""
        sizes = {"parameters": parameters(self.model).total, "steps": self.steps, "tokens": self.tokens}
        found = {**sizes, "device": self.device.name, **self.record(), "cost": self.device.cost(self.seconds)}
        if dial := self.config.dial:
            found["dial"] = {key: value_of(self.config.plain, key) for key in dial["chosen"]}
        if self.traffic:
            found |= {"strategy": self.strategy, "sent_bytes_per_step": dict(self.traffic.sent)}
        return found

    def record(self) -> dict[str, Any]:
        """For run.json. On a CPU the peak is that of the process, with what it holds before the model is built."""
        try:
            peak = round(self.memory.peak + (system.resident_memory() if self.hardware.accelerator == "cpu" else 0))
        except (RuntimeError, NotImplementedError):  # of an operator that needs content
            peak = None
        return {
            "seconds": self.seconds,
            "measured": self.rate is not None,
            "utilisation": None if self.rate else utilisation(),
            "tokens_per_second": self.tokens / self.seconds if self.tokens and self.seconds else None,
            "peak_memory_bytes": peak,
        }


def with_plan(job: Job, before: dict[str, Any] | None, step: int, deadline: float) -> tuple[Job, dict[str, Any] | None]:
    """The job with the steps that its minutes allow until the deadline, from `step` on, and its plan for run.json.

    Both are those of the attempt before if that had the same budget.
    """
    config, rate = job.config, None
    same = before and not differences(before["budget"], config.plain["budget"], ())
    if config.budget.minutes:
        plan_of(job).record()  # counts the memory before the time that is left is known
        steps, rate = (before["steps"], None) if same else steps_for_minutes(job, deadline)
        job = replace(job, steps=steps if same else max(step, 0) + steps)
    plan = plan_of(job, rate)
    warn(config, plan.warnings)
    return job, before.get("plan") if same else plan.record()


def plan_of(job: Job, rate: Rate | None = None) -> Plan:
    """The plan of a job whose data is prepared."""
    facts = {"config": job.config, "hardware": job.hardware, "microbatch": job.microbatch, "model": job.model}
    return Plan(**facts, text=text_of(job.splits, job.tokenizer, job.config), steps=job.steps, rate=rate)


def make_plan(config: RunConfig) -> Plan:
    """The plan of a run, from its configuration, the cache and this machine. Raises UserError."""
    hardware, microbatch = choose_hardware(config)
    with env_override({"HF_HUB_OFFLINE": "1"}):  # no request to the Hugging Face Hub
        text = find_text(config)
    rate = None
    if config.plan == "measure":  # ten steps here, with a validation, samples and a checkpoint
        with tempfile.TemporaryDirectory() as folder:
            facts = config, Path(folder), hardware, microbatch
            rate = measured(prepare_job(*facts) if text.cached else random_job(*facts, text), 0, MEASURED_STEPS)
    facts = {"config": config, "hardware": hardware, "microbatch": microbatch, "text": text, "rate": rate}
    steps = steps_of(config, text)
    if rate and config.budget.minutes:
        steps = steps_in(rate, 60 * config.budget.minutes, Intervals.of(config))
    return Plan(**facts, model=model_of(config, text.vocab_size), steps=steps)


def random_job(config: RunConfig, folder: Path, hardware: Hardware, microbatch: int, text: Text) -> Job:
    """A job on random windows of the planned sizes, which lie in the folder. Without callbacks that need the corpus."""
    corpus = RandomText(
        vocab_size=text.vocab_size,
        length=text.targets_per_window,
        longest=config.model.context,
        train=RANDOM_WINDOWS,
        validation=2 * (config.data.validation_windows or RANDOM_WINDOWS),  # enough windows also if they are packed
    )
    layout = "documents" if config.data.layout in ("documents", "instructions") else "packed"
    data = replace(config.data, corpus=corpus, layout=layout, train_windows=None)
    callbacks = {name: node for name, node in config.callbacks.items() if not node.names("corpus")}
    config = replace(config, data=data, callbacks=callbacks, optimized_metric="val/loss")
    tokenizer = RandomTokenizer(text.vocab_size)
    model = model_of(config, tokenizer.vocab_size, tokenizer.eos)
    with contextlib.redirect_stderr(io.StringIO()):
        store = prepare(corpus, tokenizer, folder / "cache")
    facts = {"config": config, "run_dir": folder, "hardware": hardware, "microbatch": microbatch}
    return Job(
        **facts,
        tokenizer=tokenizer,
        splits=windows_of(config, {"": store}, tokenizer),
        model=model,
        steps=UNKNOWN,
        compiles=compiles(config, hardware, model, steps_of(config, text), text.targets_per_window),
    )


def find_text(config: RunConfig) -> Text:
    """Tokenizer and tokens from the cache; else an estimate."""
    corpus, chosen = config.data.corpus, TokenizerPlan.of(config)
    estimate = estimated_text(corpus, chosen.name, chosen.settings, config.data.layout, config.model.context)
    if not getattr(corpus, "is_local", lambda: True)():
        return estimate
    if (tokenizer := cached_tokenizer(config)) is None:
        return estimate
    stores = {name: TokenStore.cached(part, tokenizer, config.cache_dir) for name, part in by_source(corpus).items()}
    if None in stores.values():
        return replace(estimate, vocab_size=tokenizer.vocab_size)
    return text_of(windows_of(config, stores, tokenizer), tokenizer, config)


def text_of(splits: Splits, tokenizer: Tokenizer, config: RunConfig) -> Text:
    """What a run reads of prepared tokens."""
    parts, limit = splits.by_source(), config.data.validation_windows
    return Text(
        vocab_size=tokenizer.vocab_size,
        tokens=splits.store.tokens("train"),
        windows=len(splits.chosen),
        targets_per_window=splits.targets_per_window,
        validation_windows=sum(min(limit or math.inf, len(part.validation)) for part in parts.values()),
        sources={name: (len(part.chosen), part.targets_per_window) for name, part in parts.items() if name},
        cached=True,
    )


def steps_of(config: RunConfig, text: Text) -> int | None:
    if text.windows is None and config.budget.steps is None:
        return None
    cost = training_flops_per_token(model_of(config, text.vocab_size))
    steps = config.budget.total_steps(config.data.batch_windows, text.windows or 1, text.targets_per_window, cost)
    return None if steps == UNKNOWN else steps
