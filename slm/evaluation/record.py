"""evaluation.json of a run folder: the evaluations of its checkpoints, by step and text."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from slm import report
from slm.files import atomic


def record(folder: Path, found: dict[str, Any]) -> Iterator[Path]:
    """Adds the evaluation to those of the folder, in place of an earlier one of this checkpoint and text, whose other
    measures stay. Writes the report of a run anew. Yields the paths."""
    path = folder / "evaluation.json"
    before = evaluations(path)
    same = next((one for one in before if identity(one) == identity(found)), {})
    kept = [one for one in before if identity(one) != identity(found)]
    content = {**(atomic.read_object(path) or {}), "evaluations": [*kept, {**same, **found}]}
    atomic.write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    yield path
    if (folder / "run.json").exists() and (written := report.write(folder)):
        yield written


def evaluations(path: Path) -> list[dict[str, Any]]:
    """Those of a file, none if it is missing or holds anything else."""
    found = (atomic.read_object(path) or {}).get("evaluations")
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []


def identity(evaluation: dict[str, Any]) -> tuple[str, str]:
    return str(evaluation.get("checkpoint")).rpartition("/")[2], json.dumps(evaluation.get("data"), sort_keys=True)
