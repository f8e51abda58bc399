"""Writes a trained model in the files of another program.

python -m slm.export RUN FOLDER [format=hf] [key=value ...]

RUN is a run folder (its best checkpoint, else its newest), a .ckpt file, latest, last or best. FOLDER is new: it is
complete or absent. The formats and their options are in docs/export.md. push=user/name uploads it to the Hugging Face
Hub, into a private repository unless public=true, and into the branch revision=NAME. revisions=true writes
FOLDER/main, and FOLDER/chck_1M, ... of the checkpoints that callbacks.checkpoints.keep_at has kept by words.
"""

import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from slm import system
from slm.classes import given
from slm.errors import UserError, file_operation, printable
from slm.export import export_of, hub
from slm.files import atomic, json_line, kept, run_folder
from slm.files.stdio import make_stdio_robust
from slm.generation.language_model import load
from slm.run.words import divided, values_of
from slm.transfer import standardized


@dataclass(frozen=True, kw_only=True)
class Request:
    """The settings that every format has. Raises: UserError: for a push that cannot succeed."""

    format: str = "hf"
    runs_dir: str = "runs"
    tokenizer_class: str | None = None
    model_class: str | None = None
    push: str | None = None  # user/name of a repository of the Hugging Face Hub
    public: bool = False  # a repository that push makes
    revision: str | None = None  # its branch
    revisions: bool = False  # all checkpoints by words, in folders and branches of their own

    def __post_init__(self):
        if self.push is not None:
            hub.check(self.push, self.revision)
        elif self.public or self.revision:
            raise UserError("public and revision belong to push=user/name")
        if self.revisions and self.revision:
            raise UserError("revisions=true names the branches; leave out revision")


@json_line.command
def main() -> int:
    """Exit code: 0, or 2 or 4 for a mistake or a limit of the machine."""
    words = sys.argv[1:]
    if json_line.shows_help(words or ["--help"], __doc__):
        return 0
    places, words = divided(words)
    if len(places) != 2 or places[1].startswith("-"):
        raise UserError(f"python -m slm.export takes RUN FOLDER and key=value, not {' '.join(sys.argv[1:])}")
    run, target = places[0], new_folder(places[1])
    name = dict(word.split("=", 1) for word in words).get("format", Request.format)
    export, begin = export_of(name), time.perf_counter()
    own, settings = values_of(words, Request, export)
    request = Request(**own)
    if request.revisions:
        found = [one(own, export, own_target, settings, of) for of, own_target, own in by_words(run, target, request)]
        json_line.note(revisions=found)
    else:
        json_line.note(**one(request, export, target, settings, run))
    json_line.note(seconds=round(time.perf_counter() - begin, 3))
    return 0


def one(request: Request, export: Callable, target: Path, settings: dict[str, Any], run: str) -> dict[str, Any]:
    """Writes, prints and pushes a folder, and returns what the line of print=json has of it. Raises UserError."""
    model = load(run, runs_dir=request.runs_dir, device="cpu", **given(request))
    model = replace(model, model=standardized(model.model))
    print(printable(f"{model.path}, step {model.step:,}"))
    lines = written(target, lambda folder: export(model, folder, **settings))
    files = {str(path.relative_to(target)): path.stat().st_size for path in sorted(target.rglob("*")) if path.is_file()}
    for line in [*lines, *(f"{size:>13,} bytes  {target / name}" for name, size in files.items())]:
        print(printable(line))
    facts = {"checkpoint": str(model.path), "step": model.step, "format": request.format, "folder": str(target)}
    if request.push:
        facts["pushed"] = hub.push(target, request.push, public=request.public, revision=request.revision)
        print(printable(f"pushed: {facts['pushed']}"))
    return {**facts, "files": files, "lines": lines}


def by_words(run: str, target: Path, request: Request) -> list[tuple[str, Path, Request]]:
    """Checkpoint, folder and request of `main`, the run's own choice, and of each revision. Raises UserError."""
    path = run_folder.find_checkpoint(run, atomic.expanded(request.runs_dir))
    found = [(str(path), target / "main", request)]
    for name, (checkpoint, words) in kept.revisions(run_folder.folder_of(path)).items():
        print(printable(f"{name}: {checkpoint.name}, {words:,} words"))
        own = replace(request, revisions=False, revision=name if request.push else None)
        found.append((str(checkpoint), target / name, own))
    return found


def new_folder(place: str) -> Path:
    """Raises UserError if it exists and is not empty, or cannot be made."""
    target = atomic.expanded(place)
    atomic.check_folder(target)
    if target.exists() and any(target.iterdir()):
        raise UserError(f"{target} exists and is not empty; give a new folder")
    return target


def written(target: Path, write: Callable[[Path], list[str]]) -> list[str]:
    """What `write` returns for a new folder beside `target`, which becomes `target` once it is complete."""
    folder = target.with_name(f".{target.name}.partial")
    with file_operation("write", target, instead_of=folder):
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(folder, ignore_errors=True)  # of a killed export
        folder.mkdir()
    try:
        lines = write(folder)
        for path in folder.rglob("*"):
            if path.is_file():
                atomic.flush(path)
        with file_operation("write", target):
            if target.exists():  # an empty folder
                target.rmdir()
            system.patiently(lambda: folder.rename(target))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    atomic.flush(target.parent)
    return lines


if __name__ == "__main__":
    make_stdio_robust()
    sys.exit(main())
