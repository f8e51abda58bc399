"""verify_resume=true: proves for a configuration that a killed run goes on to the bit like one that was not killed.

The own command line, in processes of its own: 2k steps at a stretch; then k steps, kill -9 two steps later, and the
same command again.
"""

import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from slm.errors import UserError
from slm.files import run_folder
from slm.verify import first_difference

K = 8
SCRIPT = Path(__file__).parents[2] / "train.py"
OWN = {  # what a rehearsal decides itself; the rest is the user's
    "verify_resume": "false",
    "logger": "none",
    "debug.log_windows": "true",
    "log_every_n_steps": "1",
    "val_every_n_steps": str(K // 2),
    "callbacks.checkpoints.every_n_steps": str(K),
}


def rehearse(overrides: list[str], root: Path) -> bool:
    """Trains in `root`, which is gone afterwards unless there is a difference; prints PASS or the first difference."""
    if root.exists():
        raise UserError(f"{root} is there already, and would be deleted; move it away")
    theirs = [override for override in overrides if not re.match(r"\+*(run_dir=|verify_resume=|logger[.=])", override)]
    common = [*theirs, *(f"{key}={value}" for key, value in OWN.items())]
    to_the_end = [*common, "debug.fault.kind=terminate", f"debug.fault.step={2 * K}"]
    killed = [*common, "debug.fault.kind=kill", f"debug.fault.step={K + 2}"]
    straight, resumed = root / "straight", root / "resumed"
    _run(to_the_end, straight, f"1 of 3: {2 * K} steps", {0, 128 + signal.SIGTERM})  # 0 if the budget is smaller
    if (steps := run_folder.step_of(run_folder.checkpoints(straight)[0])) < K + 2:
        shutil.rmtree(root)
        raise UserError(f"verify_resume=true needs a budget of {K + 2} steps at least, not {steps}")
    _run(killed, resumed, f"2 of 3: killed in step {K + 2}", {-signal.SIGKILL})
    _run(to_the_end, resumed, "3 of 3: the same command again", {0, 128 + signal.SIGTERM})
    if difference := first_difference(straight, resumed):
        print(f"FAIL: the resumed run differs: {difference}; both runs are in {root}")
        return False
    shutil.rmtree(root)
    print(
        f"PASS: {steps} steps, and the same killed and resumed, agree to the bit in windows, metrics, samples, weights"
    )
    return True


def _run(overrides: list[str], folder: Path, what: str, expected: set[int]):
    print(f"{what} ...", flush=True)
    command = [sys.executable, str(SCRIPT), *overrides, f"run_dir={folder}"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode not in expected:
        shutil.rmtree(folder.parent, ignore_errors=True)
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise UserError(f"verify_resume, {what}: ended with exit code {done.returncode}; {said[-1] if said else ''}")
