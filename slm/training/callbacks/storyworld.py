"""For data=storyworld: the excess of the validation loss over the exact entropy, and the share of valid samples."""

import math
import textwrap

import numpy as np
import torch
from lightning.pytorch.callbacks import Callback

from slm.corpora import Corpus
from slm.corpora.storyworld.checker import Verdict, estimate, marked
from slm.corpora.storyworld.corpus import Storyworld
from slm.corpora.storyworld.floor import PARTS, StoryFloor, story_floor, tally
from slm.errors import UserError, printable
from slm.generation.sampling import Sampler
from slm.generation.stories import generate_stories
from slm.training.averaging import evaluating
from slm.training.loggers import write_metrics
from slm.training.module import SAME_EVERYWHERE


class Stories(Callback):
    """Logs the entropy floor, the excess over it and its parts at every validation, and judges `count` samples.

    The floor holds for whole stories from their first word on, one per window. Raises UserError for another corpus
    or layout, or a context too short for a story.
    """

    def __init__(self, *, count: int, seed: int, layout: str, corpus: Corpus):
        if count < 0:
            raise UserError(f"callbacks.stories.count={count} must be at least 0")
        if seed < 0:
            raise UserError(f"callbacks.stories.seed={seed} must be at least 0")
        if layout != "documents" or not isinstance(corpus, Storyworld):
            raise UserError(
                "callbacks.stories needs data=storyworld with data.layout=documents and data.deduplicate=null; "
                "leave it out with null"
            )
        self.count, self.seed, self.corpus = count, seed, corpus
        self.floors: list[StoryFloor] = []  # of this process's validation stories, in their order
        self.sizes: list[int] = []  # their bytes
        self.tallies: list[np.ndarray] = []  # of the stories validated so far
        self.verdicts: list[Verdict] = []  # on the newest samples

    def setup(self, trainer, module, stage):
        data = trainer.datamodule
        if data.longest > data.context:
            raise UserError(
                f"stories have up to {data.longest} tokens, more than model.context={data.context}; give "
                f"model.context={-(-data.longest // 64) * 64}, a larger tokenizer.vocab_size, or callbacks.stories=null"
            )
        story_floor(self.corpus.seen, self.corpus.story("validation", 0).text, data.tokenizer)  # is it lossless?

    def on_validation_start(self, trainer, module):
        self.tallies = []
        if not self.floors:
            loaders = trainer.val_dataloaders  # the first one of several, if the train split is validated, too
            loader = loaders[0] if isinstance(loaders, list) else loaders
            stories = [self.corpus.story("validation", i).text for i in loader.dataset.indices]
            self.floors = [story_floor(self.corpus.seen, story, trainer.datamodule.tokenizer) for story in stories]
            self.sizes = list(map(len, stories))

    def on_validation_batch_end(self, trainer, module, outputs, batch, batch_idx, dataloader_idx=0):
        if dataloader_idx:
            return
        for nats in outputs.cpu().double().numpy():
            floor = self.floors[len(self.tallies)]
            self.tallies.append(tally(nats[: len(floor.bits)] / math.log(2), floor))

    def on_validation_epoch_end(self, trainer, module):
        """Logs through the module, like its own val/ values, so all are written and shown together."""
        text_bytes = sum(self.sizes[: len(self.tallies)])
        floor, paid, _ = np.stack(self.tallies).sum(0)
        sums = [floor.sum(), text_bytes, len(self.tallies), *(paid - floor)]
        sums = torch.tensor(sums, dtype=torch.float32, device=module.device)
        floor, text_bytes, stories, *parts = trainer.strategy.reduce(sums, reduce_op="sum").tolist()
        values = {
            "val/floor_bits_per_byte": floor / text_bytes,
            "val/excess_bits_per_story": sum(parts) / stories,
            **{f"val/excess/{part}": bits / stories for part, bits in zip(PARTS, parts)},
        }
        module.log_dict(values, **SAME_EVERYWHERE)

    def on_validation_end(self, trainer, module):
        if trainer.sanity_checking or not self.count:
            return
        settings = {"count": self.count, "sampler": Sampler(), "seed": self.seed}
        with evaluating(trainer) as model:
            if model is None:
                return
            verdicts = generate_stories(model, trainer.datamodule.tokenizer, self.corpus.all, **settings)
        valid = sum(verdict.valid for verdict in verdicts)
        write_metrics(trainer, {"sample/valid_share": valid / self.count})
        print(f"step {trainer.global_step}: valid samples {valid}/{self.count}")
        self.verdicts = verdicts

    def on_train_end(self, trainer, module):
        """Prints three samples and the meaning of the numbers."""
        if not self.verdicts:
            return
        value, verdicts = trainer.callback_metrics, self.verdicts
        valid = estimate([verdict.valid for verdict in verdicts], self.seed)
        print(
            "",
            *(textwrap.fill(printable(marked(verdict)), 100, subsequent_indent="  ") for verdict in verdicts[:3]),
            "",
            f"loss    {value['val/bits_per_byte']:.4f} bits per byte ({value['val/loss']:.4f} nats per token)",
            f"floor   {value['val/floor_bits_per_byte']:.4f} bits per byte, which no model can beat",
            f"excess  {value['val/excess_bits_per_story']:.2f} bits per story",
            f"valid   {valid['mean']:.0%} of {self.count} samples, {valid['low']:.0%} to {valid['high']:.0%} at 95 %",
            sep="\n",
        )
