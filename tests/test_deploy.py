"""deploy/: what runs on a rented machine is a command of this project with existing keys, and goes on when retried."""

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from conftest import ROOT

from slm import hardware
from slm.run import cli

DEPLOY = ROOT / "deploy"
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
SKY = yaml.safe_load((DEPLOY / "sky.yaml").read_text())
PAGES = [ROOT / "docs" / "deploy.md", DEPLOY / "hf_jobs.md"]
COMMANDS = [
    line.split("  #")[0].strip()
    for page in PAGES
    for block in re.findall(r"```sh\n(.*?)```", page.read_text(encoding="utf-8"), re.S)
    for line in block.splitlines()
]


@pytest.fixture
def modal_job(monkeypatch):
    monkeypatch.syspath_prepend(DEPLOY)
    import modal_job

    return modal_job


@pytest.fixture
def modal_app(monkeypatch):
    pytest.importorskip("modal", reason="the extra 'cloud' is not installed")
    monkeypatch.syspath_prepend(DEPLOY)
    import modal_app

    monkeypatch.setattr(type(modal_app.volume), "commit", lambda self: None)
    return modal_app


def overrides(command: str) -> list[str]:
    """The words of train.py in a command of the pages."""
    words = shlex.split(command)
    words += [part for word in words if word.startswith("WORDS=") for part in shlex.split(word.removeprefix("WORDS="))]
    return [word for word in words if re.match(r"(-m$|[a-z][a-z_.]*=)", word)]


JOBS = {
    "experiment=gpt2_124m trainer=gpu run_dir=runs/a": ("A10", []),
    "trainer=t4 run_dir=runs/a seed=2 --gpu=H100": ("H100", []),
    "trainer=ddp trainer.devices=4 sweep_dir=sweeps/a": ("A10:4", []),
    "trainer=ddp --gpu A100-80GB:8 run_dir=a": ("A100-80GB:8", []),
    "trainer=cpu run_dir=runs/a": (None, []),
    "experiment=quickstart": ("A10", ["run_dir=runs/NOW"]),
    "-m seed=1,2": ("A10", ["sweep_dir=sweeps/NOW"]),
}


@pytest.mark.parametrize("typed", JOBS)
def test_modal_runs_train_py_with_the_words_as_they_are_typed(typed, modal_job, monkeypatch):
    monkeypatch.setattr(modal_job.time, "strftime", lambda form: "NOW")
    gpu, added = JOBS[typed]
    job = modal_job.read(["--", *typed.split()])
    kept = re.sub(r"--gpu.\S+", "", typed).split()
    assert job == modal_job.Job(command=["python", "/slm/train.py", *kept, *added], gpu=gpu, hours=24)


MISTAKES = {
    "trainer=ddp": "give --gpu=A10:2",
    "trainer=mps": "or give --gpu=TYPE",
    "run_dir=/home/me/a": "as in run_dir=mine",
    "cache_dir=~/cache": "as in cache_dir=mine",
    "--hours=30": "at most 24",
    "--hours=x": "as in --gpu=A100-80GB --hours=6",
}


@pytest.mark.parametrize("typed", MISTAKES)
def test_a_mistake_is_one_line_before_anything_is_rented(typed, modal_job, capsys):
    with pytest.raises(SystemExit, match="2"):
        modal_job.read([typed])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert MISTAKES[typed] in line


def test_each_trainer_preset_has_a_machine_of_modal(modal_job):
    presets = {path.stem for path in (ROOT / "conf" / "trainer").glob("*.yaml")}
    assert presets - {"mps"} <= modal_job.GPUS.keys()


def test_modal_run_rents_what_the_words_need(modal_app, monkeypatch):
    """Through Modal's own command line, with its server replaced: GPU, time limit, secrets that exist, exit code."""
    import modal
    from click.testing import CliRunner
    from modal.cli import run

    rented, spawned = {}, []

    class Remote:
        def spawn(self, command):
            spawned.extend(command)
            return self

        def get(self):
            return 3

    def hydrate(secret):
        if "wandb" not in repr(secret):
            raise modal.exception.NotFoundError("no such secret")

    monkeypatch.setattr(modal.Function, "with_options", lambda self, **options: rented.update(options) or Remote())
    monkeypatch.setattr(modal.Secret, "hydrate", hydrate)
    monkeypatch.setattr(run, "run_app", lambda app, **options: contextlib.nullcontext())
    words = ["experiment=gpt2_350m", "--gpu=H100", "--hours=2", "run_dir=runs/a"]
    done = CliRunner().invoke(run.run, ["--detach", str(DEPLOY / "modal_app.py"), "--", *words], obj={})
    assert done.exit_code == 3, done.output
    assert spawned == ["python", "/slm/train.py", "experiment=gpt2_350m", "run_dir=runs/a"]
    assert (rented["gpu"], rented["timeout"], len(rented["secrets"])) == ("H100", 7200, 1)
    assert "no secret 'huggingface': going on without it" in done.output
    assert done.output.splitlines()[-1].startswith("error: exit code 3; ")


