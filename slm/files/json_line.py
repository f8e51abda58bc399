"""print=json: one line of JSON on stdout at the end of any command, and all else that it prints on stderr."""

import argparse
import contextlib
import functools
import json
import math
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from slm import ranks
from slm.errors import CONTROL, UserError, explain, one_line, one_line_errors

Facts = dict[str, Any]

_asked = False
_facts: Facts = {}  # of the command so far
_at_end: list[Callable[[], Facts]] = []


def note(**facts: Any):
    """Adds facts to the line."""
    _facts.update(facts)


def note_at_end(facts: Callable[[], Facts]):
    """Adds what the function returns when the command ends. Only the first function of a command is called: a sweep's,
    not those of its jobs."""
    _at_end[1:] = []
    _at_end.append(facts)


def asked() -> bool:
    """True in a command with print=json."""
    return _asked


def command(main: Callable[[], int | None]) -> Callable[[], int | None]:
    """Decorates the main function of a command, which reads sys.argv: print=json, and errors of one line."""

    @functools.wraps(main)
    def decorated() -> int | None:
        with one_line_errors(), printed(sys.argv), one_line_errors():
            if code := main():
                note(exit_code=code)
            return code

    return decorated


def shows_help(words: Sequence[str], text: str | None) -> bool:
    """Prints the help of a command that has no Parser, if its words ask for it."""
    wanted = any(word in ("-h", "--help") for word in words)
    if wanted:
        print(text)
    return wanted


class Parser(argparse.ArgumentParser):
    """The arguments of a command: a mistake in them is a UserError."""

    def error(self, message: str):
        raise UserError(f"{message}; {self.prog} --help lists what it takes")


@contextlib.contextmanager
def printed(arguments: list[str]) -> Iterator[None]:
    """Removes print=json from the arguments, and prints the line when the block ends, however it ends.

    The block's standard output, also that of the processes that it starts, goes to stderr. Of the processes of torchrun
    or SLURM only the first one prints. Raises UserError for a value other than json and text.
    """
    global _asked
    _facts.clear()
    _at_end.clear()
    given = [word for word in arguments if word.startswith("print=") and word != "print=parameters"]  # of train.py
    arguments[:] = [word for word in arguments if word not in given]
    if wrong := [word for word in given if word not in ("print=json", "print=text")]:
        raise UserError(f"{wrong[0]} must be print=text or print=json")
    if given[-1:] != ["print=json"]:
        yield
        return
    first = ranks.is_first()  # read now: the end of a run clears some
    _asked, end = True, None
    try:
        with _stdout_to_stderr(first):
            yield
    except BaseException as error:
        end = error
        raise
    finally:
        _asked = False
        if first:
            print(_line(_content(end)), end="", flush=True)


@contextlib.contextmanager
def _stdout_to_stderr(first: bool) -> Iterator[None]:
    """A signal that would end the program at once prints the line before, in the first process."""
    sys.stdout.flush()
    saved, before = os.dup(1), {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def stopped(number: int, frame):
        if first:
            os.write(saved, _line({"exit_code": 128 + number, "error": signal.Signals(number).name} | _facts).encode())
        os._exit(128 + number)

    for number in (number for number, handler in before.items() if handler is not signal.default_int_handler):
        signal.signal(number, stopped)
    os.dup2(2, 1)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        os.dup2(saved, 1)
        os.close(saved)


def _content(end: BaseException | None) -> Facts:
    """Exit code and error of the command, and its facts."""
    code = end.code if isinstance(end, SystemExit) else 0 if end is None else 1
    content: Facts = {"exit_code": code if isinstance(code, int) else int(code is not None)}
    problem = end.__context__ if isinstance(end, SystemExit) else end
    if content["exit_code"] and problem is not None and not isinstance(problem, SystemExit):
        content["error"] = one_line(explain(problem) or f"{type(problem).__name__}: {problem}")
    for facts in (lambda: _facts, *_at_end[:1]):
        content |= facts()
    return content


def _line(content: Facts) -> str:
    """Control characters, also those that JSON allows, are escaped: a line may contain generated text."""
    line = json.dumps(_finite(content), ensure_ascii=False, allow_nan=False)
    return CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", line) + "\n"


def _finite(value: Any) -> Any:
    """The values with None for each number that JSON lacks."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
