"""Two commands that start together prepare their data once, also if the first of them is killed meanwhile."""

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import small_run
from forks import Forked
from test_hub import TEXTS, table
from test_resume import history

from slm.tokenizers.bytes import ByteTokenizer

HUB = "data=hub", "data.repository=own/parts", "data.column=text", "data.validation_share=0.3"


def corpus(kind: str, folder: Path) -> list[str]:
    """The arguments for three files of text, as a repository or as files."""
    (folder / "parts").mkdir()
    for number in range(3):
        texts = [f"{text} {number}" * 3 for text in TEXTS]
        if kind == "hub":
            (folder / "parts" / f"train-{number}.parquet").write_bytes(table(text=texts))
        else:
            lines = "\n".join(json.dumps({"text": text}) for text in texts)
            (folder / "parts" / f"{number}.jsonl").write_text(lines)
    return [*(HUB if kind == "hub" else ["data=files"]), f"data.path={folder / 'parts'}"]


def until(reached: Callable[[], bool]):
    """Waits, at most for a minute."""
    end = time.monotonic() + 60
    while not reached():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("kind", "killed"),
    [
        ("files", False),
        ("hub", True),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in [("files", True), ("hub", False)]),
    ],
)
def test_two_commands_at_once_prepare_once(kind, killed, tmp_path):
    arguments = [*small_run(None, tmp_path, corpus(kind, tmp_path)), "budget.steps=3", "data.batch_windows=4"]
    preparing, go, printed = tmp_path / "preparing", tmp_path / "go", [tmp_path / "0.log", tmp_path / "1.log"]

    def stop_in_the_middle():
        """At the first text of the last file, with the number of the process in `preparing`, until `go` is there."""
        encode = ByteTokenizer.encode_batch

        def encode_batch(self, texts):
            if not go.exists() and any(text.endswith("end. 2") for text in texts):
                with open(preparing, "a") as file:
                    file.write(f"{os.getpid()}\n")
                until(go.exists)
            return encode(self, texts)

        ByteTokenizer.encode_batch = encode_batch

    runs = []
    for number, path in enumerate(printed):
        with open(path, "w") as output:
            streams = {"stdout": output.fileno(), "stderr": output.fileno()}
            command = [*arguments, f"run_dir={tmp_path / f'run{number}'}"]
            runs.append(Forked(command, **streams, before=stop_in_the_middle))
    until(lambda: any("waiting for the tokens" in path.read_text() for path in printed) and preparing.exists())
    (first,) = map(int, preparing.read_text().split())
    if killed:
        os.kill(first, signal.SIGKILL)
    go.touch()
    assert sorted(run.wait(60) for run in runs) == ([-signal.SIGKILL, 0] if killed else [0, 0])
    waited = next(path.read_text() for path, run in zip(printed, runs) if run.pid != first)
    assert f"waiting for the tokens of this corpus, which process {first} on" in waited
    assert ("tokenizing train" in waited) == killed
    assert ("going on with an earlier preparation" in waited) == (killed and kind == "hub")
    folders = [tmp_path / f"run{number}" for number, run in enumerate(runs) if run.poll() == 0]
    losses = [[line["train/loss"] for line in history(folder) if "train/loss" in line] for folder in folders]
    assert len(losses[0]) > 1
    assert losses == [losses[0]] * (1 if killed else 2)
    assert not list((tmp_path / "cache").rglob("*.partial"))
