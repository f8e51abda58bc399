"""Trainings for the other benchmarks: as train.py runs them, on random ids."""

import contextlib
import hashlib
import json
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from measure import synchronize

from slm.data.store import TokenStore
from slm.planning.random_text import RandomText, RandomTokenizer
from slm.run import cli
from slm.run.prepare import Job, choose_hardware, compiles, windows_of
from slm.run.record import describe_run, open_run


def make_job(folder: Path, overrides: list[str], *, vocab_size: int, steps: int, device: str) -> Job:
    """A training on random ids, enough for every step to read its own, which are written into the folder."""
    accelerator = {"cpu": "cpu", "cuda": "gpu"}[device]
    fixed = f"trainer.accelerator={accelerator}", f"budget.steps={steps}", "data.validation_windows=1", "name=benchmark"
    config = cli.compose([*overrides, *fixed, "callbacks.samples=null", f"cache_dir={folder}"])
    model = replace(config.model, vocab_size=vocab_size)
    tokens = max(2**20, (steps * config.data.batch_windows + 1) * model.context + 1)
    splits = {}
    for split in ("train", "validation"):
        ids = np.random.default_rng(0).integers(vocab_size, size=tokens).astype(np.uint16)
        (folder / f"{split}.bin").write_bytes(ids.tobytes())
        shard = {"file": f"{split}.bin", "tokens": tokens, "sha256": hashlib.sha256(ids.tobytes()).hexdigest()}
        splits[split] = {"documents": 1, "bytes": 4 * tokens, "tokens": tokens, "shards": [shard]}
    manifest = {"corpus": "random ids", "tokenizer": "", "vocab_size": vocab_size, "dtype": "uint16", "splits": splits}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    tokenizer = RandomTokenizer(vocab_size)
    corpus = RandomText(vocab_size=vocab_size, length=tokens, longest=tokens, train=1, validation=1)
    hardware, microbatch = choose_hardware(config)
    return Job(
        config=replace(config, data=replace(config.data, corpus=corpus)),
        run_dir=folder / "run",
        hardware=hardware,
        microbatch=microbatch,
        tokenizer=tokenizer,
        splits=windows_of(config, {"": TokenStore(folder, manifest)}, tokenizer),
        model=model,
        steps=steps,
        compiles=compiles(config, hardware, model, steps, model.context),
    )


def train_seconds(job: Job, change: Callable = lambda trainer, data: None, *, first: int = 1) -> float:
    """Trains in a new folder, which is deleted. Returns the seconds of all steps but the `first`, without validation.

    `change` may modify trainer and data before the first step. Its lines go to stderr.
    """
    from slm.run.trainer import assemble  # imports Lightning

    job.run_dir.mkdir()
    run_info = describe_run(job, None, step=-1)
    run = assemble(job, run_info, {})
    open_run(job, run_info, [], step=-1, trunk=None)
    change(run.trainer, run.data)
    marks = add_marks(run.trainer, first)
    with contextlib.redirect_stdout(sys.stderr):
        run.trainer.fit(run.module, run.data)
    run.data.close()
    shutil.rmtree(job.run_dir)
    return marks.end - marks.start


def add_marks(trainer, first: int):
    from lightning.pytorch.callbacks import Callback

    class Marks(Callback):
        """Times of the start of the step after the `first` ones, and of the end of the last, with its callbacks."""

        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            if batch_idx == first * trainer.accumulate_grad_batches:
                synchronize(module.device)
                self.start = time.perf_counter()

        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            if trainer.global_step == trainer.max_steps:
                synchronize(module.device)
                self.end = time.perf_counter()

    marks = Marks()
    trainer.callbacks = [*trainer.callbacks, marks]
    return marks
