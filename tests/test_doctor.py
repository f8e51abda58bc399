"""python -m slm.doctor, with stand-ins for what a machine may lack."""

import json
import os
import subprocess
import sys
import threading
import time
from email.utils import formatdate
from types import SimpleNamespace

import pytest
from conftest import ROOT, exit_code

from slm import doctor
from slm.checks import machine, packages, services, storage
from slm.checks.finding import Finding
from slm.errors import explain

GPU = {"accelerator": "gpu", "name": "NVIDIA T4", "precision": "16-mixed", "memory": 16e9, "cuda": "12.8", "flags": []}
CPU = {**GPU, "accelerator": "cpu", "name": "cpu (x86_64)", "why_no_cuda": "torch 2.13.0+cpu is a build without CUDA"}
TORCHVISION = "RuntimeError: operator torchvision::nms does not exist"


@pytest.fixture
def no_probe(monkeypatch):
    """Facts of a CPU without an import in another process."""
    monkeypatch.setattr(machine, "probe", lambda seconds: ({**CPU, "cuda": None}, None, False))
    monkeypatch.setattr(services, "answered", lambda address: (None, "ConnectionError"))


def test_the_command_prints_a_line_for_each_check_and_no_key(no_probe, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef")
    assert exit_code(monkeypatch, doctor.main) == 0
    printed = capsys.readouterr().out
    for word in ("Python", "torch 2", "device", "memory", "compiler", "cache", "runs", "Hub", "clock", "W&B", "git"):
        assert word in printed
    assert "precision 16-mixed" in printed
    assert "0123456789abcdef" not in printed
    assert printed.splitlines()[-1].startswith("0 errors, ")
    assert exit_code(monkeypatch, doctor.main, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert {finding["status"] for finding in found} <= {"ok", "warning"}
    assert set(found[0]) == {"check", "status", "found", "remedy"}


def test_without_any_package_it_says_in_one_line_that_torch_is_missing():
    """-S: a Python without site-packages."""
    command = [sys.executable, "-S", "-m", "slm.doctor", "--json"]
    environment = {**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    errors = [finding for finding in json.loads(done.stdout) if finding["status"] == "error"]
    assert [finding["check"] for finding in errors] == ["torch", "packages"]
    assert "pip install torch" in errors[0]["remedy"]
    assert "hydra-core" in errors[1]["found"]


def test_a_check_that_hangs_or_fails_has_a_line_too():
    release = threading.Event()

    def broken():
        raise ZeroDivisionError("of a driver")

    checks = {"drive": lambda: release.wait(60) and None, "driver": broken, "fine": lambda: Finding("fine", "ok", "")}
    begin = time.monotonic()
    hung, failed, fine = doctor.examine(checks, 0.2)
    release.set()
    assert time.monotonic() - begin < 30
    assert (hung.status, failed.status, fine.status) == ("warning", "error", "ok")
    assert "no answer" in hung.found
    assert "ZeroDivisionError" in failed.found


def test_device(monkeypatch):
    assert machine.device_finding(CPU | {"cuda": None, "flags": ["amx"]}, None).status == "ok"
    gpu = machine.device_finding(GPU, "550.54")
    assert gpu.status == "ok"
    assert gpu.found == "NVIDIA T4, 16 GB, driver 550.54, torch for CUDA 12.8, precision 16-mixed"
    unused = machine.device_finding(CPU, "550.54")  # a GPU, and a torch that cannot use it
    assert unused.status == "warning"
    assert "build without CUDA" in unused.found
    busy = machine.device_finding({"problem": "torch cannot use this GPU (out of memory)"}, "550.54")
    assert busy.status == "error"
    for result, checks, status in (
        (({}, "ImportError: libcudart.so.12", False), ["torch"], "error"),
        ((CPU, TORCHVISION, False), ["device", "torchmetrics"], "error"),
        ((CPU, None, True), ["device", "torchmetrics"], "ok"),
        (({}, None, True), ["torch"], "ok"),  # of a cold cache
    ):
        monkeypatch.setattr(machine, "probe", lambda seconds, result=result: result)
        found = machine.device(4)
        assert [finding.check for finding in found] == checks
        assert found[-1].status == status
        assert ("uninstall torchvision" in found[-1].remedy) == (result[1] == TORCHVISION)


def test_memory_and_compiler(monkeypatch, tmp_path):
    for free, status in ((None, "ok"), (3e9, "warning"), (0.5e9, "error"), (8e9, "ok")):
        monkeypatch.setattr(machine, "available_memory", lambda free=free: free)
        monkeypatch.setattr(machine.shutil, "disk_usage", lambda place: SimpleNamespace(total=8e9))
        assert machine.memory().status == status
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda place: SimpleNamespace(total=64e6))
    assert "--shm-size" in machine.memory().remedy or not os.path.isdir("/dev/shm")  # noqa: PTH112
    monkeypatch.setenv("PATH", str(tmp_path))
    assert machine.compiler().status == "warning"
    assert services.git().status == "warning"


def test_disk(monkeypatch, tmp_path):
    monkeypatch.setenv("SLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    for free, status in ((60e9, "ok"), (2e9, "warning"), (1e6, "error")):
        monkeypatch.setattr(storage.shutil, "disk_usage", lambda place, free=free: SimpleNamespace(free=free))
        assert {finding.status for finding in storage.disk()} == {status}
    assert not list(tmp_path.iterdir())  # nothing is made

    def read_only(**kwargs):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(storage.tempfile, "TemporaryFile", read_only)
    found = storage.disk()[0]
    assert found.status == "error"
    assert "cannot be written: Read-only file system" in found.found
    assert "SLM_CACHE" in found.remedy
    assert storage.cache().found.startswith("0 tokenizers")


def test_hub_clock_and_wandb(monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # where nothing answers
    hub, clock = services.hub()
    assert hub.status == "warning"
    assert "127.0.0.1" in hub.found
    assert clock.status == "ok"
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "HF_HUB_OFFLINE" in services.hub()[0].found
    monkeypatch.delenv("HF_HUB_OFFLINE")
    answer = SimpleNamespace(headers={"Date": formatdate(time.time() - 3600, usegmt=True)})
    monkeypatch.setattr(services, "answered", lambda address: (answer, None))
    hub, clock = services.hub()
    assert (hub.status, clock.status) == ("ok", "warning")
    assert "s away" in clock.found
    monkeypatch.setattr(services.time, "time", lambda: 0.0)
    assert services.clock(None).status == "warning"
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setattr(services, "has_wandb_key", lambda host: False)
    assert "no key" in services.wandb().found
    monkeypatch.setattr(services, "has_wandb_key", lambda host: True)
    assert services.wandb().status == "ok"


def test_packages(monkeypatch):
    required, optional = packages.requirements()
    assert required["torch"].startswith(">=2.")
    assert "pytest" in optional["dev"]
    assert [finding.status for finding in packages.packages()] == ["ok"]
    real = packages.version
    monkeypatch.setattr(packages, "version", lambda name: "2.5.1" if name == "torch" else real(name))
    assert "torch 2.5.1 is not >=" in packages.packages()[0].found
    assert packages.python().status == "ok"


def test_a_torchvision_for_another_torch_is_found_without_an_import(monkeypatch):
    monkeypatch.setattr(packages, "version", {"torch": "2.13.0+cpu", "torchvision": "0.20.0"}.get)
    for line, count in (("torch==2.5.0", 1), ("torch (==2.5.0)", 1), ("torch==2.13.0", 0), ("torch-other==1", 0)):
        monkeypatch.setattr(packages, "required_by", lambda name, line=line: ["numpy", line])
        found = packages.torchvision()
        assert len(found) == count
    monkeypatch.setattr(packages, "required_by", lambda name: ["torch==2.5.0"])
    assert packages.torchvision()[0].found == "torchvision 0.20.0 is for torch ==2.5.0, not 2.13.0+cpu"
    assert "uninstall torchvision" in packages.torchvision()[0].remedy


def test_a_torchvision_for_another_torch_is_one_line():
    error = explain(RuntimeError("operator torchvision::nms does not exist"))
    assert "pip uninstall torchvision" in str(error)
    assert error.exit_code == 2
    assert explain(RuntimeError("another")) is None


@pytest.mark.slow
def test_a_real_torchvision_that_breaks_the_import_of_lightning(tmp_path):
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text(
        'raise RuntimeError("operator torchvision::nms does not exist")'
    )
    (tmp_path / "torchvision-0.20.0.dist-info").mkdir()
    metadata = "Metadata-Version: 2.1\nName: torchvision\nVersion: 0.20.0\n"
    (tmp_path / "torchvision-0.20.0.dist-info" / "METADATA").write_text(metadata)
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"}
    train = [
        sys.executable,
        ROOT / "train.py",
        "experiment=quickstart",
        "budget.steps=1",
        f"run_dir={tmp_path / 'run'}",
    ]
    done = subprocess.run(train, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "does not fit this torch" in done.stderr
    command = [sys.executable, "-m", "slm.doctor", "--wait", "120"]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert "pip uninstall torchvision" in done.stdout
