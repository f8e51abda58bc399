"""From a configuration to a job: the tokenizer and token store of its data, and the facts that follow from them."""

import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from slm import tokenizers
from slm.cache import place
from slm.classes import file_hash
from slm.corpora import Corpus
from slm.corpora.mixture import Mixture, by_source, named
from slm.data.instructions import Answers, Conversations
from slm.data.mixture import MixedSplits, mixed, passes
from slm.data.store import TokenStore, prepare, prepare_tokenizer, tokenizer_identity
from slm.data.windows import Splits, split_windows
from slm.errors import UserError
from slm.estimate import training_flops_per_token
from slm.hardware import Hardware, is_first_process, keep_freed_memory, resolve_hardware
from slm.model import GPT, GPTConfig
from slm.optim.muon import Muon
from slm.planning import lint
from slm.planning.microbatch import choose_microbatch
from slm.run.config import RunConfig
from slm.run.instantiate import Node
from slm.run.process import is_new
from slm.tokenizers import Tokenizer
from slm.tokenizers.saved import SavedTokenizer
from slm.transfer import Source

CPU_FLOPS = 55e9  # of a training per second and thread, roughly, which decide whether it is compiled
WORTH_COMPILING = 15 * 60  # seconds on a CPU; compiling takes most of a minute
BYTE_METRICS = ("val/bits_per_byte", "val/text_bits_per_byte")  # without a meaning where text is lost


@dataclass(frozen=True, kw_only=True)
class Job:
    """One attempt of a run: its configuration, and the facts of machine and data."""

    config: RunConfig
    run_dir: Path
    hardware: Hardware
    microbatch: int  # windows per forward pass and device
    tokenizer: Tokenizer
    splits: Splits
    model: GPTConfig
    steps: int
    compiles: bool
    source: Source | None = None  # of the weights with which the attempt starts; None: random, or a checkpoint

    @property
    def store(self) -> TokenStore:
        return self.splits.store

    @property
    def tokens(self) -> int:
        """Targets of the whole run."""
        return round(self.steps * self.config.data.batch_windows * self.splits.targets_per_window)

    @property
    def passes(self) -> dict[str, float]:
        """How often the run reads each source of a mixture. Raises: UserError: if their epochs do not suffice."""
        if not isinstance(self.splits, MixedSplits):
            return {}
        batch = self.config.data.batch_windows
        return passes(self.splits.mixture, self.splits.sizes, self.steps * batch, batch)

    @property
    def accumulation(self) -> int:
        """Microbatches per optimizer step and device."""
        return self.config.data.batch_windows // (self.microbatch * self.hardware.devices)


@dataclass(frozen=True)
class TokenizerPlan:
    """What decides a run's tokenizer: the settings that name it in the cache, and the inverse of its `save`."""

    name: str  # for people
    settings: dict[str, Any]
    load: Callable[[Path], Tokenizer]

    @classmethod
    def of(cls, config: RunConfig) -> "TokenizerPlan":
        values = {key: value for key, value in config.tokenizer.settings.items() if not isinstance(value, Node)}
        node = {**config.plain["tokenizer"], **values}  # not the interpolations that are written
        owner = getattr(config.tokenizer.target, "__self__", config.tokenizer.target)  # the class of `build`
        own = tokenizers.is_own(owner)
        load = getattr(owner, "load", tokenizers.load) if own else tokenizers.load
        name = node["_target_"].removesuffix(".build").removesuffix(".train").split(".")[-2]
        code = {"code": file_hash(owner)} if own else {}
        return cls(name, tokenizers.identity(node) | code, load)


def choose_hardware(config: RunConfig) -> tuple[Hardware, int]:
    """The device and the microbatch. Raises UserError for what this machine cannot do, unless it is only planned."""
    keep_freed_memory()
    asked = config.trainer
    planned = config.plan is True
    hardware = resolve_hardware(asked.accelerator, asked.devices, asked.num_nodes, asked.precision, planned=planned)
    batch = config.data.batch_windows
    return hardware, choose_microbatch(asked.microbatch, asked.accumulate_grad_batches, batch, hardware)


