"""Texts generated during training, from fixed prompts and a fixed seed, so that only the model changes."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from torch.utils.data import Dataset

from slm.corpora.storyworld.checker import judge, marked
from slm.corpora.storyworld.corpus import Storyworld
from slm.data.instructions import Conversations
from slm.errors import UserError, printable
from slm.files import atomic, jsonl
from slm.generation.completion import Completion, complete
from slm.generation.prompt import opening
from slm.generation.sampling import Sampler
from slm.generation.stream import check_count
from slm.model import GPT
from slm.tokenizers import Tokenizer
from slm.training.averaging import evaluating
from slm.training.callbacks import step_ends
from slm.training.callbacks.guard import flush_checks
from slm.training.loggers import for_each_logger

PROMPTS = 2  # from the validation split
OPENING_TOKENS = 200  # of a document, from which a prompt is taken


class Samples(Callback):
    """Generates before the first step, every `every_n_steps` and after the last: console, samples.md, W&B, TensorBoard.

    Without `prompts` the first words of validation documents are the prompts. Stories of data=storyworld are checked.
    Raises UserError for settings out of range.
    """

    def __init__(
        self,
        *,
        every_n_steps: int,
        prompts: Sequence[str] | None,
        max_new_tokens: int,
        sampler: Sampler,
        seed: int,
        folder: Path,
    ):
        if every_n_steps < 1:
            raise UserError(f"callbacks.samples.every_n_steps={every_n_steps} must be at least 1")
        check_count("callbacks.samples.max_new_tokens", max_new_tokens)
        self.every_n_steps, self.prompts, self.max_new_tokens = every_n_steps, prompts, max_new_tokens
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
        data, step = trainer.datamodule, trainer.global_step
        with evaluating(trainer) as model:
            generated = self._completed(model, module, data) if model else []
        if not generated:
            return
        samples = []
        for (sample,) in generated:
            samples.append({"step": step, "prompt": sample.prompt, "text": sample.text, "finished": sample.finished})
            if isinstance(data.corpus, Storyworld):
                verdict = judge(data.corpus.all, sample.prompt + sample.text, sample.finished)
                samples[-1]["checked"] = marked(verdict)
            jsonl.append(self.folder / "samples.jsonl", samples[-1])
        write_page(self.folder)
        print(f"step {step}: {shown(samples[0])}\n")

        def log_texts(logger):  # of Lightning, which counts the steps before this one
            if isinstance(logger, WandbLogger):
                logger.log_table("samples", list(samples[0]), [list(s.values()) for s in samples], step=step - 1)
            elif isinstance(logger, TensorBoardLogger):
                logger.experiment.add_text("samples", "\n".join(map(fenced, samples)), step)

        for_each_logger(trainer, log_texts)

    def _completed(self, model: GPT, module, data) -> list[list[Completion]]:
        if self.prompts is None:
            parts = data.validations.values()  # of each source of a mixture
            self.prompts = [prompt for windows in parts for prompt in prompts_of(windows, data.tokenizer)]
        settings = {"sampler": self.sampler, "max_new_tokens": self.max_new_tokens, "seed": self.seed}
        settings["eos_first"] = (module.description or {}).get("eos_first", True)
        return complete(model, data.tokenizer, self.prompts, **settings) if self.prompts else []


def prompts_of(windows: Dataset, tokenizer: Tokenizer) -> list[str]:
    """The prompts of two conversations, or the beginnings of two documents."""
    if not isinstance(windows, Conversations):
        return validation_prompts(windows.shards[0], tokenizer)
    return [windows.prompt(len(windows) * place // PROMPTS, tokenizer) for place in range(PROMPTS)]


def validation_prompts(ids: np.ndarray, tokenizer: Tokenizer) -> list[str]:
    """The first words of the first document, and of the first one after the middle, of token ids (T,).

    Where no document begins nearby, the first words after a white space.
    """
    prompts = []
    for place in range(PROMPTS):
        start = len(ids) * place // PROMPTS
        ends = np.flatnonzero(ids[start : min(start + 2**16, len(ids) - 1)] == tokenizer.eos) if place else [-1]
        start += int(ends[0]) + 1 if len(ends) else 0
        document = ids[start : start + OPENING_TOKENS].tolist()
        document = document[: document.index(tokenizer.eos)] if tokenizer.eos in document else document
        text = tokenizer.decode(document)
        prompts.append(opening(text if len(ends) else re.sub(r"^\S*\s+", "", text)))
    return list(dict.fromkeys(filter(None, prompts)))


def shown(sample: dict) -> str:
    """The text of a record of samples.jsonl, with the verdict on a story, or with "..." if it was cut off."""
    cut = "" if sample.get("finished", True) else " ..."
    return printable(sample.get("checked") or sample["prompt"] + sample["text"] + cut)


def fenced(sample: dict) -> str:
    """The text in a Markdown fence longer than any fence in it."""
    text = shown(sample)
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}text\n{text}\n{fence}\n"


def write_page(folder: Path):
    """samples.md from samples.jsonl: a heading per step and its texts."""
    step, page = None, ["# Samples\n"]
    for sample in jsonl.lines(folder / "samples.jsonl"):
        if sample["step"] != step:
            step = sample["step"]
            page.append(f"## Step {step}\n")
        page.append(fenced(sample))
    atomic.write_text(folder / "samples.md", "\n".join(page))
