"""For data=storyworld: how far the validation loss is from the best possible one, and how many told stories hold."""

import math
import textwrap

import numpy as np
import torch
from lightning.pytorch.callbacks import Callback

from slm.corpora import Corpus
from slm.corpora.storyworld.checker import Verdict, estimate, marked
from slm.corpora.storyworld.corpus import Storyworld
from slm.corpora.storyworld.floor import PARTS, StoryFloor, story_floor, tally
from slm.errors import UserError
from slm.generation.sampling import Sampler
from slm.generation.stories import tell
from slm.generation.stream import MAX_COUNT
from slm.tokenizers import Tokenizer
from slm.training.callbacks.metrics import write_metrics
from slm.training.datamodule import WindowsData


class Stories(Callback):
    """At every validation the floor, the excess over it and its parts; and the valid share of `count` told stories.

    The floor is stated for whole stories from their first word on, a story per window.
    """

    def __init__(
        self,
        *,
        count: int,
        seed: int,
        layout: str,
        corpus: Corpus | None = None,
        tokenizer: Tokenizer | None = None,
        data: WindowsData | None = None,
    ):
        if not 0 <= count <= MAX_COUNT:
            raise UserError(f"callbacks.stories.count={count} must be at least 0, at most {MAX_COUNT:,}")
        if seed < 0:
            raise UserError(f"callbacks.stories.seed={seed} must be at least 0")
        if layout != "documents" or not (corpus is None or isinstance(corpus, Storyworld)):
            raise UserError(
                "callbacks.stories needs data=storyworld with data.layout=documents; leave it out with null"
            )
        if data:
            check_context(data)
            story_floor(corpus.seen, corpus.story("validation", 0).text, tokenizer)  # which may change texts
        self.count, self.seed, self.corpus, self.tokenizer = count, seed, corpus, tokenizer
        self.floors: list[StoryFloor] = []  # of this process's validation stories, in their order
        self.tallies: list[np.ndarray] = []  # of those validated so far
        self.bytes = 0  # of their text
        self.verdicts: list[Verdict] = []  # on the stories told last

    def on_validation_start(self, trainer, module):
        self.tallies = []
        if not self.floors:
            stories = [self.corpus.story("validation", i).text for i in trainer.val_dataloaders.dataset.indices]
            self.floors = [story_floor(self.corpus.seen, story, self.tokenizer) for story in stories]
            self.bytes = sum(map(len, stories))

    def on_validation_batch_end(self, trainer, module, outputs, batch, batch_idx, dataloader_idx=0):
        for nats in outputs.cpu().double().numpy():
            floor = self.floors[len(self.tallies)]
            self.tallies.append(tally(nats[: len(floor.bits)] / math.log(2), floor))

    def on_validation_epoch_end(self, trainer, module):
        """Logged as the module's own val/ values are, and so written and shown with them."""
        floor, paid, _ = np.stack(self.tallies).sum(0)
        sums = [floor.sum(), self.bytes, len(self.tallies), *(paid - floor)]
        sums = torch.tensor(sums, dtype=torch.float32, device=module.device)
        floor, text_bytes, stories, *parts = trainer.strategy.reduce(sums, reduce_op="sum").tolist()
        values = {
            "val/floor_bits_per_byte": floor / text_bytes,
            "val/excess_bits_per_story": sum(parts) / stories,
            **{f"val/excess/{part}": bits / stories for part, bits in zip(PARTS, parts)},
        }
        module.log_dict(values, logger=False)

    def on_validation_end(self, trainer, module):
        if not (trainer.is_global_zero and self.count):
            return
        settings = {"count": self.count, "sampler": Sampler(), "seed": self.seed}
        verdicts = tell(module.model, self.tokenizer, self.corpus.all, **settings)
        valid = sum(verdict.valid for verdict in verdicts) / self.count
        write_metrics(trainer, {"sample/valid_share": valid})
        print(f"step {trainer.global_step}: {valid:.0%} of {self.count} told stories hold")
        self.verdicts = verdicts

    def on_train_end(self, trainer, module):
        """Three stories, and what the numbers mean, for somebody who sees them for the first time."""
        if not self.verdicts:
            return
        value, verdicts = trainer.callback_metrics, self.verdicts
        valid = estimate([verdict.valid for verdict in verdicts], self.seed)
        print(
            "",
            *(textwrap.fill(marked(verdict), 100, subsequent_indent="  ") for verdict in verdicts[:3]),
            "",
            f"loss    {value['val/bits_per_byte']:.4f} bits per byte ({value['val/loss']:.4f} nats per token)",
            f"floor   {value['val/floor_bits_per_byte']:.4f} bits per byte, which no model can beat",
            f"excess  {value['val/excess_bits_per_story']:.2f} bits per story",
            f"valid   {valid.mean:.0%} of {self.count} told stories, {valid.low:.0%} to {valid.high:.0%} at 95 %",
            sep="\n",
        )


def check_context(data: WindowsData):
    """Every story must fit: a cut one has no end, and another floor."""
    longest = max(data.train.longest, data.validation.longest)
    if longest > data.validation.context:
        raise UserError(
            f"stories have up to {longest} tokens, more than model.context={data.validation.context}; give "
            f"model.context={-(-longest // 64) * 64}, a larger tokenizer.vocab_size, or callbacks.stories=null"
        )