@pytest.mark.filterwarnings("ignore:The train function is executing locally")
def test_modal_retries_what_was_interrupted_and_nothing_else(modal_app, monkeypatch, tmp_path):
    monkeypatch.setattr(modal_app, "VOLUME", str(tmp_path))

    def train(code: str) -> int:
        return modal_app.train.local([sys.executable, "-c", f"import os, signal, sys; {code}"])

    assert [train(f"sys.exit({code})") for code in (0, 2, 3)] == [0, 2, 3]
    for code in ("sys.exit(143)", "os.kill(os.getpid(), 9)"):
        with pytest.raises(RuntimeError, match="stopped by signal"):
            train(code)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in what a script starts with &
    saves = "signal.signal(signal.SIGTERM, lambda *_: (open('saved', 'w'), sys.exit(143)))"
    try:
        with pytest.raises(KeyboardInterrupt):  # Modal interrupts the function before a preemption
            train(f"{saves}; os.kill(os.getppid(), signal.SIGINT); signal.pause()")
    finally:
        signal.signal(signal.SIGINT, before)
    assert (tmp_path / "saved").exists()


def test_the_task_of_skypilot_trains_in_its_bucket():
    environment = {"BUCKET": "mine", "RUN": "a", "WORDS": "experiment=gpt2_124m trainer=gpu 'tags=[a, b]'"}
    assert SKY["envs"].keys() == environment.keys()
    shell = SKY["run"].replace(".venv/bin/python train.py", "printf '%s\\n'")
    done = subprocess.run(["bash", "-uc", shell], env={**os.environ, **environment}, capture_output=True, text=True)
    words = done.stdout.splitlines()
    assert words == ["experiment=gpt2_124m", "trainer=gpu", "tags=[a, b]", "run_dir=/bucket/runs/a"]
    assert (*SKY["file_mounts"], SKY["file_mounts"]["/bucket"]["mode"]) == ("/bucket", "MOUNT_CACHED")
    signals = {128 + number for number in (signal.SIGHUP, signal.SIGKILL, signal.SIGTERM)}
    assert signals == set(SKY["resources"]["job_recovery"]["recover_on_exit_codes"])
    assert "SLM_CACHE=/bucket/cache" in SKY["run"]


READ = """
import sky, sys, yaml
config = yaml.safe_load(open(sys.argv[1]))
task = sky.Task.from_yaml_config(config, env_overrides=[("BUCKET", "mine"), ("RUN", "a"), ("WORDS", "seed=1")])
print(sorted({resources.use_spot for resources in task.resources}), task.storage_mounts["/bucket"].mode.value)
"""


@pytest.mark.slow
def test_skypilot_reads_its_file():
    """In the environment of the program sky, which is not this one: they need different versions of click."""
    if not (sky := shutil.which("sky")):
        pytest.skip("SkyPilot is not installed; docs/deploy.md says where to")
    command = [Path(sky).resolve().with_name("python"), "-c", READ, DEPLOY / "sky.yaml"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1:] == ["[True] MOUNT_CACHED"], done.stderr


def vast(*words: str) -> subprocess.CompletedProcess:
    return subprocess.run([DEPLOY / "vast.sh", *words], capture_output=True, text=True, cwd=ROOT)


def test_vast_shows_what_it_would_do_and_each_line_is_a_command():
    words = ["experiment=smalllm", "run_dir=runs/a", "data.path=data/novels/*.txt", "name=it's"]
    done = vast("--dry-run", "train", "root@203.0.113.7:41022", *words)
    assert not done.stderr
    assert "ssh -p 41022" in done.stdout
    there = re.findall(r"^there: (.*?)(?=^(?:there|here): |\Z)", done.stdout, re.S | re.M)
    assert len(there) == 6
    for line in there:
        subprocess.run(["bash", "-n", "-c", line], check=True)
    (command,) = shlex.split(re.search(r"tmux new-session -d -s slm (.*) && echo", there[-1])[1])
    assert shlex.split(command.split(" 2>&1 |")[0]) == [".venv/bin/python", "train.py", *words]
    extras = re.search(r"'\.\[(.*?)\]'", done.stdout)[1].split(",")
    assert set(extras) <= EXTRAS.keys()


