"""Every logger writes; none affects another or a resume."""

import csv
import json
import struct
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from conftest import small_run, trained

from slm.files import jsonl
from slm.training.loggers import why_offline


def test_metrics_csv_is_metrics_jsonl_as_a_table(run):
    folder = run("logger=csv")
    with open(folder / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    lines = list(jsonl.lines(folder / "metrics.jsonl"))
    assert len(rows) == len(lines)
    for row, line in zip(rows, lines, strict=True):
        assert {key: float(value) for key, value in row.items() if value} == pytest.approx(line)


def test_tensorboard_lies_in_its_own_folder_and_has_numbers_and_samples(run):
    pytest.importorskip("tensorboard", reason="the extra 'tensorboard' is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = run("logger=tensorboard")
    (file,) = folder.rglob("events.out.tfevents.*")
    assert file.parent == folder / "tensorboard"
    events = EventAccumulator(str(file)).Reload()
    assert [event.step for event in events.Scalars("val/loss")] == [5, 10]
    assert "hp_metric" not in events.Tags()["scalars"]
    assert [event.step for event in events.Tensors("samples/text_summary")] == [0, 5, 10]
    text = events.Tensors("samples/text_summary")[0].tensor_proto.string_val[0].decode()
    assert next(jsonl.lines(folder / "samples.jsonl"))["prompt"] in text


class Answer(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(404)
        self.end_headers()

    def log_message(self, *_):
        """Prints nothing."""


@pytest.fixture(scope="module")
def server():
    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        *(("{server}", None), ("http://127.0.0.1:9", "no answer from http://127.0.0.1:9 (")),
        *(
            ("nonsense", "no answer from nonsense"),
            ("http://[", "no answer from http://["),
            ("http://\x1b[2J/", "\\x1b[2J"),
        ),
    ],
)
def test_an_address_that_does_not_answer_is_a_reason_in_one_line(address, reason, server, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv("WANDB_BASE_URL", address.format(server=server))
    found = why_offline()
    assert found is None if reason is None else reason in found
    assert "\n" not in (found or "")
    monkeypatch.delenv("WANDB_API_KEY")
    monkeypatch.setenv("NETRC", "/dev/null")
    monkeypatch.setenv("HOME", "/dev/null")
    assert reason or why_offline() == "no key"


def test_wandb_offline_keeps_its_id_over_a_resume(run, tmp_path, monkeypatch, capsys):
    """Without a key the run is kept offline; both attempts are one W&B run; a table of samples is logged, and the best
    checkpoint if that is asked for."""
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    run("logger=wandb")
    folder = run("logger=wandb", "budget.steps=12", "logger.wandb.log_model=best", "tags=[first, small]")
    assert "no key" in capsys.readouterr().out
    attempts = list((folder / "wandb").glob("offline-run-*"))
    identity = json.loads((folder / "run.json").read_text())["run_id"]
    assert len(attempts) == 2
    assert all(identity in attempt.name for attempt in attempts)
    tables = [json.loads(path.read_text()) for path in (folder / "wandb").rglob("*.table.json")]
    assert {table["columns"][0] for table in tables} == {"step"}
    assert {table["data"][0][0] for table in tables} == {0, 5, 10, 12}
    records = list(wandb_records(folder, max(attempts).name))
    assert [list(record.run.tags) for record in records if record.HasField("run")] == [["first", "small"]]
    artifacts = [record.artifact for record in records if record.HasField("artifact")]
    (model,) = (artifact for artifact in artifacts if artifact.type == "model")
    best = json.loads((folder / "checkpoints" / "best.json").read_text())
    assert [content.path for content in model.manifest.contents] == [best["file"]]
    assert {"best", f"step-{best['step']}"} <= set(model.aliases)


def wandb_records(folder, attempt="offline-run-*"):
    """The records that W&B keeps of an offline run: a LevelDB log after a header of seven bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    (path,) = folder.glob(f"wandb/{attempt}/*.wandb")
    data, at, whole = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if (left := 2**15 - at % 2**15) < 7:  # the end of a block
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        whole, at = whole + data[at + 7 : at + 7 + length], at + 7 + length
        if kind in (1, 4):  # the whole of a record, or its last part
            yield Record.FromString(whole)
            whole = b""


@pytest.mark.slow
def test_each_job_of_a_sweep_is_a_wandb_run_like_the_run_alone(text_file, tmp_path, monkeypatch, capsys):
    """Also where the environment names another W&B run. The sweep is the group of its jobs."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for name in ("WANDB_RUN_ID", "WANDB_NAME", "WANDB_NOTES"):
        monkeypatch.setenv(name, "outer")
    words = [*small_run(text_file, tmp_path), "callbacks.samples=null", "budget.steps=4", "report=false"]
    assert trained(monkeypatch, "-m", *words, "logger=wandb", "optimizer.lr=1e-3,1e-2", f"sweep_dir={tmp_path}/s") == 0
    assert trained(monkeypatch, *words, "logger=wandb", "optimizer.lr=1e-2", f"run_dir={tmp_path}/alone") == 0
    found = {}
    for folder in (tmp_path / "s" / "lr-0.001", tmp_path / "s" / "lr-0.01", tmp_path / "alone"):
        records = list(wandb_records(folder))
        (run,) = (record.run for record in records if record.HasField("run"))
        assert run.run_id == json.loads((folder / "run.json").read_text())["run_id"]
        assert (run.display_name, run.run_group) == (folder.name, "s" if folder.parent.name == "s" else "")
        config = {u.key: json.loads(u.value_json) for r in records for u in r.config.update if r.HasField("config")}
        losses = {
            (item.key or item.nested_key[0]): json.loads(item.value_json)
            for record in records
            for item in record.history.item
            if (item.key or item.nested_key[0]).endswith("/loss")
        }
        found[run.run_id] = config, losses
    first, second, alone = found.values()
    assert [config["optimizer"]["lr"] for config, _ in (first, second, alone)] == [1e-3, 1e-2, 1e-2]
    differs = {key for key in alone[0] if second[0][key] != alone[0][key]}
    assert differs <= {"run_dir", "sweep_dir", "run"}, differs
    assert second[1] == alone[1] != first[1]


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
