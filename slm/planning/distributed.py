"""A training on several devices before it runs: what each keeps of a sharded model, what it sends and for how long.

DDP keeps the whole model on each device and sums gradients. FSDP2 (slm/training/sharded.py) divides weights, gradients
and states among the devices, and gathers the weights of each block in the forward and again in the backward pass.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import ceil, log2

from slm.estimate import Weights, device_table

BUCKET = 25 * 2**20  # bytes of gradients that DDP sends together (torch's bucket_cap_mb)
TRUE = {"bf16-true": 2, "16-true": 2, "64-true": 8}  # bytes of a weight; 4 in any other precision


def number_bytes(precision: str) -> int:
    """Bytes of a weight and of its gradient."""
    return TRUE.get(precision, 4)


def sent_bytes(precision: str) -> int:
    """Bytes of a weight that FSDP2 gathers: bf16-mixed rounds it before."""
    return 2 if precision == "bf16-mixed" else number_bytes(precision)


def all_reduced(size: float, devices: int) -> float:
    """Bytes that each device of a ring sends to sum `size` bytes (nccl-tests, doc/PERFORMANCE.md)."""
    return 2 * (devices - 1) / devices * size


def gathered(size: float, devices: int) -> float:
    """Bytes that each device of a ring sends to gather, or to sum and divide, `size` bytes in all (as above)."""
    return (devices - 1) / devices * size


@dataclass(frozen=True, kw_only=True)
class Link:
    """A connection of conf/devices.yaml: between devices of a machine, or from one machine to the next."""

    name: str
    bandwidth: float  # bytes per second in one direction, as collectives reach it
    latency: float  # seconds from one device of a ring to the next


def links() -> Iterator[Link]:
    table = device_table()
    for name, (gigabytes, microseconds) in table["links"].items():
        yield Link(name=name, bandwidth=1e9 * gigabytes * table["link_utilisation"], latency=1e-6 * microseconds)


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """What each device sends in an optimizer step."""

    sent: Mapping[str, float]  # what -> bytes
    hops: int  # from device to device, one after the other, of all collectives

    def seconds(self, link: Link) -> float:
        """If all that the devices send goes over this link, and nothing is computed meanwhile."""
        return sum(self.sent.values()) / link.bandwidth + self.hops * link.latency


def ddp_traffic(its: Weights, precision: str, devices: int) -> Traffic:
    """Gradients are summed once a step, in buckets; each goes up a tree of the devices and down again."""
    size = number_bytes(precision) * its.trained
    hops = 2 * ceil(log2(devices)) * ceil(size / BUCKET)
    return Traffic(sent={"gradients": all_reduced(size, devices)}, hops=hops)


def fsdp_traffic(its: Weights, precision: str, devices: int, microbatches: int) -> Traffic:
    """In each microbatch: blocks are gathered twice, the weights outside of blocks once, all gradients summed once."""
    weight = gathered(sent_bytes(precision) * (2 * its.blocks + its.outside), devices)
    gradient = gathered(number_bytes(precision) * its.total, devices)
    sent = {"weights": microbatches * weight, "gradients": microbatches * gradient}
    return Traffic(sent=sent, hops=microbatches * (devices - 1) * (3 * its.depth + 2))


def sharded(moments: list[dict[str, float]], its: Weights, precision: str, devices: int) -> list[dict[str, float]]:
    """Bytes by part of one of `devices` that divide a model, from those of a device that holds all of it.

    `gathered`, at the end of the forward pass: the weights outside of blocks, a block, and the next one on its way. In
    the backward pass also the gradients of a block, once more as they are sent, and those outside of blocks.
    """
    sent, number = sent_bytes(precision), number_bytes(precision)
    forward = sent * (its.outside + 2 * its.block)
    in_blocks = forward + sent * (its.outside + its.block) + number * its.block
    at_its_end = (2 * sent + number) * its.outside
    found = []
    for moment, size in zip(moments, (forward, max(in_blocks, at_its_end)), strict=True):
        own = {part: moment[part] / devices for part in ("weights", "gradients", "optimizer")}
        found.append(moment | own | {"gathered": size})
    return found
