"""Interactive generation: each line is a prompt or a command that changes a setting. Uses input() and print()."""

import contextlib
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, Self

from slm.chat_template import ChatTemplate
from slm.errors import UserError, printable
from slm.generation.completion import stream_text
from slm.generation.conversation import Conversation
from slm.generation.prompt import typed_text
from slm.generation.sampling import Sampler
from slm.generation.stream import check_count
from slm.model import GPT
from slm.tokenizers import Tokenizer


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The arguments of `generate` that a command changes."""

    sampler: Sampler
    max_new_tokens: int
    seed: int  # of the next text; incremented after each text

    def __post_init__(self):
        check_count("max_new_tokens", self.max_new_tokens)

    def change(self, name: str, value: Any) -> Self:
        """A copy with another value of one setting. Raises: UserError: if the value is out of range."""
        if hasattr(self.sampler, name):
            return replace(self, sampler=replace(self.sampler, **{name: value}))
        return replace(self, **{name: value})

    def __str__(self) -> str:
        values = {**vars(self.sampler), "max_new_tokens": self.max_new_tokens, "seed": self.seed}
        words = {None: "off", True: "on", False: "off"}
        shown = {name: value if type(value) in (int, float) else words[value] for name, value in values.items()}
        return " ".join(f"{name}={value}" for name, value in shown.items())


def optional(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    return lambda word: None if word == "off" else parse(word)


COMMANDS = {  # name -> parser of the value, an example
    "temperature": (float, "0.8"),
    "top_k": (optional(int), "50, or off"),
    "top_p": (optional(float), "0.9, or off"),
    "min_p": (optional(float), "0.05, or off"),
    "repetition_penalty": (float, "1.1; 1 is off"),
    "greedy": ({"on": True, "off": False}.__getitem__, "on, or off"),
    "max_new_tokens": (int, "300"),
    "seed": (int, "7"),
}
HELP = "\n".join(
    [
        "A line of text is the beginning of a text that the model continues; it may be empty.",
        "Ctrl-C stops the text; at the prompt Ctrl-C, Ctrl-D or /quit leaves.",
        *(f"  /{name} {example}" for name, (_, example) in COMMANDS.items()),
        "  /new (another conversation, with a model of data.layout=instructions), /reset (the initial settings), /help",
        "The seed increases by 1 after every text; /seed repeats one.",
    ]
)


def chat(
    model: GPT,
    tokenizer: Tokenizer,
    sampler: Sampler,
    *,
    max_new_tokens: int,
    seed: int,
    stop_at_eos: bool = True,
    eos_first: bool = True,
    loaded: str | None = None,
    template: ChatTemplate | None = None,
):
    """Reads lines until the user leaves. `loaded` describes the model, for example its run and step. With a `template`,
    that of the conversations on which the model was trained, the lines are turns of one conversation.

    Raises: UserError: if a setting is out of range at the start; later mistakes are printed.
    """
    with contextlib.suppress(ImportError):  # not on Windows
        import readline  # noqa: F401  (line editing and history in input())
    settings = start = Settings(sampler=sampler, max_new_tokens=max_new_tokens, seed=seed)
    head = [loaded and printable(loaded), str(settings), "/help lists the commands, /quit leaves"]
    print(dim("\n".join(filter(None, head))))
    talk = template and Conversation(template, tokenizer, model.config.context)
    with contextlib.suppress(EOFError, KeyboardInterrupt):
        while True:
            try:
                line = typed_text("the line", input("> "))
                if line.strip() == "/quit":
                    return
                if line.strip() == "/new":
                    talk = template and Conversation(template, tokenizer, model.config.context)
                elif line.startswith("/"):
                    settings = command(line, settings, start)
                else:
                    print_text(model, tokenizer, line, settings, talk, stop_at_eos=stop_at_eos, eos_first=eos_first)
                    settings = replace(settings, seed=settings.seed + 1)
            except UserError as error:
                print(f"error: {printable(str(error), 1000)}")
    print()


def command(line: str, settings: Settings, start: Settings) -> Settings:
    """The settings after a command; prints them, or the help. Raises: UserError: for a mistake in the command."""
    name, _, word = line.strip().removeprefix("/").partition(" ")
    if name == "help":
        print(HELP)
        return settings
    if name == "reset":
        settings = start
    elif name in COMMANDS:
        parse, example = COMMANDS[name]
        try:
            value = parse(word.strip())
        except (ValueError, KeyError):
            raise UserError(f"/{name} {word}: expected a value like {example}") from None
        settings = settings.change(name, value)
    else:
        raise UserError(f"/{name} is not a command; /help lists them")
    print(dim(str(settings)))
    return settings


def print_text(
    model: GPT, tokenizer: Tokenizer, prompt: str, settings: Settings, talk: Conversation | None, **choices: bool
):
    """Prints a text, or an answer, while it is generated, until its end or Ctrl-C. Raises: UserError: as `generate`."""
    start, shown = time.perf_counter(), [] if talk else [prompt]
    prompt = talk.prompt(prompt) if talk else prompt
    with interruptible() as interrupted:
        pieces = stream_text(model, tokenizer, prompt, interrupted=interrupted, **choices, **vars(settings))
        pieces = talk.answer(pieces) if talk else pieces
        tokens = write(chain(shown, pieces)) - len(shown) - 1  # without the last piece, which has no token
        print(" [stopped]" if interrupted() else "")
    seconds = time.perf_counter() - start
    print(dim(f"{tokens} tokens, {tokens / seconds:,.0f} tokens/s, seed {settings.seed}"))


def write(pieces: Iterable[str]) -> int:
    """Prints the pieces of a text as they come, with control characters escaped, and returns their number."""
    count, held = 0, ""
    for piece in pieces:
        count, text = count + 1, held + piece
        held = "\r" if text.endswith("\r") else ""  # \n may follow: together a line end
        print(printable(text.removesuffix(held)), end="", flush=True)
    print(printable(held), end="")
    return count


@contextlib.contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Yields a function that returns whether Ctrl-C was pressed.

    (Python loses a KeyboardInterrupt that it raises within a destructor.)
    """
    pressed = []
    before = signal.signal(signal.SIGINT, lambda *_: pressed.append(True))
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, before)


def dim(text: str) -> str:
    return f"\x1b[2m{text}\x1b[0m" if sys.stdout.isatty() else text
