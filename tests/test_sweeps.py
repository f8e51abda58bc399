"""Sweeps: names, sweep.json, resuming, failures, launchers and sweepers."""

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import hydra
import numpy as np
import pytest
import torch
from conftest import CONF, ROOT, mistake, small_run, trained
from lightning.pytorch.callbacks import Callback
from omegaconf import OmegaConf
from test_compare import write_run
from test_report import text_of

from slm import energy, report, verify
from slm.analysis.statistics import pooled_deviation
from slm.files import claim, jsonl, run_folder, sweep_folder
from slm.run.sweep_command import check_command, fixed_keys, swept_values
from slm.run.sweep_jobs import Outcome, divided_threads, note
from slm.run.sweep_results import finished_line, table, write_results
from slm.verify import first_difference

KEYS = "optimizer.lr", "model.width", "data.width", "seed", "data.seed", "model"
QUICK = "callbacks.samples=null", "callbacks.progress=null", "budget.steps=4", "val_every_n_steps=2"


def jobs_of(folder: Path) -> dict[str, sweep_folder.SweepJob]:
    return {job.folder: job for job in sweep_folder.require(folder).jobs}


def results(folder: Path) -> list[dict[str, str]]:
    """The rows of results.csv without the columns that depend on the clock."""
    clock = "seconds", "tokens_per_second", "energy_joules"
    with open(folder / "results.csv") as file:
        return [{key: value for key, value in row.items() if key not in clock} for row in csv.DictReader(file)]


# -- sweep.json -----------------------------------------------------------------------------------------------------


def test_names_hold_the_swept_keys_only_are_short_and_differ():
    sweep = sweep_folder.Sweep()
    grid = [
        {"optimizer.lr": lr, "model.width": width, "seed": "1"} for lr in ("0.001", "1e-05") for width in ("8", "9")
    ]
    names = [job.folder for job in sweep.add(*grid)]
    assert names == ["lr-0.001_width-8_seed-1", "lr-0.001_width-9_seed-1", "lr-1e-05_width-8_seed-1", names[3]]
    assert sweep_folder.short_keys(KEYS) == {
        **{"optimizer.lr": "lr", "model.width": "model.width", "data.width": "data.width"},
        **{"seed": "seed", "data.seed": "data.seed", "model": "model"},
    }
    texts = ["a/b", "a,b", "a b", "A/B", "[1,2]", "[12]", "..", "", *("x" * 200 + end for end in "yz")]
    texts = [job.folder for job in sweep.add(*({"data.path": text} for text in texts))]
    assert len({name.casefold() for name in texts}) == len(texts)
    assert all(len(name) < 100 and not name.startswith(".") for name in texts)
    assert sweep.add({"data.path": "a,b"})[0].folder == texts[1]  # as it was
    assert sweep.add({})[0].folder == "run"


def test_the_last_override_of_a_key_decides_whether_it_is_swept():
    command = ["model.width=32", "model.width=32,64", "seed=1,2", "seed=3"]
    assert fixed_keys(command) == {"seed"}
    assert swept_values(["model.width=32", "model.width=64", "seed=1", "seed=3"], {"seed"}) == {"model.width": "64"}


def test_a_damaged_or_foreign_sweep_json_is_one_line(tmp_path):
    with sweep_folder.changed(tmp_path) as sweep:
        sweep.add({"seed": "1"})[0].objective = 0.5
    assert sweep_folder.require(tmp_path).job("seed-1").objective == 0.5
    written = (tmp_path / "sweep.json").read_text()
    for damage in ('{"folder": "../x"}', '{"folder": 3}', '{"status": "new"}', '{"values": [1]}', '{"objective": "x"}'):
        content = json.loads(written)
        content["jobs"][0] |= json.loads(damage)
        (tmp_path / "sweep.json").write_text(json.dumps(content))
        with mistake("sweep.json is damaged"):
            sweep_folder.read(tmp_path)
    (tmp_path / "sweep.json").write_text("[" * 10**5)
    with mistake("sweep.json is damaged"):
        sweep_folder.read(tmp_path)
    with mistake("is not a sweep folder"):
        sweep_folder.require(tmp_path / "other")


