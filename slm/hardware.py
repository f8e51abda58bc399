"""What this machine can do: device, precision, microbatch, compilation, memory. No Lightning."""

import ctypes
import os
import platform
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch

from slm.errors import ResourceError, UserError
from slm.loss import cross_entropy
from slm.model import GPT, GPTConfig

MAX_BATCH_WINDOWS = 1_000_000
CPU_MICROBATCH = 8  # windows, at most, for the sake of memory
LAUNCHED = ("MASTER_ADDR", "SLURM_JOB_ID", "LSB_JOBID", "OMPI_COMM_WORLD_SIZE")  # what tells a node of the others
PRECISIONS = ("auto", "32-true", "bf16-mixed", "16-mixed", "bf16-true", "16-true", "64-true")


@dataclass(frozen=True)
class Hardware:
    """Settled facts: nothing is `auto` any more."""

    accelerator: str  # Lightning's word: cpu, gpu, mps
    devices: int  # in all, over all nodes
    precision: str  # Lightning's word: 32-true, bf16-mixed, 16-mixed, ...
    name: str  # of the device, for people

    @property
    def device(self) -> torch.device:
        return torch.device({"gpu": "cuda"}.get(self.accelerator, self.accelerator))

    @property
    def memory(self) -> int | None:
        """Bytes of all devices, None where the system does not say. A CPU has one memory however many processes."""
        if self.accelerator == "gpu":
            return torch.cuda.get_device_properties(0).total_memory * self.devices
        try:
            return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        except (AttributeError, OSError, ValueError):
            return None

    @property
    def sixteen_bit(self) -> bool:
        return "16" in self.precision


def settle(accelerator: str, devices: int | str, num_nodes: int, precision: str) -> Hardware:
    """Resolves `auto`. Raises UserError for what this machine cannot do."""
    if accelerator == "auto":
        accelerator = "gpu" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    accelerator = {"cuda": "gpu"}.get(accelerator, accelerator)
    if accelerator == "gpu" and not torch.cuda.is_available():
        raise UserError("this trainer needs a CUDA GPU and torch sees none here; use trainer=cpu or trainer=auto")
    if accelerator == "mps" and not torch.backends.mps.is_available():
        raise UserError("this trainer needs Apple's MPS and torch sees none here; use trainer=cpu or trainer=auto")
    if accelerator not in ("cpu", "gpu", "mps"):
        raise UserError(f"trainer.accelerator={accelerator} must be auto, cpu, gpu or mps")
    if precision not in PRECISIONS:
        raise UserError(f"trainer.precision={precision} is not one of {', '.join(PRECISIONS)}")
    if precision == "auto":
        precision = best_precision(accelerator)
    if accelerator == "cpu" and precision.startswith("16"):
        raise UserError(f"trainer.precision={precision} needs a GPU; on a CPU use bf16-mixed or 32-true")
    if not (devices in ("auto", -1, "-1") or (str(devices).isdigit() and int(devices) > 0)):
        raise UserError(f"trainer.devices={devices} must be at least 1, or auto")
    if num_nodes < 1:
        raise UserError(f"trainer.num_nodes={num_nodes} must be at least 1")
    if num_nodes > 1 and not any(name in os.environ for name in LAUNCHED):
        raise UserError(
            f"trainer.num_nodes={num_nodes} would wait for the others for ever; start it with torchrun or srun"
        )
    present = torch.cuda.device_count() if accelerator == "gpu" else 1
    count = present if devices in ("auto", -1, "-1") else int(devices)
    if accelerator == "gpu" and count > present:
        raise UserError(f"trainer.devices={count}, but this machine has {present} GPUs")
    name = torch.cuda.get_device_name() if accelerator == "gpu" else f"{accelerator} ({platform.machine()})"
    return Hardware(accelerator, count * num_nodes, precision, name)


def best_precision(accelerator: str) -> str:
    if accelerator == "gpu":
        return "bf16-mixed" if has_fast_bfloat16("cuda") else "16-mixed"
    return "bf16-mixed" if accelerator == "cpu" and has_fast_bfloat16("cpu") else "32-true"


