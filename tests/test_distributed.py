"""Two processes over gloo on this CPU reach the losses of one process at the same global batch."""

import pytest
from test_cli import command
from test_resume import final_state, history

from slm import verify


@pytest.mark.slow
def test_two_processes_equal_one(text_file, tmp_path):
    small = [
        "data=text",
        f"data.path={text_file}",
        "data.separator=<|endoftext|>",
        "tokenizer=bytes",
        "debug=default",
        "trainer=cpu",
        "trainer.precision=32-true",
        "trainer.microbatch=2",
        "debug.log_windows=true",
        f"runs_dir={tmp_path}",
        f"cache_dir={tmp_path / 'cache'}",
    ]
    one = command("train.py", *small, f"run_dir={tmp_path / 'one'}")
    two = command("train.py", *small, f"run_dir={tmp_path / 'two'}", "trainer.devices=2", "trainer.strategy=ddp")
    assert one.returncode == 0, one.stderr
    assert two.returncode == 0, two.stderr
    assert one.stdout.count("done:") == two.stdout.count("done:") == 1
    a, b = history(tmp_path / "one"), history(tmp_path / "two")
    assert [line["step"] for line in a] == [line["step"] for line in b]
    for key in ("train/loss", "val/loss", "val/bits_per_byte"):
        ours, theirs = ([line[key] for line in lines if key in line] for lines in (a, b))
        assert ours == pytest.approx(theirs, abs=1e-4), key
    assert final_state(tmp_path / "two")[2] == 10
    assert (tmp_path / "one" / "windows.jsonl").read_text() == (tmp_path / "two" / "windows.jsonl").read_text()
    assert list(verify.find_problems(tmp_path / "two")) == []


@pytest.mark.slow
def test_two_processes_stop_together_and_one_goes_on(text_file, tmp_path):
    """One of them is asked; both save and end. One process then takes the run to its end, over the same windows."""
    small = [
        *("data=text", f"data.path={text_file}", "data.separator=<|endoftext|>", "tokenizer=bytes", "debug=default"),
        *("trainer=cpu", "trainer.precision=32-true", "trainer.microbatch=1", "debug.log_windows=true"),
        *(f"run_dir={tmp_path / 'run'}", f"cache_dir={tmp_path / 'cache'}"),
    ]
    two = "trainer.devices=2", "trainer.strategy=ddp"
    stopped = command("train.py", *small, *two, "debug.fault.kind=terminate", "debug.fault.step=7")
    assert stopped.returncode == 143, stopped.stderr
    refused = command("train.py", *small, *two, "debug.fault.kind=nonfinite", "debug.fault.step=8")
    assert refused.returncode == 3, refused.stderr
    assert "stopped before the update" in refused.stderr
    done = command("train.py", *small)
    assert done.returncode == 0, done.stderr
    assert "the windows stay the same" in done.stdout
    assert list(verify.find_problems(tmp_path / "run")) == []
