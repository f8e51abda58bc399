"""Writes a trained model in the files of another program.

python -m slm.export RUN FOLDER [format=hf] [key=value ...]

RUN is a run folder (its best checkpoint, else its newest), a .ckpt file, latest, last or best. FOLDER is new: it is
complete or absent. The formats and their options are in docs/export.md.
"""

import inspect
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from slm.classes import did_you_mean, locate
from slm.errors import UserError, file_operation, printable
from slm.export import export_of
from slm.files import atomic, json_line, run_folder
from slm.files.stdio import make_stdio_robust
from slm.generation.language_model import load
from slm.run.instantiate import check

OWN = {"format": "weights", "runs_dir": "runs", "tokenizer_class": None, "model_class": None}  # of every format


@json_line.command
def main() -> int:
    """Exit code: 0, or 2 or 4 for a mistake or a limit of the machine."""
    words = sys.argv[1:]
    if not words or any(word in ("-h", "--help") for word in words):
        print(__doc__)
        return 0
    run, target, settings = read(words)
    own = {key: settings.pop(key, default) for key, default in OWN.items()}
    export = export_of(str(own["format"]))
    check_options(export, settings, own["format"])
    begin, classes = time.perf_counter(), {"tokenizer": own["tokenizer_class"], "model": own["model_class"]}
    given = {name: locate(path, f"{name}_class") for name, path in classes.items() if path}
    model = load(run, runs_dir=own["runs_dir"], device="cpu", **given)
    print(printable(f"{model.path}, step {model.step:,}"))
    lines = written(target, lambda folder: export(model, folder, **settings))
    files = {str(path.relative_to(target)): path.stat().st_size for path in sorted(target.rglob("*")) if path.is_file()}
    for line in [*lines, *(f"{size:>13,} bytes  {target / name}" for name, size in files.items())]:
        print(printable(line))
    facts = {"checkpoint": str(model.path), "step": model.step, "format": own["format"], "folder": str(target)}
    json_line.note(**facts, files=files, lines=lines, seconds=round(time.perf_counter() - begin, 3))
    return 0


def read(words: Sequence[str]) -> tuple[str, Path, dict[str, Any]]:
    """The run, the new folder and the settings of a command line. Raises UserError."""
    settings = dict(word.split("=", 1) for word in words if "=" in word and not word.startswith(("ckpt=", "run_dir=")))
    places = [run_folder.named(word) for word in words if "=" not in word or word.startswith(("ckpt=", "run_dir="))]
    if len(places) != 2 or places[1].startswith("-"):
        raise UserError(f"python -m slm.export takes RUN FOLDER and key=value, not {' '.join(words)}")
    target = atomic.expanded(places[1])
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{target} exists and is not empty; give a new folder, or delete that one")
    return places[0], target, {key: typed(key, text) for key, text in settings.items()}


def typed(key: str, text: str) -> Any:
    """The value that YAML reads, as in overrides. Raises UserError."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        raise UserError(f"{key}={text} cannot be read; quote special characters: '{key}=\"...\"'") from None


def check_options(export: Callable, settings: dict[str, Any], name: str):
    """Raises UserError for an option that the format does not take, or of the wrong type."""
    parameters = inspect.signature(export).parameters.values()
    options = [parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]
    for key in settings:
        if key not in options:
            known = f"its options: {', '.join(options)}" if options else "it has no options"
            hint = did_you_mean(key, [*options, *OWN])
            raise UserError(f"{key} is not an option of format={name}{hint or f'; {known}'}")
    check(export, settings, "")


def written(target: Path, write: Callable[[Path], list[str]]) -> list[str]:
    """What `write` returns for a new folder beside `target`, which becomes `target` once it is complete."""
    with file_operation("write", target):
        target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent, ignore_cleanup_errors=True) as place:
        folder = Path(place) / target.name
        folder.mkdir()
        lines = write(folder)
        for path in folder.rglob("*"):
            if path.is_file():
                atomic.flush(path)
        with file_operation("write", target):
            if target.exists():  # an empty folder
                target.rmdir()
            shutil.move(folder, target)
    atomic.flush(target.parent)
    return lines


if __name__ == "__main__":
    make_stdio_robust()
    sys.exit(main())
