"""Trainings for the other benchmarks to time: as train.py runs them, but of random ids. Not to be run itself."""

import dataclasses
import hashlib
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import hydra
import numpy as np
from measure import ROOT, synchronize
from omegaconf import OmegaConf

from slm.data.store import TokenStore
from slm.run import cli
from slm.run.config import Plan, make_plan
from slm.run.prepare import Prepared
from slm.run.resume import make_card, open_run
from slm.run.trainer import assemble


class Ids:
    """A tokenizer of which only the size counts."""

    eos = 0

    def __init__(self, vocab_size: int):
        self.vocab_size = vocab_size

    def token_bytes(self, token: int) -> bytes:
        return b"    "

    def decode(self, ids) -> str:
        return ""

    def save(self, folder: Path):
        folder.mkdir(exist_ok=True)

    def fingerprint(self) -> str:
        return "random ids"


def make_run(folder: Path, overrides: list[str], *, vocab_size: int, steps: int, device: str) -> tuple[Plan, Prepared]:
    """A plan, and random ids enough for every step to read its own."""
    accelerator = {"cpu": "cpu", "cuda": "gpu"}[device]
    fixed = [
        f"trainer.accelerator={accelerator}",
        f"budget={{steps: {steps}, tokens: null, epochs: null}}",
        "data.validation_windows=1",
        "callbacks.samples=null",
        f"cache_dir='{folder}'",
    ]
    cli.check_overrides(overrides, sweep=False)
    with hydra.initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = OmegaConf.to_container(hydra.compose("train", overrides=[*overrides, *fixed]), resolve=True)
    plan = make_plan(config | {"name": "benchmark"})
    model = dataclasses.replace(plan.model, vocab_size=vocab_size)
    tokens = max(2**20, (steps * plan.data.batch_windows + 1) * model.context + 1)
    splits = {}
    for split in ("train", "validation"):
        ids = np.random.default_rng(0).integers(vocab_size, size=tokens).astype(np.uint16)
        (folder / f"{split}.bin").write_bytes(ids.tobytes())
        shard = {"file": f"{split}.bin", "tokens": tokens, "sha256": hashlib.sha256(ids.tobytes()).hexdigest()}
        splits[split] = {"documents": 1, "bytes": 4 * tokens, "tokens": tokens, "shards": [shard]}
    manifest = {"corpus": "random ids", "tokenizer": "", "vocab_size": vocab_size, "dtype": "uint16", "splits": splits}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    ids = Ids(vocab_size)
    ids.save(folder / "tokenizer")
    prepared = Prepared(
        corpus=ids,
        tokenizer=ids,
        tokenizer_folder=folder / "tokenizer",
        store=TokenStore(folder, manifest),
        model=model,
        targets_per_window=model.context,
        steps=steps,
    )
    return plan, prepared


def train_seconds(
    plan: Plan, prepared: Prepared, run_dir: Path, change: Callable = lambda trainer, data: None
) -> float:
    """Of all steps but the first, validations left out, as train.py runs them.

    `change` may do to trainer and data what it likes before the first step.
    """
    run_dir.mkdir()
    card = make_card(plan, prepared, run_dir, None, step=-1)
    trainer, module, data = assemble(plan, prepared, run_dir, card)
    open_run(card, prepared, run_dir, [], step=-1)
    change(trainer, data)
    marks = marks_of(trainer, plan.accumulation)
    trainer.fit(module, data)
    data.close()
    shutil.rmtree(run_dir)
    return marks.end - marks.start


def marks_of(trainer, accumulation: int):
    from lightning.pytorch.callbacks import Callback

    class Marks(Callback):
        """The first of the callbacks: the end of the first step comes after every other callback's."""

        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            if batch_idx == accumulation:
                synchronize(module.device)
                self.start = time.perf_counter()

        def on_validation_start(self, trainer, module):
            if trainer.global_step == trainer.max_steps:
                synchronize(module.device)
                self.end = time.perf_counter()

    marks = Marks()
    trainer.callbacks = [marks, *trainer.callbacks]
    return marks
