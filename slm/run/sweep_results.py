"""What a sweep has found: results.csv, a line per finished job, and the table at the end."""

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from slm.errors import UserError, printable
from slm.files import atomic, sweep_folder
from slm.files.sweep_folder import Sweep, SweepJob, short_keys
from slm.results import Run
from slm.tables import columns, comma_separated

NUMBERS = ("parameters", "tokens", "tokens_per_second", "seconds", "flops", "energy_joules")  # of Run.summary

DAMAGED = "run.json is damaged: the job stays done, and its numbers are left out"


def write_results(folder: Path):
    """Writes results.csv: a row per job, a column per swept key and result."""
    with sweep_folder.changed(folder) as sweep:
        rows = [row(folder, sweep, job) for job in sweep.jobs]
    metrics = sorted({name for line in rows for name in line if name.endswith((" final", " best", " best step"))})
    names = [*sweep.swept, "status", "objective", *metrics, *NUMBERS, "failure", "folder"]
    atomic.write_text(folder / "results.csv", comma_separated(rows, names))


def row(folder: Path, sweep: Sweep, job: SweepJob) -> dict[str, Any]:
    """A job's line of results.csv. Sets its `seconds`."""
    found = {**job.values, "status": job.status, "objective": job.objective, "failure": job.failure or ""}
    found["folder"] = job.folder
    try:
        summary = _summary(folder / job.folder, *_stamps(folder / job.folder))
    except UserError:  # no run was started, or run.json is damaged
        if job.status == "done":
            job.failure = found["failure"] = DAMAGED
        return found
    if job.failure == DAMAGED:
        job.failure, found["failure"] = None, ""
    job.seconds = summary["seconds"]
    for name, values in summary["metrics"].items():
        found |= {f"{name} {part.replace('_', ' ')}": value for part, value in values.items()}
    return found | {name: summary[name] for name in NUMBERS}


@cache
def _summary(folder: Path, *stamps: tuple[int, int] | None) -> dict[str, Any]:
    """The run in numbers, read once for each state of its files: a sweep asks for all jobs whenever one ends."""
    return Run(folder).summary


def _stamps(folder: Path) -> Iterator[tuple[int, int] | None]:
    """Size and time of the files that a summary is made of."""
    for name in ("run.json", "metrics.jsonl"):
        try:
            stat = (folder / name).stat()
            yield stat.st_size, stat.st_mtime_ns
        except OSError:
            yield None


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
    if job.failure:
        return f"{job.status}: {job.failure}"
    return "" if job.status == "done" else job.status


def table(folder: Path, sweep: Sweep) -> str:
    """The jobs sorted by objective, failed and unfinished ones last; then means over seeds, where some were swept; for
    learning rates and a second number the sentences about the transfer."""
    from slm.analysis import rate_transfer  # imports numpy and scipy
    from slm.analysis import sweep as analysis

    counts = Counter(job.failure for job in sweep.jobs if job.failure)
    shared = [failure for failure, count in counts.items() if count > 1]  # below the table, once
    jobs = sorted(sweep.jobs, key=lambda job: (job.objective is None, job.objective or 0))
    rows = [[*short_keys(sweep.swept).values(), sweep.objective, "seconds", ""]]
    for job in jobs:
        numbers = [form(job.objective, ".4f"), form(job.seconds, ".0f")]
        rows.append([*(job.values.get(key, "-") for key in sweep.swept), *numbers, state(job, shared)])
    notes = [f"({number}) {printable(failure, 500)}" for number, failure in enumerate(shared, 1)]
    means = seeds_table(analysis.Sweep(**{**vars(sweep), "jobs": jobs}, folder=folder))
    transfers = [found.sentence() for found in rate_transfer.transfers(analysis.typed(sweep, folder))]
    return "\n\n".join(filter(None, ("\n".join([columns(rows), *notes]), means, "\n".join(transfers))))


def seeds_table(sweep) -> str | None:
    """The means over seeds of a slm.analysis.sweep.Sweep, and their differences to the lowest; None without seeds."""
    if "seed" not in sweep.swept or sweep.noise is None:
        return None
    head = [*(sweep.short[key] for key in sweep.factors), sweep.objective, "seeds", "difference", "in standard errors"]
    cells, rows = [cell for cell in sweep.cells if cell.objectives], []
    for cell in cells:
        difference = form(cell.mean - cells[0].mean, ".4f"), form(sweep.in_errors(cell), ".1f")
        rows.append([*cell.values.values(), form(cell.mean, ".4f"), cell.count, *difference])
    rows[0][-2:] = "best", ""
    freedom = sum(len(cell.objectives) - 1 for cell in cells)
    noise = f"noise: a standard deviation of {sweep.noise:.4f} between seeds, with {freedom} degrees of freedom"
    return f"{columns([head, *rows])}\n{noise}"


def form(value: float | None, spec: str) -> str:
    return "-" if value is None else format(value, spec)


def facts(folder: Path) -> dict[str, Any]:
    """The jobs of a sweep folder, as in results.csv, for print=json."""
    found = sweep_folder.read(folder)
    jobs = [row(folder, found, job) for job in found.jobs] if found else []
    return {"folder": str(folder), "optimized_metric": found and found.objective, "jobs": jobs}
