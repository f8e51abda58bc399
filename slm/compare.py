"""Compares runs, with error bars where there are seeds.

python -m slm.compare A B ...   each a run folder, a sweep folder or a folder that holds runs; the first one is the base
python -m slm.compare SWEEP     the groups of a sweep, which are its swept values other than the seed
"""

import argparse
import csv
import io
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from slm.analysis.comparison import FACTS, Comparison, Versus, compare
from slm.analysis.groups import read_groups
from slm.analysis.suggestion import command_with_seeds
from slm.analysis.wording import p_text, rounded, sentence, unit
from slm.errors import explain, printable, report
from slm.files import atomic
from slm.files.stdio import make_stdio_robust

WIDTH = 24  # characters of a name or value in a table


def main() -> int:
    """Exit code: 0, 2 for runs that cannot be compared, 4 for unreadable files."""
    parser = argparse.ArgumentParser(prog="python -m slm.compare", description=__doc__.partition("\n\n")[2])
    parser.add_argument("folder", nargs="+", help="a run folder, a sweep folder, or a folder that holds runs")
    parser.add_argument("--base", metavar="NAME", help="the group to compare with; the first one unless given")
    parser.add_argument("--metric", help="val/bits_per_byte unless given, or val/loss, val/excess_bits_per_story, ...")
    parser.add_argument("--best", action="store_true", help="take the best validation of each run, not the last one")
    for kind in WRITERS:
        parser.add_argument(f"--{kind}", metavar="FILE", help=f"also write {kind.upper()} to this file; - for stdout")
    arguments = parser.parse_args()
    try:
        groups, left_out = read_groups(arguments.folder)
        for reason in left_out:
            print(printable(f"left out: {reason}", 1000), file=sys.stderr)
        comparison = compare(groups, base=arguments.base, metric=arguments.metric, best=arguments.best)
        chosen = {kind: file for kind in WRITERS if (file := getattr(arguments, kind))}
        if "-" not in chosen.values():
            print(printable(page(comparison)))
        for kind, file in chosen.items():
            text = WRITERS[kind](comparison)
            print(printable(text), end="") if file == "-" else atomic.write_text(Path(file), text)
    except Exception as error:
        if not (explanation := explain(error)):
            raise
        return report(explanation)
    return 0


def page(comparison: Comparison) -> str:
    """The comparison as text for a console."""
    groups, which = comparison.groups, "best validation" if comparison.best else "last validation"
    head = f"{comparison.metric}, {which} of each run"
    names = [group.name for group in groups]
    lines = [head, *(f"warning: {warning}" for warning in comparison.warnings), ""]
    settings = [[key, *map(str, row)] for key, row in comparison.settings.items()]
    lines += [*table(["configuration", *names], settings), ""]
    counts = [["seeds", *(str(len(group.by_seed)) for group in groups)]]
    measured = [[name, *(cell(name, values) for values in row)] for name, row in comparison.values.items()]
    lines += [*table(["mean ± standard deviation", *names], counts + measured), ""]
    for versus in comparison.versus:
        lines += [details(versus, comparison), ""]
    return "\n".join([*lines, *answers(comparison)])


def answers(comparison: Comparison) -> list[str]:
    """One sentence for each variant; and the command that would answer, where one seed cannot."""
    count = sum(not math.isnan(versus.difference.p) for versus in comparison.versus)
    lines = [
        sentence(each, comparison.metric, variants=count, higher_is_better=comparison.higher_is_better)
        for each in comparison.versus
    ]
    if any(math.isnan(versus.difference.p) for versus in comparison.versus):
        lines += ["with five seeds:", *(f"  {command}" for command in command_with_seeds(comparison.groups))]
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
    at = ", ".join(f"{1 - share:.1%} of the {name}" for name, share in shares.items() if share is not None)
    equal = f"\n  equal value: the better one needs {at}".replace("%", " %") if at else ""
    return f"{first}\n  {tests}; {power}{equal}"


