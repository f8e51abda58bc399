"""The device, the memory and the compiler."""

import json
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

from slm import system
from slm.checks.finding import Finding
from slm.checks.packages import ROOT, WITHOUT_TORCHVISION
from slm.errors import one_line

LITTLE_MEMORY = 4e9, 1e9  # bytes available: a warning, an error
LITTLE_SHARED = 0.5e9
SLOW = "the first import after a start of the machine is slow; python -m slm.doctor --wait 60 waits for it"
PROGRAM = "#include <Python.h>\n#include <cmath>\nint main() { return 0; }\n"


def device(seconds: float) -> list[Finding]:
    """What training runs on, and whether torch and torchmetrics can be imported within that time."""
    facts, failure, late = probe(seconds)
    driver = answer_of("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", seconds=2)
    if late:
        name = "torchmetrics" if facts else "torch"
        slow = Finding(name, "ok", f"installed; its import takes more than {seconds:.0f} s", SLOW)
        return [device_finding(facts, driver), slow] if facts else [slow]
    if not facts:
        return [
            Finding("torch", "error", f"cannot be imported: {failure}", "python -m pip install --force-reinstall torch")
        ]
    found = [device_finding(facts, driver)]
    if failure:
        fix = "python -m pip install --force-reinstall lightning torchmetrics"
        if "torchvision" in failure:
            fix = WITHOUT_TORCHVISION
        found.append(Finding("torchmetrics", "error", f"cannot be imported: {failure}", fix))
    return found


def probe(seconds: float) -> tuple[dict[str, Any], str | None, bool]:
    """The facts of slm.checks.probe, why it failed, and whether it took too long."""
    command = [sys.executable, "-W", "ignore", "-m", "slm.checks.probe"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}
    failure, late, facts = None, False, {}
    try:
        done = subprocess.run(
            command, capture_output=True, encoding="utf-8", errors="replace", timeout=seconds, env=environment
        )
        printed = done.stdout
        if done.returncode:
            failure = last_line(done.stderr, f"exit code {done.returncode}")
    except subprocess.TimeoutExpired as error:
        printed, late = (error.stdout or b"").decode(), True  # bytes, whatever text says
    for line in printed.splitlines():
        facts |= json.loads(line) if line.startswith("{") else {}
    return facts, failure, late


def last_line(text: str, default: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return one_line(lines[-1] if lines else default, 300)


def device_finding(facts: dict[str, Any], driver: str | None) -> Finding:
    """The device that trainer=auto takes."""
    if problem := facts.get("problem"):
        return Finding("device", "error", problem, "python train.py trainer=cpu works without it")
    cores = system.cores()
    shown = [facts["name"] if facts["accelerator"] == "gpu" else f"{facts['name']}, {cores} cores"]
    shown += facts["flags"] if facts["accelerator"] == "cpu" else [f"{facts['memory'] / 1e9:.0f} GB"]
    shown += [f"driver {driver}"] if driver else []
    shown += [f"torch for CUDA {facts['cuda']}"] if facts["cuda"] else []
    found = ", ".join([*shown, f"precision {facts['precision']}"])
    if driver and facts["accelerator"] == "cpu":
        fix = "install a torch for the CUDA of this driver (pytorch.org), or update the driver"
        return Finding("device", "warning", f"{found}; torch finds no GPU ({facts['why_no_cuda']})", fix)
    return Finding("device", "ok", found)


def memory() -> Finding:
    """What is free of the machine, or of the container's limit; and the shared memory of loader processes."""
    free = available_memory()
    if free is None:
        return Finding("memory", "ok", "not known on this system")
    warn, fail = LITTLE_MEMORY
    status = "error" if free < fail else "warning" if free < warn else "ok"
    found = [f"{free / 1e9:.1f} GB available"]
    fixes = ["end other programs, or give +recipe=low_memory"] if free < warn else []
    shared = Path("/dev/shm")
    if shared.is_dir() and (size := shutil.disk_usage(shared).total) < LITTLE_SHARED:
        found.append(f"{size / 1e6:.0f} MB shared")
        fixes.append("docker run --shm-size=1g, or data.workers=0")
        status = "warning" if status == "ok" else status
    return Finding("memory", status, ", ".join(found), "; ".join(fixes))


def available_memory() -> float | None:
    """In bytes; None where the system does not tell."""
    limits = []
    try:
        fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines())
        limits.append(int(fields["MemAvailable"].split()[0]) * 1024)
        group = Path("/sys/fs/cgroup")  # of a container
        limits.append(
            int((group / "memory.max").read_text("utf-8")) - int((group / "memory.current").read_text("utf-8"))
        )
    except (OSError, ValueError, KeyError):
        pass
    return min(limits, default=None)


def compiler() -> Finding:
    """A C++ compiler with Python's headers, for torch.compile: without them a run trains uncompiled, and says so."""
    name, need = os.environ.get("CXX") or "c++", "torch.compile needs it; without, a run trains uncompiled"
    path = next(filter(None, map(shutil.which, (name, "g++", "clang++"))), None)
    if platform.system() == "Windows":
        path, name = shutil.which("cl"), "cl (Visual Studio)"
        return Finding("compiler", "ok", path) if path else Finding("compiler", "warning", f"no {name}", need)
    if path is None:
        return Finding("compiler", "warning", "no C++ compiler", f"{need}: apt install g++ python3-dev")
    command = [path, "-fsyntax-only", "-x", "c++", f"-I{sysconfig.get_path('include')}", "-"]
    done = subprocess.run(command, input=PROGRAM, capture_output=True, encoding="utf-8", errors="replace", timeout=5)
    if done.returncode:
        reason = last_line("\n".join(line for line in done.stderr.splitlines() if "error" in line), "it fails")
        return Finding("compiler", "warning", f"{path}: {reason}", f"{need}: apt install python3-dev")
    return Finding("compiler", "ok", path)


def answer_of(*command: str, seconds: float) -> str | None:
    """The first line that a command prints; None if it fails or takes longer."""
    try:
        done = subprocess.run(
            command, capture_output=True, encoding="utf-8", errors="replace", timeout=seconds, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return one_line(done.stdout.strip().partition("\n")[0], 200)
