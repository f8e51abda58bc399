"""evaluation.json of a run folder: the evaluations of its checkpoints, by step and text."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from slm import report
from slm.files import atomic


def record(folder: Path, found: dict[str, Any], kind: Literal["evaluations", "ablations"]) -> Iterator[Path]:
    """Adds a result to those of the folder, in place of an earlier one of the same checkpoints and text, whose other
    measures stay. Writes the report of a run anew. Yields the paths."""
    path = folder / "evaluation.json"
    content = atomic.read_object(path) or {}
    before = content.get(kind)
    before = [one for one in before if isinstance(one, dict)] if isinstance(before, list) else []
    same = next((one for one in before if identity(one) == identity(found)), {})
    kept = [one for one in before if identity(one) != identity(found)]
    content |= {kind: [*kept, {**same, **found}]}
    atomic.write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    yield path
    if (folder / "run.json").exists() and (written := report.write(folder)):
        yield written


def identity(found: dict[str, Any]) -> str:
    """What two results must share to be of the same thing."""
    return json.dumps([found.get(key) for key in ("checkpoint", "models", "data", "text")], sort_keys=True)