def test_a_failure_of_many_jobs_is_printed_once(tmp_path):
    sweep = sweep_folder.Sweep(objective="val/loss")
    for seed, failure in enumerate(("too wide", "too wide", "nan", "too wide"), 1):
        [job] = sweep.add({"seed": str(seed)})
        job.status, job.failure = "failed", failure
    lines = [finished_line(sweep, job, number) for number, job in enumerate(sweep.jobs, 1)]
    assert [line.split("  ")[-1] for line in lines] == [
        *("failed: too wide", "failed as [1]", "failed: nan", "failed as [1]")
    ]
    assert [line.split("-")[-1].strip() for line in table(tmp_path, sweep).splitlines()[1:]] == [
        *("failed (1)", "failed (1)", "failed: nan", "failed (1)", "(1) too wide")
    ]


def test_a_done_job_with_a_damaged_run_json_stays_done_and_says_so(tmp_path):
    """Until the file is repaired."""
    with sweep_folder.changed(tmp_path) as sweep:
        sweep.objective = "val/loss"
        for seed in (1, 2):
            [job] = sweep.add({"seed": str(seed)})
            write_run(tmp_path / job.folder, 2.0, seed=seed)
            job.status, job.objective = "done", 2.0
    damaged = tmp_path / "seed-2" / "run.json"
    content = damaged.read_text()
    damaged.write_text("{")
    write_results(tmp_path)
    assert [bool(row["tokens"]) for row in results(tmp_path)] == [True, False]
    assert [row["status"] for row in results(tmp_path)] == ["done"] * 2
    assert results(tmp_path)[1]["failure"].startswith("run.json is damaged: the job stays done")
    assert "done: run.json is damaged" in table(tmp_path, sweep_folder.require(tmp_path)).splitlines()[2]
    report.create(tmp_path)
    assert "seed-2 done run.json is damaged" in text_of(tmp_path)
    damaged.write_text(content)
    write_results(tmp_path)
    assert not any(row["failure"] for row in results(tmp_path))


def test_a_sweep_may_have_ten_thousand_jobs(tmp_path):
    grid = [{"optimizer.lr": f"{lr}e-5", "seed": str(seed)} for lr in range(100) for seed in range(100)]
    with sweep_folder.changed(tmp_path) as sweep:
        assert len({job.folder for job in sweep.add(*grid)}) == 10_000
        assert sweep.add(grid[1], grid[1]) == [sweep.jobs[1]] * 2
    assert sweep_folder.require(tmp_path).job("lr-99e-5_seed-99").values == grid[-1]


def test_a_failure_names_no_folder_that_would_tell_jobs_apart(tmp_path):
    jobs = [sweep_folder.SweepJob(folder=name, values={}) for name in "ab"]
    for job in jobs:
        note(job, tmp_path / job.folder, Outcome(None, 4, f"{tmp_path / job.folder} has no disk left"))
    assert [(job.status, job.failure) for job in jobs] == [("failed", "the run folder has no disk left")] * 2


def test_differences_are_in_standard_errors_of_the_pooled_noise(tmp_path):
    """Against NumPy: unequal numbers of seeds, one failed."""
    rng, sweep = np.random.default_rng(0), sweep_folder.Sweep(objective="val/loss")
    losses = {"0.1": rng.normal(1.0, 0.1, 3), "0.2": rng.normal(1.5, 0.1, 5), "0.3": rng.normal(2.0, 0.1, 2)}
    for lr, values in losses.items():
        for seed, value in enumerate(values):
            [job] = sweep.add({"optimizer.lr": lr, "seed": str(seed)})
            job.status, job.objective = "done", float(value)
    [job] = sweep.add({"optimizer.lr": "9", "seed": "0"})
    job.status, job.failure = "failed", "loss nan"
    noise = pooled_deviation(list(losses.values()))
    jobs, lines = (part.splitlines() for part in table(tmp_path, sweep).split("\n\n"))
    assert lines[-1] == f"noise: a standard deviation of {noise:.4f} between seeds, with 7 degrees of freedom"
    assert [line.split()[:2] for line in jobs[1:]][-1] == ["9", "0"]
    assert "failed: loss nan" in jobs[-1]
    assert lines[0].split() == ["lr", "val/loss", "seeds", "difference", "in", "standard", "errors"]
    assert [line.split()[0] for line in lines[1:4]] == ["0.1", "0.2", "0.3"]
    errors = [
        (losses[lr].mean() - losses["0.1"].mean()) / noise / np.sqrt(1 / n + 1 / 3)
        for lr, n in (("0.2", 5), ("0.3", 2))
    ]
    assert [float(line.split()[-1]) for line in lines[2:4]] == pytest.approx(errors, abs=0.05)


# -- jobs -----------------------------------------------------------------------------------------------------------


