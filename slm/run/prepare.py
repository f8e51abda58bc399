"""From a configuration to a job: the tokenizer and token store of its data, and the facts that follow from them."""

import os
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from slm import tokenizers
from slm.corpora import Split
from slm.data.store import TokenStore, prepare, prepare_tokenizer
from slm.data.windows import Documents, Windows, evenly_spaced, split_windows
from slm.errors import UserError
from slm.hardware import Hardware
from slm.model import GPTConfig
from slm.run.config import RunConfig
from slm.run.instantiate import Node
from slm.tokenizers import Tokenizer

BYTE_METRICS = ("val/bits_per_byte", "val/text_bits_per_byte")  # without a meaning where text is lost
TRIFLE = 0.05  # share of a split's tokens that may stay unread without a warning


@dataclass(frozen=True, kw_only=True)
class Job:
    """One attempt of a run: its configuration, and the facts of machine and data."""

    config: RunConfig
    run_dir: Path
    hardware: Hardware
    microbatch: int  # windows per forward pass and device
    tokenizer: Tokenizer
    store: TokenStore
    model: GPTConfig
    targets_per_window: float  # mean
    steps: int

    @property
    def accumulation(self) -> int:
        """Microbatches per optimizer step and device."""
        return self.config.data.batch_windows // (self.microbatch * self.hardware.devices)


def prepare_job(config: RunConfig, run_dir: Path, hardware: Hardware, microbatch: int) -> Job:
    """Takes tokenizer and token store from the cache, or builds them, and warns of text that is lost or never read.

    Raises: UserError: for data that cannot be used; for a metric that this tokenizer does not allow.
    """
    corpus, cache, written = config.data.corpus, Path(config.cache_dir), config.plain["tokenizer"]
    values = {key: value for key, value in config.tokenizer.settings.items() if not isinstance(value, Node)}
    node = {**written, **values}  # not the interpolations that are written
    name = node["_target_"].removesuffix(".build").split(".")[-2]

    def build(documents: Iterable[str]) -> Tokenizer:
        settings = ", ".join(str(value) for key, value in node.items() if key not in ("_target_", "seed"))
        print(f"building the tokenizer: {name} ({settings})" if settings else f"building the tokenizer: {name}")
        begin = time.perf_counter()
        built = config.tokenizer.build(documents=documents)
        print(f"tokenizer: {built.vocab_size:,} ids after {time.perf_counter() - begin:.1f} s")
        return built

    owner = getattr(config.tokenizer.target, "__self__", config.tokenizer.target)  # the class of `build`
    own = f"{owner.__module__}:{owner.__qualname__}" not in tokenizers.KINDS.values()
    load = getattr(owner, "load", tokenizers.load) if own else tokenizers.load
    tokenizer = prepare_tokenizer(node, build, corpus, cache, load)
    store = prepare(corpus, tokenizer, cache)
    where = {"layout": config.data.layout, "context": config.model.context, "eos": tokenizer.eos}
    train, validation = (split_windows(store, split, **where) for split in ("train", "validation"))
    targets = train.targets[evenly_spaced(len(train), config.data.train_windows)]
    targets_per_window = float(targets.mean())
    steps = config.budget.total_steps(config.data.batch_windows, len(targets), targets_per_window)
    warnings = [
        lost_text(config, store, name),
        unread(store, "train", train, targets),
        unread(store, "validation", validation, validation.targets),
        first_weights(config, steps),
    ]
    for warning in filter(None, warnings if is_first_process(config) else ()):
        print(f"warning: {warning}", file=sys.stderr)
    return Job(
        config=config,
        run_dir=run_dir,
        hardware=hardware,
        microbatch=microbatch,
        tokenizer=tokenizer,
        store=store,
        model=replace(config.model, vocab_size=tokenizer.vocab_size),
        targets_per_window=targets_per_window,
        steps=steps,
    )


def lost_text(config: RunConfig, store: TokenStore, name: str) -> str | None:
    """What the tokenizer of this name loses of the text. Raises UserError if a metric per byte is asked for."""
    splits = {split: store.manifest["splits"][split] for split in ("train", "validation")}
    splits = {split: counts for split, counts in splits.items() if counts["lost_bytes"]}
    if not splits:
        return None
    shares = (
        f"{percent(its['lost_bytes'] / max(its['bytes'], 1))} of the {split} text" for split, its in splits.items()
    )
    ascii_only = config.plain["tokenizer"].get("alphabet") == "ascii"
    remedy = f"give {'tokenizer.alphabet=corpus or ' if ascii_only else ''}tokenizer=bytes"
    problem = f"tokenizer={name} loses {' and '.join(shares)} (bytes of characters that its ids do not restore)"
    if "validation" not in splits:
        return f"{problem}; {remedy}"
    asked = {"optimized_metric": config.optimized_metric}
    asked |= {node.where + ".monitor": node.settings.get("monitor") for node in config.callbacks.values()}
    for key, metric in asked.items():
        if metric in BYTE_METRICS:
            raise UserError(f"{key}={metric} has no meaning: {problem}; {remedy}")
    return f"{problem}, so there are no bits per byte; {remedy}"


def unread(store: TokenStore, split: Split, windows: Windows | Documents, targets: np.ndarray) -> str | None:
    """The share of a split's tokens outside the chosen windows, of which `targets` has the lengths, and the reasons."""
    share, reasons = 1 - int(targets.sum()) / store.tokens(split), []
    if windows.longest > windows.context:
        cut = int((windows.lengths > windows.context).sum())
        reasons.append(
            f"{cut:,} of {len(windows):,} documents are longer than model.context={windows.context} and are cut "
            f"(model.context={-(-windows.longest // 64) * 64} would cut none)"
        )
    if len(targets) < len(windows) and share > TRIFLE:
        reasons.append(
            f"data.train_windows={len(targets)} leaves out {len(windows) - len(targets):,} of {len(windows):,} windows"
        )
    elif isinstance(windows, Windows) and share > TRIFLE:
        reasons.append(f"the last ones do not fill a window of model.context={windows.context}")
    return f"{percent(share)} of the {split} tokens are never read: {', and '.join(reasons)}" if reasons else None


def first_weights(config: RunConfig, steps: int) -> str | None:
    """The share of the first step's weights in those that an exponential moving average has after the last step."""
    for node in config.callbacks.values():
        if getattr(node.target, "__name__", None) == "EMAWeightAveraging":
            settings = {name: value for name, value in node.settings.items() if value is not None}
            decay, every = settings.get("decay", 0.999), max(settings.get("update_every_n_steps", 1), 1)
            updates = max((steps - settings.get("update_starting_at_step", 0)) // every, 1)
            if (share := decay ** (updates - 1)) > TRIFLE and updates > 1:
                return (
                    f"{percent(share)} of the averaged weights are those of the first update, also after the last of "
                    f"{steps:,} steps, and val/loss is theirs; give {node.where}.decay={max(0.5, 1 - 5 / updates):.4g}"
                )
    return None


def percent(share: float) -> str:
    """Three digits, also of a share that would round to zero."""
    return f"{100 * share:.3g} %"


def is_first_process(config: RunConfig) -> bool:
    """True in the one process of a distributed run that prints and writes for all."""
    if config.trainer.devices == config.trainer.num_nodes == 1:
        return True  # whatever the environment contains
    return all(os.environ.get(name, "0") == "0" for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"))
