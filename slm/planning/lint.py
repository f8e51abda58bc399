"""What looks wrong before a training: a line for each, never an error.

Each function returns None or one sentence: what was given, what is usual and why, and the setting to change.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from slm.corpora import Split
from slm.data.order import total
from slm.data.store import TokenStore
from slm.data.windows import Documents, Windows
from slm.files import CONF
from slm.own_model import AnyConfig

TRIFLE = 0.05  # share of a split's tokens that may stay unread without a warning
MANY_EPOCHS = 4  # up to so many, repeated text is about as good as new text (arXiv:2305.16264)
FEW_STEPS = 200
SWEET_SPOT = 24_000, 300e6, 0.383  # tokens per step at so many tokens in all, and the power by which it grows
FAR_BATCH = 5  # times the sweet spot, or a share of it
FAR_RATE = 4
FEW_TOKENS_PER_ID = 100
SAMPLED = 200  # points of a schedule


def recipe(
    *,
    steps: int,
    windows_per_step: int,
    targets_per_window: float,
    windows: int,
    train_tokens: int,
    model: AnyConfig,
    schedule: Callable[[int, int], float],
    optimizer: Mapping[str, Any],
) -> list[str | None]:
    """The warnings about a run of so many steps on a train split of so many windows and tokens."""
    return [
        rising(schedule, steps),
        many_epochs(steps * windows_per_step / windows),
        few_steps(steps, steps * windows_per_step / windows),
        far_learning_rate(optimizer, getattr(model, "tuned_width", model.width)),
        far_batch(windows_per_step * targets_per_window, steps) if steps >= FEW_STEPS else None,
        large_vocabulary(model.vocab_size, train_tokens),
    ]


def rising(schedule: Callable[[int, int], float], steps: int) -> str | None:
    """A learning rate that ends above its peak, or that reaches the peak in the second half."""
    sampled = sorted({round(index * (steps - 1) / SAMPLED) for index in range(SAMPLED + 1)})
    values = [schedule(step, steps) for step in sampled]
    if values[-1] > 1 + 1e-9:
        return f"the learning rate rises to {values[-1]:.3g} times its peak; give schedule.min_lr_ratio below 1"
    highest = sampled[values.index(max(values))] + 1
    if highest > max(steps / 2, 2):
        return (
            f"the learning rate rises until step {highest:,} of {steps:,}; give fewer schedule.warmup_steps "
            f"({max(steps // 50, 1)} is usual)"
        )
    return None


def many_epochs(epochs: float) -> str | None:
    if epochs <= MANY_EPOCHS + 0.01:
        return None
    return (
        f"{epochs:.1f} epochs: after {MANY_EPOCHS}, repeated text teaches little (arXiv:2305.16264); give more "
        f"text, or budget.epochs={MANY_EPOCHS}"
    )


def few_steps(steps: int, epochs: float) -> str | None:
    """More steps are the remedy, unless the text is used up by then: smaller ones are."""
    if steps >= FEW_STEPS:
        return None
    used_up = epochs * FEW_STEPS / steps > MANY_EPOCHS
    fix = (
        "more of them would repeat the text, so give a smaller data.batch_windows"
        if used_up
        else f"give budget.steps={FEW_STEPS}"
    )
    return f"{steps} steps are few to learn from: less than about {FEW_STEPS} show only how training begins; {fix}"


def far_learning_rate(optimizer: Mapping[str, Any], width: int | None) -> str | None:
    """AdamW's best rate falls as 1 / width (the hidden matrices of muP, arXiv:2203.03466), Muon's stays."""
    presets = {name: _yaml(CONF / "optimizer" / f"{name}.yaml") for name in ("adamw", "muon")}
    name = next((name for name, preset in presets.items() if preset["_target_"] == optimizer.get("_target_")), None)
    given, rule = optimizer.get("lr"), ""
    if name is None or width is None or not isinstance(given, int | float):
        return None
    expected = presets[name]["lr"]
    if name == "adamw":
        expected, rule = expected * _yaml(CONF / "model" / "small.yaml")["width"] / width, " (1 / width)"
    if 1 / FAR_RATE <= given / expected <= FAR_RATE:
        return None
    factor = max(given / expected, expected / given)
    return (
        f"optimizer.lr={given:g} is {factor:.0f} times {'above' if given > expected else 'below'} that of "
        f"optimizer={name} at width {width}, {expected:.2g}{rule}; sweep it with -m optimizer.lr=..."
    )


def far_batch(tokens_per_step: float, steps: int) -> str | None:
    """16k to 33k tokens a step were best for 300M tokens and a model of 17M parameters; fewer for shorter runs."""
    best, at, power = SWEET_SPOT
    total = tokens_per_step * steps
    best *= (total / at) ** power
    if 1 / FAR_BATCH <= tokens_per_step / best <= FAR_BATCH:
        return None
    fix, best = "fewer" if tokens_per_step > best else "more", float(f"{best:.1e}")
    return (
        f"{tokens_per_step:,.0f} tokens per step are far from the {best:,.0f} that suit {total / 1e6:,.1f}M "
        f"tokens; give {fix} data.batch_windows"
    )


def large_vocabulary(vocab_size: int, train_tokens: int) -> str | None:
    if (mean := train_tokens / vocab_size) >= FEW_TOKENS_PER_ID:
        return None
    smaller = max(vocab_size // 2, 2)
    while smaller > 300 and train_tokens / smaller < FEW_TOKENS_PER_ID:
        smaller //= 2
    return (
        f"a vocabulary of {vocab_size:,} is large for {train_tokens:,} train tokens: an id occurs {mean:.0f} times on "
        f"average; give tokenizer.vocab_size={smaller}, or more text"
    )


def unread(
    store: TokenStore, split: Split, windows: Windows | Documents, targets: np.ndarray, order: str = "shuffle"
) -> str | None:
    """The share of a split's tokens outside the chosen windows, of which `targets` has the lengths, and the reasons."""
    share, reasons = 1 - total(targets) / store.tokens(split), []
    if windows.longest > windows.context:
        cut = int((windows.lengths > windows.context).sum())
        reasons.append(
            f"{cut:,} of {len(windows.lengths):,} documents are longer than model.context={windows.context} and are "
            f"cut (model.context={-(-windows.longest // 64) * 64} would cut none)"
        )
    if len(targets) < len(windows) and share > TRIFLE:
        cause = "data.order=sequential" if order == "sequential" else f"data.train_windows={len(targets)}"
        reasons.append(f"{cause} leaves out {len(windows) - len(targets):,} of {len(windows):,} windows")
    elif isinstance(windows, Windows) and share > TRIFLE:
        reasons.append(f"the last ones do not fill a window of model.context={windows.context}")
    return f"{percent(share)} of the {split} tokens are never read: {', and '.join(reasons)}" if reasons else None


def first_weights(where: str, given: Mapping[str, Any], steps: int) -> str | None:
    """The share of the first step's weights in an exponential moving average, with these settings, after the last."""
    settings = {name: value for name, value in given.items() if value is not None}
    decay, every = settings.get("decay", 0.999), max(settings.get("update_every_n_steps", 1), 1)
    updates = max((steps - settings.get("update_starting_at_step", 0)) // every, 1)
    if updates == 1 or (share := decay ** (updates - 1)) <= TRIFLE:
        return None
    return (
        f"{percent(share)} of the averaged weights are those of the first update, also after the last of {steps:,} "
        f"steps, and val/loss is theirs; give {where}.decay={max(0.5, 1 - 5 / updates):.4g}"
    )


def percent(share: float) -> str:
    """Three digits, also of a share that would round to zero."""
    return f"{100 * share:.3g} %"


def _yaml(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text(encoding="utf-8"))
