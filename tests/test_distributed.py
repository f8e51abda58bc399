"""Two processes over gloo on this CPU reach the losses of one process at the same global batch."""

import pytest
from test_cli import command
from test_resume import final_state, history


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
