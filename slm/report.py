"""Writes the report of a run or a sweep: report.html, one file without network, and PNGs in its folder report/.

python -m slm.report FOLDER ...   a run (also one that is running or was killed), a sweep, or a folder of runs
A run and a sweep write theirs at their end. For a run the command draws loss.png, too.
python -m slm.report RUN --zip FILE   the records of a run for a bug report or a teacher, without weights and secrets
"""

import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

from slm.errors import UserError, file_operation, one_line
from slm.files import atomic, json_line, run_folder
from slm.files.stdio import make_stdio_robust
from slm.security import for_others

AXES = "steps", "tokens", "flops", "seconds"  # of slm.analysis.curves, which imports numpy

RECORDS = "run.json", "config.yaml", "overrides.yaml", "metrics.jsonl", "samples.jsonl", "events.jsonl"


@json_line.command
def main():
    parser = json_line.Parser(prog="python -m slm.report", description=__doc__.partition("\n\n")[2])
    parser.add_argument("folder", nargs="+", type=run_folder.named, help="a run, a sweep, or a folder of runs")
    parser.add_argument("--x", choices=AXES, default="steps", help="horizontal axis of the curves (default: steps)")
    parser.add_argument("--zip", type=Path, metavar="FILE", help="write the records of one run into this file instead")
    arguments = parser.parse_args()
    folders, written = [atomic.expanded(folder) for folder in arguments.folder], []
    if arguments.zip:
        if len(folders) > 1:
            raise UserError(f"--zip={arguments.zip} is for one run, not {len(folders)}; give one folder")
        bundle(folders[0], arguments.zip)
        written, folders = [arguments.zip], []
        print(arguments.zip)
    for folder in folders[1:]:  # before the first one's report is written
        check(folder)
    for folder in folders:
        written.append(create(folder, arguments.x))
        print(written[-1])
        if (folder / "run.json").exists() and (picture := draw(folder, arguments.x)):
            written.append(picture)
            print(picture)
    json_line.note(files=[str(path) for path in written])


def check(folder: Path):
    """Raises UserError unless it is a run, a sweep or a folder of runs."""
    from slm.analysis import sweep

    require_folder(folder)
    (run_folder.require_run_json if (folder / "run.json").exists() else sweep.read)(folder)


def require_folder(folder: Path):
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; give a run, a sweep or a folder of runs")


def create(folder: Path, axis: str = "steps") -> Path:
    """Writes the report of a folder, with curves along this axis, and returns the path of report.html.

    Raises UserError, OSError.
    """
    from slm.analysis import run_page, sweep_page

    require_folder(folder)
    (run_page if (folder / "run.json").exists() else sweep_page).write(folder, axis)
    return folder / "report.html"


def draw(folder: Path, axis: str = "steps") -> Path | None:
    """loss.png of a run, along this axis; None without losses. Raises UserError if the axis was not recorded."""
    from slm.analysis import curves, figures, run_charts
    from slm.analysis.charts import along

    info = run_folder.require_run_json(folder) if axis == "flops" else {}
    charts = along(run_charts.loss_charts(curves.read(folder, info.get("flops_per_token"))), axis)
    if not charts:
        return None
    figures.save(folder / "loss.png", charts, folder.name)
    return folder / "loss.png"


def bundle(folder: Path, file: Path):
    """Zips the records of a run: text files alone, with ~ for the home folder and names for secrets of the environment.

    Raises UserError for a folder that is no run, and for a file that exists already.
    """
    run_folder.require_run_json(folder)
    if file.exists():
        raise UserError(f"--zip={file} exists already; give another name")
    with file_operation("write", file), zipfile.ZipFile(file, "x", zipfile.ZIP_DEFLATED) as archive:
        for name in RECORDS:
            if (folder / name).is_file():
                text = (folder / name).read_text(encoding="utf-8", errors="replace")
                archive.writestr(name, for_others(text))


def write(folder: Path) -> Path | None:
    """Like `create`, at the end of a run or a sweep: prints a warning instead of raising, and returns None."""
    return _attempted(create, folder, "report.html")


def loss_curve(folder: Path) -> Path | None:
    """Like `draw`, at the end of a run."""
    return _attempted(draw, folder, "loss.png")


def _attempted(make: Callable[[Path], Path | None], folder: Path, file: str) -> Path | None:
    try:
        return make(folder)
    except Exception as error:  # of a library or a disk: a run does not end with its report
        reason = one_line(f"{type(error).__name__}: {error}", 300)
        print(f"warning: {file} was not written ({reason})", file=sys.stderr)
        return None


if __name__ == "__main__":
    make_stdio_robust()
    main()
