"""Stories told during training, at fixed prompts and seed, so that what changes is the model."""

import re
from collections.abc import Sequence
from pathlib import Path

from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import WandbLogger

from slm.errors import UserError
from slm.files import jsonl
from slm.generation.sampling import Sampler
from slm.generation.stream import check_count, complete
from slm.tokenizers import Tokenizer
from slm.training.callbacks.checkpoints import step_ends
from slm.training.loggers import for_each_logger


class Samples(Callback):
    """Before the first step, every `every_n_steps` and after the budget's last: console, samples.md, W&B table."""

    def __init__(
        self,
        *,
        every_n_steps: int,
        prompts: Sequence[str],
        max_new_tokens: int,
        sampler: Sampler,
        seed: int,
        folder: Path,
        tokenizer: Tokenizer,
    ):
        if every_n_steps < 1:
            raise UserError(f"callbacks.samples.every_n_steps={every_n_steps} must be at least 1")
        check_count("callbacks.samples.max_new_tokens", max_new_tokens)
        self.every_n_steps, self.prompts, self.max_new_tokens = every_n_steps, list(prompts), max_new_tokens
        self.sampler, self.seed, self.folder, self.tokenizer = sampler, seed, folder, tokenizer

    def on_train_start(self, trainer, module):
        if trainer.global_step == 0:
            self._tell(trainer, module)

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        last = trainer.global_step == trainer.max_steps
        if step_ends(trainer, batch_idx) and (trainer.global_step % self.every_n_steps == 0 or last):
            module.settle()
            self._tell(trainer, module)

    def _tell(self, trainer, module):
        if not trainer.is_global_zero or not self.prompts:
            return
        step = trainer.global_step
        told = complete(
            module.model,
            self.tokenizer,
            self.prompts,
            sampler=self.sampler,
            max_new_tokens=self.max_new_tokens,
            seed=self.seed,
        )
        stories = [{"step": step, "prompt": story.prompt, "text": story.text} for (story,) in told]
        for story in stories:
            jsonl.append(self.folder / "samples.jsonl", story)
        write_page(self.folder)
        print(f"step {step}: {stories[0]['prompt']}{stories[0]['text']}\n")
        rows = [list(story.values()) for story in stories]

        def log_table(logger):
            if isinstance(logger, WandbLogger):
                logger.log_table("samples", ["step", "prompt", "text"], rows, step=step)

        for_each_logger(trainer, log_table)


def write_page(folder: Path):
    """samples.md from samples.jsonl: the stories of each step under a heading, fenced, since they may hold anything."""
    step, page = None, ["# Samples\n"]
    for story in jsonl.lines(folder / "samples.jsonl"):
        if story["step"] != step:
            step = story["step"]
            page.append(f"## Step {step}\n")
        text = story["prompt"] + story["text"]
        fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
        page.append(f"{fence}text\n{text}\n{fence}\n")
    (folder / "samples.md").write_text("\n".join(page), encoding="utf-8")
