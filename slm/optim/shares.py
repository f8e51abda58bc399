"""Work on many matrices, divided among the processes of a training: each has all matrices, or some rows of each."""

import heapq
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

ROUND = 2**24  # numbers of whole matrices that a process gathers at a time


def shared(matrices: list[Tensor], work: Callable[[list[Tensor]], list[Tensor]], dtype: torch.dtype) -> list[Tensor]:
    """The results of `work`, in shape like the matrices and of `dtype`; each is made by one process.

    With several processes a collective: all must call it, with the same matrices.
    """
    world = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
    if world == 1:
        return work(matrices)
    owners = divided([newton_schulz_cost(*matrix.shape) for matrix in matrices], world)
    parts = [[matrix for matrix, owner in zip(matrices, owners) if owner == process] for process in range(world)]
    shapes = [[matrix.shape for matrix in part] for part in parts]
    own = matrices[0].new_zeros(max(map(_numbers, shapes)), dtype=dtype)
    for result, place in zip(work(parts[dist.get_rank()]), _pieces(own, shapes[dist.get_rank()])):
        place.copy_(result)
    every = [torch.empty_like(own) for _ in parts]
    dist.all_gather(every, own)
    results = [iter(_pieces(flat, its)) for flat, its in zip(every, shapes)]
    return [next(results[owner]) for owner in owners]


def shared_by_rows(
    matrices: Sequence[Tensor],
    costs: list[int],
    work: Callable[[list[int], list[Tensor]], list[Tensor]],
    dtype: torch.dtype,
) -> Iterator[tuple[int, Tensor]]:
    """Place, and this process's rows, of each result of `work`, for matrices whose rows are divided (DTensor).

    In rounds: each process gathers the next matrices of its share, at most ROUND numbers or one matrix, calls `work`
    with their places, and sends the rows of the results, in shape like the matrices and of `dtype`, to those that keep
    them. A collective.
    """
    mesh, own = matrices[0].device_mesh, [matrix.to_local() for matrix in matrices]
    group, rank, world = mesh.get_group(), mesh.get_local_rank(), mesh.size()
    for places in rounds(divided(costs, world), [matrix.numel() for matrix in matrices], world):
        shapes = [[_rows(matrices[place], process, world) for place in places[rank]] for process in range(world)]
        received = _exchanged([[own[place] for place in its] for its in places], shapes, own[0].new_empty(0), group)
        gathered = [torch.cat(rows) for rows in zip(*received)]
        del received
        results = [result.to(dtype) for result in work(places[rank], gathered)]
        del gathered
        rows = [result.split([count for count, _ in its]) for result, its in zip(results, zip(*shapes))]
        sent = [[parts[process] for parts in rows] for process in range(world)]
        kept = [[own[place].shape for place in its] for its in places]
        parts = _exchanged(sent, kept, own[0].new_empty(0, dtype=dtype), group)
        yield from ((place, part) for its, them in zip(places, parts) for place, part in zip(its, them))


def divided(costs: list[int], processes: int) -> list[int]:
    """For each piece of work the process that does it: the largest first, to the process with the least so far."""
    loads, owners = [(0, process) for process in range(processes)], [0] * len(costs)
    for place in sorted(range(len(costs)), key=lambda place: -costs[place]):
        load, owners[place] = heapq.heappop(loads)
        heapq.heappush(loads, (load + costs[place], owners[place]))
    return owners


def rounds(owners: list[int], sizes: list[int], processes: int) -> Iterator[list[list[int]]]:
    """The places that each process works on in a round: the next of its own, at most ROUND numbers or one place."""
    waiting = [[place for place, owner in enumerate(owners) if owner == process] for process in range(processes)]
    while any(waiting):
        counts = [max(1, sum(size <= ROUND for size in accumulate(sizes[p] for p in its))) for its in waiting]
        yield [its[:count] for its, count in zip(waiting, counts)]
        waiting = [its[count:] for its, count in zip(waiting, counts)]


def newton_schulz_cost(rows: int, columns: int) -> int:
    """Multiplications in an iteration on a matrix with rows <= columns."""
    return rows * rows * (2 * columns + rows)


def stacked_cost(rows: list[int], columns: int) -> int:
    """That of matrices with so many rows each, which are orthogonalised apart."""
    return sum(newton_schulz_cost(*sorted((count, columns))) for count in rows)


def _rows(matrix: Tensor, process: int, processes: int) -> tuple[int, int]:
    """The shape of a process's part of a matrix, as torch.chunk and FSDP2 divide its rows."""
    most = math.ceil(matrix.size(0) / processes)
    return max(0, min(most, matrix.size(0) - process * most)), matrix.size(1)


def _exchanged(sent: list[list[Tensor]], shapes: list[list], empty: Tensor, group: Any) -> list:
    """The tensors of the given shapes that each process has sent to this one, which sends a list to each. A collective.

    `empty` has the type and the device of all of them: a process may send none.
    """
    flat = torch.cat([empty, *(tensor.flatten() for to in sent for tensor in to)])
    lengths = [_numbers(its) for its in shapes]
    received = flat.new_empty(sum(lengths))
    dist.all_to_all_single(received, flat, lengths, [_numbers(t.shape for t in to) for to in sent], group=group)
    return [_pieces(part, its) for part, its in zip(received.split(lengths), shapes)]


def _numbers(shapes: Sequence) -> int:
    return sum(map(math.prod, shapes))


def _pieces(flat: Tensor, shapes: Sequence) -> list[Tensor]:
    """Views of a flat tensor, one after the other, in these shapes."""
    pieces = flat[: _numbers(shapes)].split([math.prod(shape) for shape in shapes])
    return [piece.view(shape) for piece, shape in zip(pieces, shapes)]


def is_divided(value: Any) -> bool:
    """True for a tensor that is divided among processes. There is none before its module, which is slow, is loaded."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(value, module.DTensor)


def own(tensor: Tensor) -> Tensor:
    """This process's rows of a tensor that is divided among processes; any other as it is."""
    return tensor.to_local() if is_divided(tensor) else tensor


def own_rows(matrix: Tensor, sizes: list[int]) -> list[int]:
    """Of matrices with so many rows each, stacked in a divided one: how many of its rows this process keeps."""
    rank, world = matrix.device_mesh.get_local_rank(), matrix.device_mesh.size()
    start = sum(_rows(matrix, process, world)[0] for process in range(rank))
    end = start + _rows(matrix, rank, world)[0]
    ends = list(accumulate(sizes))
    return [max(0, min(end, last) - max(start, last - size)) for last, size in zip(ends, sizes)]


def whole(tensor: Tensor) -> Tensor:
    """A tensor that is divided among processes, gathered; any other as it is. A collective."""
    return tensor.full_tensor() if is_divided(tensor) else tensor


def part_of(tensor: Tensor, parameter: Tensor) -> Tensor:
    """This process's part of a whole tensor, divided as the parameter."""
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor, parameter.device_mesh, parameter.placements, src_data_rank=None)
