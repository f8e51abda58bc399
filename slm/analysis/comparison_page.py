"""A comparison in words: its page for a console, its answers, and the command with seeds that would give one."""

import math
import shlex
from collections.abc import Sequence

import numpy as np

from slm.analysis.comparison import FACTS, UNITS, Comparison, Versus
from slm.analysis.groups import FinishedRun, Group
from slm.analysis.statistics import ALPHA, Difference
from slm.files import run_folder
from slm.results import higher_is_better
from slm.tables import columns

WIDTH = 40  # characters of a name or value in a table
SIDE_BY_SIDE = 6  # groups; more of them are a line each
SEEDS = (1, 2, 3, 4, 5)
LEFT_OUT = ("seed=", "run_dir=", "sweep_dir=", "resume=", "variant=", "hparams_search=")


def page(comparison: Comparison, conclusions: Sequence[str] | None = None) -> str:
    """The comparison as text for a console. `conclusions` replace its sentences."""
    groups, which = comparison.groups, "best validation" if comparison.best else "last validation"
    head = f"{comparison.metric}, {which} of each run"
    lines = [head, *(f"warning: {warning}" for warning in comparison.warnings), ""]
    tables = side_by_side(comparison) if len(groups) <= SIDE_BY_SIDE else [line_by_line(comparison)]
    for text in tables:
        lines += [text, ""]
    return "\n".join([*lines, *(answers(comparison) if conclusions is None else conclusions)])


def side_by_side(comparison: Comparison) -> list[str]:
    """A column for each group: its settings, its means; then the numbers of each difference."""
    names = [group.name for group in comparison.groups]
    settings = [[key, *row] for key, row in comparison.settings.items()]
    counts = ["seeds", *(len(group.by_seed) for group in comparison.groups)]
    measured = [[name, *(cell(name, values) for values in row)] for name, row in comparison.values.items()]
    return [
        columns([["configuration", *names], *settings], width=WIDTH),
        columns([["mean ± standard deviation", *names], counts, *measured], width=WIDTH),
        *(details(versus, comparison) for versus in comparison.versus),
    ]


def line_by_line(comparison: Comparison) -> str:
    """A line for each group: its mean, its difference, and what it changes."""
    metric, versus = comparison.metric, {each.name: each for each in comparison.versus}
    rows = [["", "seeds", "mean ± standard deviation", "difference [95 % interval]", "p", "p, Holm", "changes"]]
    for group, values, changes in zip(comparison.groups, comparison.values[metric], own_settings(comparison)):
        each = versus.get(group.name)
        tested = each is not None and not math.isnan(each.difference.p)
        shown = with_interval(each.difference) if tested else f"{each.difference.mean:+.4f}" if each else ""
        tests = [p_number(p) for p in (each.difference.p, each.p_holm)] if tested else ["", ""]
        rows.append([group.name, len(group.by_seed), cell(metric, values), shown, *tests, changes])
    return columns(rows, width=2 * WIDTH)


def own_settings(comparison: Comparison) -> list[str]:
    """Of each group the settings, among those that differ, that are not the baseline's, as key=value."""
    rows = comparison.settings.items()
    return [
        ", ".join(f"{key}={'null' if row[index] is None else row[index]}" for key, row in rows if row[index] != row[0])
        for index in range(len(comparison.groups))
    ]


def answers(comparison: Comparison) -> list[str]:
    """One sentence for each variant; and the command that would answer, where one seed cannot."""
    lines = [sentence(each, comparison) for each in comparison.versus]
    if any(math.isnan(versus.difference.p) for versus in comparison.versus):
        lines += ["with several seeds:", *(f"  {command}" for command in command_with_seeds(comparison.groups))]
    return lines


def details(versus: Versus, comparison: Comparison) -> str:
    """The numbers behind the sentence, in two or three lines."""
    d = versus.difference
    title = f"{versus.name} - {versus.base}"
    if math.isnan(d.p):
        return f"{title}: {d.mean:+.4f} {unit(comparison.metric)}, one seed, no interval"
    pairs = f"{d.n} pairs (seed {', '.join(map(str, versus.seeds))})" if d.paired else "no common seed: Welch's test"
    mean, interval = with_interval(d).split(" ", 1)
    tests = f"t-test {p_text(d.p)}"
    if d.paired:
        tests += f", sign-flip {p_text(d.p_signs)} (at best {d.p_signs_best:.2g} with {d.n})"
    if len(comparison.versus) > 1:
        tests += f", Holm {p_text(versus.p_holm)}"
    power = f"would find {rounded(d.detectable, d.detectable)} in 80 % of cases"
    first = f"{title}: {mean} {unit(comparison.metric)}, 95 % interval {interval}, {pairs}"
    shares = {"tokens": versus.steps_saved, "seconds": versus.seconds_saved}
    seen = d.p <= ALPHA  # else the better one is so by chance, for all that is known
    at = ", ".join(f"{1 - share:.1%} of the {name}" for name, share in shares.items() if share is not None and seen)
    busy = " (true if no run had to share its machine)" if versus.seconds_saved is not None else ""
    equal = f"\n  equal value: the better one needs {at}{busy}".replace("%", " %") if at else ""
    return f"{first}\n  {tests}; {power}{equal}"


