"""A comparison as text for a console."""

import math
from collections.abc import Sequence

import numpy as np

from slm.analysis.comparison import FACTS, Comparison, Versus
from slm.analysis.statistics import ALPHA
from slm.analysis.suggestion import command_with_seeds
from slm.analysis.wording import p_text, rounded, sentence, unit
from slm.tables import columns

WIDTH = 40  # characters of a name or value in a table


def page(comparison: Comparison, conclusions: Sequence[str] | None = None) -> str:
    """The comparison as text for a console. `conclusions` replace its sentences."""
    groups, which = comparison.groups, "best validation" if comparison.best else "last validation"
    head = f"{comparison.metric}, {which} of each run"
    names = [group.name for group in groups]
    lines = [head, *(f"warning: {warning}" for warning in comparison.warnings), ""]
    settings = [[key, *row] for key, row in comparison.settings.items()]
    lines += [columns([["configuration", *names], *settings], width=WIDTH), ""]
    counts = ["seeds", *(len(group.by_seed) for group in groups)]
    measured = [[name, *(cell(name, values) for values in row)] for name, row in comparison.values.items()]
    lines += [columns([["mean ± standard deviation", *names], counts, *measured], width=WIDTH), ""]
    for versus in comparison.versus:
        lines += [details(versus, comparison), ""]
    return "\n".join([*lines, *(answers(comparison) if conclusions is None else conclusions)])


def answers(comparison: Comparison) -> list[str]:
    """One sentence for each variant; and the command that would answer, where one seed cannot."""
    lines = [sentence(each, comparison) for each in comparison.versus]
    if any(math.isnan(versus.difference.p) for versus in comparison.versus):
        lines += ["with several seeds:", *(f"  {command}" for command in command_with_seeds(comparison.groups))]
    return lines


def details(versus: Versus, comparison: Comparison) -> str:
    """The numbers behind the sentence, in two or three lines."""
    d = versus.difference
    scale = (d.high - d.low) / 2
    title = f"{versus.name} - {versus.base}"
    if math.isnan(d.p):
        return f"{title}: {d.mean:+.4f} {unit(comparison.metric)}, one seed, no interval"
    pairs = f"{d.n} pairs (seed {', '.join(map(str, versus.seeds))})" if d.paired else "no common seed: Welch's test"
    interval = f"95 % interval [{rounded(d.low, scale)}, {rounded(d.high, scale)}]"
    tests = f"t-test {p_text(d.p)}"
    if d.paired:
        tests += f", sign-flip {p_text(d.p_signs)} (at best {d.p_signs_best:.2g} with {d.n})"
    if len(comparison.versus) > 1:
        tests += f", Holm {p_text(versus.p_holm)}"
    power = f"would find {rounded(d.detectable, d.detectable)} in 80 % of cases"
    first = f"{title}: {rounded(d.mean, scale)} {unit(comparison.metric)}, {interval}, {pairs}"
    shares = {"tokens": versus.steps_saved, "seconds": versus.seconds_saved}
    seen = d.p <= ALPHA  # else the better one is so by chance, for all that is known
    at = ", ".join(f"{1 - share:.1%} of the {name}" for name, share in shares.items() if share is not None and seen)
    busy = " (true if no run had to share its machine)" if versus.seconds_saved is not None else ""
    equal = f"\n  equal value: the better one needs {at}{busy}".replace("%", " %") if at else ""
    return f"{first}\n  {tests}; {power}{equal}"


def cell(name: str, values: list[float]) -> str:
    """Mean and standard deviation of the runs of one group."""
    mean, sd = float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    if name in FACTS:
        return f"{mean:,.0f}" if name != "flops" else f"{mean:.3g}"
    return f"{rounded(mean, sd)} ± {rounded(sd, sd)}" if sd else f"{mean:.4f}"
