"""python -m slm.lens: the windows that a step read, exactly, and the loss of each of their tokens."""

import json
import random
import re
import shutil
import sys

import pytest
from conftest import WORDS, exit_code, trained
from forks import forked
from test_distributed import TWO, small_run
from test_resume import train_with_kills

from slm import lens
from slm.data.store import prepare
from slm.data.windows import evenly_spaced, split_windows
from slm.files import jsonl, run_folder
from slm.tokenizers.bytes import ByteTokenizer

EVERY_STEP = "callbacks.checkpoints.every_n_steps=1", "callbacks.checkpoints.keep_last=99", "callbacks.samples=null"
EXACT = "trainer.precision=32-true", "model.dropout=0.0", "log_windows=true", "budget.steps=4"
GARBAGE = "\x1b[31m<b>Zq7#kX&9@wJ</b>" + "".join(random.Random(1).choices("#%XZQJ7@~^|", k=150))


@pytest.fixture
def looked(monkeypatch, capsys):
    """A function from arguments to exit code, standard output and standard error."""

    def looked(*arguments):
        code = exit_code(monkeypatch, lens.main, *map(str, arguments))
        return code, *capsys.readouterr()

    return looked


@pytest.mark.parametrize(
    ("settings", "killed"),
    [
        (["trainer.microbatch=1", "data.train_windows=30"], [7]),
        (["data.layout=documents", "model.context=192", "trainer.microbatch=2"], []),
    ],
)
def test_the_windows_of_every_step_and_their_loss(composed, tmp_path, monkeypatch, looked, settings, killed):
    """Those of the training itself: with accumulation, chosen windows, documents, and over a resume."""
    config, folder = composed(*EVERY_STEP, *EXACT, *settings), tmp_path / "run"
    train_with_kills(config, folder, monkeypatch, killed)
    store = prepare(config.data.corpus, ByteTokenizer(), tmp_path / "cache")
    windows = split_windows(store, 256, layout=config.data.layout, context=config.model.context).train
    chosen = evenly_spaced(len(windows), config.data.train_windows)
    losses = {
        line["step"]: line["train/loss"] for line in jsonl.lines(folder / "metrics.jsonl") if "train/loss" in line
    }
    for line in [*jsonl.lines(folder / "windows.jsonl")][1:]:
        code, printed, _ = looked(folder, line["step"], "--json", tmp_path / "found.json")
        assert code == 0
        found = json.loads((tmp_path / "found.json").read_text())
        readings = {window["index"]: window for window in found["windows"]}
        assert sorted(readings) == sorted(chosen[index] for index in line["windows"])
        for index, its in readings.items():
            ids = [*filter(lambda token: token != -100, windows[index].tolist())]
            assert "".join(its["tokens"]).replace("<eos>", "") == ByteTokenizer().decode(ids)
            assert len(its["nats"]) == len(ids) - 1
        # before the step's update the weights are those of the step before: the loss is the one that it logged
        assert found["checkpoint"] == f"step-{line['step'] - 1:06}.ckpt"
        nats = [nats for window in found["windows"] for nats in window["nats"]]
        assert sum(nats) / len(nats) == pytest.approx(losses[line["step"]], rel=1e-4)
        assert f"under its own weights; train/loss {losses[line['step']]:.4f}" in printed
    assert looked(folder, 1)[1].count("which has read these windows") == 1


def test_documents_and_places_of_packed_windows(finished, tmp_path, text_file, looked):
    documents = text_file.read_text(encoding="utf-8").split("\n<|endoftext|>\n")
    assert looked(finished, 1, "--json", tmp_path / "found.json")[0] == 0
    for window in json.loads((tmp_path / "found.json").read_text())["windows"]:
        text = "".join(window["tokens"])
        stream = "<eos>".join(documents[window["document"] :])
        start = min(window["offset"], len(documents[window["document"]]))
        assert stream[start:].startswith(text)


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """A run on documents of which one, in the middle, is garbage; it is read once."""
    folder, rng = tmp_path_factory.mktemp("planted"), random.Random(0)
    texts = [" ".join(rng.choices(WORDS.split(), k=40)) for _ in range(200)]
    texts[100] = GARBAGE
    (folder / "stories.txt").write_text("\n<|endoftext|>\n".join(texts), encoding="utf-8")
    small = small_run(folder / "stories.txt", folder)
    more = "budget.steps=20", "data.batch_windows=8", "data.layout=documents", "model.context=256", "optimizer.lr=0.01"
    with pytest.MonkeyPatch.context() as patch:
        run = f"run_dir={folder / 'run'}", "seed=2", "log_windows=true", "val_every_n_steps=20"
        assert trained(patch, *small, *more, "callbacks.samples=null", *run) == 0
    return folder / "run"


def test_a_planted_document_is_found(planted, tmp_path, looked):
    (step,) = [line["step"] for line in jsonl.lines(planted / "windows.jsonl") if 100 in line["windows"]]
    code, printed, _ = looked(planted, "--spike", "--windows", 2, "--html", tmp_path / "lens.html")
    assert code == 0
    lines = printed.splitlines()
    assert lines[0].startswith(f"largest jump of the loss: step {step}, ")
    assert lines[0].endswith("(train/loss in metrics.jsonl)")
    assert lines[4].startswith("1. window 100, document 100 from token 0: ")
    first, second = (float(line.split(": ")[1].split()[0]) for line in lines if line.startswith(("1. ", "2. ")))
    assert first > 2 * second
    assert "\x1b" not in printed  # neither a colour, without a terminal, nor the one in the document
    assert "\\x1b" in printed
    assert "«" in printed
    page = (tmp_path / "lens.html").read_text()
    assert "<b>" not in page
    assert "&lt;" in page
    assert "\x1b" not in page
    assert set(re.findall(r"https?://[^\"]*", page)) == {"http://www.w3.org/2000/svg"}  # a name, not an address


