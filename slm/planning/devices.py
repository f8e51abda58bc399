"""Seconds and cost of a training on devices that conf/devices.yaml lists, and on this one."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from slm import system
from slm.estimate import device_peak, device_table, known_device
from slm.hardware import Hardware, is_here

SHOWN = ("T4", "L4", "RTX 3060", "RTX 3090", "RTX 4090", "RTX 5090", "A100", "H100", "H200")
SIXTEEN_BITS_GAIN = 2  # at most so many times float32's speed is counted on a CPU: more is peak, not training


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a training computes, apart from any device."""

    flops: float  # of training and validation; activations that are computed again are in it
    passes: float  # of a block, forward and backward, over all microbatches
    width: int
    steps: int


@dataclass(frozen=True, kw_only=True)
class Device:
    """A device as the plan sees it."""

    name: str
    flops: float | None  # per second at its peak; None: unknown
    memory: float | None  # bytes
    price_per_hour: float | None  # in the currency of conf/devices.yaml
    launches: tuple[float, float] = (0.0, 0.0)  # seconds that a pass and a step take at least
    full_width: int = 1  # of a model that reaches the whole utilisation

    def seconds(self, work: Work) -> float | None:
        """By the assumed utilisation, on a GPU less for a narrow model; at least the launches of its kernels. None if
        the peak is unknown."""
        if not self.flops:
            return None
        least = work.passes * self.launches[0] + work.steps * self.launches[1]
        reached = utilisation() * min(1, work.width / self.full_width)
        return max(work.flops / (self.flops * reached), least)

    def cost(self, seconds: float | None) -> float | None:
        return None if None in (seconds, self.price_per_hour) else seconds / 3600 * self.price_per_hour


def utilisation() -> float:
    return device_table()["utilisation"]


def known_devices(count: int = 1) -> Iterator[Device]:
    """Those of the table that a plan shows, in 16 bits, each `count` times."""
    table = device_table()
    for name in SHOWN:
        entry = table["devices"][name]
        yield Device(
            name=name if count == 1 else f"{count} x {name}",
            flops=1e12 * entry["peaks"][0] * count,
            memory=1e9 * entry["memory"],
            price_per_hour=entry["price_per_hour"] and entry["price_per_hour"] * count,
            launches=(table["block_seconds"] / count, table["step_seconds"]),
            full_width=table["full_width"],
        )


def this_device(hardware: Hardware, price_per_hour: float | None) -> Device:
    """The device of a run, or all of its devices together; the price is per device and by the table unless given."""
    cpu, count, table = hardware.accelerator == "cpu", hardware.devices, device_table()
    peak = device_peak(hardware.device, hardware.sixteen_bit)
    if cpu and hardware.sixteen_bit:
        peak = min(peak, SIXTEEN_BITS_GAIN * device_peak(hardware.device, sixteen_bit=False))
    here = is_here(hardware.accelerator)
    return Device(
        name=("this one, " if here else "") + hardware.name + (f" x {count}" if count > 1 and not cpu else ""),
        flops=peak and peak * (1 if cpu else count),
        memory=memory_of(hardware.device) if here else None,
        price_per_hour=price_of(hardware, price_per_hour),
        launches=(0.0, 0.0) if cpu else (table["block_seconds"] / count, table["step_seconds"]),
        full_width=1 if cpu else table["full_width"],
    )


def money(amount: float | None) -> str:
    """Two digits; never a price as nothing."""
    return "?" if amount is None else "<0.01" if 0 < amount < 0.005 else f"{amount:,.2f}"


def price_of(hardware: Hardware, given: float | None) -> float | None:
    """Per hour of all devices of a run: as given for the machine, or by the table; None if unknown."""
    if given is not None:
        return given
    price = (known_device(hardware.name) or {}).get("price_per_hour")
    return price and price * hardware.devices


def memory_of(device: torch.device) -> float:
    """Bytes of the device's memory; of the machine's for a CPU; for MPS, what of it Metal recommends to use."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return torch.mps.recommended_max_memory() if device.type == "mps" else system.total_memory()
