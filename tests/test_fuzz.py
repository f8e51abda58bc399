"""Mutated files, configurations and arguments: the answer is a right result or one line, in bounded memory and time,
nothing in them is executed, and no run folder changes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

CASES = Path(__file__).parent / "fuzz" / "cases.py"
SCALE = float(os.environ.get("SLM_FUZZ", "1"))  # times as many cases, from another seed
KINDS = {  # cases, and the share that gets past the first check at least: accepted, or refused for a reason behind it
    "checkpoints": (500, 0.5, "is not a checkpoint", "contains code"),
    "tokenizers": (500, 0.1, "is missing or damaged"),
    "parquet": (250, 0.3, "is not a parquet file"),
    "text": (500, 0.3, "is not UTF-", "is UTF-"),
    "experiments": (200, 0.05),
    "train": (200, 0.05),
    "generate": (250, 0.05),
    "runs": (60, 0.5),
    "rows": (500, 0.3, "is not UTF-", "is damaged or cut off", "cannot be read"),
    "hub": (150, 0.1, "cannot be read"),
    "huggingface": (250, 0.2, "holds no tokenizer"),
    "sentencepiece": (250, 0.1, "is no model"),
    "litdata": (250, 0.3, "is damaged, or not of"),
    "folders": (300, 0.3, "is damaged, or too large"),
    "shards": (150, 0.5),
    "instructions": (500, 0.3, "is not UTF-", "cannot be read"),
    "bodies": (250, 0.3, "the body of the request is not JSON"),
    "evaluate": (250, 0.05),
    "export": (250, 0.05),
}
EXTRAS = {"folders": "safetensors", "shards": "safetensors", "bodies": "starlette"}


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", KINDS)
def test_every_mutation_is_answered(kind, tmp_path, finished):
    if kind in EXTRAS:
        pytest.importorskip(EXTRAS[kind])
    cases, share, *first = KINDS[kind]
    cases = int(cases * SCALE)
    arguments = [kind, str(int(SCALE)), str(cases), str(tmp_path / kind), str(finished)]
    environment = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "SECRET": "of the environment"}
    environment |= {"PYTHONPATH": f"{CASES.parents[1]}:{ROOT}", "PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    command = [sys.executable, CASES, *arguments]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    current = tmp_path / kind / "current"
    where = f"case {current.read_text()}" if current.exists() else "before the first case"
    assert ran.returncode == 0, f"{where}: exit {ran.returncode}\n{ran.stderr[-2000:]}"
    found = json.loads(ran.stdout.splitlines()[-1])
    print(f"\n{kind}, {found['peak'] / 1e9:.1f} GB: {found['outcomes']}"[:600])
    assert not found["faults"], "\n".join(found["faults"][:20])
    outcomes = found["outcomes"]
    past = sum(count for name, count in outcomes.items() if not name.startswith(tuple(first)))
    assert past > share * cases
    assert outcomes["accepted"] > 0.02 * cases
    assert len(outcomes) > (4 if kind not in ("sentencepiece", "shards") else 1), "few kinds of refusal"
    assert not list(tmp_path.rglob("executed"))
