"""What the devices of a run send to one another, and the models that they can train: for plan=true."""

from collections.abc import Sequence

import torch

from slm.estimate import weights
from slm.hardware import Hardware
from slm.optim.muon import Muon
from slm.optim.shares import divided, newton_schulz_cost
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
    shapes = [(rows, p.size(1)) for p, sizes in zip(matrices["params"], matrices["rows"]) for rows in sizes]
    sent = {**found.sent, "Muon's updates": updates(shapes, 2 if hardware.sixteen_bit else 4, devices)}
    if sharded:  # its matrices are gathered before
        whole = sum(rows * columns for rows, columns in shapes)
        sent["Muon's momenta"] = gathered(number_bytes(precision) * whole, devices)
    return Traffic(sent=sent, hops=found.hops + (devices - 1) * (1 + sharded * len(shapes)))


def updates(shapes: Sequence[tuple[int, int]], size: int, devices: int) -> int:
    """Bytes that each device sends so that all have every orthogonalised matrix, in numbers of `size` bytes: each makes
    a share of them (slm.optim.shares), and all shares are as long as the longest."""
    owners = divided([newton_schulz_cost(*sorted(shape)) for shape in shapes], devices)
    lengths = [0] * devices
    for (rows, columns), owner in zip(shapes, owners, strict=True):
        lengths[owner] += rows * columns
    return (devices - 1) * size * max(lengths)
