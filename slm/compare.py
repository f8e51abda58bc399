"""Compares runs, with error bars where there are seeds.

python -m slm.compare A B ...   each a run folder, a sweep folder or a folder that holds runs; the first one is the base
python -m slm.compare SWEEP     the groups of a sweep, which are its swept values other than the seed; for learning
                                rates and a second number: is the best rate of its smallest value best at its largest?
"""

import json
import math
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from slm.analysis.comparison import FACTS, Comparison, compare
from slm.analysis.comparison_page import answers, cell, p_number, page, with_interval
from slm.analysis.groups import read_groups
from slm.analysis.rate_transfer import Transfer, table, transfers
from slm.analysis.sweep import Sweep, read
from slm.errors import printable
from slm.files import atomic, json_line, run_folder
from slm.files.stdio import make_stdio_robust
from slm.tables import comma_separated


@json_line.command
def main():
    """Exit code: 0, 2 for runs that cannot be compared, 4 for unreadable files."""
    parser = json_line.Parser(prog="python -m slm.compare", description=__doc__.partition("\n\n")[2])
    help_of_folder = "a run folder, a sweep folder, or a folder that holds runs"
    parser.add_argument("folder", nargs="+", type=run_folder.named, help=help_of_folder)
    parser.add_argument("--base", metavar="NAME", help="the group to compare with; the first one unless given")
    parser.add_argument("--metric", help="val/bits_per_byte unless given, or val/loss, val/excess_bits_per_story, ...")
    parser.add_argument("--best", action="store_true", help="take the best validation of each run, not the last one")
    for kind in WRITERS:
        parser.add_argument(f"--{kind}", metavar="FILE", help=f"also write {kind.upper()} to this file; - for stdout")
    arguments = parser.parse_args()
    groups, left_out = read_groups(arguments.folder)
    for reason in left_out:
        print(printable(f"left out: {reason}", 1000), file=sys.stderr)
    comparison = compare(groups, base=arguments.base, metric=arguments.metric, best=arguments.best)
    chosen_comparison = len(arguments.folder) > 1 or arguments.base or arguments.metric or arguments.best
    sweep = None if chosen_comparison else of_sweep(atomic.expanded(arguments.folder[0]))
    rates = transfers(sweep) if sweep else []  # empty without learning rates and a second number
    json_line.note(**facts(comparison), **({"transfers": [each.facts() for each in rates]} if rates else {}))
    chosen = {kind: file for kind in WRITERS if (file := getattr(arguments, kind))}
    if "-" not in chosen.values():
        print(printable(rate_page(sweep, rates) if rates else page(comparison)))
    for kind, file in chosen.items():
        text = WRITERS[kind](comparison)
        print(printable(text), end="") if file == "-" else atomic.write_text(Path(file), text)


def of_sweep(folder: Path) -> Sweep | None:
    """The sweep of a folder that train.py -m has made."""
    return read(folder) if (folder / "sweep.json").exists() else None


def rate_page(sweep: Sweep, rates: list[Transfer]) -> str:
    """The objective at each learning rate, and how the best one moves along the second number."""
    head = f"{sweep.objective}{f', mean of {sweep.seeds} seeds' if sweep.seeds > 1 else ''}, [] the lowest of a line"
    return "\n\n".join([head, *table(sweep), "\n".join(each.sentence() for each in rates)])


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
    rows = records(comparison)
    return comma_separated(rows, list(dict.fromkeys(key for row in rows for key in row)))


def as_json(comparison: Comparison) -> str:
    return json.dumps(facts(comparison), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def facts(comparison: Comparison) -> dict[str, Any]:
    """The comparison in numbers, as plain types."""
    names = [group.name for group in comparison.groups]
    return {
        "metric": comparison.metric,
        "value": "best" if comparison.best else "last",
        "settings": {key: dict(zip(names, row)) for key, row in comparison.settings.items()},
        "groups": records(comparison),
        "runs": {group.name: [str(run.folder) for run in group.by_seed.values()] for group in comparison.groups},
        "warnings": comparison.warnings,
        "answers": answers(comparison),
    }


def as_latex(comparison: Comparison) -> str:
    """A tabular of the groups: mean and standard deviation of the metrics, difference with interval, and p."""
    metrics = [name for name in comparison.values if name not in FACTS]
    versus = {each.name: each.difference for each in comparison.versus}
    rows = [["group", "seeds", *metrics, f"difference of {comparison.metric} [95 % interval]", "p (t-test)"]]
    for index, group in enumerate(comparison.groups):
        cells = [cell(name, comparison.values[name][index]) for name in metrics]
        d, shown, p = versus.get(group.name), "", ""
        if d:
            shown = with_interval(d)
            p = "" if math.isnan(d.p) else p_number(d.p)
        rows.append([group.name, str(len(group.by_seed)), *cells, shown, p])
    body = " \\\\\n".join(" & ".join(map(latex_text, row)) for row in rows)
    first, rest = body.split("\n", 1)
    return f"\\begin{{tabular}}{{l{'r' * (len(rows[0]) - 1)}}}\n{first}\n\\hline\n{rest} \\\\\n\\end{{tabular}}\n"


def latex_text(text: str) -> str:
    special = {"\\": r"\textbackslash{}", "±": r"$\pm$", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    special |= {character: f"\\{character}" for character in "&%$#_{}"} | {"<": "$<$", ">": "$>$"}
    return re.sub(r"-(?=\d)", "$-$", "".join(special.get(character, character) for character in text))


WRITERS: dict[str, Callable[[Comparison], str]] = {"csv": as_csv, "latex": as_latex, "json": as_json}


if __name__ == "__main__":
    make_stdio_robust()
    sys.exit(main())
