"""evaluation.json of a run folder: the evaluations of its checkpoints, by step and text."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from slm import report
from slm.analysis.evaluation_tables import objects
from slm.files import atomic

NAME = "evaluation.json"


def record(folder: Path, found: dict[str, Any], kind: Literal["evaluations", "ablations"]) -> Iterator[Path]:
    """Adds a result to those of the folder, in place of an earlier one of the same checkpoints and text, whose other
    measures stay. Writes the report of a run anew. Yields the paths."""
    content = atomic.read_object(folder / NAME) or {}
    before = objects(content.get(kind))
    same = next((one for one in before if identity(one) == identity(found)), {})
    kept = [one for one in before if identity(one) != identity(found)]
    content |= {kind: [*kept, {**same, **found}]}
    return written(folder, content)


def written(folder: Path, content: dict[str, Any]) -> Iterator[Path]:
    """Writes evaluation.json, and the report of a run anew. Yields the paths."""
    path = folder / NAME
    atomic.write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    yield path
    if (folder / "run.json").exists() and (report_path := report.write(folder)):
        yield report_path


def of_one_text(folder: Path, found: dict[str, Any]) -> list[dict[str, Any]]:
    """All evaluations of the folder on the text of this one, by step."""
    written = objects((atomic.read_object(folder / NAME) or {}).get("evaluations"))
    same = [one for one in written if one.get("data") == found["data"] and isinstance(one.get("step"), int)]
    return sorted(same, key=lambda one: one["step"])


def identity(found: dict[str, Any]) -> str:
    """What two results must share to be of the same thing."""
    return json.dumps([found.get(key) for key in ("checkpoint", "models", "data", "text")], sort_keys=True)
