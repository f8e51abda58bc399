"""The section of a sweep's page on what its seeds answer: each group of runs against the first one, in pairs."""

from slm.analysis.comparison import Comparison, compare
from slm.analysis.comparison_page import SIDE_BY_SIDE, answers, own_settings, unit, with_interval
from slm.analysis.groups import read_groups
from slm.analysis.html import folded, paragraph, section, table
from slm.analysis.sweep import SEED, Sweep
from slm.errors import UserError

MAX_GROUPS = 9


def answers_section(sweep: Sweep) -> str:
    """The sentences of `python -m slm.compare`, or those that an ablation has kept, with their numbers.

    Empty without several seeds, and for a search: many groups, or three numbers of a key, which have an optimum.
    """
    search = len(sweep.cells) > MAX_GROUPS or any(len(sweep.levels(key)) > 2 for key in sweep.numeric)
    if (search and not sweep.answers) or SEED not in sweep.swept or sweep.seeds < 2 or len(sweep.cells) < 2:
        return ""
    try:
        groups, left_out = read_groups([str(sweep.folder)])
        comparison = compare(groups, metric=sweep.metric)
    except UserError as error:
        return section("Answers", paragraph(f"No comparison: {error}"))
    given = sweep.answers or [*answers(comparison), *(f"left out: {reason}" for reason in left_out)]
    lines = [*(f"warning: {warning}" for warning in comparison.warnings), *given]
    return section("Answers", *(paragraph(line) for line in lines), pairs_table(comparison), changes(comparison))


def pairs_table(comparison: Comparison) -> str:
    """The differences to the first group, with their interval and p."""
    rows = []
    for each in comparison.versus:
        d = each.difference
        tests = (float(f"{p:.2g}") for p in (d.p, each.p_holm, d.p_signs, d.detectable))
        rows.append((each.name, with_interval(d), d.n, *tests))
    heads = "", f"{unit(comparison.metric)} [95 % interval]", "seeds", "p", "p, Holm", "p, signs", "would find"
    return table(heads, rows) + paragraph(
        f"Difference to {comparison.groups[0].name} in the last validation of each run, in pairs of equal seed where "
        "they share seeds. p: of the t-test, after Holm's correction for all rows, and of the signs alone. Would find: "
        "the smallest difference that so many seeds find in 80 % of cases.",
        "quiet",
    )


def changes(comparison: Comparison) -> str:
    """The settings in which the groups differ."""
    names = [group.name for group in comparison.groups]
    if not comparison.settings:
        return ""
    if len(names) > SIDE_BY_SIDE:
        heads, rows = ["", "changes"], [list(pair) for pair in zip(names, own_settings(comparison))]
    else:
        heads, rows = ["", *names], [[key, *map(str, row)] for key, row in comparison.settings.items()]
    return folded("settings that differ", table(heads, rows))
