"""Learning-rate schedules: pure functions from optimizer steps to a multiplier of the peak learning rate.

All take the steps already done (0 at the first update) and the run's length, and warm up linearly over the first
`warmup_steps` updates, whose last one runs at the peak. Nothing is stored, so nothing is to be restored.
"""

import math
from collections.abc import Callable

from slm.errors import UserError

Schedule = Callable[[int], float]


def constant(steps: int, *, warmup_steps: int) -> Schedule:
    return _warmed_up(steps, warmup_steps, lambda step: 1.0)


def linear(steps: int, *, warmup_steps: int, final: float) -> Schedule:
    """Falls on a line to `final` (a share of the peak) at the last step."""
    _check_final(final)
    return _warmed_up(steps, warmup_steps, lambda step: 1 - (1 - final) * _progress(step, warmup_steps, steps))


def cosine(steps: int, *, warmup_steps: int, final: float) -> Schedule:
    """Half a cosine from the peak to `final` (arXiv:1608.03983, without restarts)."""
    _check_final(final)

    def decay(step: int) -> float:
        return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * _progress(step, warmup_steps, steps)))

    return _warmed_up(steps, warmup_steps, decay)


def warmup_stable_decay(steps: int, *, warmup_steps: int, decay_share: float, final: float) -> Schedule:
    """The peak, then a line to `final` over the last `decay_share` of all steps (arXiv:2404.06395)."""
    _check_final(final)
    if not 0 <= decay_share <= 1:
        raise UserError(f"schedule.decay_share={decay_share} must be between 0 and 1 (a share of all steps)")
    start = max(warmup_steps, round(steps * (1 - decay_share)))
    return _warmed_up(steps, warmup_steps, lambda step: 1 - (1 - final) * _progress(step, start, steps))


def inverse_sqrt(steps: int, *, warmup_steps: int) -> Schedule:
    """Falls as 1 / sqrt(step) after the warmup (arXiv:1706.03762)."""
    return _warmed_up(steps, warmup_steps, lambda step: math.sqrt(max(warmup_steps, 1) / max(step + 1, 1)))


def _warmed_up(steps: int, warmup_steps: int, after: Schedule) -> Schedule:
    if not 0 <= warmup_steps <= steps:
        raise UserError(
            f"schedule.warmup_steps={warmup_steps} must be between 0 and the run's {steps} steps; "
            f"try schedule.warmup_steps={max(steps // 50, 1)}"
        )
    return lambda step: (step + 1) / warmup_steps if step < warmup_steps else after(step)


def _check_final(final: float):
    if not 0 <= final < math.inf:
        raise UserError(f"schedule.final={final} must be at least 0 (a share of the peak)")


def _progress(step: int, start: int, end: int) -> float:
    """0 at `start`, 1 at `end`, constant outside."""
    return min(max((step - start) / max(end - start, 1), 0.0), 1.0)