class Leaves(Callback):
    """Leaves process-wide settings behind it, which the next job must not find."""

    def on_fit_end(self, trainer, module):
        torch.set_default_dtype(torch.float64)
        torch.set_num_threads(2)
        torch.use_deterministic_algorithms(True)
        torch.rand(3)
        os.environ["PL_GLOBAL_SEED"] = "1"
        os.environ["PL_SEED_WORKERS"] = "1"


class Failing(Callback):
    """Fails at the seeds 1 (diverges), 2 (memory) and 3 (a bug)."""

    def __init__(self, config):
        self.seed = config.seed

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if Path("repaired").exists() and self.seed != 1:
            return
        if self.seed == 1:
            module.model.tokens.weight.data[:] = torch.nan
        if self.seed == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        if self.seed == 3:
            raise RuntimeError("a bug")


def test_failed_jobs_are_rows_and_the_same_command_tries_again_those_that_may_succeed(
    text_file, tmp_path, monkeypatch, capsys
):
    """And a job equals the run alone, whatever the jobs before it have left."""
    monkeypatch.chdir(tmp_path)
    small = [*small_run(text_file, tmp_path), *QUICK, "trainer.precision=32-true"]
    small += [f"+callbacks.{name.lower()}._target_=test_sweeps.{name}" for name in ("Failing", "Leaves")]
    command = ["-m", *small, f"sweep_dir={tmp_path / 'a, b'}"]
    assert trained(monkeypatch, *command, "seed=1,2,3,4") == 4
    printed, jobs = capsys.readouterr(), jobs_of(tmp_path / "a, b")
    assert [job.status for job in jobs.values()] == ["failed"] * 3 + ["done"]
    for name, failure in (("seed-1", "loss nan"), ("seed-2", "out of memory"), ("seed-3", "RuntimeError: a bug")):
        assert failure in jobs[name].failure
        assert "\n" not in jobs[name].failure
    assert printed.err.count("Traceback") == 1
    rows = results(tmp_path / "a, b")
    assert [row["seed"] for row in rows] == ["1", "2", "3", "4"]
    assert float(rows[3]["val/loss best"]) == jobs["seed-4"].objective == float(rows[3]["objective"])
    assert rows[3]["val/loss best step"] in ("2", "4")
    assert "a bug" in rows[2]["failure"]

    (tmp_path / "repaired").touch()
    before = (tmp_path / "a, b" / "seed-1" / "run.json").read_text()
    assert trained(monkeypatch, *command, "seed=1,2,3,4,5") == 3  # one more, and a final failure
    assert [job.status for job in jobs_of(tmp_path / "a, b").values()] == ["failed"] + ["done"] * 4
    assert (tmp_path / "a, b" / "seed-1" / "run.json").read_text() == before
    printed = capsys.readouterr().out
    assert "2 of 5 jobs are finished already" in printed
    assert printed.count("run:    ") == 3
    ended = [line for line in printed.splitlines() if line.startswith("[")]
    assert [line[:5] for line in ended] == ["[2/5]", "[3/5]", "[5/5]"]  # each once, at its own end
    assert all("val/loss" in line and "failed" not in line for line in ended)

    assert torch.get_default_dtype() == torch.float32
    assert "PL_GLOBAL_SEED" not in os.environ
    assert trained(monkeypatch, *small, "seed=5", "run_dir=alone") == 0
    torch.set_default_dtype(torch.float32)
    assert first_difference(tmp_path / "a, b" / "seed-5", tmp_path / "alone") is None
    configs = (tmp_path / name / "config.yaml" for name in ("a, b/seed-5", "alone"))
    one, other = (OmegaConf.to_container(OmegaConf.load(path)) for path in configs)
    assert {key for key in one if one[key] != other[key]} <= {"run_dir"}


def test_only_the_values_of_swept_keys_may_change(tmp_path):
    command = ["budget.steps=4", "seed=1,2", "sweep_dir=s", "data.workers=0"]
    sweep = sweep_folder.Sweep(command=command)
    sweep.add({"seed": "1"})
    for change in ([], ["seed=7"], ["data.workers=2"], ["hydra/launcher=joblib"]):
        check_command(tmp_path, sweep, [*command, *change])
    for change, message in (
        ("budget.steps=5", "was started with budget.steps=4, not with budget.steps=5"),
        ("model.width=32,64", "was started without model.width, not with model.width swept"),
    ):
        with mistake(message):
            check_command(tmp_path, sweep, [*command, change])


