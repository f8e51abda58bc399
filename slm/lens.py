"""Shows what a training step read, window by window, with the loss of each token.

python -m slm.lens RUN STEP     the windows of the step, those of the highest loss first
python -m slm.lens RUN --spike  of the step at which the loss rose most above the recent ones

The windows follow from the seed and the position alone, so nothing needs to have been logged. The loss is that of the
nearest checkpoint before the step.
"""

import argparse
import itertools
import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from slm import checkpoint, classes
from slm.analysis.html import Page, paragraph, section
from slm.analysis.html import escaped as html
from slm.analysis.spikes import largest_jump
from slm.checkpoint import Loaded
from slm.data.mixture import recorded_order
from slm.data.store import TokenStore
from slm.errors import UserError, printable
from slm.files import atomic, json_line, run_folder
from slm.files.stdio import make_stdio_robust
from slm.generation.step_loss import Reading, step_readings
from slm.hardware import choose_device
from slm.results import Run
from slm.verify import require_facts

WIDTH = 100  # characters of a printed line of text
MAX_BATCH = 2**20  # windows of a step
SHOWN = 64  # windows in an HTML file
NAMED = 6  # most surprising tokens of a window that are listed with their loss


@json_line.command
def main():
    """Exit code: 0, 2 for a mistake in the arguments, 4 for unreadable files."""
    parser = json_line.Parser(prog="python -m slm.lens", description=__doc__.partition("\n\n")[2])
    parser.add_argument("run", type=run_folder.named, help="a run folder, one of its .ckpt files, or latest")
    parser.add_argument("step", nargs="?", help="an optimizer step, from 1 on")
    parser.add_argument("--spike", action="store_true", help="the step of the largest jump of the loss")
    parser.add_argument("--windows", type=int, default=3, metavar="N", help="show N windows (default: 3)")
    parser.add_argument("--tokens", action="store_true", help="print every token with its loss")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all windows and losses as JSON")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write windows with tokens coloured by loss")
    parser.add_argument("--runs-dir", default="runs", help="the folder of runs for latest")
    parser.add_argument("--cache-dir", type=Path, help="where the token store is; default: the run's")
    classes.add_options(parser)
    look(parser.parse_args())


def look(arguments: argparse.Namespace):
    """Prints the page and writes the files that are asked for. Raises UserError."""
    folder = run_named(arguments.run, atomic.expanded(arguments.runs_dir))
    if (arguments.step is None) != arguments.spike:
        raise UserError("give a step, such as slm.lens RUN 100, or --spike")
    if arguments.windows < 1:
        raise UserError(f"--windows={arguments.windows} must be at least 1")
    info = facts(folder)
    step, why = largest_jump(folder) if arguments.spike else (step_named(arguments.step), None)
    check_step(step, info, folder)
    path = weights_before(folder, info, step)
    loaded = checkpoint.load(path, choose_device("auto", "device"), **classes.given(arguments, "--{}-class"))
    stores = open_stores(info, loaded, arguments.cache_dir)
    readings = step_readings(info, step, loaded.model, loaded.tokenizer, stores)
    title = [*([why] if why else []), *heading(folder, info, step, run_folder.step_of(path), readings)]
    readings.sort(key=lambda reading: -reading.mean)
    colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    print(printable("\n".join(title)))
    for place, reading in enumerate(readings[: arguments.windows], start=1):
        print("\n" + "\n".join(shown(reading, place, colour, arguments.tokens)))
    found = {"run": str(folder), "step": step, "checkpoint": path.name, "windows": [*map(asdict, readings)]}
    json_line.note(**found)
    if arguments.json:
        atomic.write_text(arguments.json, json.dumps(found, ensure_ascii=False) + "\n")
    if arguments.html:
        atomic.write_text(arguments.html, page(title, readings[:SHOWN]))


def run_named(text: str, runs_dir: Path) -> Path:
    """The run folder that the argument means. Raises UserError if there is no newest run."""
    if text in ("latest", "last", "best") or text.endswith(".ckpt"):
        return run_folder.find_checkpoint(text, runs_dir, key="RUN").parents[1]
    return Path(text)


def step_named(text: str) -> int:
    """The step of a number, or of a checkpoint's name, step-000100 or step-000100.ckpt. Raises UserError."""
    if not (match := re.fullmatch(r"(?:step-)?(\d{1,12})(?:\.ckpt)?", text)):
        raise UserError(f"STEP={text} must be the number of an optimizer step, such as 100, or --spike")
    return int(match[1])


def facts(folder: Path) -> dict[str, Any]:
    """run.json, checked. Raises UserError for anything but a run folder."""
    if not folder.exists():
        raise UserError(f"{folder} does not exist; give a run folder, such as runs/<date>_<time>_<name>")
    if not (folder / "run.json").exists() and (runs := sorted(folder.glob("*/run.json"))):
        raise UserError(f"{folder} is not a run folder but holds some; give one of them, such as {runs[0].parent}")
    info = require_facts(folder)
    data = info["config"]["data"]
    counts = [value for key in ("train_windows", "stride") if (value := data.get(key)) is not None]
    if not all(type(value) is int and value > 0 for value in counts) or data["batch_windows"] > MAX_BATCH:
        raise UserError(
            f"{folder / 'run.json'} is damaged: train_windows, stride or batch_windows of data is not valid"
        )
    return info


def corpora_of(info: dict[str, Any]) -> dict[str, str]:
    """The fingerprint of each source, by "" of the only one. Raises UserError if run.json is damaged."""
    if "sources" not in info:
        return {"": info["corpus"]}
    recorded_order(info["sources"], info["seed"])  # checks the fields
    given = info["config"]["data"].get("sources")
    found = {str(name): str(its.get("corpus")) for name, its in info["sources"].items()}
    if not isinstance(given, dict) or not all(isinstance(given.get(name), dict) for name in found):
        raise UserError("run.json is damaged: data.sources is not valid")
    return found


