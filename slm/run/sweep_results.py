"""What a sweep has found: results.csv, a line per finished job, and the table at the end."""

import csv
import io
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean, variance
from typing import Any

from slm.errors import UserError, printable
from slm.files import atomic, sweep_folder
from slm.files.sweep_folder import Sweep, SweepJob, short_keys
from slm.results import Run

NUMBERS = ("parameters", "tokens", "tokens_per_second", "seconds", "flops", "energy_joules")  # of Run.summary


def write_results(folder: Path):
    """Writes results.csv: a row per job, a column per swept key and result."""
    with sweep_folder.changed(folder) as sweep:
        rows = [row(folder, sweep, job) for job in sweep.jobs]
    metrics = sorted({name for line in rows for name in line if name.endswith((" final", " best", " best step"))})
    columns = [*sweep.swept, "status", "objective", *metrics, *NUMBERS, "failure", "folder"]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    atomic.write_text(folder / "results.csv", text.getvalue())


def row(folder: Path, sweep: Sweep, job: SweepJob) -> dict[str, Any]:
    """A job's line of results.csv. Sets its `seconds`."""
    found = {**job.values, "status": job.status, "objective": job.objective, "failure": job.failure or ""}
    found["folder"] = job.folder
    try:
        summary = Run(folder / job.folder).summary()
    except UserError:  # no run was started, or run.json is damaged
        return found
    job.seconds = summary["seconds"]
    for name, values in summary["metrics"].items():
        found |= {f"{name} {part.replace('_', ' ')}": value for part, value in values.items()}
    return found | {name: summary[name] for name in NUMBERS}


def finished_line(sweep: Sweep, job: SweepJob, number: int) -> str:
    """The end of a job in one line."""
    values = " ".join(f"{key}={job.values.get(full, '-')}" for full, key in short_keys(sweep.swept).items())
    result = f"{sweep.objective} {job.objective:.4f}" if job.objective is not None else ""
    before = [other.failure for other in sweep.jobs[: number - 1]]
    same = f"{job.status} as [{before.index(job.failure) + 1}]" if job.failure and job.failure in before else state(job)
    return printable(f"[{number}/{len(sweep.jobs)}] {values}  {'  '.join(filter(None, (result, same)))}", 500)


def state(job: SweepJob, reasons: Sequence[str] = ()) -> str:
    """The status of a job that is not done, and its failure or its number, from 1, among `reasons`."""
    if job.failure in reasons:
        return f"{job.status} ({reasons.index(job.failure) + 1})"
    return "" if job.status == "done" else f"{job.status}: {job.failure}" if job.failure else job.status


def table(sweep: Sweep) -> str:
    """The jobs sorted by objective, failed and unfinished ones last; then means over seeds, where some were swept."""
    groups = by_seed(sweep)
    noise = pooled_deviation([[job.objective for job in jobs] for jobs in groups.values()])
    return plain_table(sweep) + ("" if noise is None else f"\n\n{seeds_table(sweep, groups, noise)}")


def plain_table(sweep: Sweep) -> str:
    short = short_keys(sweep.swept)
    counts = Counter(job.failure for job in sweep.jobs if job.failure)
    shared = [failure for failure, count in counts.items() if count > 1]  # below the table, once
    jobs = sorted(sweep.jobs, key=lambda job: (job.objective is None, job.objective or 0))
    rows = [
        [
            *(job.values.get(key, "-") for key in sweep.swept),
            "-" if job.objective is None else f"{job.objective:.4f}",
            "-" if job.seconds is None else f"{job.seconds:.0f}",
            state(job, shared),
        ]
        for job in jobs
    ]
    notes = [f"({number}) {printable(failure, 500)}" for number, failure in enumerate(shared, 1)]
    return "\n".join([aligned([*short.values(), str(sweep.objective), "seconds", ""], rows), *notes])


def seeds_table(sweep: Sweep, groups: dict[tuple[str, ...], list[SweepJob]], noise: float) -> str:
    """Means over seeds, and their differences to the lowest in standard errors of a difference."""
    keys = [key for key in sweep.swept if key != "seed"]
    means = sorted((fmean(job.objective for job in jobs), values) for values, jobs in groups.items())
    (best, best_values), rows = means[0], []
    for mean, values in means:
        error = noise * math.sqrt(1 / len(groups[values]) + 1 / len(groups[best_values]))
        in_errors = f"{(mean - best) / error:.1f}" if error else "-"
        rows.append([*values, f"{mean:.4f}", str(len(groups[values])), f"{mean - best:.4f}", in_errors])
    rows[0][-2:] = "best", ""
    names = [short_keys(sweep.swept)[key] for key in keys]
    text = aligned([*names, str(sweep.objective), "seeds", "difference", "in standard errors"], rows)
    freedom = sum(len(jobs) - 1 for jobs in groups.values())
    return f"{text}\nnoise: a standard deviation of {noise:.4f} between seeds, with {freedom} degrees of freedom"


def by_seed(sweep: Sweep) -> dict[tuple[str, ...], list[SweepJob]]:
    """The jobs with an objective, grouped by their swept values but for the seed."""
    groups: dict[tuple[str, ...], list[SweepJob]] = {}
    for job in sweep.jobs if "seed" in sweep.swept else ():
        if job.objective is not None:
            values = tuple(job.values.get(key, "-") for key in sweep.swept if key != "seed")
            groups.setdefault(values, []).append(job)
    return groups


def pooled_deviation(groups: Iterable[Sequence[float]]) -> float | None:
    """The standard deviation within groups, over all of them; None if none has two values."""
    several = [group for group in groups if len(group) > 1]
    freedom = sum(len(group) - 1 for group in several)
    return math.sqrt(sum((len(group) - 1) * variance(group) for group in several) / freedom) if freedom else None


def aligned(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [[printable(cell, 120) for cell in line] for line in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*lines)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines)
