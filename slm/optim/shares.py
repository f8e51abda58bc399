"""Work on many matrices, divided among the processes of a training, which all hold the same matrices."""

import heapq
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor


def shared(matrices: list[Tensor], work: Callable[[list[Tensor]], list[Tensor]], dtype: torch.dtype) -> list[Tensor]:
    """The results of `work`, in shape like the matrices and of `dtype`; each is made by one process.

    With several processes a collective: all must call it, with the same matrices.
    """
    world = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
    if world == 1:
        return work(matrices)
    owners = divided([newton_schulz_cost(*matrix.shape) for matrix in matrices], world)
    parts = [[matrix for matrix, owner in zip(matrices, owners) if owner == process] for process in range(world)]
    lengths = [sum(matrix.numel() for matrix in part) for part in parts]
    own = matrices[0].new_zeros(max(lengths), dtype=dtype)
    for result, place in zip(work(parts[dist.get_rank()]), _pieces(own, parts[dist.get_rank()])):
        place.copy_(result)
    every = [torch.empty_like(own) for _ in parts]
    dist.all_gather(every, own)
    results = [iter(_pieces(flat, part)) for flat, part in zip(every, parts)]
    return [next(results[owner]) for owner in owners]


def divided(costs: list[int], processes: int) -> list[int]:
    """For each piece of work the process that does it: the largest first, to the process with the least so far."""
    loads, owners = [(0, process) for process in range(processes)], [0] * len(costs)
    for place in sorted(range(len(costs)), key=lambda place: -costs[place]):
        load, owners[place] = heapq.heappop(loads)
        heapq.heappush(loads, (load + costs[place], owners[place]))
    return owners


def newton_schulz_cost(rows: int, columns: int) -> int:
    """Multiplications in an iteration on a matrix with rows <= columns."""
    return rows * rows * (2 * columns + rows)


def _pieces(flat: Tensor, matrices: list[Tensor]) -> list[Tensor]:
    """Views of a flat tensor, one after the other, in the shapes of the matrices."""
    used = sum(matrix.numel() for matrix in matrices)
    pieces = flat[:used].split([matrix.numel() for matrix in matrices])
    return [piece.view(matrix.shape) for piece, matrix in zip(pieces, matrices)]


def whole(tensor: Tensor) -> Tensor:
    """A tensor that is divided among processes, gathered; any other as it is. A collective."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def part_of(tensor: Tensor, parameter: DTensor) -> DTensor:
    """This process's part of a whole tensor, divided as the parameter."""
    return distribute_tensor(tensor, parameter.device_mesh, parameter.placements, src_data_rank=None)
