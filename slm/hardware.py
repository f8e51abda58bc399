"""The machine: device, precision, processes, compilation, memory. No Lightning.

`auto` values of conf/trainer are resolved here.
"""

import ctypes
import os
import platform
import shutil
import sys
import warnings
from dataclasses import dataclass
from functools import cache

import torch

from slm import ranks, system
from slm.errors import ResourceError, UserError

LAUNCHER_VARIABLES = ("MASTER_ADDR", "SLURM_JOB_ID", "LSB_JOBID", "OMPI_COMM_WORLD_SIZE")  # of torchrun, srun, ...
AUTOMATIC = ("auto", -1, "-1")  # values of trainer.devices, as Lightning has them
PRECISIONS = ("auto", "32-true", "bf16-mixed", "16-mixed", "bf16-true", "16-true", "64-true")
SHORT_PRECISIONS = {"16": "16-mixed", "bf16": "bf16-mixed", "32": "32-true", "64": "64-true"}  # Lightning's
AUTOCAST = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


@dataclass(frozen=True)
class Hardware:
    """The devices of a run, with every `auto` resolved."""

    accelerator: str  # in Lightning's terms: cpu, gpu or mps
    devices: int  # over all nodes
    precision: str  # in Lightning's terms: 32-true, bf16-mixed, 16-mixed, ...
    name: str  # of the device, for people

    @property
    def device(self) -> torch.device:
        return torch.device({"gpu": "cuda"}.get(self.accelerator, self.accelerator))

    @property
    def sixteen_bit(self) -> bool:
        return "16" in self.precision


def resolve_hardware(
    accelerator: str, devices: int | str, num_nodes: int, precision: str | int, *, planned: bool = False
) -> Hardware:
    """Resolves `auto`. Raises UserError for a device, precision or count that this machine does not have; of a plan
    (`planned`) GPUs and nodes may be elsewhere."""
    if not (planned and accelerator in ("gpu", "cuda", "mps")):
        device = choose_device(accelerator, "trainer.accelerator")
        accelerator = {"cuda": "gpu"}.get(device.type, device.type)
    accelerator = {"cuda": "gpu"}.get(accelerator, accelerator)
    here = is_here(accelerator)
    precision = SHORT_PRECISIONS.get(str(precision), precision)
    if precision not in PRECISIONS:
        raise UserError(f"trainer.precision={precision} is not one of {', '.join(PRECISIONS)}")
    if precision == "auto":
        precision = best_precision(accelerator) if here or accelerator == "mps" else "bf16-mixed"
    if accelerator == "cpu" and precision.startswith("16"):
        raise UserError(f"trainer.precision={precision} needs a GPU; on a CPU use bf16-mixed or 32-true")
    if accelerator == "mps" and precision == "64-true":
        raise UserError("trainer.precision=64-true: Apple's MPS has no float64; use 32-true, or trainer=cpu")
    if accelerator == "mps" and here and "bf16" in precision and not torch.backends.mps.is_macos_or_newer(14, 0):
        raise UserError(f"trainer.precision={precision} needs macOS 14 or later; use 32-true or 16-mixed")
    count = count_devices(accelerator, devices, num_nodes, planned)
    name = f"{accelerator} ({platform.machine()})" if here else f"{accelerator} elsewhere"
    if accelerator == "gpu" and here:
        name = torch.cuda.get_device_name()
    return Hardware(accelerator, count, precision, name)


def is_here(accelerator: str) -> bool:
    """True if torch finds a device of this kind, in Lightning's terms; a plan may be for another machine."""
    return {"gpu": torch.cuda.is_available, "mps": torch.backends.mps.is_available}.get(accelerator, lambda: True)()


def choose_device(given: str, key: str) -> torch.device:
    """The device that a key names: auto is CUDA, else MPS, else the CPU. Raises UserError if torch does not find it,
    ResourceError if it does not work."""
    there = {"cuda": torch.cuda.is_available, "mps": torch.backends.mps.is_available, "cpu": lambda: True}
    name = {"gpu": "cuda"}.get(given, given)
    if name == "auto":
        name = next(kind for kind in there if there[kind]())
        if name == "cpu" and shutil.which("nvidia-smi"):
            print(f"note: this machine has NVIDIA's driver, but torch finds no GPU ({why_no_cuda()})", file=sys.stderr)
    if name not in there:
        raise UserError(f"{key}={given} must be auto, cuda, mps or cpu")
    group = key.partition(".")[0]
    remedy = f"use {group}=cpu"
    if not there[name]():
        needs, reason = ("a CUDA GPU", f" ({why_no_cuda()})") if name == "cuda" else ("Apple's MPS", "")
        raise UserError(f"{key}={given} needs {needs} and torch finds none; {remedy} or {group}=auto{reason}")
    if name == "cuda":
        try:
            with warnings.catch_warnings():  # of an old GPU; its first kernel fails
                warnings.simplefilter("ignore")
                torch.ones(1, device=f"cuda:{ranks.local_rank() % torch.cuda.device_count()}").add_(1).item()
        except RuntimeError as error:  # in use by another program, or one that this build of torch has no kernels for
            raise ResourceError(f"torch cannot use this GPU ({first_sentence(error)}); {remedy}") from None
    return torch.device(name)


def launched_processes(trainer) -> int:
    """How many processes torchrun or srun has started for a run with these settings of conf/trainer. It is 1 in a batch
    script of SLURM without srun, and in a step of SLURM whose processes have a device and a run each."""
    return 1 if is_single(trainer) and ranks.by_srun() else ranks.processes()


