"""What the finished pairs of an ablation say: while it runs, and at its end."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from slm.analysis.comparison import checked_metric, compare, paired, value_of
from slm.analysis.groups import VARIANT, Group, read_groups
from slm.analysis.page import page
from slm.analysis.sequential import FUTILE, Look, looks
from slm.analysis.statistics import ALPHA, detectable
from slm.analysis.wording import rounded, unit
from slm.errors import UserError


def read_arms(folder: Path, names: Sequence[str]) -> dict[str, Group]:
    """The groups of a sweep folder by the name of their variant, in the order of `names`."""
    found, _ = read_groups([str(folder)])
    groups = {group.runs[0].settings.get(VARIANT): group for group in found}
    return {name: groups[name] for name in names if name in groups}


def newest_looks(
    folder: Path, names: Sequence[str], detect: float, *, most: int, seeds: int, metric: str | None
) -> tuple[dict[str, Look | None], str]:
    """The newest look at each variant's pairs, None before the first one, and the metric.

    `names`: of the base and the variants; `most` and `seeds`: planned at most, and launched so far. The false alarm
    rate is divided by the number of variants.
    """
    arms = read_arms(folder, names)
    if names[0] not in arms:
        raise UserError(f"no run of the base in {folder} is finished, so nothing can be compared")
    metric = checked_metric([run for group in arms.values() for run in group.runs], metric)
    found: dict[str, Look | None] = {}
    for name in names[1:]:
        pairs = paired(arms[names[0]], arms[name], metric, value_of(best=False)) if name in arms else {}
        differences = [difference for seed, difference in sorted(pairs.items()) if seed <= seeds]
        all_looks = looks(differences, detect, most=most, alpha=ALPHA / (len(names) - 1))
        found[name] = all_looks[-1] if all_looks else None
    return found, metric


def progress(name: str, look: Look, detect: float, most: int, metric: str, seconds: float) -> str:
    """A line about a variant: the difference so far, the noise, and what the question still needs.

    `seconds`: of a pair of runs.
    """
    so_far = f"{name}: {rounded(look.mean, look.sd)} after {look.n} seeds, noise of a pair {rounded(look.sd, look.sd)}"
    if look.verdict:
        return f"{so_far}; ended: {ENDS[look.verdict]}"
    needs = f"detect={detect:g} needs about {look.needed} seeds"
    if look.needed > most:
        within = detectable(look.sd, most)
        return f"{so_far}; {needs}, and seeds={most}, which would find {rounded(within, within)} {unit(metric)}"
    left = look.needed - look.n
    return f"{so_far}; {needs}: {left} more, {minutes(left * seconds)} of training"


def seconds_of_a_pair(folder: Path) -> float:
    """Mean seconds of two finished runs of a sweep folder."""
    groups, _ = read_groups([str(folder)])
    seconds = [run.summary["seconds"] or 0 for group in groups for run in group.runs]
    return 2 * float(np.mean(seconds))


def minutes(seconds: float) -> str:
    return (
        f"{seconds:.0f} s"
        if seconds < 100
        else f"{seconds / 60:.0f} min"
        if seconds < 6000
        else f"{seconds / 3600:.1f} h"
    )


ENDS = {
    "difference": "a difference",
    "none": "all planned seeds without a difference",
    "futile": f"a difference of this size would be found with less than {FUTILE:.0%} by the rest".replace("%", " %"),
}


def conclusion(
    folder: Path,
    names: Sequence[str],
    metric: str | None,
    detect: float | None,
    found: Mapping[str, Look | None],
) -> str:
    """The comparison of all finished runs; with `detect`, its sentences follow from the looks."""
    arms = read_arms(folder, names)
    comparison = compare(list(arms.values()), metric=metric)
    if detect is None:
        return page(comparison)
    savings = {each.name: each for each in comparison.versus}
    lines = [
        verdict(name, look, detect, comparison.metric, len(found), names[0])
        for name, look in found.items()
        if name in savings
    ]
    note = "the intervals and p above are of a fixed number of seeds; the sentences hold for stopping early, too"
    return page(comparison, [note, *lines])


def verdict(name: str, look: Look | None, detect: float, metric: str, variants: int, base: str) -> str:
    """The answer to whether a variant differs by at least `detect`."""
    if look is None:
        return f"{name}: too few seeds finished for an answer"
    size = f"{rounded(abs(look.mean), look.sd / np.sqrt(look.n))} {unit(metric)}"
    rule = f"|z| {abs(look.z):.2f}, bound {look.bound:.2f} after {look.n} seeds"
    if look.verdict == "difference":
        better = (look.mean > 0) == metric.startswith("sample/")
        rate = f"false alarms 5 % in all{f', over {variants} variants' if variants > 1 else ''}"
        return f"{name} is {'better' if better else 'worse'} than {base} by about {size} ({rule}; {rate})"
    if look.verdict == "futile":
        return (
            f"{name}: stopped after {look.n} seeds: they make a difference of {detect:g} unlikely to be found ({rule})"
        )
    if look.verdict is None or look.needed > look.n:
        within = detectable(look.sd, look.n)
        return (
            f"{name}: no difference from {base} seen; {look.n} seeds find about {rounded(within, within)}, "
            f"and {detect:g} needs about {look.needed}"
        )
    return (
        f"{name}: no difference from {base} seen; {look.n} seeds would have shown {detect:g} in 80 % of cases ({rule})"
    )
