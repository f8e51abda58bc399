"""The models that a server offers, by short names, and the bounds on what may be asked of them."""

import contextlib
import time
from collections.abc import Generator, Iterator, Sequence

from slm.corpora import made_by
from slm.corpora.storyworld.corpus import Storyworld
from slm.corpora.storyworld.instructions import StoryworldInstructions
from slm.corpora.storyworld.world import StoryWorld
from slm.errors import UserError, one_line
from slm.files import run_folder
from slm.generation.language_model import LanguageModel
from slm.security import corpus_node

MAX_SECONDS = 300.0  # of one request
MAX_WAITING = 16  # requests, beside the one that is worked on
MAX_TOKENS = 4096  # new ones, of one text
MAX_PROMPT = 10**5  # characters


def named(models: Sequence[LanguageModel]) -> dict[str, LanguageModel]:
    """Models by the name of their run; where that is not enough, with their step, and then with a number."""
    runs = [one_line(run_name(model), 60) for model in models]
    names: dict[str, LanguageModel] = {}
    for run, model in zip(runs, models):
        name = run if runs.count(run) == 1 else f"{run}-step-{model.step}"
        names[name if name not in names else f"{name}-{len(names) + 1}"] = model
    return names


def run_name(model: LanguageModel) -> str:
    """The name of the run's folder, or of a checkpoint or a folder of transformers outside of one."""
    path = model.path.resolve()
    return (run_folder.run_of(path) or path).name.removesuffix(".ckpt")


def world_of(model: LanguageModel) -> StoryWorld | None:
    """The world that decides whether a story of the model is valid; None if it was trained on something else."""
    with contextlib.suppress(TypeError, UserError):
        if corpus := made_by(Storyworld, corpus_node(model.config)):
            return corpus.all
        if requests := made_by(StoryworldInstructions, corpus_node(model.config)):
            return requests.stories.all
    return None


def in_time(steps: Generator, seconds: float = MAX_SECONDS) -> Iterator:
    """The steps, until the time is over."""
    end = time.monotonic() + seconds
    with contextlib.closing(steps):
        for step in steps:
            yield step
            if time.monotonic() > end:
                return
