"""Comparisons of groups of runs with a baseline: what may be compared, the differences, and what they save."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from slm.analysis.groups import FinishedRun, Group, differing_settings
from slm.analysis.statistics import Difference, holm, paired_difference, unpaired_difference
from slm.errors import UserError
from slm.results import higher_is_better

UNITS = {
    "val/bits_per_byte": "bits per byte",
    "val/text_bits_per_byte": "bits per byte of text",
    "val/loss": "nats per token",
    "val/excess_bits_per_story": "bits per story",
}
BY_TOKEN = ("val/loss", "val/perplexity", "train/loss")  # their values depend on the tokenizer
SHOWN = ("val/bits_per_byte", "val/loss", "val/excess_bits_per_story")
FACTS = ("parameters", "tokens", "flops", "seconds", "energy_joules")
SAME_TEXT = ("data.validation_windows", "data.layout", "trainer.limit_val_batches")  # which validation text is read
MACHINE = ("device", "devices", "threads", "torch")  # without which seconds are not comparable


@dataclass(frozen=True)
class Versus:
    """One variant against the baseline."""

    name: str
    base: str
    difference: Difference
    p_holm: float  # of the t-test, corrected for all variants of the comparison
    seeds: list[int]  # that are paired; empty if none are shared
    steps_saved: float | None  # share, by the better one, at the final value of the worse one
    seconds_saved: float | None


@dataclass(frozen=True)
class Comparison:
    """Groups side by side; the first one is the baseline."""

    metric: str
    best: bool  # values are the best of all validations, not the last
    groups: list[Group]
    settings: dict[str, list[Any]]  # configuration keys that differ
    values: dict[str, list[list[float]]]  # metric or fact -> values of each group's runs
    versus: list[Versus]
    warnings: list[str]


def compare(groups: Sequence[Group], *, base: str | None = None, metric: str | None = None, best: bool = False):
    """The comparison of groups with the first one, or with the one named `base`.

    Raises UserError if there is one group only, or if the runs are not comparable.
    """
    groups = with_base_first(groups, base)
    runs = [run for group in groups for run in group.runs]
    check_text(groups)
    metric = checked_metric(runs, metric)
    same_tokenizer = have_one_tokenizer(runs)
    shown = [name for name in dict.fromkeys((metric, *SHOWN)) if everywhere(runs, name)]
    values = {
        name: [[run.value(name, best) for run in group.by_seed.values()] for group in groups]
        for name in shown
        if same_tokenizer or name not in BY_TOKEN
    }
    for fact in FACTS:
        if all(isinstance(run.summary[fact], int | float) for run in runs):
            values[fact] = [[float(run.summary[fact]) for run in group.by_seed.values()] for group in groups]
    versus = [against(groups[0], group, metric, best) for group in groups[1:]]
    corrected = holm([each.difference.p for each in versus])
    versus = [replace(each, p_holm=p) for each, p in zip(versus, corrected)]
    settings = differing_settings(groups)
    return Comparison(metric, best, groups, settings, values, versus, warnings(groups))


def have_one_tokenizer(runs: Sequence[FinishedRun]) -> bool:
    return len({run.info["tokenizer"] for run in runs}) == 1


def checked_metric(runs: Sequence[FinishedRun], metric: str | None) -> str:
    """The metric; bits per byte unless given, or nats where a tokenizer has none. Raises UserError if one lacks it."""
    one_tokenizer = have_one_tokenizer(runs)
    metric = metric or next((name for name in SHOWN[: 1 + one_tokenizer] if everywhere(runs, name)), SHOWN[0])
    if metric in BY_TOKEN and not one_tokenizer:
        raise UserError(f"{metric} depends on the tokenizer, and the runs have different ones; take {SHOWN[0]}")
    if lacking := next((run for run in runs if not run.series(metric)), None):
        known = ", ".join(sorted({name for run in runs for name in run.summary["metrics"]}))
        raise UserError(f"{lacking.folder} has no {metric}; these runs have {known}")
    if diverged := next((run for run in runs if not run.ends_finite(metric)), None):
        raise UserError(f"{diverged.folder} ends with a {metric} that is not finite; leave this run out")
    return metric


def with_base_first(groups: Sequence[Group], base: str | None) -> list[Group]:
    names = [group.name for group in groups]
    if len(groups) < 2:
        seeds = ", ".join(map(str, groups[0].by_seed))
        raise UserError(f"there is one configuration only (seed {seeds}), and nothing to compare it with; give another")
    if base is None:
        return list(groups)
    if base not in names:
        raise UserError(f"--base {base} is not one of {', '.join(names)}")
    return sorted(groups, key=lambda group: group.name != base)


def check_text(groups: Sequence[Group]):
    """Raises UserError if two groups were validated on different text."""
    first = groups[0]
    for group in groups[1:]:
        for key in SAME_TEXT:
            values = [each.runs[0].settings.get(key) for each in (first, group)]
            if values[0] != values[1]:
                shown = f"{key}={values[0]} and {values[1]}"
                raise UserError(
                    f"{first.name} and {group.name} were validated on different text ({shown}); train with one value"
                )
    corpora = {run.info["corpus"]: group.name for group in groups for run in group.runs}
    if len(corpora) > 1:
        one, other, *_ = corpora.values()
        raise UserError(
            f"{one} and {other} were validated on different text: their corpora differ; give both the same data "
            "(data.train_windows=<n> reads less of it in training)"
        )


def everywhere(runs: Sequence[FinishedRun], metric: str) -> bool:
    return all(run.series(metric) for run in runs)


def paired(base: Group, variant: Group, metric: str, best: bool) -> dict[int, float]:
    """Seed -> difference, for the seeds that both groups have."""
    seeds = [seed for seed in base.by_seed if seed in variant.by_seed]
    return {seed: variant.by_seed[seed].value(metric, best) - base.by_seed[seed].value(metric, best) for seed in seeds}


def against(base: Group, variant: Group, metric: str, best: bool) -> Versus:
    """The difference between two groups: by pairs of equal seed, or by Welch's test if no seed is shared."""
    pairs = paired(base, variant, metric, best)
    seeds = list(pairs)
    if seeds:
        difference = paired_difference(list(pairs.values()))
        arms = [[group.by_seed[seed] for seed in seeds] for group in (base, variant)]
    else:
        arms = [list(group.by_seed.values()) for group in (base, variant)]
        difference = unpaired_difference(*([run.value(metric, best) for run in runs] for runs in arms))
    steps, seconds = (None, None) if higher_is_better(metric) else saved(*arms, metric)
    return Versus(variant.name, base.name, difference, difference.p, seeds, steps, seconds)


