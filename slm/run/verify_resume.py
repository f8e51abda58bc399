"""verify_resume=true: proves for a configuration that a killed run resumes bit for bit.

The same command line, in processes of its own: 2K steps without interruption; then K + 2 steps and kill -9, and the
same command again.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import torch

from slm import system
from slm.errors import UserError
from slm.files import run_folder
from slm.run import PACKAGE
from slm.verify import first_difference

K = 8
OWN = {  # settings of the verification; all others are the user's
    "verify_resume": "false",
    "logger": "none",
    "report": "false",
    "log_windows": "true",
    "log_every_n_steps": "1",
    "val_every_n_steps": str(K // 2),
    "callbacks.checkpoints.every_n_steps": str(K),
    "+callbacks.fault._target_": "slm.training.callbacks.fault.Fault",
}
STOPPED = {0, 128 + signal.SIGTERM}  # 0 if the budget ends first


def verify_resume(overrides: list[str], root: Path) -> bool:
    """Trains in the new folder `root` and prints PASS or the first difference; `root` is kept only if they differ.

    Raises UserError if `root` exists, the budget is too small, or a training fails.
    """
    if root.exists():
        raise UserError(f"{root} exists, and would be deleted; move it away")
    kept = [override for override in overrides if not re.match(r"\+*(run_dir=|verify_resume=|logger[.=])", override)]
    common = [*kept, *(f"{key}={value}" for key, value in OWN.items())]
    if torch.cuda.is_available() and not any("trainer.deterministic=" in override for override in kept):
        common.append("trainer.deterministic=true")  # on CUDA, some of the faster kernels add in a varying order
    to_the_end = [*common, "+callbacks.fault.kind=terminate", f"+callbacks.fault.step={2 * K}"]
    killed = [*common, "+callbacks.fault.kind=kill", f"+callbacks.fault.step={K + 2}"]
    straight, resumed = root / "straight", root / "resumed"
    _run(to_the_end, straight, f"1 of 3: up to {2 * K} steps", STOPPED)
    if (steps := run_folder.step_of(run_folder.checkpoints(straight)[0])) < K + 2:
        shutil.rmtree(root)
        raise UserError(f"verify_resume=true needs a budget of {K + 2} steps at least, not {steps}")
    _run(killed, resumed, f"2 of 3: killed in step {K + 2}", {system.KILLED})
    _run(to_the_end, resumed, "3 of 3: the same command again", STOPPED)
    if difference := first_difference(straight, resumed):
        print(f"FAIL: the resumed run differs: {difference}; both runs are in {root}")
        return False
    shutil.rmtree(root)
    print(f"PASS: {steps} steps, uninterrupted or killed and resumed: equal windows, metrics, samples, weights")
    return True


def _run(overrides: list[str], folder: Path, what: str, expected: set[int]):
    print(f"{what} ...", flush=True)
    command = [sys.executable, "-m", "slm", "train", *overrides, f"run_dir={folder}"]
    path = os.pathsep.join(filter(None, (str(PACKAGE.parent), os.environ.get("PYTHONPATH"))))  # this very program
    done = subprocess.run(
        command, capture_output=True, encoding="utf-8", errors="replace", env={**os.environ, "PYTHONPATH": path}
    )
    if done.returncode not in expected:
        shutil.rmtree(folder.parent, ignore_errors=True)
        printed = (done.stderr.strip() or done.stdout.strip()).splitlines()
        last = printed[-1] if printed else ""
        raise UserError(f"verify_resume, {what}: ended with exit code {done.returncode}; {last}")
