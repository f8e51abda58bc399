"""From a sound configuration to what training starts from: corpus, tokenizer, token store, the model's size."""

import os
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from slm.corpora import Corpus
from slm.data.store import TokenStore, fingerprint, prepare, prepare_tokenizer
from slm.errors import UserError
from slm.model import GPTConfig
from slm.run.config import Plan
from slm.run.instantiate import build
from slm.tokenizers import Tokenizer


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What the data turned out to be."""

    corpus: Corpus
    tokenizer: Tokenizer
    tokenizer_folder: Path
    store: TokenStore
    model: GPTConfig
    targets_per_window: float  # on average
    steps: int

    def tokens(self, windows: int) -> int:
        """Targets in so many windows, on average."""
        return round(windows * self.targets_per_window)


def prepare_data(plan: Plan) -> Prepared:
    """Corpus, tokenizer and token store, from the cache where they are there."""
    config = plan.config
    corpus = build(config["data"]["corpus"], "data", trusted=config["trusted_targets"])
    kind = ", ".join(str(value) for key, value in config["tokenizer"].items() if key not in ("_target_", "seed"))
    name = config["tokenizer"]["_target_"].removesuffix(".build").split(".")[-2]

    def make(documents) -> Tokenizer:
        print(f"building the tokenizer: {name} ({kind})" if kind else f"building the tokenizer: {name}")
        begin = time.perf_counter()
        made = build(config["tokenizer"], "tokenizer", trusted=config["trusted_targets"], documents=documents)
        print(f"tokenizer: {made.vocab_size:,} ids after {time.perf_counter() - begin:.1f} s")
        return made

    tokenizer, folder = prepare_tokenizer(config["tokenizer"], make, corpus, plan.cache)
    store = prepare(corpus, tokenizer, fingerprint(folder), plan.cache)
    train = store.manifest["splits"]["train"]
    windows, targets_per_window = plan.windows(train["tokens"], train["documents"])
    steps = plan.budget.total_steps(plan.data.batch_windows, windows, targets_per_window)
    model = replace(plan.model, vocab_size=tokenizer.vocab_size)
    return Prepared(
        corpus=corpus,
        tokenizer=tokenizer,
        tokenizer_folder=folder,
        store=store,
        model=model,
        targets_per_window=targets_per_window,
        steps=steps,
    )


def settle_microbatch(plan: Plan, prepared: Prepared, card: dict[str, Any] | None) -> Plan:
    """With trainer.auto_microbatch the largest one that fits, or the one that the run has found before."""
    if not plan.trainer.auto_microbatch:
        return plan
    share = plan.data.batch_windows // plan.hardware.devices
    found = card and card["config"]["trainer"].get("auto_microbatch") and card["microbatch"]
    size = found if found and share % found == 0 else None
    if size is None:
        if int(os.environ.get("WORLD_SIZE", "1")) > 1 and "LOCAL_RANK" in os.environ:
            raise UserError(
                "trainer.auto_microbatch=true tries one device, not many processes; give trainer.microbatch"
            )
        from slm.hardware import largest_microbatch

        size = largest_microbatch(prepared.model, share, plan.hardware)
        print(f"trainer.microbatch={size} is the largest that fits")
    return replace(plan, microbatch=size)
