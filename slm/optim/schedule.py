"""Learning-rate schedules: pure functions from optimizer steps to a multiplier of the peak learning rate.

`step` counts the steps already done (0 at the first update), `steps` are those of the whole run. Nothing is stored, so
nothing must be restored. All warm up linearly over `warmup_steps` updates (None: `warmup_fraction` of all steps), the
last of which runs at the peak; without a warmup the first update does. A decay begins with the update after the peak
and ends at exactly `min_lr_ratio` with the last update. They raise UserError for an impossible setting.
"""

import math
from collections.abc import Callable

from slm.errors import UserError

Schedule = Callable[[int, int], float]


def constant(step: int, steps: int, *, warmup_fraction: float, warmup_steps: int | None) -> float:
    """Stays at the peak."""
    warmup = _warmup(steps, warmup_fraction, warmup_steps)
    return (step + 1) / warmup if step < warmup else 1.0


def linear(step: int, steps: int, *, warmup_fraction: float, warmup_steps: int | None, min_lr_ratio: float) -> float:
    """Falls on a line to `min_lr_ratio` (a share of the peak) at the last step."""
    _check_min(min_lr_ratio)
    warmup = _warmup(steps, warmup_fraction, warmup_steps)
    if step < warmup:
        return (step + 1) / warmup
    fall = _progress(step, warmup, steps)
    return 1 - fall + min_lr_ratio * fall


def cosine(
    step: int,
    steps: int,
    *,
    warmup_fraction: float,
    warmup_steps: int | None,
    min_lr_ratio: float,
    warmup_start: float | None = None,
    min_lr_clips: bool = False,
    microbatches: int = 1,
) -> float:
    """Half a cosine from the peak to `min_lr_ratio` (arXiv:1608.03983, without restarts).

    `warmup_start`: the first update has this share of the peak, the peak is reached after the warmup and the end after
    the last update, one step later than otherwise: the formula of torch's schedulers. `min_lr_clips`: the cosine falls
    to 0, and `min_lr_ratio` is the least value. `microbatches`: the unit of the warmup is a microbatch, of which a step
    has so many, and an update has the value of its last one, as where a schedule moves with every microbatch.
    """
    _check_min(min_lr_ratio)
    if microbatches < 1:
        raise UserError(f"schedule.microbatches={microbatches} must be at least 1 (of a step)")
    step, steps = (step + 1) * microbatches - 1, steps * microbatches
    warmup = _warmup(steps, warmup_fraction, warmup_steps)
    if warmup_start is None:
        rise, progress = (step + 1) / max(warmup, 1), _progress(step, warmup, steps)
    else:
        _check_start(warmup_start)
        rise = warmup_start + (1 - warmup_start) * step / max(warmup, 1)
        progress = min((step - warmup) / max(steps - warmup, 1), 1.0)
    if step < warmup:
        return rise
    fall = 0.5 * (1 - math.cos(math.pi * progress))
    return max(min_lr_ratio, 1 - fall) if min_lr_clips else 1 - fall + min_lr_ratio * fall


def warmup_stable_decay(
    step: int,
    steps: int,
    *,
    warmup_fraction: float,
    warmup_steps: int | None,
    decay_fraction: float,
    min_lr_ratio: float,
) -> float:
    """The peak, then a line to `min_lr_ratio` over the last `decay_fraction` of all steps (arXiv:2404.06395)."""
    _check_min(min_lr_ratio)
    if not 0 <= decay_fraction <= 1:
        raise UserError(f"schedule.decay_fraction={decay_fraction} must be between 0 and 1 (a share of all steps)")
    warmup = _warmup(steps, warmup_fraction, warmup_steps)
    if step < warmup:
        return (step + 1) / warmup
    fall = _progress(step, max(warmup, steps - round(steps * decay_fraction)), steps)
    return 1 - fall + min_lr_ratio * fall


def inverse_sqrt(step: int, steps: int, *, warmup_fraction: float, warmup_steps: int | None) -> float:
    """Falls as 1 / sqrt(step) after the warmup (arXiv:1706.03762)."""
    warmup = _warmup(steps, warmup_fraction, warmup_steps)
    if step < warmup:
        return (step + 1) / warmup
    return math.sqrt(max(warmup, 1) / max(step + 1, 1))


def _warmup(steps: int, fraction: float, given: int | None) -> int:
    """Updates of the warmup."""
    if not 0 <= fraction <= 1:
        raise UserError(f"schedule.warmup_fraction={fraction} must be between 0 and 1 (a share of all steps)")
    warmup = round(fraction * steps) if given is None else given
    if not 0 <= warmup <= steps:
        raise UserError(
            f"schedule.warmup_steps={warmup} must be between 0 and the run's {steps} steps; "
            f"try schedule.warmup_steps={max(steps // 50, 1)}"
        )
    return warmup


def _check_min(ratio: float):
    if not 0 <= ratio < math.inf:
        raise UserError(f"schedule.min_lr_ratio={ratio} must be at least 0 (a share of the peak)")


def _check_start(share: float):
    if not 0 <= share <= 1:
        raise UserError(f"schedule.warmup_start={share} must be between 0 and 1 (a share of the peak), or null")


def _progress(step: int, start: int, end: int) -> float:
    """0 up to update number `start` (counted from 1; at least the first), 1 from number `end` on."""
    start = max(start, 1)
    return min(max((step + 1 - start) / max(end - start, 1), 0.0), 1.0)
