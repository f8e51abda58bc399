"""Which checkpoints a run keeps: those of the steps and of the words that callbacks.checkpoints.keep_at names."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from slm.errors import UserError
from slm.files import atomic
from slm.files.run_folder import STEP_FILE

MILLION = 10**6
# of the BabyLM challenge: each million words, from 10 on each 10, from 100 on each 100 (https://babylm.github.io)
BABYLM = [count * unit * MILLION for unit in (1, 10, 100) for count in range(1 if unit == 1 else 2, 11)]
REVISION = re.compile(r"chck_\d+(\.\d+)?M")


def checkpoint_files(settings: Mapping[str, Any], steps: int) -> int:
    """Checkpoints that a run keeps at most with these settings of its callback: the newest, the best, those of keep_at,
    and the one being written."""
    keep_at = settings.get("keep_at") or ()
    chosen = min(len(kept_steps(keep_at, steps)) + len(kept_words(keep_at)), steps)
    return settings.get("keep_last", 2) + 2 + chosen


def kept_steps(keep_at: Sequence[int | str], steps: int) -> set[int]:
    """The steps up to `steps` that `keep_at` names: numbers, log2 (1, 2, 4, 8, ...), every:500 (500, 1000, ...).

    Raises UserError for any other entry but those of `kept_words`.
    """
    found: set[int] = set()
    for entry in keep_at:
        every = re.fullmatch(r"every:([1-9]\d*)", str(entry))
        if entry == "log2":
            found |= {2**power for power in range(steps.bit_length())}
        elif every:
            found |= set(range(int(every[1]), steps + 1, int(every[1])))
        elif type(entry) is int and entry > 0:
            found.add(entry)
        elif not kept_words([entry]):
            raise UserError(
                f"callbacks.checkpoints.keep_at={entry} must be a step from 1 on, log2 (1, 2, 4, 8, ...), every:N, "
                "words:N or babylm"
            )
    return {step for step in found if step <= steps}


def kept_words(keep_at: Sequence[int | str]) -> list[int]:
    """The numbers of words that `keep_at` names, ascending: words:1000000 or words:1e6, and babylm (BABYLM)."""
    found = set()
    for entry in keep_at:
        if entry == "babylm":
            found |= set(BABYLM)
        elif words := re.fullmatch(r"words:(\d{1,15}|\d{1,6}(?:\.\d{1,6})?e1?\d)", str(entry)):
            found.add(round(float(words[1])))
    return sorted(found - {0})


def revision(words: int) -> str:
    """The name of the checkpoint after so many words in BabyLM's pipeline: chck_1M, chck_0.5M."""
    return f"chck_{f'{words / MILLION:.6f}'.rstrip('0').rstrip('.')}M"


def revisions(folder: Path) -> dict[str, tuple[Path, int]]:
    """Name -> checkpoint, and words until its end, of those that a run has kept by words. `folder`: its run folder.

    Raises UserError if the run has none, or its list is damaged.
    """
    path, found = folder / "checkpoints" / "revisions.json", {}
    if not path.exists():
        raise UserError(
            f"{folder} has no checkpoints by words; callbacks.checkpoints.keep_at=[babylm] keeps them from a million on"
        )
    for name, its in (atomic.read_object(path) or {"": None}).items():
        match its:
            case {"file": str(file), "words": int(words)} if REVISION.fullmatch(name) and STEP_FILE.fullmatch(file):
                found[name] = path.with_name(file), words
            case _:
                raise UserError(f"{path} is damaged: {name!r} is not a name with its checkpoint and words")
    return found
