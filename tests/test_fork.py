"""Kept checkpoints, and runs that fork from them: equal to the trunk up to there, and different by one key after it."""

import contextlib
import shutil
import sys
from pathlib import Path

import pytest
import yaml
from conftest import mistake, small_run, trained
from faults import override as fault
from forks import forked
from test_distributed import TWO
from test_resume import Killed, final_state, history, set_status

import slm
from slm import verify
from slm.files import run_folder
from slm.files.kept import kept_steps
from slm.run import cli
from slm.run.fork import is_replaced
from slm.run.overrides import parsed
from slm.run.replay import recorded_overrides, refuse_foreign
from slm.training.module import Pretraining

TRUNK = (
    *(
        "report=false",
        "log_windows=true",
        "model.dropout=0.1",
        "data.workers=0",
        "callbacks.checkpoints.keep_at=[log2]",
    ),
    *("callbacks.samples.every_n_steps=4", "callbacks.early_stopping.patience=50", "val_every_n_steps=3"),
)


def steps_in(folder) -> list[int]:
    """The steps of its checkpoints."""
    return sorted(map(run_folder.step_of, run_folder.checkpoints(folder)))


def test_chosen_checkpoints_are_saved_and_kept(run):
    """Also those of an earlier keep_at, and beside the newest two and the best."""
    folder = run("callbacks.checkpoints.keep_at=[log2,3]", "budget.steps=5", "schedule=constant")
    assert steps_in(folder) == [1, 2, 3, 4, 5]
    run("callbacks.checkpoints.keep_at=['every:7']", "budget.steps=8", "schedule=constant")
    assert steps_in(folder) == [1, 2, 3, 4, 7, 8]
    assert final_state(folder)[2] == 8
    assert list(verify.find_problems(folder)) == []
    assert kept_steps(["log2", 3, "every:500"], 1000) == {3, 500, 1000, *(2**k for k in range(10))}
    with mistake("keep_at"):
        run("callbacks.checkpoints.keep_at=[log3]", folder="other")
    for entry in (0, True, "every:0", "every:", -1):
        with mistake("keep_at"):
            kept_steps([entry], 10)


@pytest.fixture(scope="module")
def trunk(text_file, tmp_path_factory) -> Path:
    """The folder of a run of ten steps that keeps steps 1, 2, 4 and 8. Tests must not change it."""
    folder = tmp_path_factory.mktemp("trunk")
    with pytest.MonkeyPatch.context() as patch:
        assert trained(patch, *small_run(text_file, folder), *TRUNK, f"run_dir={folder / 'trunk'}") == 0
    return folder / "trunk"


@pytest.fixture
def fork(monkeypatch, tmp_path, trunk):
    """A function that forks the trunk with these overrides and returns the folder, after an attempt that fails in the
    microbatch of this number."""

    def fork(*overrides: str, step: int = 4, folder: str = "fork", fail_at: int | None = None) -> Path:
        words = f"fork={trunk}@{step}", *overrides, f"run_dir={tmp_path / folder}"
        if fail_at is not None:
            real, seen = Pretraining.training_step, []

            def failing(self, *batch):
                seen.append(batch)
                if len(seen) == fail_at:
                    raise Killed
                return real(self, *batch)

            with monkeypatch.context() as patch:
                patch.setattr(Pretraining, "training_step", failing)
                assert trained(patch, *words) == 1
        assert trained(monkeypatch, *words) == 0
        return tmp_path / folder

    return fork


@pytest.mark.parametrize("fail_at", [pytest.param(2, marks=pytest.mark.slow), 6])
def test_a_fork_without_changes_equals_its_trunk(fork, trunk, fail_at):
    """Also one that fails before its first checkpoint, or after it, and is started again."""
    folder = fork(fail_at=fail_at)
    assert verify.first_difference(trunk, folder) is None
    assert list(verify.find_problems(folder)) == []
    facts = run_folder.require_run_json(folder)
    assert facts["attempts"] == 2
    assert facts["fork"] | {"run_id": ""} == {"run": str(trunk), "run_id": "", "step": 4, "consumed": 16, "changed": {}}