def test_a_folder_of_something_else_or_of_another_command_is_refused(tmp_path):
    code = "import sys; from slm.files.claim import Path, claimed; claimed(Path(sys.argv[1]), 'sweep').__enter__()"
    with claim.claimed(tmp_path, "sweep"):
        other = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert f"UserError: sweep folder {tmp_path} is in use by process {os.getpid()}" in other.stderr
    (tmp_path / "run.json").touch()
    with mistake("so it is not a sweep; give a new folder"):
        claim.check_folder(tmp_path, "sweep")


@pytest.mark.slow
def test_optuna_goes_on_with_the_same_trials(text_file, tmp_path, monkeypatch, capsys):
    """And takes the infinity of a job that diverges: its lr is so large for half of the trials."""
    pytest.importorskip("optuna", reason="the extra sweeps is not installed")
    monkeypatch.chdir(tmp_path)
    sweep = ["-m", *small_run(text_file, tmp_path), *QUICK, "hparams_search=optuna", "sweep_dir=s"]
    sweep += ["optimizer.lr=choice(0.01,1e30)", "hydra.sweeper.sampler.n_startup_trials=2"]
    assert trained(monkeypatch, *sweep, "hydra.sweeper.n_trials=2") in (0, 3)
    first = jobs_of(tmp_path / "s")
    capsys.readouterr()
    assert trained(monkeypatch, *sweep, "hydra.sweeper.n_trials=4") in (0, 3)
    jobs, printed = jobs_of(tmp_path / "s"), capsys.readouterr().out
    started = printed.count("run:    ")
    assert printed.count("jobs are finished already") == 1
    assert {name: jobs[name] for name in first} == first
    assert started == len(jobs) - len(first) > 0
    assert {job.status for job in jobs.values()} == {"done", "failed"}
    assert sweep_folder.require(tmp_path / "s").swept == ["optimizer.lr", "optimizer.weight_decay"]
    assert len(list((tmp_path / "s").glob("*/run.json"))) == len(jobs)


@pytest.mark.parametrize("option", [path.stem for path in sorted((CONF / "hparams_search").glob("*.yaml"))])
def test_every_search_names_what_it_sweeps(option):
    if option == "optuna":
        pytest.importorskip("optuna", reason="the extra sweeps is not installed")
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        config = hydra.compose("train", [f"hparams_search={option}"], return_hydra_config=True)
        known = OmegaConf.to_container(config)
        for key in config.hydra.sweeper.get("params") or ():
            is_key = OmegaConf.select(config, key, default="none") != "none"
            assert is_key or key in config.hydra.runtime.choices, f"{key} is not a key of {list(known)}"


# -- launchers ------------------------------------------------------------------------------------------------------


def test_parallel_jobs_share_the_cores(monkeypatch):
    def threads(jobs: int, **launcher) -> str | None:
        found = {**os.environ, **divided_threads(OmegaConf.create(launcher), jobs)}
        return found.get("OMP_NUM_THREADS")

    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    local, slurm = "submitit_launcher.LocalLauncher", "submitit_launcher.SlurmLauncher"
    assert [threads(9, n_jobs=n) for n in (-1, -2, 1, 3, 20)] == ["1", "1", "8", "2", "1"]
    assert threads(2, n_jobs=-1) == "4"
    assert (threads(4, _target_=local), threads(4, _target_=slurm)) == ("2", None)
    assert "OMP_NUM_THREADS" not in os.environ
    monkeypatch.setenv("OMP_NUM_THREADS", "7")  # the user's
    assert threads(4, n_jobs=4) == "7"


def test_what_a_launcher_cannot_do_is_one_line(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    assert trained(monkeypatch, "-m", "seed=1,2", "hydra/launcher=ray") == 2
    assert 'for ray, pip install -e ".[ray]"' in capsys.readouterr().err
    assert trained(monkeypatch, "sweep_dir=s") == trained(monkeypatch, "hparams_search=lr_grid") == 2
    assert capsys.readouterr().err.count("is for a sweep; add -m") == 2
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="the extra sweeps is not installed")
    for launcher in ("joblib", "submitit_local", "submitit_slurm"):
        assert trained(monkeypatch, "-m", "seed=1,2", f"hydra/launcher={launcher}", "trainer.devices=2") == 2
        assert "trainer.devices=2 needs processes of its own" in capsys.readouterr().err
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    words = "-m", "seed=1,2", "hydra/launcher=joblib", "trainer.devices=auto"
    assert trained(monkeypatch, *words, "trainer.accelerator=auto") == 2
    assert "trainer.devices=auto needs processes of its own" in capsys.readouterr().err
    for count, rule in (("two", "must be a whole number"), ("0", "must be at least 1, or -1")):
        assert trained(monkeypatch, "-m", "seed=1,2", "hydra/launcher=joblib", f"hydra.launcher.n_jobs={count}") == 2
        assert f"error: hydra.launcher.n_jobs={count} {rule}" in capsys.readouterr().err.splitlines()[-1]
    assert not list(tmp_path.iterdir())