def cell(name: str, values: list[float]) -> str:
    """Mean and standard deviation of the runs of one group."""
    mean, sd = float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    if name in FACTS:
        return f"{mean:,.0f}" if name != "flops" else f"{mean:.3g}"
    return f"{rounded(mean, sd)} ± {rounded(sd, sd)}" if sd else f"{mean:.4f}"


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    """Lines of a table whose columns are as wide as their content, cut to WIDTH."""
    rows = [[printable(" ".join(text.split()), 60 if i == 0 else WIDTH) for i, text in enumerate(row)] for row in rows]
    head = [head[0], *(printable(name, WIDTH) for name in head[1:])]
    widths = [max(map(len, column)) for column in zip(head, *rows)]
    return ["  ".join(text.ljust(width) for text, width in zip(row, widths)).rstrip() for row in (head, *rows)]


def records(comparison: Comparison) -> list[dict[str, Any]]:
    """One flat record for each group: its means and standard deviations, and its difference to the baseline."""
    rows = []
    versus = {each.name: each for each in comparison.versus}
    for index, group in enumerate(comparison.groups):
        row: dict[str, Any] = {"group": group.name, "seeds": len(group.by_seed)}
        for name, values in comparison.values.items():
            row[name] = float(np.mean(values[index]))
            if name not in FACTS:
                row[f"{name} sd"] = float(np.std(values[index], ddof=1)) if len(values[index]) > 1 else None
        if each := versus.get(group.name):
            found = {k: v for k, v in vars(each.difference).items() if k != "n"} | {"p_holm": each.p_holm}
            row |= {"pairs": len(each.seeds), "difference": found.pop("mean"), **found}
            row |= {"steps_saved": each.steps_saved, "seconds_saved": each.seconds_saved}
        rows.append({key: None if isinstance(v, float) and not math.isfinite(v) else v for key, v in row.items()})
    return rows


def as_csv(comparison: Comparison) -> str:
    rows, file = records(comparison), io.StringIO()
    writer = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def as_json(comparison: Comparison) -> str:
    names = [group.name for group in comparison.groups]
    content = {
        "metric": comparison.metric,
        "value": "best" if comparison.best else "last",
        "settings": {key: dict(zip(names, row)) for key, row in comparison.settings.items()},
        "groups": records(comparison),
        "runs": {group.name: [str(run.folder) for run in group.by_seed.values()] for group in comparison.groups},
        "warnings": comparison.warnings,
        "answers": answers(comparison),
    }
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def as_latex(comparison: Comparison) -> str:
    """A tabular of the groups: mean and standard deviation of the metrics, difference with interval, and p."""
    metrics = [name for name in comparison.values if name not in FACTS]
    versus = {each.name: each.difference for each in comparison.versus}
    rows = [["group", "seeds", *metrics, f"difference of {comparison.metric} [95 % interval]", "p (t-test)"]]
    for index, group in enumerate(comparison.groups):
        cells = [cell(name, comparison.values[name][index]) for name in metrics]
        d, shown, p = versus.get(group.name), "", ""
        if d:
            scale = (d.high - d.low) / 2
            shown = f"{rounded(d.mean, scale)} [{rounded(d.low, scale)}, {rounded(d.high, scale)}]"
            p = "" if math.isnan(d.p) else p_text(d.p).removeprefix("p ").removeprefix("= ")
        rows.append([group.name, str(len(group.by_seed)), *cells, shown, p])
    body = " \\\\\n".join(" & ".join(map(latex_text, row)) for row in rows)
    first, rest = body.split("\n", 1)
    return f"\\begin{{tabular}}{{l{'r' * (len(rows[0]) - 1)}}}\n{first}\n\\hline\n{rest} \\\\\n\\end{{tabular}}\n"


def latex_text(text: str) -> str:
    special = {"\\": r"\textbackslash{}", "±": r"$\pm$", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    special |= {character: f"\\{character}" for character in "&%$#_{}"} | {"<": "$<$", ">": "$>$", "-": "--"}
    return "".join(special.get(character, character) for character in text)


WRITERS: dict[str, Callable[[Comparison], str]] = {"csv": as_csv, "latex": as_latex, "json": as_json}


if __name__ == "__main__":
    make_stdio_robust()
    sys.exit(main())