@pytest.mark.parametrize(
    "words",
    [
        "train root@host:1 seed=1",
        "train host",
        "log root@host:x",
        "data root@host /none",
        "page root@host",
        "fly a@b",
        "",
    ],
)
def test_vast_answers_a_mistake_before_it_connects(words):
    done = vast(*words.split())
    assert done.returncode == 2
    assert done.stderr.startswith("usage: " if words in ("fly a@b", "") else "error: ")
    assert not done.stdout


def test_shell_scripts_have_no_warning_of_shellcheck():
    scripts = sorted([*DEPLOY.glob("*.sh"), *DEPLOY.glob("*.sbatch")])
    assert [os.access(script, os.X_OK) for script in scripts] == [True] * len(scripts)
    for script in scripts:
        subprocess.run(["bash", "-n", script], check=True)
    shellcheck = shutil.which(
        "shellcheck", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    )
    if not shellcheck:
        pytest.skip("shellcheck is not installed")
    done = subprocess.run([shellcheck, *scripts], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


STAND_INS = {  # of the job's programs; the bucket is a folder
    "pip": "exit 0",
    "hf": 'echo "$*" >>"$LOG"; mkdir -p "$3" "$4"; cp -r "$3/." "$4"; [[ ! -e $BUCKET/broken ]]',
    "slm": """
        echo "slm $*" >>"$LOG"
        [[ $* != *prepare=true* ]] || exit 0
        trap 'echo saved >>"$folder/checkpoint"; exit 143' TERM
        folder=$(sed 's/.*run_dir=\\([^ ]*\\).*/\\1/' <<<"$*")
        cat "$folder"/checkpoint 2>/dev/null || echo new >"$folder/checkpoint"
        kill -TERM $PPID  # the end of the machine
        while true; do sleep 0.01; done
    """,
}


def test_a_job_of_the_hub_saves_on_sigterm_and_goes_on_from_its_bucket(tmp_path):
    for name, script in STAND_INS.items():
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{script}")
        (tmp_path / name).chmod(0o755)
    shutil.copy(DEPLOY / "hf_job.sh", tmp_path)
    (tmp_path / "slm-1-py3-none-any.whl").touch()
    bucket, log = tmp_path / "bucket", tmp_path / "log"
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "BUCKET": str(bucket), "RUN": "mine", "LOG": str(log)}
    for attempt in ("one", "two"):  # each on a machine of its own
        machine = tmp_path / attempt
        machine.mkdir()
        job = ["bash", str(tmp_path / "hf_job.sh"), "experiment=quickstart", "tags=[a, b]"]
        done = subprocess.run(job, cwd=machine, env=environment, capture_output=True, text=True, timeout=20)
        assert done.returncode == 143, done.stderr
    assert (bucket / "runs" / "mine" / "checkpoint").read_text() == "new\nsaved\nsaved\n"
    (bucket / "broken").touch()
    assert subprocess.run(job, cwd=machine, env=environment, capture_output=True).returncode == 1
    trainings = [line for line in log.read_text().splitlines() if line.startswith("slm train run_dir")]
    assert trainings == ["slm train run_dir=runs/mine experiment=quickstart tags=[a, b]"] * 2


def test_the_command_of_the_hub_is_one_of_its_program():
    (command,) = (line for line in COMMANDS if line.startswith("hf jobs run"))
    words = shlex.split(command)
    program = "from huggingface_hub.cli.hf import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", program, *words[1:3], "--dry-run", *words[3:]], capture_output=True, text=True
    )
    assert "bash /dist/hf_job.sh experiment=" in done.stdout, done.stderr
    (script,) = re.findall(r"/dist/(\S+\.sh)", command)
    assert f"cp deploy/{script} dist" in "\n".join(COMMANDS)


@pytest.mark.parametrize("command", [line for line in COMMANDS if overrides(line)])
def test_commands_of_the_pages_train_with_keys_that_exist(command, monkeypatch):
    monkeypatch.setattr(hardware.torch.cuda, "is_available", lambda: True)
    cli.compose(overrides(command))


def test_the_image_holds_what_an_installation_needs():
    lines = (DEPLOY / "Dockerfile").read_text().splitlines()
    copied = [name for line in lines if line.startswith("COPY ") for name in line.split()[1:-1]]
    assert all((ROOT / name).exists() for name in copied)
    kept = [line[1:] for line in (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines() if line.startswith("!")]
    assert sorted(kept) == sorted(copied)
    (extras,) = (line.split('"')[1].split(",") for line in lines if line.startswith("ARG EXTRAS"))
    assert set(extras) <= EXTRAS.keys()
    assert "USER 1000" in lines
    container = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text())
    assert ".[dev]" in container["postCreateCommand"]
    if shutil.which("hadolint"):
        subprocess.run(["hadolint", DEPLOY / "Dockerfile"], check=True)