def is_single(trainer) -> bool:
    return trainer.devices == trainer.num_nodes == 1


def is_first_process(trainer) -> bool:
    """True in the one process of a distributed run, with these settings of conf/trainer, that prints and writes."""
    return is_single(trainer) or ranks.is_first()  # a single one whatever the environment contains


def first_sentence(error: Exception) -> str:
    return str(error).strip().partition("\n")[0].partition(". ")[0].rstrip(".")


def why_no_cuda() -> str:
    """Torch's reason: a build without CUDA, no driver or one too old, no GPU, or none in CUDA_VISIBLE_DEVICES."""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is a build without CUDA"
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return f"CUDA_VISIBLE_DEVICES={visible!r} names none that exists"
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        return first_sentence(error)
    return "no reason given"


def count_devices(accelerator: str, devices: int | str, num_nodes: int, planned: bool = False) -> int:
    """Devices over all nodes. Raises UserError for more than there are, or nodes that no launcher connects, unless
    they are only `planned`."""
    automatic = devices in AUTOMATIC
    if not (automatic or (str(devices).isdigit() and int(devices) > 0)):
        raise UserError(
            f"trainer.devices={devices} must be a number of devices, at least 1, or auto; CUDA_VISIBLE_DEVICES=... "
            "chooses among GPUs"
        )
    if num_nodes < 1:
        raise UserError(f"trainer.num_nodes={num_nodes} must be at least 1")
    if num_nodes > 1 and not planned and not any(name in os.environ for name in LAUNCHER_VARIABLES):
        raise UserError(f"trainer.num_nodes={num_nodes} would wait for the other nodes forever; use torchrun or srun")
    present = devices_here(accelerator)
    count = max(present, planned) if automatic else int(devices)
    if automatic and not planned and ranks.processes() not in (1, count * num_nodes):
        raise UserError(
            f"trainer.devices={devices} is {count} on this machine, and {ranks.processes()} processes were started on "
            f"{num_nodes} (trainer.num_nodes); give trainer.devices=<processes of each machine>"
        )
    if accelerator != "cpu" and not planned and count > present:
        raise UserError(f"trainer.devices={count}, but this machine has {present} GPU(s)")
    return count * num_nodes


def devices_here(accelerator: str) -> int:
    """What trainer.devices=auto means on this machine: all GPUs, or one CPU."""
    return torch.cuda.device_count() if accelerator in ("auto", "cuda", "gpu") else 1


def best_precision(accelerator: str) -> str:
    if accelerator == "gpu":
        return "bf16-mixed" if has_fast_bfloat16("cuda") else "16-mixed"
    return "bf16-mixed" if accelerator == "cpu" and has_fast_bfloat16("cpu") else "32-true"


@cache
def has_fast_bfloat16(device: torch.device | str) -> bool:
    """True if the device multiplies bfloat16 matrices faster than float32 ones; some CPUs are four times slower."""
    kind = torch.device(device).type
    if kind == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    known = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return kind == "cpu" and any(getattr(torch.cpu, name, lambda: False)() for name in known)


def is_x86() -> bool:
    """True for the CPUs on which oneDNN's kernels were measured (slm/generation/)."""
    return platform.machine() in ("x86_64", "AMD64")


def check_open_files(loaders: int):
    """Raises the limit of open files to what so many loader processes need. Raises ResourceError if it is too low.

    Without enough of them a loader process hangs, since its errors cannot reach the training process.
    """
    needed = 64 + 32 * loaders
    if loaders and (allowed := system.allow_open_files(needed)) < needed:
        raise ResourceError(
            f"this process may open {allowed} files, and {loaders} loader processes need {needed}; "
            f"raise the limit (ulimit -n {needed}), or give data.workers=0"
        )


def compiler_works(device: torch.device) -> bool:
    """True if torch.compile works here; prints a warning if not.

    Its cache is reset: torch would otherwise choose kernels by shapes that it has seen before, and a run of a sweep
    would differ in its last digits. Numbers of a model are constants: as inputs, which they become with lengths that
    vary, torch 2.13 cannot compile them within recomputed blocks.
    """
    torch.compiler.reset()
    torch._dynamo.config.specialize_float = True
    try:
        with warnings.catch_warnings():  # of torch's compiler about itself
            warnings.simplefilter("ignore")
            torch.compile(lambda x: x.sin() + 1)(torch.zeros(8, device=device))
    except Exception as error:  # torch, Triton and the C++ compiler have no common base class
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        if not device.index:  # one process prints it for all
            print(f"warning: torch.compile does not work here ({reason[:200]}); training without it", file=sys.stderr)
        return False
    return True


def compile_settings(dynamic_lengths: bool) -> dict[str, bool | None]:
    """Those of torch.compile for a training. Varying lengths are declared at once: otherwise the first shape would be
    compiled alone, and a resumed run, whose first one is another, would differ in its last digits."""
    return {"dynamic": dynamic_lengths or None}


def keep_freed_memory():
    """Tells glibc to keep freed tensors instead of returning their pages to the kernel.

    On Linux CPUs the training of narrow models otherwise spends most of its time on page faults. Without glibc: no-op.
    """
    if platform.system() == "Linux" and platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        m_trim_threshold, m_mmap_max = -1, -4
        libc.mallopt(m_mmap_max, 0)
        libc.mallopt(m_trim_threshold, 2**31 - 1)
