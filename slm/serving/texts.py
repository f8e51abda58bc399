"""The texts that a request asks for, token by token, all at once."""

import contextlib
from collections.abc import Generator, Iterator, Sequence

from slm.errors import UserError
from slm.generation.language_model import LanguageModel
from slm.generation.prompt import Prompt, encode_prompt
from slm.generation.scores import Scored, generate_scored, text_scores
from slm.serving.choice import Choice, Piece
from slm.serving.models import in_time
from slm.serving.request import TextRequest


class Texts:
    """`choices` texts of each prompt in turn, and the pieces in which they come. Raises: UserError: as `generate`."""

    def __init__(self, loaded: LanguageModel, asked: TextRequest):
        self.loaded, self.asked = loaded, asked
        self.prompts = [prompt_of(loaded, prompt) for prompt in asked.prompts]
        starts = [prompt for prompt in self.prompts for _ in range(asked.choices)]
        self.choices = [Choice(loaded.tokenizer, asked.stop, len(start.rest)) for start in starts]
        self.steps: Generator[list[Scored]] = (step for step in ())
        if asked.max_new_tokens:
            self.steps = generate_scored(
                loaded.model,
                starts,
                top=asked.top or 0,
                sampler=asked.sampler,
                max_new_tokens=asked.max_new_tokens,
                eos=loaded.tokenizer.eos if asked.stop_at_eos else None,
                seed=asked.seed,
            )

    def pieces(self) -> Iterator[tuple[int, Piece]]:
        """(number of the text, piece) as they come; the last piece of each has its finish_reason."""
        with contextlib.closing(in_time(self.steps)) as steps:
            for step in steps:
                for scored in step:
                    choice = self.choices[scored.row]
                    if not choice.finish_reason:
                        yield scored.row, choice.add(scored, self.asked.stop_at_eos)
                if all(choice.finish_reason for choice in self.choices):
                    return
        for number, choice in enumerate(self.choices):
            if not choice.finish_reason:
                yield number, choice.end("length")

    def close(self):
        """Ends the generation."""
        self.steps.close()

    def prompt_scores(self, number: int) -> list[Scored]:
        """The tokens of the prompt of a text but its first. Raises: UserError: if it is longer than the context."""
        return text_scores(self.loaded.model, self.prompts[number // self.asked.choices].ids, self.asked.top or 0)

    def usage(self) -> dict[str, int]:
        read, new = sum(len(prompt.ids) for prompt in self.prompts), sum(choice.count for choice in self.choices)
        return {"prompt_tokens": read, "completion_tokens": new, "total_tokens": read + new}


def prompt_of(loaded: LanguageModel, prompt: str | Sequence[int]) -> Prompt:
    """Ids as they are given. Raises: UserError: for one outside the vocabulary."""
    if isinstance(prompt, str):
        return encode_prompt(loaded.tokenizer, prompt, loaded.eos_first)
    if not all(0 <= token < loaded.model.config.vocab_size for token in prompt):
        raise UserError(f"prompt must have ids from 0 to {loaded.model.config.vocab_size - 1}")
    return Prompt(ids=prompt)