def command(*arguments: str, **environment: str) -> list[str]:
    return [sys.executable, str(ROOT / "train.py"), "-m", *arguments]


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_jobs_side_by_side_equal_jobs_one_by_one(launcher, text_file, tmp_path, monkeypatch):
    """In a new cache, which they build once; a job with a mistake is a row, and its output is in a file."""
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="the extra sweeps is not installed")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.chdir(tmp_path)
    sweep = [*small_run(text_file, tmp_path), *QUICK, "seed=1,2", "model.width=64,33"]
    parallel = subprocess.run(
        command(*sweep, "sweep_dir=a", f"hydra/launcher={launcher}"), capture_output=True, text=True
    )
    assert parallel.returncode == 2, parallel.stdout + parallel.stderr
    assert trained(monkeypatch, "-m", *sweep, "sweep_dir=b") == 2
    assert results(tmp_path / "a") == results(tmp_path / "b")
    for seed in (1, 2):
        name = f"seed-{seed}_width-64"
        assert first_difference(tmp_path / "a" / name, tmp_path / "b" / name) is None
        assert run_folder.read_run_json(tmp_path / "a" / name)["threads"] == 1
        assert "done:   val/loss" in (tmp_path / "a" / f"{name}.log").read_text()
    assert parallel.stdout.count("val/loss ") == 2 + 2  # a line for each, and the heads of two tables
    assert "run:    " not in parallel.stdout
    built = [(tmp_path / "a" / f"seed-{seed}_width-64.log").read_text().count("tokens after") for seed in (1, 2)]
    assert sum(built) <= 2  # the two splits, by one of them


def wait_for_lines(folder: Path, count: int, process: subprocess.Popen):
    """Until the runs in a folder have logged so many lines."""
    while process.poll() is None:
        if sum(1 for path in folder.glob("*/metrics.jsonl") for _ in jsonl.lines(path)) >= count:
            return
        time.sleep(0.02)


@pytest.mark.slow
def test_a_sweep_that_was_killed_twice_equals_an_undisturbed_one(text_file, tmp_path, monkeypatch, capsys):
    """kill -9 at random moments, then SIGTERM, then the same command to its end."""
    monkeypatch.chdir(tmp_path)
    sweep = [*small_run(text_file, tmp_path), "callbacks.samples=null", "optimizer.lr=0.01,0.02", "model.width=32,64"]
    sweep += ["budget.steps=20", "callbacks.checkpoints.every_n_steps=3"]
    assert trained(monkeypatch, "-m", *sweep, "sweep_dir=undisturbed") == 0
    folder, rng = tmp_path / "killed", random.Random(time.time_ns())
    moments = sorted(rng.sample(range(1, 90), 2))
    print("killed after", moments, "lines")
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}  # as in this process: their number changes last digits
    for moment, number in (*((moment, signal.SIGKILL) for moment in moments), (moments[1] + 3, signal.SIGTERM)):
        process = subprocess.Popen(
            command(*sweep, "sweep_dir=killed"),
            env={**os.environ, **threads},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        wait_for_lines(folder, moment, process)
        process.send_signal(number)
        output = process.communicate()[0].decode()
        if number == signal.SIGTERM and process.returncode == 128 + number:
            assert [job.status for job in jobs_of(folder).values()].count("stopped") <= 1
            assert "killed goes on from here" in output or "running" not in output
    assert trained(monkeypatch, "-m", *sweep, "sweep_dir=killed") == 0
    capsys.readouterr()
    assert trained(monkeypatch, "-m", *sweep, "sweep_dir=killed") == 0  # finds it done
    assert "4 of 4 jobs are finished already" in capsys.readouterr().out
    assert results(folder) == results(tmp_path / "undisturbed")
    for name in jobs_of(folder):
        assert first_difference(folder / name, tmp_path / "undisturbed" / name) is None


@pytest.mark.slow
def test_a_job_of_submitit_saves_and_is_queued_again(text_file, tmp_path):
    """SIGUSR2 is what SLURM sends before the time of a job of submitit_slurm is over."""
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="the extra sweeps is not installed")
    sweep = [*small_run(text_file, tmp_path), "report=false", "callbacks.samples=null", "seed=1", "log_windows=true"]
    sweep += ["budget.steps=100", "callbacks.checkpoints.every_n_steps=5000", "val_every_n_steps=100"]
    sweep += ["hydra/launcher=submitit_local", f"sweep_dir={tmp_path / 'sweep'}"]
    process = subprocess.Popen(command(*sweep), stdout=subprocess.PIPE, text=True)
    wait_for_lines(tmp_path / "sweep", 10, process)
    (job,) = jobs_of(tmp_path / "sweep").values()
    os.kill(int(job.process.rpartition(":")[2]), signal.SIGUSR2)
    printed = process.communicate()[0]
    assert process.returncode == 0, printed
    log = (tmp_path / "sweep" / "run.log").read_text()
    assert log.count("SIGUSR2: finishing this step and saving it") == 1
    assert log.count("done:") == log.count(", from step-") == 1, log
    assert list(verify.find_problems(tmp_path / "sweep" / "run")) == []


