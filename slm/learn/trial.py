"""Runs the checks of a phase on a learner's file, and explains each way in which code can fail."""

import traceback
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import torch

from slm.errors import UserError, printable
from slm.learn.exercises import Phase, load
from slm.learn.verdict import Wrong

FRAMES = 4  # of the learner's code, in a message


class Failed(Exception):
    """A phase that is not passed, with the reason for the learner, a sentence per line."""


def trial(phase: Phase, folder: Path | None) -> Iterator[str]:
    """A sentence per check that is passed. Raises: Failed: at the first that is not; any bug of the reference."""
    torch.set_num_threads(1)  # more are slower on matrices this small
    own = None
    try:
        own = load(phase, folder)
        yield from import_module(f"slm.learn.checks.check{phase.number}").checks(own)
    except Wrong as wrong:
        raise Failed(printable(str(wrong))) from None
    except UserError as error:
        if folder is None or own is None:
            raise
        raise Failed(printable(str(error))) from None
    except (Exception, KeyboardInterrupt) as error:
        if folder is None:
            raise
        raise Failed(printable(explanation(error, folder))) from None


def explanation(error: BaseException, folder: Path) -> str:
    """What a learner's code has raised, with the lines of the learner's files only."""
    frames = [
        (Path(frame.f_code.co_filename), number, frame.f_code.co_qualname)
        for frame, number in traceback.walk_tb(error.__traceback__)
    ]
    own = [frame for frame in frames if folder.resolve() in frame[0].resolve().parents]
    if isinstance(error, NotImplementedError) and own:
        path, number, name = own[-1]
        return f"{name} is not written yet: {path.name}, line {number}.\nIts docstring says what it must return."
    if isinstance(error, SyntaxError):
        return f"{Path(error.filename or '').name}, line {error.lineno}: {error.msg}\n{(error.text or '').strip()}"
    if isinstance(error, KeyboardInterrupt):
        lines = ["stopped by Ctrl-C" + (", in:" if own else "")]
    else:
        lines = [f"{type(error).__name__}: {error}"]
    for path, number, name in own[-FRAMES:]:
        line = path.read_text(encoding="utf-8").splitlines()[number - 1].strip()
        lines.append(f"{path.name}, line {number}, in {name}: {line}")
    if not own:
        lines.append("The check needs the names, and the types of results, of the file that `start` wrote.")
    return "\n".join(lines)