def check_step(step: int, info: dict[str, Any], folder: Path):
    """Raises UserError for a step that is not one of the run's own."""
    if not 1 <= step <= info["steps"]:
        raise UserError(f"step {step} is not one of {folder}: it has steps 1 to {info['steps']:,}")
    trunk = info.get("fork")
    if trunk and step <= trunk["step"]:
        raise UserError(
            f"{folder} is a fork from step {trunk['step']} on: step {step} is one of its trunk's; "
            f"give {trunk['run']} {step}"
        )


def weights_before(folder: Path, info: dict[str, Any], step: int) -> Path:
    """The newest checkpoint before a step's update, else the oldest one after it. Raises UserError if there is none.

    The one from which a fork has started is in its trunk.
    """
    found, trunk = run_folder.checkpoints(folder), info.get("fork")
    if trunk and (shared := Path(trunk["run"], "checkpoints", f"step-{trunk['step']:06}.ckpt")).exists():
        found = sorted([*found, shared], key=run_folder.step_of, reverse=True)
    if not found:
        raise UserError(f"{folder} holds no checkpoint, and the loss of each token needs one")
    return next((path for path in found if run_folder.step_of(path) < step), found[-1])


def open_stores(info: dict[str, Any], loaded: Loaded, cache: Path | None) -> dict[str, TokenStore]:
    """The tokens that the run read, of each source of a mixture, by "" of any other data.

    Raises UserError if they are no longer in the cache.
    """
    written = info["config"].get("cache_dir")
    place = atomic.expanded(str(cache or (written if isinstance(written, str) else "~/.cache/slm")))
    kind, vocab_size, stores = type(loaded.tokenizer), loaded.tokenizer.vocab_size, {}
    for source, corpus in corpora_of(info).items():
        if not (store := TokenStore.find(corpus, info["tokenizer"], kind, vocab_size, place)):
            raise UserError(
                f"the tokens {f'of {source} ' if source else ''}that this run read are not in the cache {place}; give "
                "--cache-dir=<folder>, or make them again: the run's own command with trainer.fast_dev_run=true"
            )
        stores[source] = store
    return stores


def heading(folder: Path, info: dict[str, Any], step: int, of: int, readings: Sequence[Reading]) -> list[str]:
    """What was read, under which weights, and the mean loss beside the logged one."""
    windows, targets = len(readings), sum(len(reading.nats) for reading in readings)
    position = run_folder.windows_until(info, step - 1)
    if of == step - 1:
        after = "its own weights"
    else:
        apart = f"{step - 1 - of:,} update(s) earlier" if of < step else "which has read these windows"
        after = f"the weights after step {of:,}, {apart}"
    mean = sum(sum(reading.nats) for reading in readings) / targets
    logged = Run(folder).series("train/loss").get(step)
    beside = f"; train/loss {logged:.4f}" if logged is not None else ""
    return [
        f"{folder}, step {step:,} of {info['steps']:,}: {windows} windows, {targets:,} targets, "
        f"epoch {position / info['windows']:.2f}",
        f"mean {mean:.4f} nats per token under {after}{beside}",
    ]


def shown(reading: Reading, place: int, colour: bool, every: bool) -> list[str]:
    """The lines of one window: its place among the others, its worst tokens, and its text or `every` token."""
    worst = reading.worst()
    named = ", ".join(f"'{escaped(reading.tokens[t])}' {reading.nats[t - 1]:.2f}" for t in worst[:NAMED])
    lines = [f"{place}. {reading}", f"   most surprising: {named}"]
    if every:
        return lines + [f"   {nats:7.3f}  '{escaped(text)}'" for text, nats in zip(reading.tokens[1:], reading.nats)]
    return [*lines, *marked_text(reading, *(("\x1b[1;31m", "\x1b[0m") if colour else ("«", "»")))]


def marked_text(reading: Reading, before: str, after: str) -> Iterator[str]:
    """The text in lines, its worst tokens between two marks."""
    worst, marked, lines, length = set(reading.worst()), False, [[]], 0
    for number, text in enumerate(reading.tokens):
        marked |= number in worst  # until the token that completes the character
        if not text:
            continue
        if length + len(text := escaped(text)) > WIDTH:
            lines, length = [*lines, []], 0
        lines[-1].append((marked, text))
        length, marked = length + len(text), False
    for line in lines:
        shown = "   "
        for is_marked, run in itertools.groupby(line, key=lambda piece: piece[0]):
            text = "".join(piece for _, piece in run)
            word = text.lstrip(" ") or text
            shown += text.removesuffix(word) + before + word + after if is_marked else text
        yield shown


def escaped(text: str) -> str:
    """The text of a token in one line, without control characters."""
    return printable(text).replace("\n", "\\n").replace("\t", "\\t")


def page(title: Sequence[str], readings: Sequence[Reading]) -> str:
    """Windows as one HTML file without network access: the redder a token, the higher its loss."""
    most, sections = max(max(reading.nats) for reading in readings), []
    for reading in readings:
        first, *others = map(html, reading.tokens)
        spans = (
            f'<span style="background:rgba(220,60,40,{nats / most:.2f})" title="{nats:.3f} nats">{text}</span>'
            for text, nats in zip(others, reading.nats)
        )
        sections.append(section(str(reading), f"<pre>{first}{''.join(spans)}</pre>"))
    return Page(title[0]).html("".join(map(paragraph, title[1:])), sections, "")


if __name__ == "__main__":
    make_stdio_robust()
    sys.exit(main())
