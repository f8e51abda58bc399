"""Every logger writes; none affects another or a resume."""

import csv
import json

import pytest

from slm.files import jsonl


def test_metrics_csv_is_metrics_jsonl_as_a_table(run):
    folder = run("logger=csv")
    with open(folder / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    lines = list(jsonl.lines(folder / "metrics.jsonl"))
    assert len(rows) == len(lines)
    for row, line in zip(rows, lines, strict=True):
        assert {key: float(value) for key, value in row.items() if value} == pytest.approx(line)


def test_tensorboard_writes_an_event_file(run):
    pytest.importorskip("tensorboard", reason="the extra 'tensorboard' is not installed")
    assert list(run("logger=tensorboard").rglob("events.out.tfevents.*"))


def test_wandb_offline_keeps_its_id_over_a_resume(run, tmp_path, monkeypatch, capsys):
    """Without a key the run is kept offline; both attempts are one W&B run; a table of samples is logged."""
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    run("logger=wandb")
    folder = run("logger=wandb", "budget.steps=12")
    assert "no key" in capsys.readouterr().out
    attempts = list((folder / "wandb").glob("offline-run-*"))
    identity = json.loads((folder / "run.json").read_text())["run_id"]
    assert len(attempts) == 2
    assert all(identity in attempt.name for attempt in attempts)
    assert list((folder / "wandb").rglob("*.table.json"))


def test_a_torn_line_is_ignored_and_later_lines_are_cut_off(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for step in (1, 2, 3):
        jsonl.append(path, {"step": step, "loss": float("inf") if step == 2 else 0.5})
    with open(path, "a") as file:
        file.write('{"step": 4, "lo')
    assert [line["step"] for line in jsonl.lines(path)] == [1, 2, 3]
    jsonl.truncate_after(path, 2)
    assert path.read_text() == '{"step": 1, "loss": 0.5}\n{"step": 2, "loss": null}\n'
    jsonl.truncate_after(path, -1)
    assert path.read_text() == ""
