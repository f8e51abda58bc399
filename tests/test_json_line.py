"""print=json: stdout is one line of JSON, however a command ends."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT, exit_code, small_run, trained

from slm import compare, evaluate, verify
from slm.errors import CONTROL
from slm.files import json_line
from slm.results import Run
from slm.run import cli, start


def test_the_line_of_a_run_of_a_plan_and_of_a_mistake(text_file, tmp_path, monkeypatch, capfd):
    def printed(*words: str) -> tuple[int, dict]:
        code = trained(monkeypatch, *small_run(text_file, tmp_path), "callbacks.samples=null", "print=json", *words)
        return code, json.loads(capfd.readouterr().out)

    folder = tmp_path / "run"
    code, line = printed(f"run_dir={folder}", "budget.steps=4")
    run = Run(folder)
    assert (code, line["exit_code"], line["folder"], line["status"]) == (0, 0, str(folder), "done")
    assert line["metrics"] == run.summary["metrics"]
    assert line["run_id"] == run.info["run_id"]
    assert "print" not in run.info["config"]

    code, line = printed("plan=true")
    assert (code, line["steps"], line["parameters"]) == (0, 10, run.info["parameters"])

    code, line = printed("model.widht=3")
    assert code == line["exit_code"] == 2
    assert line["error"] == "there is no key model.widht; did you mean model.width?"

    code, line = printed(f"run_dir={folder}", "seed=7")  # of a run, found after the configuration was read
    assert code == line["exit_code"] == 2
    assert "seed: 42 -> 7" in line["error"]


def test_the_line_of_a_sweep_has_each_job_of_results_csv(text_file, tmp_path, monkeypatch, capfd):
    words = [*small_run(text_file, tmp_path), "callbacks.samples=null", "budget.steps=2", f"sweep_dir={tmp_path / 's'}"]
    assert trained(monkeypatch, "-m", *words, "print=json", "optimizer.lr=0.001,-1") == 2
    line = json.loads(capfd.readouterr().out)
    assert line["exit_code"] == 2
    assert line["folder"] == str(tmp_path / "s")
    assert [job["status"] for job in line["jobs"]] == ["done", "failed"]
    assert "must be above 0" in line["jobs"][1]["failure"]


@pytest.mark.parametrize("name", start.MODULES)
def test_every_command_ends_with_a_line(name, monkeypatch, capfd):
    assert exit_code(monkeypatch, start.main_of(name), "--no-such-option", "print=json") == 2
    assert json.loads(capfd.readouterr().out)["exit_code"] == 2


def test_the_lines_of_verify_evaluate_compare_and_generate(finished, text_file, tmp_path, monkeypatch, capfd):
    def printed(main, *words) -> dict:
        code = exit_code(monkeypatch, main, *map(str, words), "print=json")
        line = json.loads(capfd.readouterr().out)
        assert line["exit_code"] == code
        return line

    assert printed(verify.main, finished)["problems"] == []
    other = shutil.copytree(finished, tmp_path / "other")
    assert printed(compare.main, finished, other)["metric"] == "val/bits_per_byte"
    (other / "metrics.jsonl").write_text("")
    found = printed(verify.main, finished, other)
    assert (found["exit_code"], list(found["different"])) == (1, ["metrics"])
    assert "weights" in found["equal"]
    loss = printed(evaluate.main, finished, "--text", text_file)
    assert loss["nats"] > 0
    assert loss["tokens"] > loss["documents"] == 200
    (text,) = printed(cli.generate_main, f"ckpt={finished}", "max_new_tokens=3", "prompt=print=json")["completions"]
    assert (text["prompt"], text["tokens"]) == ("print=json", 3)


def test_a_line_has_no_control_characters(capfd):
    """A terminal obeys some that JSON allows: those above 0x7f, and those of writing order."""
    text = "\x1b[2J \x9b31m \x7f \u202e \u2066 \n ü 🙂"
    with json_line.printed(["print=json"]):
        json_line.note(text=text)
    line = capfd.readouterr().out.removesuffix("\n")
    assert not CONTROL.search(line)
    assert "ü 🙂" in line
    assert json.loads(line)["text"] == text


@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_signal_before_training_prints_the_line_in_the_first_process(rank):
    code = """if True:
        import os, signal
        from slm.files import json_line
        with json_line.printed(["print=json"]):
            print("other text")
            os.kill(os.getpid(), signal.SIGTERM)"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RANK": rank}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 143
    assert done.stdout == ('{"exit_code": 143, "error": "SIGTERM"}\n' if rank == "0" else "")


@pytest.mark.parametrize("main", [compare.main, evaluate.main, verify.main])
def test_a_mistake_in_the_flags_is_in_the_line_and_one_line_for_people(main, monkeypatch, capfd):
    assert exit_code(monkeypatch, main, "runs/a", "--jsn", "print=json") == 2
    out, err = capfd.readouterr()
    assert json.loads(out)["exit_code"] == 2
    assert "--help lists what it takes" in json.loads(out)["error"]
    assert err.splitlines() == [f"error: {json.loads(out)['error']}"]
