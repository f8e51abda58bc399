"""print=json: stdout is one line of JSON, however a command ends."""

import json

from conftest import small_run, trained

from slm.results import Run


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
