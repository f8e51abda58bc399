"""The exceptions that a command turns into one line and an exit code. Any other exception is a bug of this program."""

import contextlib
import errno
import os
import re
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

DISK_ERRORS = (  # full, over quota or file size limit, read-only, no permission, broken, a network drive that is gone
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO),
    *(errno.ESTALE, errno.ENODEV, errno.ENXIO, errno.ENOTCONN, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.ETXTBSY),
    *((errno.EREMOTEIO, errno.EBUSY) if sys.platform == "linux" else ()),
)
WRITING = errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS  # errors that reading cannot have
PATH_ERRORS = errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EISDIR
NO_MEMORY = (
    *("out of memory", "allocate memory", "bad_alloc", "unable to mmap", "failed to map segment"),
    "cublas_status_alloc_failed",
)
SECRET_VARIABLE = re.compile(
    r"key(_?id)?$|secret|token|credential|passw(or)?d|passphrase|(^|_)(pass|pat|pwd|pw|auth)$", re.IGNORECASE
)
SECRET_LENGTH = 8  # characters; a shorter value may occur elsewhere by chance
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")  # of terminals, and of writing order


def environment_secrets() -> dict[str, str]:
    """The environment variables with names such as HF_TOKEN, but for paths."""
    return {
        name: value
        for name, value in os.environ.items()
        if SECRET_VARIABLE.search(name) and len(value) >= SECRET_LENGTH and not Path(value).is_absolute()
    }


def without_secrets(text: str) -> str:
    """The text with the secrets of the environment as their interpolations."""
    for name, secret in environment_secrets().items():
        text = text.replace(secret, f"${{oc.env:{name}}}")
    return text


class UserError(ValueError):
    """A mistake in a command, a configuration, data or a checkpoint.

    The message is one line: the given value, the rule, the likely fix. The command line prints it
    without a traceback and exits with `exit_code`. A secret of the environment is shown as its interpolation.
    """

    exit_code = 2
    everywhere = False  # True: all processes of a run raise it, and the first one alone prints it

    def __str__(self) -> str:
        return without_secrets(super().__str__())


class ResourceError(UserError):
    """A limit of the machine: memory or disk."""

    exit_code = 4


class SaveFailed(ResourceError):
    """A checkpoint that the processes of a training could not write together."""

    everywhere = True


class Diverged(UserError):
    """A training whose loss or gradient is no longer a finite number."""

    exit_code = 3
    everywhere = True


class Stopped(Exception):
    """A run has saved its state after a request to stop. `requeue`: the cluster should queue the job again."""

    def __init__(self, reason: str, exit_code: int, requeue: bool = False):
        super().__init__(reason)
        self.reason, self.exit_code, self.requeue = reason, exit_code, requeue


def printable(text: str, limit: int | None = None) -> str:
    """The text with control characters as \\x escapes, so that it cannot command a terminal; line ends and tabs stay.

    A longer text than `limit` characters is cut in its middle.
    """
    if limit is not None and len(text) > limit:
        text = f"{text[: limit // 2]} ... {text[-(limit // 2) :]}"
    return CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text.replace("\r\n", "\n"))


def one_line(text: object, limit: int = 500) -> str:
    """The text as one printable line."""
    return printable(" ".join(str(text).split()), limit)


def notice(text: str):
    """Prints a message beside the output of a command, on stderr."""
    print(printable(text), file=sys.stderr)


def report(error: UserError) -> int:
    """Prints the mistake on stderr and returns its exit code; with SLM_DEBUG=1 also the traceback."""
    if os.environ.get("SLM_DEBUG"):
        traceback.print_exception(error)
    print("error: " + one_line(error, 1000), file=sys.stderr)
    return error.exit_code


@contextlib.contextmanager
def file_operation(name: str, path: Path, instead_of: Path | None = None) -> Iterator[None]:
    """Adds the operation (read, write, delete, list, lock) and the file to an OSError of the block.

    Python leaves out the file's name for a full disk. `instead_of`: a temporary file, of which the user has not heard.
    """
    try:
        yield
    except OSError as error:
        if not hasattr(error, "operation") and error.filename in (None, str(path), str(instead_of)):
            error.operation, error.filename = name, str(path)
        raise


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Ends the program with one line and an exit code for every error that is not a bug of this program."""
    try:
        yield
        sys.stdout.flush()
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # the reader of a pipe, such as head, has closed it
        discard_output()
    except Exception as error:
        if not (explanation := explain(error)):
            raise
        code = report(explanation)
        try:
            sys.stdout.flush()
        except OSError:
            discard_output()
        sys.exit(code)


def discard_output():
    """Sends what stdout still holds to /dev/null, since Python writes it at the end of the program."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def is_out_of_memory(error: BaseException) -> bool:
    """True for out of memory of a GPU or of the machine; only some of these errors have a class of their own."""
    known = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"  # the latter torch's
    return known or any(words in str(error).lower() for words in NO_MEMORY)


def explain(error: BaseException) -> UserError | None:
    """A limit of the machine or a file that cannot be used, as one line; None if the error is more likely a bug."""
    text = " ".join(str(error).split())
    if isinstance(error, UserError):
        return error
    if is_out_of_memory(error):
        return ResourceError(
            f"out of memory: {text[:200] or 'an allocation failed'}; use a smaller model, batch or data"
        )
    if os.strerror(errno.EMFILE) in text or os.strerror(errno.ENFILE) in text:
        return ResourceError("too many open files for this process; raise its limit (ulimit -n 4096)")
    if "can't start new thread" in text or os.strerror(errno.EAGAIN) in text:
        return ResourceError(f"the system refuses one more process or thread: {text}; see ulimit -u")
    if (
        isinstance(error, RuntimeError | ImportError | AttributeError) and "torchvision" in text
    ):  # imported by Lightning
        return UserError(
            f"the installed torchvision does not fit this torch ({text[:200]}); slm does not need it: pip uninstall "
            "torchvision, or install both again from one index: pip install --force-reinstall torch torchvision"
        )
    if not isinstance(error, OSError) or error.errno is None:
        return None
    number, file, operation = error.errno, str(error.filename or "a file"), getattr(error, "operation", None)
    if number in PATH_ERRORS and not operation:
        return UserError(f"{file} is not a valid file name: {error.strerror}")
    if number in DISK_ERRORS or operation:
        kind = UserError if number in PATH_ERRORS else ResourceError
        act = f"cannot {operation}" if operation else "cannot write" if number in WRITING else "no access to"
        return kind(f"{act} {file}: {error.strerror}")
    return None
