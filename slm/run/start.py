"""Entry points, which import nothing heavy before signals and standard streams are prepared."""

import atexit
import contextlib
import gc
import os
import signal
import sys
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from slm.files.stdio import make_stdio_robust
from slm.run import process
from slm.system import SLURM_SIGNALS, mask_signals


@contextlib.contextmanager
def one_line_limits() -> Iterator[None]:
    """Ends the program with one line where no command can work: no working folder, home folder or memory."""
    atexit.register(gc.freeze)  # the interpreter would search all of torch for garbage at the end: a second
    try:
        os.getcwd()  # noqa: PTH109
    except OSError as error:
        end(f"the working folder cannot be used: {error.strerror}; change to another one", 2)
    home = os.path.expanduser("~")  # noqa: PTH111 (unknown, it is ~ itself, and a folder of this name would be made)
    if not (Path(home).is_absolute() and os.environ.get("HOME", home)):
        end("no home folder is known, for caches; set HOME=<folder>, an absolute path", 2)
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK"):  # of launchers of several processes
        if not os.environ.get(name, "0").isdecimal():
            end(f"the environment variable {name}={os.environ[name]!r} must be a whole number; unset {name}", 2)
    try:
        yield
    except MemoryError:
        end("out of memory; use a smaller model, batch or data, or raise the limit of this process (ulimit -v)", 4)


def end(problem: str, exit_code: int):
    print(f"error: {problem}", file=sys.stderr)
    sys.exit(exit_code)


@one_line_limits()
def train():
    """python train.py, slm train."""
    process.begin()
    # before training can save its state, a signal simply ends the program
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, lambda number, frame: os._exit(128 + number))
    if "SLURM_JOB_ID" in os.environ:  # SLURM's warning before the time limit waits until there is a state to save
        mask_signals("SIG_BLOCK", SLURM_SIGNALS)
    make_stdio_robust()
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # a run reports the memory itself
    os.environ["MPLBACKEND"] = "agg"  # pictures are files; matplotlib cannot be imported with an unknown one
    sys.path.append("")  # for classes in files of the user's working folder
    from slm.run.cli import train_main

    train_main()


@one_line_limits()
def generate():
    """python generate.py, slm generate."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # before a text is generated, Ctrl-C simply ends the program
    make_stdio_robust(ignore_failed_writes=False)
    sys.path.append("")
    from slm.run.cli import generate_main

    generate_main()


@one_line_limits()
def module(name: str):
    """python -m slm.evaluate, slm evaluate."""
    make_stdio_robust()
    sys.argv[0] = f"slm {name}"
    sys.path.append("")
    sys.exit(main_of(name)())


def main_of(name: str) -> Callable[[], int | None]:
    """The main function of a module, or of a package's __main__."""
    package = "" if find_spec(f"slm.{name}").submodule_search_locations is None else ".__main__"
    return import_module(f"slm.{name}{package}").main


MODULES = (
    *("evaluate", "verify", "lens", "cache", "report", "compare", "doctor", "data", "tokenizers", "learn"),
    *("scaling", "coordinate_check"),
)
COMMANDS = {"train": train, "generate": generate, **{name: partial(module, name) for name in MODULES}}
OTHER_NAMES = {  # what one may type -> the words for it
    **dict.fromkeys(("params", "estimate", "cost", "plan"), "train ... plan=true"),
    **dict.fromkeys(("bench", "benchmark"), "train ... plan=measure"),
    **{"prepare": "train ... prepare=true", "plot": "report RUN", "chat": "generate interactive=true"},
    **{"sweep": "train -m ...", "resume": "train run_dir=RUN ...", "sample": "generate"},
}


def main():
    """The console script: slm COMMAND ..."""
    # Lightning starts the other processes of a distributed run with the same arguments, but without the command
    if sys.argv[1:2] and sys.argv[1] in COMMANDS:
        name = sys.argv.pop(1)
    elif (name := os.environ.get("SLM_COMMAND", "")) not in COMMANDS:
        if words := OTHER_NAMES.get("".join(sys.argv[1:2])):
            end(f"there is no command {sys.argv[1]}; did you mean slm {words}?", 2)
        print(f"usage: slm {{{','.join(COMMANDS)}}} ...; slm train --help lists the keys of a run", file=sys.stderr)
        sys.exit(0 if sys.argv[1:] in (["-h"], ["--help"]) else 2)
    if name == "train":
        os.environ["SLM_COMMAND"] = name
    COMMANDS[name]()
