"""From a configuration to a job: the tokenizer and token store of its data, and the facts that follow from them."""

import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from slm import tokenizers
from slm.data.store import TokenStore, fingerprint, prepare, prepare_tokenizer
from slm.hardware import Hardware
from slm.model import GPTConfig
from slm.run.config import RunConfig
from slm.tokenizers import Tokenizer


@dataclass(frozen=True, kw_only=True)
class Job:
    """One attempt of a run: its configuration, and the facts of machine and data."""

    config: RunConfig
    run_dir: Path
    hardware: Hardware
    microbatch: int  # windows per forward pass and device
    tokenizer: Tokenizer
    tokenizer_folder: Path
    store: TokenStore
    model: GPTConfig
    targets_per_window: float  # mean
    steps: int

    @property
    def accumulation(self) -> int:
        """Microbatches per optimizer step and device."""
        return self.config.data.batch_windows // (self.microbatch * self.hardware.devices)


def prepare_job(config: RunConfig, run_dir: Path, hardware: Hardware, microbatch: int) -> Job:
    """Takes tokenizer and token store from the cache, or builds them. Raises UserError for data that cannot be used."""
    corpus, cache, node = config.data.corpus, Path(config.cache_dir), config.plain["tokenizer"]

    def build(documents: Iterable[str]) -> Tokenizer:
        settings = ", ".join(str(value) for key, value in node.items() if key not in ("_target_", "seed"))
        name = node["_target_"].removesuffix(".build").split(".")[-2]
        print(f"building the tokenizer: {name} ({settings})" if settings else f"building the tokenizer: {name}")
        begin = time.perf_counter()
        built = config.tokenizer.build(documents=documents)
        print(f"tokenizer: {built.vocab_size:,} ids after {time.perf_counter() - begin:.1f} s")
        return built

    owner = getattr(config.tokenizer.target, "__self__", config.tokenizer.target)  # the class of `build`
    tokenizer, folder = prepare_tokenizer(node, build, corpus, cache, getattr(owner, "load", tokenizers.load))
    store = prepare(corpus, tokenizer, fingerprint(folder), cache)
    train = store.manifest["splits"]["train"]
    windows, targets_per_window = config.windows(train["tokens"], train["documents"])
    return Job(
        config=config,
        run_dir=run_dir,
        hardware=hardware,
        microbatch=microbatch,
        tokenizer=tokenizer,
        tokenizer_folder=folder,
        store=store,
        model=replace(config.model, vocab_size=tokenizer.vocab_size),
        targets_per_window=targets_per_window,
        steps=config.budget.total_steps(config.data.batch_windows, windows, targets_per_window),
    )
