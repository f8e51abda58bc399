"""Items of given lengths into as few bins as possible: documents into windows.

Shapes: D items, N bins.
"""

import numpy as np


def best_fit(lengths: np.ndarray, capacity: int) -> tuple[np.ndarray, np.ndarray]:
    """Packs items into bins, the longest first, each into the fullest bin that has room (arXiv:2404.10830).

    Lengths (D,) are from 1 to the capacity. Returns the items (D,) in the order of their bins, and the places in it at
    which the bins begin and the last one ends (N + 1,). Items of equal length are placed at once, so the time is of
    the order of D + capacity^2.
    """
    free: dict[int, list[np.ndarray]] = {}  # unused length -> bins
    bin_of, used = np.empty(len(lengths), dtype=np.int64), 0
    by_length = np.argsort(-lengths, kind="stable")
    for items in np.split(by_length, np.flatnonzero(np.diff(lengths[by_length])) + 1):
        length = int(lengths[items[0]])
        while len(items):
            room = min((space for space in free if space >= length), default=capacity)
            each = room // length  # a bin stays the fullest one with room until it has none
            wanted = -(-len(items) // each)
            if room in free:
                bins = np.concatenate(free.pop(room))
            else:
                bins, used = np.arange(used, used + wanted), used + wanted
            filled, rest = bins[:wanted], bins[wanted:]
            placed = np.repeat(filled, each)[: len(items)]
            bin_of[items[: len(placed)]], items = placed, items[len(placed) :]
            for left, those in ((room, rest), *_remaining(filled, room, length, placed)):
                if left and len(those):
                    free.setdefault(left, []).append(those)
    order = np.argsort(bin_of, kind="stable")
    return order, np.append(0, np.bincount(bin_of, minlength=used).cumsum())


def _remaining(bins: np.ndarray, room: int, length: int, placed: np.ndarray) -> list[tuple[int, np.ndarray]]:
    """The unused lengths of bins after items were placed: all bins have equally many, but for the last."""
    last = int((placed == bins[-1]).sum())
    each = room // length
    return [(room - each * length, bins[:-1]), (room - last * length, bins[-1:])]