def test_a_fork_with_another_setting_equals_a_resume_that_changes_it_there(fork, trunk, monkeypatch, tmp_path):
    folder, copy = fork("optimizer.lr=1e-4", "schedule=constant"), tmp_path / "copy"
    shutil.copytree(trunk, copy)
    for path in run_folder.checkpoints(copy):
        if run_folder.step_of(path) > 4:
            path.unlink()
    set_status(copy, "running")
    recorded = [word for word in recorded_overrides(trunk) if not word.startswith("schedule")]
    changed = "optimizer.lr=1e-4", "schedule=constant", "allow_changes=[optimizer,schedule]"
    assert trained(monkeypatch, *recorded, *changed, f"run_dir={copy}") == 0
    assert verify.first_difference(copy, folder) is None
    assert history(folder)[:4] == history(trunk)[:4]
    assert history(folder)[-1] != history(trunk)[-1]
    changed = run_folder.require_run_json(folder)["fork"]["changed"]
    assert changed["optimizer.lr"] == [0.001, 0.0001]
    assert {key.partition(".")[0] for key in changed} == {"optimizer", "schedule"}


def test_a_fork_may_change_data_and_order_and_resumes_exactly(fork, trunk, text_file, tmp_path):
    """Seed, batch and text: the windows are those of the new order from there on, and all targets are counted."""
    other = tmp_path / "other.txt"
    other.write_text(text_file.read_text()[5000:])
    changes = "seed=7", "data.batch_windows=2", "trainer.microbatch=1", f"data.path={other}"
    straight, failed = fork(*changes), fork(*changes, fail_at=11, folder="failed")
    assert verify.first_difference(straight, failed) is None
    assert list(verify.find_problems(failed)) == []
    facts = run_folder.require_run_json(failed)
    assert facts["attempts"] == 2
    assert facts["fork"]["changed"].keys() >= {"seed", "data.batch_windows", "data.corpus"}
    targets = [line["train/tokens"] for line in history(failed) if "train/tokens" in line]
    assert targets == [64 * (4 * min(step, 4) + 2 * max(step - 4, 0)) for step in range(1, 11)]


@pytest.mark.slow
def test_a_fork_of_a_fork(fork, monkeypatch, tmp_path):
    """The trunk of a fork may be gone once the fork has begun, and the newest run is named latest."""
    first = fork(
        "schedule=constant", "optimizer.lr=1e-4", "+callbacks.timer._target_=lightning.pytorch.callbacks.Timer"
    )
    second = tmp_path / "second"
    command = "fork=latest@8", f"runs_dir={tmp_path}", "model.dropout=0", "budget.steps=12", f"run_dir={second}"
    assert trained(monkeypatch, *command) == 0
    facts = run_folder.require_run_json(second)
    assert facts["config"]["optimizer"]["lr"] == 1e-4
    assert "timer" in facts["config"]["callbacks"]
    assert facts["fork"]["changed"] == {"model.dropout": [0.1, 0], "budget.steps": [10, 12]}
    assert history(second)[:8] == history(first)[:8]
    set_status(second, "running")
    first.rename(tmp_path / "moved")
    (tmp_path / "moved" / "run.json").unlink()
    assert trained(monkeypatch, *command) == 0
    with mistake("is not a run folder"):
        slm.train([f"fork={tmp_path / 'moved'}"])


@pytest.mark.slow
def test_a_sweep_of_forks(trunk, monkeypatch, tmp_path):
    sweep = "-m", f"fork={trunk}@8", "schedule=constant,linear", f"hydra.sweep.dir={tmp_path / 'sweep'}"
    assert trained(monkeypatch, *sweep) == 0
    schedules = [run.info["config"]["schedule"]["_target_"] for run in slm.runs(tmp_path / "sweep")]
    assert schedules == ["slm.optim.schedule.constant", "slm.optim.schedule.linear"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["@3"], r"keeps checkpoints of steps 1, 2, 4, 8, 9, 10; .*keep_at=\[3\]"),
        (["@best"], "must be a number"),
        (["nothing"], "there is no run folder .*nothing, also not in runs"),
        (["@4", "model.width=32"], "model.width 64 -> 32: a fork keeps the shapes"),
        (["@4", "budget.steps=4"], "give more steps"),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in [
                (["@4", "resume=latest"], "exclude one another"),
                (["@4", "verify_resume=true"], "exclude one another"),
                (["@4", "tokenizer=characters"], "tokenizer._target_ .*: a fork keeps the tokenizer"),
                (["@4", "optimizer=muon"], "optimizer._target_ .*: a fork keeps the optimizer's class"),
            ]
        ),
    ],
)
def test_what_a_fork_cannot_do(overrides, message, trunk, tmp_path):
    point, *others = overrides
    with mistake(message):
        slm.train([f"fork={trunk}{point}", *others, f"run_dir={tmp_path / 'refused'}"])
    assert not (tmp_path / "refused").exists()