def sentence(versus: Versus, comparison: Comparison) -> str:
    """What the comparison of one variant with its baseline shows, with interval, seeds, p and savings."""
    d, name, base, metric = versus.difference, versus.name, versus.base, comparison.metric
    if math.isnan(d.p):
        text = f"{name} differs from {base} by {d.mean:+.4f} {unit(metric)}, but one seed shows no noise"
        return f"{text}: the difference may be chance"
    if d.low == d.mean == d.high == 0:
        return f"{name}: the same values as {base}, to the last digit, in all {d.n} seeds; the change has no effect"
    if d.p > ALPHA:
        power = f"{d.n} seeds would have shown {rounded(d.detectable, d.detectable)}"
        return f"{name}: no difference from {base} seen ({with_interval(d)} {unit(metric)}); {power}"
    seeds = f"{d.n} seeds" if d.paired else f"{d.n} or more seeds each, unpaired"
    tests = p_signs(d) if d.paired else f"{p_text(d.p)} by Welch's test"
    if (variants := sum(not math.isnan(each.difference.p) for each in comparison.versus)) > 1:
        tests += f"; {p_text(versus.p_holm)} by the t-test after Holm's correction for {variants} variants"
    better = (d.mean > 0) == higher_is_better(metric)
    scale, (low, high) = (d.high - d.low) / 2, sorted((abs(d.low), abs(d.high)))
    size = f"{rounded(abs(d.mean), scale)} {unit(metric)} [{rounded(low, scale)}, {rounded(high, scale)}]"
    verb = "is" if versus.p_holm <= ALPHA else "may be"
    text = f"{name} {verb} {'better' if better else 'worse'} than {base} by {size}, {seeds}, {tests}"
    return text + savings(versus, better)


def savings(versus: Versus, better: bool) -> str:
    """'; about 9 % fewer steps': of the better one, up to the final value of the worse one.

    Without seconds, since other work on the machine may have slowed one of the two.
    """
    if versus.steps_saved is None:
        return ""
    whose = "" if better else f" for {versus.base}"
    return f"; about {versus.steps_saved:.0%} fewer steps{whose}".replace("%", " %")


def cell(name: str, values: list[float]) -> str:
    """Mean and standard deviation of the runs of one group."""
    mean, sd = float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    if name in FACTS:
        return f"{mean:,.0f}" if name != "flops" else f"{mean:.3g}"
    return f"{rounded(mean, sd)} ± {rounded(sd, sd)}" if sd else f"{mean:.4f}"


def unit(metric: str) -> str:
    return UNITS.get(metric, f"of {metric}")


def rounded(value: float, scale: float) -> str:
    """The value with two significant digits of `scale`, its uncertainty; at most eight decimals."""
    if not math.isfinite(value):
        return "-"
    digits = 4 if not (math.isfinite(scale) and scale) else min(max(1 - math.floor(math.log10(abs(scale))), 0), 8)
    return f"{value:.{digits}f}"


def with_interval(d: Difference) -> str:
    """'-0.021 [-0.034, -0.008]': mean and 95 % interval."""
    mean, low, high = (rounded(value, (d.high - d.low) / 2) for value in (d.mean, d.low, d.high))
    return f"{mean} [{low}, {high}]"


def p_text(p: float) -> str:
    return f"p = {p_number(p)}" if p >= 0.001 else f"p {p_number(p)}"


def p_number(p: float) -> str:
    return f"{p:.2g}" if p >= 0.001 else "< 0.001"


def p_signs(d: Difference) -> str:
    at_best = f" at best with {d.n}" if math.isclose(d.p_signs, d.p_signs_best) else " by sign flips"
    return p_text(d.p_signs) + at_best


def command_with_seeds(groups: Sequence[Group]) -> list[str]:
    """One command for groups of one run whose overrides differ in the value of one key, else one for each of them.

    The seeds are those of the groups that have several.
    """
    seeds = sorted({seed for group in groups if len(group.by_seed) > 1 for seed in group.by_seed}) or SEEDS
    groups = [group for group in groups if len(group.by_seed) == 1]
    typed = {group.name: overrides(group.runs[0]) for group in groups}
    different = {key for each in typed.values() for key in each if any(t.get(key) != each[key] for t in typed.values())}
    if len(different) == 1 and all(different <= each.keys() for each in typed.values()):
        (key,) = different
        each = next(iter(typed.values())) | {key: ",".join(dict.fromkeys(t[key] for t in typed.values()))}
        return [command(each, seeds)]
    return [f"{command(each, seeds)} sweep_dir=sweeps/{shlex.quote(name)}" for name, each in typed.items()]


def command(values: dict[str, str], seeds: Sequence[int]) -> str:
    words = [*(f"{key}={value}" for key, value in values.items()), f"seed={','.join(map(str, seeds))}"]
    return " ".join(["python train.py -m", *map(shlex.quote, words)])


def overrides(run: FinishedRun) -> dict[str, str]:
    """Key -> value of the overrides with which a run was started, without those that name it."""
    words = run_folder.overrides(run.folder) or []
    kept = [word for word in words if not word.startswith(LEFT_OUT) and not word.endswith("=null")]
    return dict(word.partition("=")[::2] for word in kept)
