"""Stories told by a model from nothing, and judged by the world that it was to learn."""

from slm.corpora.storyworld.checker import Verdict, judge
from slm.corpora.storyworld.world import StoryWorld
from slm.generation.sampling import Sampler
from slm.generation.stream import complete
from slm.model import GPT
from slm.tokenizers import Tokenizer


def tell(
    model: GPT, tokenizer: Tokenizer, world: StoryWorld, *, count: int, sampler: Sampler, seed: int
) -> list[Verdict]:
    """`count` stories, judged. One that fills the context without an end is cut short."""
    context = model.config.context
    settings = {"sampler": sampler, "max_new_tokens": context, "seed": seed, "num_samples": count}
    (told,) = complete(model, tokenizer, [""], **settings)
    return [judge(world, story.text, story.finished) for story in told]
