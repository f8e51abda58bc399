"""From a configuration to the data of a run: tokenizer, token store, and the model's vocabulary that follows."""

import time
from dataclasses import dataclass, replace
from pathlib import Path

from slm import tokenizers
from slm.corpora import Corpus
from slm.data.store import TokenStore, fingerprint, prepare, prepare_tokenizer
from slm.model import GPTConfig
from slm.run.config import RunConfig
from slm.tokenizers import Tokenizer


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """Facts that depend on the data."""

    corpus: Corpus
    tokenizer: Tokenizer
    tokenizer_folder: Path
    store: TokenStore
    model: GPTConfig
    targets_per_window: float  # mean
    steps: int

    def tokens(self, windows: int) -> int:
        """Targets in so many windows, rounded."""
        return round(windows * self.targets_per_window)


def prepare_data(config: RunConfig) -> Prepared:
    """Tokenizer and token store, from the cache or built now. Raises UserError for data that cannot be used."""
    corpus, cache = config.data.corpus, Path(config.cache_dir)
    node = config.plain["tokenizer"]

    def build(documents) -> Tokenizer:
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
    return Prepared(
        corpus=corpus,
        tokenizer=tokenizer,
        tokenizer_folder=folder,
        store=store,
        model=replace(config.model, vocab_size=tokenizer.vocab_size),
        targets_per_window=targets_per_window,
        steps=config.budget.total_steps(config.data.batch_windows, windows, targets_per_window),
    )