def compiles(
    config: RunConfig, hardware: Hardware, model: GPTConfig, steps: int | None, targets_per_window: float
) -> bool:
    """True if a training of so many steps (None: not known) is compiled: as trainer.compile says, by default on CUDA,
    and on a CPU if it is long. That is decided by its FLOPs and threads, not by a measured speed, so that a resumed run
    decides the same."""
    if config.trainer.compile is not None:
        return config.trainer.compile
    if hardware.accelerator != "cpu":
        return hardware.accelerator == "gpu"
    if config.budget.minutes:
        return 60 * config.budget.minutes >= WORTH_COMPILING
    flops = training_flops_per_token(model) * (steps or 0) * config.data.batch_windows * targets_per_window
    return flops >= WORTH_COMPILING * CPU_FLOPS * torch.get_num_threads() * hardware.devices


def optimizer_of(config: RunConfig, hardware: Hardware) -> Callable[[GPT], torch.optim.Optimizer]:
    """The function from a model to its optimizer; float32 means float32, also within Muon."""
    if isinstance(config.optimizer, Muon):
        return partial(config.optimizer, bfloat16=hardware.sixteen_bit)
    return config.optimizer


def is_saved(config: RunConfig) -> bool:
    """True for tokenizer=saved, which needs no building."""
    return getattr(config.tokenizer.target, "__self__", None) is SavedTokenizer


def tokenizer_of(config: RunConfig) -> Tokenizer:
    """The tokenizer, from the cache or built now. Raises UserError."""
    if is_saved(config):
        return config.tokenizer.build(documents=())
    corpus, cache, chosen = config.data.corpus, Path(config.cache_dir), TokenizerPlan.of(config)

    def build(documents: Iterable[str]) -> Tokenizer:
        hidden = ("_target_", "seed", "sha256", "code")
        given = [str(v) for key, v in chosen.settings.items() if key not in hidden and v is not None]
        settings = chosen.settings.get("path") or ", ".join(given)
        print(f"building the tokenizer: {chosen.name}" + (f" ({settings})" if settings else ""))
        begin = time.perf_counter()
        built = config.tokenizer.build(documents=documents)
        print(f"tokenizer: {built.vocab_size:,} ids after {time.perf_counter() - begin:.1f} s")
        return built

    return prepare_tokenizer(chosen.settings, build, corpus, cache, chosen.load)


def cached_tokenizer(config: RunConfig) -> Tokenizer | None:
    """The tokenizer, if the cache has it. Raises UserError."""
    if is_saved(config):
        return config.tokenizer.build(documents=())
    chosen = TokenizerPlan.of(config)
    folder = place(Path(config.cache_dir), "tokenizers", tokenizer_identity(chosen.settings, config.data.corpus))
    return chosen.load(folder) if folder.is_dir() else None


def prepare_job(config: RunConfig, run_dir: Path, hardware: Hardware, microbatch: int) -> Job:
    """Takes tokenizer and token store from the cache, or builds them, and warns of text that is lost or never read.

    Raises: UserError: for data that cannot be used; for a metric that this tokenizer does not allow.
    """
    tokenizer = tokenizer_of(config)
    splits = windows_of(config, prepare_stores(config, tokenizer), tokenizer)
    windows, model = len(splits.chosen), model_of(config, tokenizer.vocab_size, tokenizer.eos)
    cost, targets = training_flops_per_token(model), splits.targets_per_window
    steps = config.budget.total_steps(config.data.batch_windows, windows, targets, cost)
    job = Job(
        config=config,
        run_dir=run_dir,
        hardware=hardware,
        microbatch=microbatch,
        tokenizer=tokenizer,
        splits=splits,
        model=model,
        steps=steps,
        compiles=compiles(config, hardware, model, steps, targets),
    )
    found = [lost_text(config, splits.store)]
    for source, part in splits.by_source().items():
        if isinstance(part.train, Conversations):
            found.append(part.train.report and f"{source}: {part.train.report}".removeprefix(": "))
            continue
        unread = [
            lint.unread(part.store, "train", part.train, part.targets, part.order_name),
            lint.unread(part.store, "validation", part.validation, part.validation.targets),
        ]
        found += [f"{source}: {line}" if source and line else line for line in unread]
    warn(config, found)
    return job


