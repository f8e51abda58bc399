"""Why torch finds no GPU; settings that only CUDA needs; sums in 16 bits."""

import re
import shutil
import subprocess

import pytest
import torch
from conftest import refused
from lightning.pytorch.plugins.precision import MixedPrecision
from test_resume import history

from slm.errors import ResourceError
from slm.hardware import choose_device, resolve_hardware
from slm.planning.devices import memory_of
from slm.run.verify_resume import verify_resume

DRIVER = "The NVIDIA driver on your system is too old (found version 11040). Please update your GPU driver."
REASONS = {  # version of CUDA in the build, environment, torch's error, what is printed
    "a build without CUDA": (None, {}, "", r"\(torch \S+ is a build without CUDA\)$"),
    "no GPU is visible": (
        "13.0",
        {"CUDA_VISIBLE_DEVICES": ""},
        "",
        r"\(CUDA_VISIBLE_DEVICES='' names none that exists\)$",
    ),
    "another GPU is visible": ("13.0", {"CUDA_VISIBLE_DEVICES": "7"}, "", r"\(CUDA_VISIBLE_DEVICES='7' names none"),
    "the driver is too old": ("13.0", {}, DRIVER, r"\(The NVIDIA driver .* too old \(found version 11040\)\)$"),
    "no driver": ("13.0", {}, "Found no NVIDIA driver. Please\n check", r"\(Found no NVIDIA driver\)$"),
}


@pytest.mark.parametrize("reason", REASONS)
def test_the_reason_why_torch_finds_no_gpu(monkeypatch, capsys, reason):
    """Where a GPU is asked for, and where the trainer takes the CPU although NVIDIA's driver is there."""
    built_for, environment, error, expected = REASONS[reason]

    def init():
        raise RuntimeError(error)

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.version, "cuda", built_for)
    for backend in (torch.cuda, torch.backends.mps):
        monkeypatch.setattr(backend, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "init", init)
    message = refused(
        lambda: resolve_hardware("gpu", 1, 1, "auto"), "torch finds none; use trainer=cpu or trainer=auto"
    )
    assert re.search(expected, message)
    for driver in (None, "/usr/bin/nvidia-smi"):
        monkeypatch.setattr(shutil, "which", lambda name, driver=driver: driver)
        assert resolve_hardware("auto", 1, 1, "32-true").accelerator == "cpu"
        printed = capsys.readouterr().err.strip()
        assert bool(re.search(expected, printed)) == bool(driver)


@pytest.mark.parametrize(
    "problem",
    [
        "CUDA error: no kernel image is available for execution on the device",
        "CUDA error: CUDA-capable device(s) is/are busy or unavailable",
        "CUDA error: out of memory",
    ],
)
def test_a_gpu_that_does_not_work_is_found_at_once(monkeypatch, problem):
    """In training and generation, where the device is chosen, too."""

    def fail(*sizes, device):
        raise RuntimeError(f"{problem}\nCUDA kernel errors might be reported later. Compile with TORCH_USE_CUDA_DSA")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch, "ones", fail)
    for choose, remedy in (
        (lambda: resolve_hardware("auto", 1, 1, "auto"), "trainer=cpu"),
        (lambda: choose_device("cuda", "device"), "device=cpu"),
    ):
        with pytest.raises(ResourceError) as error:
            choose()
        assert str(error.value).startswith(f"torch cannot use this GPU ({problem}")
        assert str(error.value).endswith(f"; use {remedy}")


@pytest.mark.parametrize(("macos", "allowed"), [(14, True), (13, False)])
def test_bfloat16_on_apple_silicon(monkeypatch, macos, allowed):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.mps, "is_macos_or_newer", lambda major, minor: (macos, 0) >= (major, minor))
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 12 * 2**30)
    assert resolve_hardware("mps", 1, 1, "auto").precision == "32-true"
    assert memory_of(torch.device("mps")) == 12 * 2**30
    refused(lambda: resolve_hardware("mps", 1, 1, "64-true"), "no float64", "trainer=cpu")
    if allowed:
        assert resolve_hardware("mps", 1, 1, "bf16-mixed").precision == "bf16-mixed"
        plugin = MixedPrecision("bf16-mixed", "mps")  # as Lightning makes it for this accelerator
        with plugin.forward_context():
            assert torch.get_autocast_dtype("mps") == torch.bfloat16
    else:
        refused(lambda: resolve_hardware("mps", 1, 1, "bf16-mixed"), "macOS 14", "32-true")


def test_more_devices_than_there_are(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    refused(lambda: resolve_hardware("mps", 2, 1, "auto"), "trainer.devices=2, but this machine has 1 GPU(s)")


@pytest.mark.parametrize(
    ("cuda", "given", "expected"),
    [(True, [], ["true"]), (True, ["trainer.deterministic=false"], ["false"]), (False, [], [])],
)
def test_on_cuda_a_resume_is_verified_with_deterministic_kernels(monkeypatch, tmp_path, cuda, given, expected):
    """Unless the command says otherwise."""
    commands = []

    def fail(command, **settings):
        commands.append(command)
        return subprocess.CompletedProcess(command, 1, "", "error: not here")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(subprocess, "run", fail)
    refused(lambda: verify_resume(["model=tiny", *given], tmp_path / "root"), "1 of 3", "error: not here")
    words = [word.partition("=") for word in commands[0]]
    assert [value for key, _, value in words if key == "trainer.deterministic"] == expected


@pytest.mark.parametrize("precision", ["bf16-true", "64-true"])
def test_losses_are_those_of_float32(run, precision):
    """Coarser only by the weights: in bf16-true sums are float32, and not a few digits."""
    settings = "budget.steps=2", "val_every_n_steps=2", "callbacks.samples=null"
    losses = []
    for other in ("32-true", precision):
        lines = history(run(f"trainer.precision={other}", *settings, folder=other))
        losses.append([line.get("train/loss", line.get("val/loss")) for line in lines])
    assert losses[1] == pytest.approx(losses[0], rel=2e-3 if precision == "bf16-true" else 1e-5)
    assert all(loss * 2**7 % 1 for loss in losses[1])  # not a number of bfloat16