def microbatch(asked: int | None, batch_windows: int, hardware: Hardware) -> int:
    """Windows per forward pass and device, such that whole microbatches make up the global batch."""
    if not 1 <= batch_windows <= MAX_BATCH_WINDOWS:
        raise UserError(f"data.batch_windows={batch_windows} must be at least 1, at most {MAX_BATCH_WINDOWS:,}")
    if batch_windows % hardware.devices:
        raise UserError(
            f"data.batch_windows={batch_windows} must be a multiple of the {hardware.devices} devices (trainer.devices)"
        )
    share = batch_windows // hardware.devices
    if asked is None:  # the largest divisor that fills the device and spares its memory
        return divisors(share, 32 if hardware.accelerator == "gpu" else CPU_MICROBATCH)[0]
    if asked < 1:
        raise UserError(f"trainer.microbatch={asked} must be at least 1")
    if share % asked:
        near = max(share // asked, 1) * asked * hardware.devices
        raise UserError(
            f"data.batch_windows={batch_windows} must be a multiple of trainer.microbatch={asked} x "
            f"{hardware.devices} devices; try data.batch_windows={near}"
        )
    return asked


def smaller(size: int, batch_windows: int, hardware: Hardware) -> int:
    """The next microbatch below `size` with which the global batch stays the same."""
    share = batch_windows // hardware.devices
    return divisors(share, max(size - 1, 1))[0]


def divisors(share: int, limit: int) -> list[int]:
    """The microbatches that make up a device's share of the batch, from at most `limit` windows down."""
    return [size for size in range(min(share, limit), 0, -1) if share % size == 0]


def keep_freed_memory():
    """Tells glibc not to hand freed tensors back to the kernel, and so not to fault every page of them in again.

    On Linux CPUs training of narrow models is otherwise mostly page faults. Does nothing where there is no glibc.
    """
    if platform.system() == "Linux" and platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        m_trim_threshold, m_mmap_max = -1, -4
        libc.mallopt(m_mmap_max, 0)
        libc.mallopt(m_trim_threshold, 2**31 - 1)


@cache
def has_fast_bfloat16(device: torch.device | str) -> bool:
    """Whether it multiplies bfloat16 matrices faster than float32 ones; some CPUs do it at a quarter of the speed."""
    kind = torch.device(device).type
    if kind == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    known = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return kind == "cpu" and any(getattr(torch.cpu, name, lambda: False)() for name in known)


def compiled(function: Callable, device: torch.device, *, lengths_vary: bool) -> Callable:
    """The function, to be compiled at its first call; itself, with a warning, where there is no compiler.

    What a process compiled before is forgotten, and lengths that vary are told at once: else torch would choose the
    kernels by what came first, and a run that goes on, or is one of a sweep, would differ in its last digits.
    """
    torch.compiler.reset()
    try:
        torch.compile(lambda x: x.sin() + 1)(torch.zeros(8, device=device))
    except Exception as error:  # of torch, Triton and the C++ compiler: they have no base in common
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        if not device.index:  # one process says it for all
            print(f"warning: torch.compile does not work here ({reason[:200]}); training without it", file=sys.stderr)
        return function
    return torch.compile(function, dynamic=True if lengths_vary else None)


AUTOCAST = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
SPARE = 3  # times the parameters, in their own type: two moments of AdamW, and room for what else there is


def is_out_of_memory(error: Exception) -> bool:
    """Of a GPU or of the machine: only some of its ways to say so have an exception of their own."""
    words = "out of memory", "can't allocate memory", "cublas_status_alloc_failed", "cannot allocate memory"
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(word in str(error).lower() for word in words)


def largest_microbatch(config: GPTConfig, share: int, hardware: Hardware) -> int:
    """The largest divisor of a device's `share` of windows that fits, beside gradients and the optimizer's state."""
    model = GPT(config).to(hardware.device)
    for size in divisors(share, share if hardware.accelerator == "gpu" else CPU_MICROBATCH):
        try:
            _train_once(model, size, hardware)
            return size
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        finally:
            model.zero_grad(set_to_none=True)
            if hardware.accelerator == "gpu":
                torch.cuda.empty_cache()
    raise ResourceError(
        f"not even one window of model.context={config.context} fits into the memory of {hardware.name}; use a smaller "
        "model.width or model.depth, or model.gradient_checkpointing=true"
    )


def _train_once(model: GPT, size: int, hardware: Hardware):
    spare = [torch.empty_like(p) for p in model.parameters() for _ in range(SPARE)]
    windows = torch.randint(model.config.vocab_size, (size, model.config.context + 1), device=hardware.device)
    dtype = AUTOCAST.get(hardware.precision)
    with torch.autocast(hardware.device.type, dtype=dtype, enabled=dtype is not None):
        features = model.features(windows[:, :-1])
        cross_entropy(features, model.head.weight, windows[:, 1:]).backward()
    del spare