def prepare_stores(config: RunConfig, tokenizer: Tokenizer) -> dict[str, TokenStore]:
    """The tokens of each source of a mixture, by "" of any other corpus, from the cache or tokenized now."""
    stores = {}
    for name, corpus in by_source(config.data.corpus).items():
        with named(name):
            stores[name] = prepare(corpus, tokenizer, Path(config.cache_dir))
        if (line := stores[name].dropped()) and is_first_process(config.trainer):
            print(f"{name}: {line}" if name else line, file=sys.stderr)
    return stores


def model_of(config: RunConfig, vocab_size: int, eos: int = 0) -> GPTConfig:
    """The model, with what the tokenizer decides."""
    alone = config.data.attention_across_documents or config.data.layouts <= {"documents", "instructions"}
    return replace(config.model, vocab_size=vocab_size, document_start=None if alone else eos)


def windows_of(config: RunConfig, stores: Mapping[str, TokenStore], tokenizer: Tokenizer) -> Splits:
    """The windows that a run reads. Raises: UserError: if a source has none."""
    data, parts, corpora = config.data, {}, by_source(config.data.corpus)
    settings = {key: getattr(data, key) for key in ("train_windows", "order", "stride", "batch_windows")}
    for name, store in stores.items():
        layout = (data.corpus.sources[name].layout if name else None) or data.layout
        with named(name):
            answers = answers_of(corpora[name], tokenizer) if layout == "instructions" else None
            own = {"context": config.model.context, "layout": layout, "answers": answers}
            parts[name] = split_windows(store, tokenizer.eos, **own, **settings)
    return mixed(data.corpus, parts) if isinstance(data.corpus, Mixture) else parts[""]


def answers_of(corpus: Corpus, tokenizer: Tokenizer) -> Answers:
    """Where the answers are in the documents of a corpus. Raises: UserError: if they are no conversations."""
    if (chat := getattr(corpus, "chat", None)) is None:
        raise UserError("data.layout=instructions needs conversations; give data=instructions, or another layout")
    return Answers(tokenizers.pieces(tokenizer), chat)


def shown_passes(found: Mapping[str, float]) -> str:
    """How often a run reads each source, for people."""
    return ", ".join(f"{source} {count:.3g} times" for source, count in found.items())


def warn(config: RunConfig, found: Iterable[str | None]):
    """Prints each warning on a line of its own, in one process of a distributed run."""
    for warning in filter(None, found if is_first_process(config.trainer) else ()):
        if is_new(warning):
            print(f"warning: {warning}", file=sys.stderr)


def lost_text(config: RunConfig, store: TokenStore) -> str | None:
    """What the tokenizer loses of the text. Raises UserError if a metric per byte is asked for."""
    splits = {split: store.manifest["splits"][split] for split in ("train", "validation")}
    splits = {split: counts for split, counts in splits.items() if counts["lost_bytes"]}
    if not splits:
        return None
    shares = (
        f"{lint.percent(its['lost_bytes'] / max(its['bytes'], 1))} of the {split} text" for split, its in splits.items()
    )
    ascii_only = config.plain["tokenizer"].get("alphabet") == "ascii"
    remedy = f"give {'tokenizer.alphabet=corpus or ' if ascii_only else ''}tokenizer=bytes"
    name = TokenizerPlan.of(config).name
    problem = f"tokenizer={name} loses {' and '.join(shares)} (bytes of characters that its ids do not restore)"
    if "validation" not in splits:
        return f"{problem}; {remedy}"
    asked = {"optimized_metric": config.optimized_metric}
    asked |= {node.where + ".monitor": node.settings.get("monitor") for node in config.callbacks.values()}
    for key, metric in asked.items():
        if metric in BYTE_METRICS:
            raise UserError(f"{key}={metric} has no meaning: {problem}; {remedy}")
    return f"{problem}, so there are no bits per byte; {remedy}"
