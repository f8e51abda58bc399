"""Learning-rate schedules: pure functions from optimizer steps to a multiplier of the peak learning rate.

`step` counts the steps already done (0 at the first update), `steps` are those of the whole run. Nothing is stored, so
nothing must be restored. All warm up linearly over `warmup_steps` updates (None: `warmup_fraction` of all steps), the
last of which runs at the peak; without a warmup the first update does. A decay begins with the update after the peak
and ends at exactly `min_lr_ratio` with the last update. They raise UserError for an impossible setting.

`warmup_start`: the first update has this share of the peak, the peak is reached after the warmup and the end after the
last update, one step later than otherwise: the formula of torch's schedulers. `min_lr_clips`: the decay goes to 0, and
`min_lr_ratio` is the least value. `microbatches`: the unit of all lengths is a microbatch, of which a step has so many,
and an update has the value of its last one, as where a schedule moves with every microbatch.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from slm.errors import UserError

Schedule = Callable[[int, int], float]


@dataclass(frozen=True)
class Moment:
    """Where an update is in its run: all counts in updates, or in microbatches."""

    done: int  # up to this update; before it with `warmup_start`
    warmup: int
    steps: int
    rise: float  # value during the warmup, 1 after it
    first: int  # `done` at the first update

    def progress(self, start: int | None = None) -> float:
        """0 up to update number `start` (None: the end of the warmup), 1 from the last update on."""
        start = max(self.warmup if start is None else start, self.first)
        return min(max((self.done - start) / max(self.steps - start, 1), 0.0), 1.0)


def constant(
    step: int,
    steps: int,
    *,
    warmup_fraction: float,
    warmup_steps: int | None,
    warmup_start: float | None = None,
    microbatches: int = 1,
) -> float:
    """Stays at the peak."""
    return moment(step, steps, warmup_fraction, warmup_steps, warmup_start, microbatches).rise


def linear(
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
    """Falls on a line to `min_lr_ratio` (a share of the peak) at the last step."""
    now = moment(step, steps, warmup_fraction, warmup_steps, warmup_start, microbatches)
    return falling(now, now.progress(), min_lr_ratio, min_lr_clips)


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
    """Half a cosine from the peak to `min_lr_ratio` (arXiv:1608.03983, without restarts)."""
    now = moment(step, steps, warmup_fraction, warmup_steps, warmup_start, microbatches)
    return falling(now, 0.5 * (1 - math.cos(math.pi * now.progress())), min_lr_ratio, min_lr_clips)


def warmup_stable_decay(
    step: int,
    steps: int,
    *,
    warmup_fraction: float,
    warmup_steps: int | None,
    decay_fraction: float,
    min_lr_ratio: float,
    warmup_start: float | None = None,
    min_lr_clips: bool = False,
    microbatches: int = 1,
) -> float:
    """The peak, then a line to `min_lr_ratio` over the last `decay_fraction` of all steps (arXiv:2404.06395)."""
    if not 0 <= decay_fraction <= 1:
        raise UserError(f"schedule.decay_fraction={decay_fraction} must be between 0 and 1 (a share of all steps)")
    now = moment(step, steps, warmup_fraction, warmup_steps, warmup_start, microbatches)
    start = max(now.warmup, now.steps - round(now.steps * decay_fraction))
    return falling(now, now.progress(start), min_lr_ratio, min_lr_clips)


def inverse_sqrt(
    step: int,
    steps: int,
    *,
    warmup_fraction: float,
    warmup_steps: int | None,
    warmup_start: float | None = None,
    microbatches: int = 1,
) -> float:
    """Falls as 1 / sqrt(step) after the warmup (arXiv:1706.03762)."""
    now = moment(step, steps, warmup_fraction, warmup_steps, warmup_start, microbatches)
    return min(now.rise, math.sqrt(max(now.warmup, 1) / max(now.done, 1)))


def moment(
    step: int, steps: int, fraction: float, warmup_steps: int | None, start: float | None = None, microbatches: int = 1
) -> Moment:
    """Where update number `step` is; the settings are those of every schedule. Raises UserError."""
    if microbatches < 1:
        raise UserError(f"schedule.microbatches={microbatches} must be at least 1 (of a step)")
    if start is not None and not 0 <= start <= 1:
        raise UserError(f"schedule.warmup_start={start} must be between 0 and 1 (a share of the peak), or null")
    if not 0 <= fraction <= 1:
        raise UserError(f"schedule.warmup_fraction={fraction} must be between 0 and 1 (a share of all steps)")
    steps, first = steps * microbatches, int(start is None)
    warmup = round(fraction * steps) if warmup_steps is None else warmup_steps
    if not 0 <= warmup <= steps:
        raise UserError(
            f"schedule.warmup_steps={warmup} must be between 0 and the run's {steps} "
            f"{'steps' if microbatches == 1 else 'microbatches'}; try schedule.warmup_steps={max(steps // 50, 1)}"
        )
    done, low = (step + 1) * microbatches - 1 + first, start or 0.0
    rise = low + (1 - low) * done / warmup if done < warmup else 1.0
    return Moment(done, warmup, steps, rise, first)


def falling(now: Moment, fall: float, min_lr_ratio: float, clips: bool = False) -> float:
    """The warmup, then 1 down to `min_lr_ratio` (at a fall of 0 and 1). Raises UserError for an impossible ratio."""
    if not 0 <= min_lr_ratio < math.inf:
        raise UserError(f"schedule.min_lr_ratio={min_lr_ratio} must be at least 0 (a share of the peak)")
    if clips and min_lr_ratio > 1:
        raise UserError(f"schedule.min_lr_clips=true needs schedule.min_lr_ratio={min_lr_ratio} to be at most 1")
    if now.rise < 1:
        return now.rise
    return max(min_lr_ratio, 1 - fall) if clips else 1 - fall + min_lr_ratio * fall
