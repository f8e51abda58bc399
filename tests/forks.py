"""`python train.py` in a forked process of this one, which has imported everything, so that its start takes no time.

The other processes of a run on several devices, which Lightning starts by its command, are forks, too.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace

import torch
from hydra.core.global_hydra import GlobalHydra
from lightning.pytorch.strategies.launchers import subprocess_script

from slm.run import cli, start, train, trainer  # noqa: F401  (imported before a fork)

# A first backward pass decides for which devices autograd has threads, which a fork would lose. Without a GPU
# it has none; but it would after a plan (fake tensors), if torch is a build for CUDA.
torch.ones(1, requires_grad=True).sum().backward()
SCRIPT = Path(__file__).parents[1] / "train.py"


class Forked:
    """The process, in a session of its own, with those parts of subprocess.Popen that the tests need.

    `stdout`, `stderr`: descriptors, as for Popen. `before` is called in the process, before the command.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        *,
        stdout: int,
        stderr: int,
        env: Mapping[str, str] | None = None,
        before: Callable[[], None] = lambda: None,
        main: Callable[[], None] = start.train,
    ):
        def run():
            os.setsid()
            os.dup2(stdout, 1)
            os.dup2(stderr, 2)
            os.environ.update(env or {})
            sys.modules["__main__"].__spec__ = None  # Lightning and Hydra see a script
            GlobalHydra.instance().clear()
            subprocess_script.subprocess = SimpleNamespace(Popen=other_process)
            sys.argv = [str(SCRIPT), *arguments]
            before()
            main()

        self._process = get_context("fork").Process(target=run)
        self._process.start()
        self.pid = self._process.pid
        while self.poll() is None and os.getpgid(self.pid) != self.pid:  # it has no session yet
            time.sleep(0.001)

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def send_signal(self, number: int):
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self):
        self.send_signal(signal.SIGKILL)

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("train.py", timeout)
        return self._process.exitcode


def other_process(command: Sequence[str], env: Mapping[str, str], cwd: str | None) -> Forked:
    """What Lightning starts as `python train.py ...`."""
    assert command[:2] == [sys.executable, str(SCRIPT)]
    return Forked(command[2:], stdout=1, stderr=2, env=env, before=partial(os.chdir, cwd or "."))


def forked(*arguments: str, main: Callable[[], None] = start.train, **env: str) -> subprocess.CompletedProcess:
    """The end of the command, as of subprocess.run with captured text."""
    return ends([arguments], [env], main=main)[0]


def together(
    processes: int,
    *arguments: str,
    nodes: int = 1,
    strategy: str = "ddp",
    before: Callable[[int], None] = lambda rank: None,
) -> list[subprocess.CompletedProcess]:
    """The ends of as many processes of one run, as torchrun starts them on that many machines.

    `before` is called in each, with its rank, before the command.
    """
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    here, words = processes // nodes, [*arguments, f"trainer.strategy={strategy}", f"trainer.num_nodes={nodes}"]
    common = {"WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": here, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    common |= {"TORCHELASTIC_RUN_ID": "test", "OMP_NUM_THREADS": 1}
    own = [{"RANK": rank, "LOCAL_RANK": rank % here, "GROUP_RANK": rank // here} for rank in range(processes)]
    environments = [{name: str(value) for name, value in (common | its).items()} for its in own]
    befores = [partial(before, rank) for rank in range(processes)]
    return ends([[*words, f"trainer.devices={here}"]] * processes, environments, befores)


def collective(processes: int, work: Callable[[int], None]):
    """Calls a function with the rank in each of so many processes, which have a group of gloo."""

    def run(rank: int, file: str):
        torch.set_num_threads(1)
        torch.distributed.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=processes)
        work(rank)
        torch.distributed.destroy_process_group()

    with tempfile.TemporaryDirectory() as folder:
        arguments = [(rank, f"{folder}/store") for rank in range(processes)]
        started = [get_context("fork").Process(target=run, args=its) for its in arguments]
        for process in started:
            process.start()
        for process in started:
            process.join(100)
        assert [process.exitcode for process in started] == [0] * processes


def ends(
    commands: Sequence[Sequence[str]],
    environments: Sequence[Mapping[str, str]],
    befores: Sequence[Callable[[], None]] = (),
    main: Callable[[], None] = start.train,
) -> list[subprocess.CompletedProcess]:
    """Those of commands that run at the same time."""
    with contextlib.ExitStack() as files:
        outputs = [[files.enter_context(tempfile.TemporaryFile("w+")) for _ in "oe"] for _ in commands]
        started = [
            Forked(words, stdout=out.fileno(), stderr=err.fileno(), env=env, before=before, main=main)
            for words, (out, err), env, before in zip(
                commands, outputs, environments, befores or [lambda: None] * len(commands), strict=True
            )
        ]
        codes = [process.wait(200) for process in started]
        printed = [[(file.seek(0), file.read())[1] for file in pair] for pair in outputs]
    return [subprocess.CompletedProcess(*end) for end in zip(commands, codes, *zip(*printed), strict=True)]