def saved(
    base: Sequence[FinishedRun], variant: Sequence[FinishedRun], metric: str
) -> tuple[float | None, float | None]:
    """Shares of steps and seconds that the better group saves at the final value of the worse one.

    The mean curve over seeds is interpolated between validations. Steps count by their tokens, so that other batch
    sizes are comparable. None if the curves lack the points, and for the seconds of different machines.
    """
    curves = [mean_curve(runs, metric) for runs in (base, variant)]
    if any(len(steps) < 2 for steps, _ in curves):
        return None, None
    better, worse = sorted((0, 1), key=lambda arm: curves[arm][1][-1])
    steps, values = curves[better]
    reached = crossing(steps, values, curves[worse][1][-1])
    if reached is None:
        return None, None
    arms, shares = (base, variant), []
    for name in ("train/tokens", "seconds"):
        at, whole = mean_at(arms[better], name, reached), mean_at(arms[worse], name, curves[worse][0][-1])
        shares.append(1 - at / whole if at is not None and whole else None)
    return shares[0], None if differing_facts([*base, *variant], MACHINE) else shares[1]


def differing_facts(runs: Sequence[FinishedRun], keys: Sequence[str]) -> dict[str, str]:
    """Key of run.json -> its values, at most four, for the keys in which the runs differ."""
    found = {key: sorted({str(run.info.get(key)) for run in runs}) for key in keys}
    return {key: ", ".join(values[:4]) for key, values in found.items() if len(values) > 1}


def mean_curve(runs: Sequence[FinishedRun], metric: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps that all runs have, and the mean value at each."""
    series = [run.series(metric) for run in runs]
    steps = sorted(set.intersection(*map(set, series)))
    return np.array(steps), np.array([np.mean([each[step] for each in series]) for step in steps])


def crossing(steps: np.ndarray, values: np.ndarray, level: float) -> float | None:
    """The first step at which a curve is at most `level`, linear between its points; None at or before the first."""
    below = np.flatnonzero(values <= level)
    if not len(below) or below[0] == 0:
        return None
    i = int(below[0])
    return float(np.interp(-level, [-values[i - 1], -values[i]], [steps[i - 1], steps[i]]))


def mean_at(runs: Sequence[FinishedRun], name: str, step: float) -> float | None:
    """The mean over runs of a growing quantity at a step, linear between the lines of metrics.jsonl, from 0 on."""
    series = [run.series(name) for run in runs]
    if not all(series):
        return None
    return float(np.mean([np.interp(step, [0, *each], [0, *each.values()]) for each in series]))


def warnings(groups: Sequence[Group]) -> list[str]:
    """What makes the groups less comparable, one line each."""
    found, first = [], groups[0]
    runs = [run for group in groups for run in group.runs]
    for group in groups:
        if len(group.by_seed) < len(group.runs):
            found.append(f"{group.name} has several runs of one seed; the last folder by name counts")
    for group in groups[1:]:
        unpaired = sorted(first.by_seed.keys() ^ group.by_seed.keys())
        if unpaired:
            shared = first.by_seed.keys() & group.by_seed.keys()
            shown, result = ", ".join(map(str, unpaired)), "left out of the pairs" if shared else "there are no pairs"
            found.append(f"{group.name} and {first.name} do not share seed {shown}: {result}")
    tokens = [np.mean([run.summary["tokens"] or 0 for run in group.runs]) for group in groups]
    if max(tokens) > 1.001 * min(tokens):
        named = [(group.name, count) for group, count in zip(groups, tokens) if group is first or count != tokens[0]]
        shown = ", ".join(f"{name} {count:,.0f}" for name, count in named)
        found.append(f"the budgets differ, in tokens: {shown}")
    commits = {str(run.info["commits"][-1] or "unknown") for run in runs if run.info.get("commits")}
    if len(commits) > 1:
        found.append(f"the runs are of different code: {', '.join(sorted(commits)[:4])}")
    for key, values in differing_facts(runs, (*MACHINE, "precision", "compiled")).items():
        result = ", so seconds are not comparable" if key in MACHINE else ""
        found.append(f"the runs differ in {key} ({values}){result}")
    if all(run.settings.get("data.layout") == "packed" for run in runs):
        kinds = {(run.info["tokenizer"], run.settings.get("model.context")) for run in runs}
        if len(kinds) > 1 and first.runs[0].settings.get("data.validation_windows") is not None:
            found.append(
                "windows of another tokenizer or context hold other parts of the validation text; "
                "data.validation_windows=null reads all of it"
            )
    return found
