"""Generates stories from an empty prompt and checks them against the storyworld."""

from slm.corpora.storyworld.checker import Verdict, judge
from slm.corpora.storyworld.world import StoryWorld
from slm.generation.completion import complete
from slm.generation.sampling import Sampler
from slm.model import GPT
from slm.tokenizers import Tokenizer


def generate_stories(
    model: GPT, tokenizer: Tokenizer, world: StoryWorld, *, count: int, sampler: Sampler, seed: int
) -> list[Verdict]:
    """`count` verdicts. A story that fills the context without an end is cut off there."""
    settings = {"sampler": sampler, "max_new_tokens": model.config.context, "seed": seed, "num_samples": count}
    (stories,) = complete(model, tokenizer, [""], **settings)
    return [judge(world, story.text, story.finished) for story in stories]
