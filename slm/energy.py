"""Energy counters of devices: NVIDIA GPUs by NVML, CPU packages by RAPL, which Linux lets only root read by default.

A counter is that of a whole device, with the work of other programs on it, and excludes the rest of the machine.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

RAPL = Path("/sys/class/powercap")
Counter = tuple[Callable[[], float], float | None]  # joules so far, and where they start again from 0


class EnergyMeter:
    """Joules that the counters have counted since the meter was made; None without counters, or if one fails.

    A counter that starts again from 0 may do so once between two readings.
    """

    def __init__(self, counters: Sequence[Counter]):
        self.counters, self.total = counters, 0.0
        self.latest = self._read()

    def joules(self) -> float | None:
        now = self._read()
        if not now or not self.latest:
            return None
        for before, after, (_, limit) in zip(self.latest, now, self.counters, strict=True):
            self.total += after - before + (limit if limit and after < before else 0)
        self.latest = now
        return self.total

    def _read(self) -> list[float] | None:
        try:
            return [read() for read, _ in self.counters] or None
        except Exception:  # OSError of a file, NVMLError of a driver
            return None


def counters(device: torch.device, indices: Sequence[int]) -> list[Counter]:
    """Those of the GPUs with these indices for CUDA, of all CPU packages for a CPU; none if they cannot be read."""
    try:
        if device.type == "cuda":
            return [_gpu(index) for index in indices]
        packages = [path for path in sorted(RAPL.glob("intel-rapl:*")) if _is_package(path)]
        return [_package(path) for path in packages] if device.type == "cpu" else []
    except Exception:  # OSError of a file, NVMLError or ImportError of a driver
        return []


def _gpu(index: int) -> Counter:
    import pynvml

    pynvml.nvmlInit()
    handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(index).uuid}")
    pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)  # raises before Volta
    return lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1000, None


def _package(path: Path) -> Counter:
    return lambda: int((path / "energy_uj").read_text()) / 1e6, int((path / "max_energy_range_uj").read_text()) / 1e6


def _is_package(path: Path) -> bool:
    """False for the parts of a package (intel-rapl:0:0), and for the whole platform (psys), which contains it."""
    return path.name.count(":") == 1 and (path / "name").read_text().startswith("package")
