"""Texts generated during training, from fixed prompts and a fixed seed, so that only the model changes."""

import re
from collections.abc import Sequence
from pathlib import Path

from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import WandbLogger

from slm.errors import UserError
from slm.files import jsonl
from slm.generation.sampling import Sampler
from slm.generation.stream import check_count, complete
from slm.training.averaging import evaluating
from slm.training.callbacks import step_ends
from slm.training.callbacks.guard import flush_checks
from slm.training.loggers import for_each_logger


class Samples(Callback):
    """Generates before the first step, every `every_n_steps` and after the last: console, samples.md, W&B table.

    Raises UserError for settings out of range.
    """

    def __init__(
        self,
        *,
        every_n_steps: int,
        prompts: Sequence[str],
        max_new_tokens: int,
        sampler: Sampler,
        seed: int,
        folder: Path,
    ):
        if every_n_steps < 1:
            raise UserError(f"callbacks.samples.every_n_steps={every_n_steps} must be at least 1")
        check_count("callbacks.samples.max_new_tokens", max_new_tokens)
        self.every_n_steps, self.prompts, self.max_new_tokens = every_n_steps, list(prompts), max_new_tokens
        self.sampler, self.seed, self.folder = sampler, seed, folder

    def on_train_start(self, trainer, module):
        if trainer.global_step == 0:
            self._generate(trainer, module)

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        last = trainer.global_step == trainer.max_steps
        if step_ends(trainer, batch_idx) and (trainer.global_step % self.every_n_steps == 0 or last):
            flush_checks(trainer)
            self._generate(trainer, module)

    def _generate(self, trainer, module):
        if not trainer.is_global_zero or not self.prompts:
            return
        step = trainer.global_step
        with evaluating(trainer):
            generated = complete(
                module.model,
                trainer.datamodule.tokenizer,
                self.prompts,
                sampler=self.sampler,
                max_new_tokens=self.max_new_tokens,
                seed=self.seed,
            )
        samples = [{"step": step, "prompt": sample.prompt, "text": sample.text} for (sample,) in generated]
        for sample in samples:
            jsonl.append(self.folder / "samples.jsonl", sample)
        write_page(self.folder)
        print(f"step {step}: {samples[0]['prompt']}{samples[0]['text']}\n")
        rows = [list(sample.values()) for sample in samples]

        def log_table(logger):
            if isinstance(logger, WandbLogger):
                logger.log_table("samples", ["step", "prompt", "text"], rows, step=step)

        for_each_logger(trainer, log_table)


def write_page(folder: Path):
    """samples.md from samples.jsonl: a heading per step, each text in a fence longer than any fence in it."""
    step, page = None, ["# Samples\n"]
    for sample in jsonl.lines(folder / "samples.jsonl"):
        if sample["step"] != step:
            step = sample["step"]
            page.append(f"## Step {step}\n")
        text = sample["prompt"] + sample["text"]
        fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
        page.append(f"{fence}text\n{text}\n{fence}\n")
    (folder / "samples.md").write_text("\n".join(page), encoding="utf-8")