def test_every_token_and_colour(planted, monkeypatch, looked):
    code, printed, _ = looked(planted, 3, "--windows", 1, "--tokens")
    assert code == 0
    numbers = [float(line.split()[0]) for line in printed.splitlines() if line.startswith("     ")]
    shown = float(printed.split("1. window")[1].split(": ")[1].split()[0])
    assert sum(numbers) / len(numbers) == pytest.approx(shown, abs=1e-3)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert "\x1b[1;31m" in looked(planted, 3)[1]
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in looked(planted, 3)[1]


@pytest.mark.parametrize(
    ("events", "crash", "expected"),
    [
        (
            [{"step": 4, "event": "spike", "facts": "loss 9.5 after a mean of 2.5"}],
            None,
            "step 4, 9.5 after 2.5 in the steps before (events",
        ),
        ([{"step": 4, "event": "skipped", "facts": "loss nan, gradient norm 2"}], None, "step 4, nan (events.jsonl)"),
        ([], {"step": 6, "reason": "loss inf, gradient norm nan"}, "step 6, inf (crash.json)"),
        ([{"step": 4, "facts": None}, {"step": 5, "facts": "loss e after a mean of -"}], None, "train/loss in metrics"),
    ],
)
def test_spikes_that_the_guard_saw(planted, tmp_path, looked, events, crash, expected):
    folder = tmp_path / "run"
    shutil.copytree(planted, folder)
    for event in events:
        jsonl.append(folder / "events.jsonl", event)
    if crash:
        (folder / "crash.json").write_text(json.dumps(crash))
    assert expected in looked(folder, "--spike")[1].splitlines()[0]


def test_mistakes_are_one_line(finished, planted, tmp_path, looked):
    folder = tmp_path / "run"
    shutil.copytree(planted, folder)
    info = run_folder.read_run_json(folder)
    run_folder.write_run_json(
        folder, {**info, "fork": {"run": "runs/trunk", "run_id": "x", "step": 5, "consumed": 40, "changed": {}}}
    )
    empty = tmp_path / "empty"
    shutil.copytree(planted, empty, ignore=shutil.ignore_patterns("*.ckpt*"))
    assert looked("latest", 3, "--runs-dir", finished.parent)[1] == looked(finished, "step-000003.ckpt")[1]
    for arguments, message in {
        ("latest", 3, "--runs-dir", tmp_path / "nothing"): "RUN=latest: no run in",
        (finished, "last"): "STEP=last must be the number of an optimizer step, such as 100, or --spike",
        ("nothing", 1): "nothing does not exist; give a run folder",
        (tmp_path, 1): f"{tmp_path} is not a run folder but holds some; give one of them, such as {empty}",
        (finished,): "give a step, such as slm.lens RUN 100, or --spike",
        (finished, 1, "--spike"): "give a step, such as slm.lens RUN 100, or --spike",
        (finished, 11): f"step 11 is not one of {finished}: it has steps 1 to 10",
        (finished, 0): "it has steps 1 to 10",
        (finished, 1, "--windows", 0): "--windows=0 must be at least 1",
        (finished, 1, "--cache-dir", tmp_path): f"not in the cache {tmp_path}; give --cache-dir=<folder>, or make",
        (folder, 5): "step 5 is one of its trunk's; give runs/trunk 5",
        (empty, 5): "holds no checkpoint",
    }.items():
        code, _, error = looked(*arguments)
        assert code == 2, arguments
        assert message in error
        assert error.count("\n") == 1


def test_a_fork_with_another_batch_and_seed(text_file, monkeypatch, tmp_path, looked):
    """Its first step has the weights of its trunk's checkpoint; earlier steps are those of the trunk."""
    trunk, fork = tmp_path / "trunk", tmp_path / "fork"
    assert trained(monkeypatch, *small_run(text_file, tmp_path), *EVERY_STEP, *EXACT, f"run_dir={trunk}") == 0
    changed = "data.batch_windows=2", "seed=7", f"run_dir={fork}"
    assert trained(monkeypatch, f"fork={trunk}@2", *changed) == 0
    (line,) = [line for line in jsonl.lines(fork / "windows.jsonl") if line["step"] == 3]
    code, printed, _ = looked(fork, 3, "--json", tmp_path / "found.json")
    assert code == 0
    found = json.loads((tmp_path / "found.json").read_text())
    assert sorted(window["index"] for window in found["windows"]) == sorted(line["windows"])
    (loss,) = [line["train/loss"] for line in jsonl.lines(fork / "metrics.jsonl") if line["step"] == 3][:1]
    assert f"under its own weights; train/loss {loss:.4f}" in printed
    assert sum(sum(window["nats"]) for window in found["windows"]) / 128 == pytest.approx(loss, rel=1e-4)
    code, _, error = looked(fork, 2)
    assert code == 2
    assert f"step 2 is one of its trunk's; give {trunk} 2" in error


@pytest.mark.slow
def test_several_devices(text_file, tmp_path, looked):
    more = *EVERY_STEP, *EXACT, "trainer.microbatch=1", f"run_dir={tmp_path / 'run'}"
    done = forked(*small_run(text_file, tmp_path), *more, *TWO)
    assert done.returncode == 0, done.stderr
    for line in [*jsonl.lines(tmp_path / "run" / "windows.jsonl")][1:]:
        assert looked(tmp_path / "run", line["step"], "--json", tmp_path / "found.json")[0] == 0
        found = json.loads((tmp_path / "found.json").read_text())
        assert sorted(window["index"] for window in found["windows"]) == sorted(line["windows"])