@pytest.mark.slow
def test_a_sweep_of_ray_goes_on_after_a_kill_and_a_signal(text_file, tmp_path):
    """kill -9 of a job and SIGTERM to the command; then the same command, which runs what is missing."""
    pytest.importorskip("hydra_plugins.hydra_ray_launcher", reason="the extra ray is not installed")
    folder, settings = tmp_path / "sweep", {"env": os.environ | {"RAY_USAGE_STATS_ENABLED": "0"}, "text": True}
    sweep = [*small_run(text_file, tmp_path), "callbacks.samples=null", "report=false", "seed=1,2,3,4"]
    sweep += ["budget.steps=100", "callbacks.checkpoints.every_n_steps=10", "val_every_n_steps=50"]
    sweep += ["hydra/launcher=ray", "+hydra.launcher.ray.init.num_cpus=2", f"sweep_dir={folder}"]
    process = subprocess.Popen(command(*sweep), stdout=subprocess.PIPE, **settings)
    while process.poll() is None and not (saved := [*folder.glob("*/checkpoints/last.json")]):
        time.sleep(0.02)
    killed = jobs_of(folder)[saved[0].parts[-3]]
    os.kill(int(killed.process.rpartition(":")[2]), signal.SIGKILL)
    process.send_signal(signal.SIGTERM)
    printed = process.communicate()[0]
    assert process.returncode == 128 + signal.SIGTERM, printed
    assert f"the same command with sweep_dir={folder} goes on from here" in printed
    before = jobs_of(folder)
    assert {job.status for job in before.values()} <= {"done", "stopped", "waiting"}
    assert before[killed.folder].status == "stopped"
    assert subprocess.run(command(*sweep), **settings).returncode == 0
    for name, job in jobs_of(folder).items():
        log = (folder / f"{name}.log").read_text()
        assert (job.status, log.count("done:   val/loss"), list(verify.find_problems(folder / name))) == ("done", 1, [])
    assert ", from step-" in (folder / f"{killed.folder}.log").read_text()


# -- energy ---------------------------------------------------------------------------------------------------------


def test_energy_is_that_of_the_packages_and_survives_a_counter_that_starts_again(tmp_path, monkeypatch):
    monkeypatch.setattr(energy, "RAPL", tmp_path)
    cpu = torch.device("cpu")
    assert energy.EnergyMeter(energy.counters(cpu, [0])).joules() is None
    for zone, name in (("0", "package-0"), ("0:0", "core"), ("1", "package-1"), ("2", "psys")):
        folder = tmp_path / f"intel-rapl:{zone}"
        folder.mkdir()
        for file, value in (("name", name), ("energy_uj", 9_000_000), ("max_energy_range_uj", 10_000_000)):
            (folder / file).write_text(f"{value}\n")
    meter = energy.EnergyMeter(energy.counters(cpu, [0]))
    assert meter.joules() == 0
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("9500000\n")
    (tmp_path / "intel-rapl:0:0" / "energy_uj").write_text("9900000\n")
    assert meter.joules() == pytest.approx(0.5)
    (tmp_path / "intel-rapl:1" / "energy_uj").write_text("2000000\n")
    assert meter.joules() == pytest.approx(0.5 + 3)
    (tmp_path / "intel-rapl:1" / "energy_uj").unlink()
    assert meter.joules() is None
