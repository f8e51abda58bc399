"""What the devices of a run send to one another, and the models that they can train: for plan=true."""

from collections.abc import Sequence

import torch

from slm.estimate import weights
from slm.hardware import Hardware
from slm.optim.muon import Muon
from slm.optim.shares import divided, newton_schulz_cost, rounds, stacked_cost
from slm.own_model import AnyConfig, build
from slm.planning.distributed import Traffic, ddp_traffic, fsdp_traffic, gathered, number_bytes
from slm.run.config import RunConfig
from slm.run.prepare import optimizer_of


def traffic_of(config: RunConfig, hardware: Hardware, microbatch: int, model: AnyConfig) -> Traffic:
    """What each of several devices sends in a step."""
    its, devices, precision = weights(model), hardware.devices, hardware.precision
    sharded = config.trainer.strategy == "fsdp"
    if sharded:
        found = fsdp_traffic(its, precision, devices, config.data.batch_windows // (devices * microbatch))
    else:
        found = ddp_traffic(its, precision, devices)
    if not isinstance(config.optimizer, Muon):
        return found
    with torch.device("meta"):
        matrices = optimizer_of(config, hardware)(build(model)).param_groups[0]
    size, stacks = 2 if hardware.sixteen_bit else 4, [*zip(matrices["rows"], (p.size(1) for p in matrices["params"]))]
    if not sharded:
        sent = {"Muon's updates": updates([(n, columns) for rows, columns in stacks for n in rows], size, devices)}
        return Traffic(sent=found.sent | sent, hops=found.hops + devices - 1)
    owners = divided([stacked_cost(*stack) for stack in stacks], devices)
    numbers = [sum(rows) * columns for rows, columns in stacks]
    sent = exchanged(numbers, owners, devices, number_bytes(precision), size)
    turns = [*rounds(owners, numbers, devices)]
    return Traffic(sent=found.sent | sent, hops=found.hops + 2 * (devices - 1) * len(turns))


def exchanged(numbers: list[int], owners: list[int], devices: int, size: int, result_size: int) -> dict[str, float]:
    """Bytes that a device sends at most, if each keeps its rows of every matrix: to the owners of the matrices, which
    orthogonalise them, and the rows of the results of its own to the others (slm.optim.shares)."""
    owned = [sum(n for n, owner in zip(numbers, owners) if owner == device) for device in range(devices)]
    updates = result_size * gathered(max(owned), devices)
    return {"Muon's momenta": size * (sum(numbers) - min(owned)) / devices, "Muon's updates": updates}


def updates(shapes: Sequence[tuple[int, int]], size: int, devices: int) -> int:
    """Bytes that each device sends so that all have every orthogonalised matrix, in numbers of `size` bytes: each makes
    a share of them (slm.optim.shares), and all shares are as long as the longest."""
    owners = divided([newton_schulz_cost(*sorted(shape)) for shape in shapes], devices)
    lengths = [0] * devices
    for (rows, columns), owner in zip(shapes, owners, strict=True):
        lengths[owner] += rows * columns
    return (devices - 1) * size * max(lengths)
