"""Does the learning rate that is best at the smallest value of a second swept key fit its largest one?"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from slm.analysis.html import number
from slm.analysis.optimum import AT_THE_EDGE, Optimum
from slm.analysis.sweep import BESIDE_FAILURES, LEARNING_RATE, Cell, Sweep, line_optimum
from slm.security import is_number
from slm.tables import columns

NO_LOSS = 0.02  # regret as a share of the lowest objective up to which a rate fits
STANDARD_ERRORS = 2  # a regret below so many may be chance
COARSE = 0.1  # rise to the neighbours of an optimum from which on its interval comes with a warning


@dataclass(frozen=True)
class Transfer:
    """The best rates along a second key, in one panel of a sweep.

    regret: the objective at the largest value with the best rate on the grid of the smallest one, minus that with the
    best rate of its own; infinite where every such job has failed, None where it is not known.
    """

    panel: str
    key: str
    rate: str
    objective: str
    optima: list[tuple[float, Optimum]]  # value of the key, its best rate
    lowest: float
    regret: float | None
    error: float | None  # standard error of the regret; None without seeds

    @property
    def moves(self) -> float:
        """The best rate at the largest value, as a multiple of that at the smallest one."""
        return self.optima[-1][1].x / self.optima[0][1].x

    @property
    def fits(self) -> bool | None:
        """True if the rate transfers; None if the grid does not say, since an optimum may lie beyond it."""
        if self.regret is None or outside(self.optima[0][1]):
            return None
        if self.regret > max(STANDARD_ERRORS * (self.error or 0.0), NO_LOSS * abs(self.lowest)):
            return False
        return None if outside(self.optima[-1][1]) else True

    def sentence(self) -> str:
        """The best rates, how far they move, what the smallest one's costs the largest, and the verdict."""
        short, (small, *_, large) = self.key.rpartition(".")[2], (number(value) for value, _ in self.optima)
        places = ", ".join(f"{place(found)} at {short} {number(value)}" for value, found in self.optima)
        coarse = any(found.low is not None and found.rise > COARSE for _, found in self.optima)
        text = f"{self.panel}: " if self.panel else ""
        text += f"best {self.rate} {places}{' (the grid is coarse: intervals are too narrow)' if coarse else ''}; "
        at_least = " or more" if any(outside(self.optima[end][1]) for end in (0, -1)) else ""
        text += f"from {small} to {large} it moves by 2^{math.log2(self.moves):+.1f}{at_least}"
        if self.regret is not None:
            lost = f"loses {number(self.regret, 3)}" if math.isfinite(self.regret) else "fails"
            text += f", and {short} {large} with the rate of {small} {lost}"
        verdicts = {True: "the rate transfers", False: "the rate does not transfer", None: "no verdict, widen the grid"}
        return f"{text}: {verdicts[self.fits]}"

    def facts(self) -> dict[str, Any]:
        """The numbers, as plain types."""
        optima = [{self.key: value, **vars(found)} for value, found in self.optima]
        regret = self.regret if self.regret is None or math.isfinite(self.regret) else None
        return {"panel": self.panel, "rate": self.rate, "optima": optima, "regret": regret, "transfers": self.fits}


def outside(found: Optimum) -> bool:
    """True if the optimum may lie beyond the measured values."""
    return found.problem in (AT_THE_EDGE, BESIDE_FAILURES)


def place(found: Optimum) -> str:
    """A best rate with its interval, or with the reason why it has none."""
    if found.low is not None:
        return f"{found.x:.3g} [{found.low:.3g}, {found.high:.3g}]"
    return f"{found.x:.3g}{f' ({found.problem})' if outside(found) else ''}"


def transfers(sweep: Sweep) -> list[Transfer]:
    """One for each panel; empty for a sweep without three learning rates and a second number."""
    found = (transfer(name, panel) for name, panel in sweep.panels)
    return [each for each in found if each]


def transfer(name: str, panel: Sweep) -> Transfer | None:
    """The transfer within one panel; None if a value has no optimum, such as before its jobs have run."""
    if len(panel.numeric) != 2 or len(panel.factors) != 2 or not LEARNING_RATE.search(rate := panel.numeric[0]):
        return None
    key, lines = panel.numeric[1], [cells for _, cells in panel.lines(rate)]
    optima = [line_optimum(rate, cells, True) for cells in lines]
    if len(lines) < 2 or None in optima:
        return None
    small, large = ({cell.values[rate]: cell for cell in cells} for cells in (lines[0], lines[-1]))
    best, own = (min(cells.values(), key=lambda cell: cell.mean) for cells in (small, large))
    there = large.get(best.values[rate])
    regret = error = None
    if there is not None and (there.objectives or there.failed):
        regret = there.mean - own.mean
        error = standard_error(panel, there, own)
    sizes = [cells[0].values[key] for cells in lines]
    return Transfer(name, key, rate, panel.objective or "", list(zip(sizes, optima)), own.mean, regret, error)


def standard_error(panel: Sweep, one: Cell, other: Cell) -> float | None:
    """Of the difference of two means; None without seeds or objectives."""
    if not (panel.noise and one.objectives and other.objectives):
        return None
    return panel.noise * math.sqrt(1 / len(one.objectives) + 1 / len(other.objectives))


def table(sweep: Sweep) -> Iterator[str]:
    """For a console, per panel a line of means over the rates for each value of the second key, the lowest in []."""
    for name, panel in sweep.panels:
        if len(panel.numeric) != 2:
            continue
        rate, key = panel.numeric
        rows = [[f"{panel.short[key]} \\ {panel.short[rate]}", *map(number, panel.levels(rate))]]
        for _, cells in panel.lines(rate):
            means, lowest = {cell.values[rate]: cell for cell in cells}, min(cells, key=lambda cell: cell.mean)
            shown = (means.get(level) for level in panel.levels(rate))
            rows.append([number(cells[0].values[key]), *(mean(cell, cell is lowest) for cell in shown)])
        yield "\n".join(filter(None, (name, columns(rows, right=True))))


def mean(cell: Cell | None, lowest: bool) -> str:
    if cell is None or not is_number(cell.mean) or not math.isfinite(cell.mean):
        return "failed" if cell is not None and cell.failed else "-"
    return f"[{number(cell.mean)}]" if lowest else f"{number(cell.mean)} "
