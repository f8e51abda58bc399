"""What the finished pairs of an ablation say: while it runs, and at its end."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from slm.analysis.comparison import checked_metric, compare, paired
from slm.analysis.comparison_page import answers, page, rounded, unit
from slm.analysis.groups import VARIANT, Group, read_groups
from slm.analysis.sequential import FUTILE, Look, looks
from slm.analysis.statistics import ALPHA, detectable
from slm.errors import UserError
from slm.files import sweep_folder
from slm.results import higher_is_better
from slm.tables import clock


def read_arms(folder: Path, names: Sequence[str]) -> tuple[dict[str, Group], list[str]]:
    """The groups with finished runs of a sweep folder by the name of their variant, in the order of `names`, and a
    line for each run that is left out of them."""
    try:
        found, left_out = read_groups([str(folder)])
    except UserError:
        return {}, []
    groups = {group.runs[0].settings.get(VARIANT): group for group in found}
    return {name: groups[name] for name in names if name in groups}, left_out


def newest_looks(
    folder: Path, names: Sequence[str], detect: float, *, most: int, seeds: int, metric: str | None
) -> tuple[dict[str, Look | None], str, float]:
    """The newest look at each variant's pairs, None before the first one; the metric; and the mean seconds of a pair.

    `names`: of the base and the variants; `most` and `seeds`: planned at most, and launched so far. The false alarm
    rate is divided by the number of variants.
    """
    arms, _ = read_arms(folder, names)
    if names[0] not in arms:
        raise UserError(f"no run of the base in {folder} is finished, so there is nothing to compare with")
    runs = [run for group in arms.values() for run in group.runs]
    metric = checked_metric(runs, metric)
    found: dict[str, Look | None] = {}
    for name in names[1:]:
        pairs = paired(arms[names[0]], arms[name], metric, best=False) if name in arms else {}
        differences = [difference for seed, difference in sorted(pairs.items()) if seed <= seeds]
        all_looks = looks(differences, detect, most=most, alpha=ALPHA / (len(names) - 1))
        found[name] = all_looks[-1] if all_looks else None
    return found, metric, 2 * float(np.mean([run.summary["seconds"] or 0 for run in runs]))


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
    return f"{so_far}; {needs}: {left} more, {clock(left * seconds)} of training"


ENDS = {
    "difference": "a difference",
    "none": "no difference",
    "futile": f"futile, since the rest of the seeds would find this size in less than {FUTILE * 100:.0f} % of cases",
}


def conclusion(
    folder: Path,
    names: Sequence[str],
    metric: str | None,
    detect: float | None,
    found: Mapping[str, Look | None],
) -> str:
    """The comparison of all finished runs; with `detect`, its sentences follow from the newest looks `found`.

    `names`: of the base and the variants. The sentences are kept in sweep.json for the report.
    """
    arms, left_out = read_arms(folder, names)
    missing = [f"left out: {reason}" for reason in left_out]
    missing += [f"{name}: no run is finished" for name in names if name not in arms]
    if len(arms) < 2 or names[0] not in arms:
        return "\n".join([*missing, "nothing to compare"])
    comparison = compare(list(arms.values()), metric=metric)
    lines = [*answers(comparison), *missing]
    if detect is not None:
        note = "the intervals and p hold for a number of seeds that was fixed before; by the rule for stopping early, "
        note += f"with {ALPHA * 100:.0f} % false alarms over {len(found)} variant(s):"
        known = [name for name in names[1:] if name in arms]
        lines = [note, *(verdict(name, found[name], detect, comparison.metric, names[0]) for name in known), *missing]
    with sweep_folder.changed(folder) as sweep:
        sweep.answers, sweep.metric = lines, comparison.metric
    return page(comparison, lines)


def verdict(name: str, look: Look | None, detect: float, metric: str, base: str) -> str:
    """The answer to whether a variant differs by at least `detect`."""
    if look is None:
        return f"{name}: too few seeds are finished for an answer"
    rule = f"|z| {abs(look.z):.2f}, bound {look.bound:.2f}"
    if look.verdict == "difference":
        better = (look.mean > 0) == higher_is_better(metric)
        size = f"{rounded(abs(look.mean), look.sd / np.sqrt(look.n))} {unit(metric)}"
        return f"{name} is {'better' if better else 'worse'} than {base} by about {size}, {look.n} seeds ({rule})"
    text = f"{name}: no difference from {base} seen with {look.n} seeds ({rule})"
    if look.verdict == "futile":
        return f"{text}; {ENDS['futile']} ({detect:g}, which needs about {look.needed} seeds)"
    if look.verdict is None or look.needed > look.n:
        within = detectable(look.sd, look.n)
        return f"{text}; so many find about {rounded(within, within)}, and {detect:g} needs about {look.needed}"
    return f"{text}, which would have shown {detect:g} in 80 % of cases"