def test_files_of_conf_that_have_changed_since_the_trunk_are_found(trunk, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(trunk, copy)
    facts = run_folder.require_run_json(copy)
    facts["config"]["optimizer"]["weight_decay"] = 0.3
    run_folder.write_run_json(copy, facts)
    with mistake("optimizer.weight_decay was 0.3 and is 0.1; give optimizer.weight_decay=0.3"):
        slm.train(f"fork={copy}@4")
    assert cli.compose([f"fork={copy}@4", "optimizer.weight_decay=0.3"]).plain["optimizer"]["weight_decay"] == 0.3


@pytest.mark.parametrize(
    ("word", "found"),
    [
        ("callbacks.samples._target_=os.system", "os.system"),
        ("++callbacks.mine._target_=evil_module.Anything", "evil_module.Anything"),
        ("callbacks={checkpoints: {_target_: evil_module.Anything}}", "evil_module.Anything"),
        ("callbacks.samples.sampler._target_=slm.files.atomic.write_text", "slm.files.atomic.write_text"),
        ("data.corpus._target_=slm.corpora.download.fetch", "slm.corpora.download.fetch"),
        ("optimizer._target_=torch.optim.adamw.torch.load", "torch.optim.adamw.torch.load"),
        ("callbacks.samples._target_=lightning.pytorch.callbacks.checkpoint.os.system", "os.system"),
        ("name=${oc.env:HOME}", None),  # of one run only: it is left out
        ("+callbacks.samples.prompts=['${oc.env:HOME}']", "${oc.env:HOME}"),
        ("experiment=../../evil", "../../evil"),
        ("callbacks=[default,/tmp/evil]", "/tmp/evil"),
        ("schedule@hydra.launcher=linear", "schedule@hydra.launcher=linear"),
        ("optimizer.lr=1,2", "optimizer.lr=1,2"),
        ("++callbacks.timer._target_=lightning.pytorch.callbacks.Timer", None),
        ("optimizer._target_=torch.optim.RMSprop", None),
        ("data.corpus.path=${data.path}", None),
    ],
)
def test_the_overrides_of_a_foreign_run_call_nothing_that_conf_does_not_name(word, found, tmp_path):
    """But for what the command line types again."""
    (tmp_path / "overrides.yaml").write_text(yaml.safe_dump(["schedule=linear", word]))
    words, refused = recorded_overrides(tmp_path), mistake() if found else contextlib.nullcontext()
    with refused as error:
        refuse_foreign(tmp_path, words, {})
    if found:
        assert found in str(error.value)
        refuse_foreign(tmp_path, words, {override.key_or_group: override for override in parsed(words)})
    assert "evil_module" not in sys.modules


@pytest.mark.slow
def test_two_processes_fork(text_file, tmp_path):
    """The fork of a run of two processes equals it; and it resumes after a kill."""
    small = [*small_run(text_file, tmp_path), *TRUNK, "trainer.microbatch=1", *TWO]
    one = forked(*small, f"run_dir={tmp_path / 'trunk'}")
    assert one.returncode == 0, one.stderr
    words = f"fork={tmp_path / 'trunk'}@4", f"run_dir={tmp_path / 'fork'}"
    killed = forked(*words, fault("kill", step=7))
    assert killed.returncode != 0
    assert steps_in(tmp_path / "fork")
    done = forked(*words)
    assert done.returncode == 0, done.stderr
    assert verify.first_difference(tmp_path / "trunk", tmp_path / "fork") is None
    assert list(verify.find_problems(tmp_path / "fork")) == []


@pytest.mark.parametrize(
    ("word", "option", "expected"),
    [
        ("schedule.min_lr_ratio=0", "schedule=constant", True),
        ("logger.wandb.project=mine", "logger=tensorboard", True),
        ("data.level=tiny", "data=text", True),
        ("data.batch_windows=8", "data=text", False),
        ("callbacks.samples=null", "callbacks=ema", False),
        ("callbacks.samples.every_n_steps=4", "callbacks=none", True),
        ("trainer.microbatch=8", "trainer=cpu", False),
        ("callbacks=ema", "callbacks=dynamics", True),
        ("optimizer.lr=1", "optimizer.lr=2", True),
        ("optimizer.lr=1", "optimizer={lr: 2}", False),
    ],
)
def test_what_an_option_replaces_of_the_trunks_command(word, option, expected):
    """Settings of another option; not those that every option has."""
    given = {override.key_or_group: override for override in parsed([option])}
    assert is_replaced(word, given) is expected
