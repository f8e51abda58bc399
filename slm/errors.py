"""The exceptions that a command turns into one line and an exit code. Everything else that is raised is our bug."""

import errno
import os
import sys
import traceback

REFUSALS = (  # of a disk: full, over quota or limit, read-only, forbidden, broken
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO,
)  # fmt: skip


class UserError(ValueError):
    """A mistake in a command, a config, data or a checkpoint.

    The message is one line: what was given, what must hold, the likely fix. The command line prints it
    without a traceback and exits with `exit_code`.
    """

    exit_code = 2


class ResourceError(UserError):
    """Not a mistake but a limit of the machine: memory or disk."""

    exit_code = 4


class Diverged(UserError):
    """A training whose loss or gradient is no longer a number, or rises again and again."""

    exit_code = 3


class Rewind(Exception):
    """The loss has risen so far at `step` that training shall go back to the last checkpoint and take other windows.

    `skipped` are the windows that were passed over before.
    """

    def __init__(self, step: int, reason: str, skipped: int):
        super().__init__(reason)
        self.step, self.reason, self.skipped = step, reason, skipped


class Stopped(Exception):
    """A run that was asked to stop has saved its state and does so. `requeue`: the job shall be queued again."""

    def __init__(self, reason: str, exit_code: int, requeue: bool = False):
        super().__init__(reason)
        self.reason, self.exit_code, self.requeue = reason, exit_code, requeue


def report(error: Exception) -> int:
    """Prints the mistake on stderr and returns its exit code; with SLM_DEBUG=1 the traceback, too."""
    if os.environ.get("SLM_DEBUG"):
        traceback.print_exception(error)
    code, said = getattr(error, "exit_code", 2), error
    while not str(said) and (said.__cause__ or said.__context__):  # Hydra wraps what it says in silence
        said = said.__cause__ or said.__context__
    print("error: " + " ".join(str(said).split()), file=sys.stderr)
    return code


def refusal(error: OSError | Exception) -> UserError | None:
    """What the system said of a file in one line, None if that is rather our bug."""
    number, file = getattr(error, "errno", None), str(getattr(error, "filename", None) or "the run folder")[:200]
    if number in REFUSALS:
        return ResourceError(f"cannot write {file}: {error.strerror}")
    if number in (errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR):
        return UserError(f"{file} names no file: {error.strerror}")
    return None
