"""How many windows of each source come before a position of a mixture, by shares that may change on the way.

A source's windows are due at equal distances: its k-th (from 0) when its share of the positions adds up to k + 1/2. The
order has all windows by the time at which they are due. So the number of a source's windows before a position differs
from the sum of its share by less than the number of sources, and follows from the position alone.

Shapes: S sources, P phases, in each of which the shares are linear.
"""

import heapq
import itertools
import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

Knots = Sequence[tuple[float, Sequence[float]]]  # (position, the share of each source there), the first at 0


@dataclass(frozen=True)
class Phase:
    """Positions from `start` on, over which the share of source s is first[s] + slope[s] * (position - start)."""

    start: float
    counts: list[float]  # (S,) shares added up until the start
    first: list[float]
    slope: list[float]

    def count(self, source: int, position: float) -> float:
        """The share added up until a position."""
        after = position - self.start
        return self.counts[source] + after * (self.first[source] + self.slope[source] * after / 2)

    def reached(self, source: int, count: float) -> float:
        """The position at which the share adds up to `count`; infinite if it never does."""
        first, slope, missing = self.first[source], self.slope[source], count - self.counts[source]
        square = first * first + 2 * slope * missing
        if missing == math.inf or square < 0 or (root := first + math.sqrt(square)) <= 0:
            return math.inf
        return self.start + 2 * missing / root


class Quotas:
    """Shares of the windows, linear between knots and constant after the last.

    A source that has reached its limit, a number of windows, is left out, and the shares of the others grow in
    proportion. At position `end` no source is left that has a share; from there on the last ones go on without limit.
    """

    def __init__(self, knots: Knots, limits: Sequence[float]):
        self.limits = list(limits)
        self.phases, self.end = phases(knots, self.limits)
        if self.end < math.inf:
            self.limits = [math.inf if share else limit for share, limit in zip(self.phases[-1].first, limits)]
        self.starts = [phase.start for phase in self.phases]
        self.ends = [*self.starts[1:], math.inf]
        self.added = [[phase.counts[source] for phase in self.phases] for source in range(len(limits))]

    def due(self, source: int, count: int) -> float:
        """The time, as a position, at which the source's window number `count` is due; infinite if it never is."""
        wanted = count + 0.5
        if wanted > self.limits[source]:
            return math.inf
        number = bisect_left(self.added[source], wanted)  # of the phase after the one in which it is due
        return min(self.phases[number - 1].reached(source, wanted), self.ends[number - 1])

    def counts(self, position: int) -> list[int]:
        """The windows of each source (S,) before a position."""
        time = max(position - len(self.limits) / 2 - 1, 0.0)  # until it, at most `position` windows are due
        phase, counts = self.phases[bisect_right(self.starts, time) - 1], []
        for source in range(len(self.limits)):
            count = max(math.ceil(phase.count(source, time) - 0.5), 0)
            while self.due(source, count) < time:  # exact, whatever the rounding
                count += 1
            while count and self.due(source, count - 1) >= time:
                count -= 1
            counts.append(count)
        for source in itertools.islice(self.sources(tuple(counts)), position - sum(counts)):
            counts[source] += 1
        return counts

    def sources(self, counts: Sequence[int]) -> Iterator[int]:
        """The source of each position from the one on that has these `counts`, without end."""
        return (source for _, source in heapq.merge(*(self._times(s, count) for s, count in enumerate(counts))))

    def _times(self, source: int, first: int) -> Iterator[tuple[float, int]]:
        for count in itertools.count(first):
            if (time := self.due(source, count)) == math.inf:
                return
            yield time, source


def phases(knots: Knots, limits: Sequence[float]) -> tuple[list[Phase], float]:
    """The phases between knots and limits, and the position from which on no source with a share is below its limit."""
    found: list[Phase] = []
    time, counts, left = 0.0, [0.0] * len(limits), [limit > 0 for limit in limits]
    for (_, first), (end, last) in itertools.pairwise([*knots, (math.inf, knots[-1][1])]):
        first, last = list(first), list(last)
        while time < end:
            first, last = proportions(first, left), proportions(last, left)
            if not (any(first) or any(last)):  # the shares of the phase before go on
                shares = [a + b * (time - found[-1].start) for a, b in zip(found[-1].first, found[-1].slope)]
                return [*found, Phase(time, counts, shares, [0.0] * len(shares))], time
            first, last = (first, last) if any(first) and any(last) else [first if any(first) else last] * 2
            slope = [(b - a) / (end - time) if end < math.inf else 0.0 for a, b in zip(first, last)]
            found.append(phase := Phase(time, counts, first, slope))
            reached = [phase.reached(s, limit) if left[s] else math.inf for s, limit in enumerate(limits)]
            if (until := min(*reached, end)) == math.inf:
                return found, math.inf
            left = [flag and place > until for flag, place in zip(left, reached)]
            added = (min(phase.count(s, until), limit) for s, limit in enumerate(limits))
            counts = [limit if place <= until else count for limit, place, count in zip(limits, reached, added)]
            first, time = [a + b * (until - time) for a, b in zip(first, slope)], until
    raise AssertionError("the last phase has no end")


def proportions(values: Sequence[float], kept: Sequence[bool]) -> list[float]:
    """The values that are kept, to a sum of 1, if there are any above 0; the others are 0."""
    values = [max(value, 0.0) if flag else 0.0 for value, flag in zip(values, kept)]
    return [value / sum(values) for value in values] if sum(values) > 0 else values
