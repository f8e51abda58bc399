"""The answer of a comparison as one sentence, and numbers with as many digits as their uncertainty leaves."""

import math

from slm.analysis.comparison import UNITS, Comparison, Versus
from slm.analysis.statistics import ALPHA, Difference
from slm.results import higher_is_better


def unit(metric: str) -> str:
    return UNITS.get(metric, f"of {metric}")


def rounded(value: float, scale: float) -> str:
    """The value with two significant digits of `scale`, its uncertainty; at most eight decimals."""
    if not math.isfinite(value):
        return "-"
    digits = 4 if not (math.isfinite(scale) and scale) else min(max(1 - math.floor(math.log10(abs(scale))), 0), 8)
    return f"{value:.{digits}f}"


def p_text(p: float) -> str:
    return f"p = {p:.2g}" if p >= 0.001 else "p < 0.001"


def sentence(versus: Versus, comparison: Comparison) -> str:
    """What the comparison of one variant with its baseline shows, with interval, seeds, p and savings."""
    d, name, base, metric = versus.difference, versus.name, versus.base, comparison.metric
    if math.isnan(d.p):
        text = f"{name} differs from {base} by {d.mean:+.4f} {unit(metric)}, but one seed shows no noise"
        return f"{text}: the difference may be chance"
    scale = (d.high - d.low) / 2
    seeds = f"{d.n} seeds" if d.paired else f"{d.n} or more seeds each, unpaired"
    tests = p_signs(d) if d.paired else f"{p_text(d.p)} by Welch's test"
    if (variants := sum(not math.isnan(each.difference.p) for each in comparison.versus)) > 1:
        tests += f"; {p_text(versus.p_holm)} by the t-test after Holm's correction for {variants} variants"
    if d.low == d.mean == d.high == 0:
        return f"{name}: the same values as {base}, to the last digit, in all {d.n} seeds; the change has no effect"
    if d.p > ALPHA:
        shown = f"{rounded(d.mean, scale)} [{rounded(d.low, scale)}, {rounded(d.high, scale)}]"
        power = f"{d.n} seeds would have shown {rounded(d.detectable, d.detectable)}"
        return f"{name}: no difference from {base} seen ({shown} {unit(metric)}); {power}"
    better = (d.mean > 0) == higher_is_better(metric)
    low, high = sorted((abs(d.low), abs(d.high)))
    size = f"{rounded(abs(d.mean), scale)} {unit(metric)} [{rounded(low, scale)}, {rounded(high, scale)}]"
    verb = "is" if versus.p_holm <= ALPHA else "may be"
    text = f"{name} {verb} {'better' if better else 'worse'} than {base} by {size}, {seeds}, {tests}"
    return text + savings(versus, better)


def p_signs(d: Difference) -> str:
    at_best = f" at best with {d.n}" if math.isclose(d.p_signs, d.p_signs_best) else " by sign flips"
    return p_text(d.p_signs) + at_best


def savings(versus: Versus, better: bool) -> str:
    """'; about 9 % fewer steps': of the better one, up to the final value of the worse one.

    Without seconds, since other work on the machine may have slowed one of the two.
    """
    if versus.steps_saved is None:
        return ""
    whose = "" if better else f" for {versus.base}"
    return f"; about {versus.steps_saved:.0%} fewer steps{whose}".replace("%", " %")
