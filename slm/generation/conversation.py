"""A conversation with a model that was trained on conversations: what was said so far is part of each prompt."""

from collections.abc import Iterator

from slm.chat_template import ChatTemplate
from slm.generation.completion import held_back
from slm.tokenizers import Tokenizer


class Conversation:
    """The turns so far. The oldest ones are left out where a prompt would fill more than half of the context."""

    def __init__(self, template: ChatTemplate, tokenizer: Tokenizer, context: int):
        self.template, self.tokenizer, self.context = template, tokenizer, context
        self.messages: list[dict[str, str]] = []

    def prompt(self, turn: str) -> str:
        """The text before the answer to the user's next turn. Raises: UserError: for a marker within the turn."""
        asked = {"role": "user", "content": turn}
        if self.messages and self.messages[-1]["role"] == "user":  # without an answer, after an error
            self.messages.pop()
        while True:
            text = self.template.text([*self.messages, asked], answers=False)
            if not self.messages or 2 * len(self.tokenizer.encode(text)) <= self.context:
                self.messages.append(asked)
                return text
            self.messages = self.messages[2:]

    def answer(self, pieces: Iterator[str]) -> Iterator[str]:
        """The pieces of the answer, up to where the model would begin the user's next turn; and remembers it."""
        said = ""
        for piece in before(pieces, self.template.stop):
            piece = piece if said else piece.lstrip()
            said += piece
            yield piece
        self.messages.append({"role": "assistant", "content": said})


def before(pieces: Iterator[str], stop: str) -> Iterator[str]:
    """The pieces of a text before `stop`; what may be its beginning is held back until that is decided."""
    held = ""
    for piece in pieces:
        held += piece
        if (end := held.find(stop)) >= 0:
            yield held[:end]
            return
        kept = held_back(held, [stop])
        yield held[: len(held) - kept]
        held = held[len(held) - kept :]
    yield held
