"""The exceptions that a command turns into one line and an exit code. Everything else that is raised is our bug."""

import os
import sys
import traceback


class UserError(ValueError):
    """A mistake in a command, a config, data or a checkpoint.

    The message is one line: what was given, what must hold, the likely fix. The command line prints it
    without a traceback and exits with `exit_code`.
    """

    exit_code = 2


class ResourceError(UserError):
    """Not a mistake but a limit of the machine: memory or disk."""

    exit_code = 4


class Stopped(Exception):
    """A run that was asked to stop has saved its state and does so."""

    def __init__(self, reason: str, exit_code: int):
        super().__init__(reason)
        self.reason, self.exit_code = reason, exit_code


def report(error: Exception) -> int:
    """Prints the mistake on stderr and returns its exit code; with SLM_DEBUG=1 the traceback, too."""
    if os.environ.get("SLM_DEBUG"):
        traceback.print_exception(error)
    code, said = getattr(error, "exit_code", 2), error
    while not str(said) and (said.__cause__ or said.__context__):  # Hydra wraps what it says in silence
        said = said.__cause__ or said.__context__
    print("error: " + " ".join(str(said).split()), file=sys.stderr)
    return code
