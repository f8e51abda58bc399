"""A start that would lose something is refused before anything on disk changes."""

import bisect
import collections
import datetime
import functools
import io
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import mistake
from lightning.pytorch.callbacks import Callback
from test_resume import final_state, history, set_status

from slm import checkpoint
from slm.errors import UserError
from slm.files import archive, run_folder
from slm.training import checkpoint_io

QUICK = "callbacks.samples=null", "val_every_n_steps=100", "schedule=constant"


@pytest.fixture(scope="module")
def trained_run(text_file, tmp_path_factory):
    """A function that copies a run of four steps, with a checkpoint every step, into a folder."""
    from conftest import small_run

    from slm.run import cli
    from slm.run.train import train

    source = tmp_path_factory.mktemp("source")
    arguments = [*small_run(text_file, source), *QUICK, "budget.steps=4", "callbacks.checkpoints.every_n_steps=1"]
    train(cli.compose([*arguments, "name=test"]), run_dir=source / "run", overrides=[])
    return lambda folder: Path(shutil.copytree(source / "run", folder))


def content(folder: Path) -> dict[str, bytes]:
    """The files of a run folder, but for the lock."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != ".lock"}


MORE = *QUICK, "budget.steps=6", "callbacks.checkpoints.every_n_steps=1"


@pytest.mark.parametrize(
    ("deleted", "status", "sign"),
    [
        ("checkpoints/*.ckpt*", "done", "checkpoints/last.json"),
        pytest.param("checkpoints/*.ckpt", "running", "checkpoints/last.json", marks=pytest.mark.slow),
        ("checkpoints/[!b]*", "failed", "checkpoints/best.json"),
        ("checkpoints/*", "done", "status done in run.json"),
        pytest.param("checkpoints/*", "stopped", "status stopped in run.json", marks=pytest.mark.slow),
        ("checkpoints/*", "running", "step 4 in metrics.jsonl"),
    ],
)
def test_a_run_whose_checkpoints_were_deleted_does_not_start_from_zero(
    trained_run, run, tmp_path, deleted, status, sign
):
    folder = trained_run(tmp_path / "run")
    set_status(folder, status)
    for path in folder.glob(deleted):
        path.unlink()
    before = content(folder)
    with mistake(f"holds no checkpoint, and {sign} shows that it had some.*resume=.*move the folder away"):
        run(*MORE)
    with mistake("resume=auto"):
        run(*MORE, "resume=never")
    assert content(folder) == before
    other = trained_run(tmp_path / "other")
    newest = run_folder.checkpoints(other)[0]
    run(*MORE, f"resume={newest}")
    assert [line["step"] for line in history(folder)] == [1, 2, 3, 4, 4, 5, 6, 6]
    assert final_state(folder)[2] == 6


def test_a_run_that_was_killed_before_its_first_checkpoint_starts_again(trained_run, run, tmp_path):
    folder = trained_run(tmp_path / "run")
    shutil.rmtree(folder / "checkpoints")
    set_status(folder, "running")
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text("".join(lines[:2]))
    run(*MORE)
    assert final_state(folder)[2] == 6


def test_a_change_of_the_code_is_noted_and_kept(run, monkeypatch, capsys):
    for steps, dirty in ((1, None), (2, None), (3, "f" * 64)):
        code = {"git_commit": "a" * 40, "git_dirty": dirty}
        monkeypatch.setattr("slm.run.record.source_code", lambda code=code: code)
        folder = run(*QUICK, f"budget.steps={steps}")
    both = ["a" * 12, f"{'a' * 12} with changes {'f' * 12}"]
    notes = [line for line in capsys.readouterr().out.splitlines() if "the code has changed" in line]
    assert notes == [f"note: the code has changed since the attempt before: {both[0]} -> {both[1]}"]
    assert run_folder.read_run_json(folder)["commits"] == both


class Broken(Callback):
    def state_dict(self):
        return {"count": 1}

    def load_state_dict(self, state):
        raise KeyError("count")


@pytest.mark.parametrize("failure", ["callback", "setting", "groups"])
def test_a_restore_that_fails_leaves_the_folder_as_it_was(trained_run, run, tmp_path, failure):
    """A callback of the user keeps its traceback; what the optimizer cannot take over is one line."""
    folder = trained_run(tmp_path / "run")
    extra, expected, message = {
        "callback": (f"+callbacks.mine._target_={__name__}.Broken", KeyError, "count"),
        "setting": ("optimizer.betas=[0.5,0.5]", UserError, "betas"),
        "groups": ("optimizer.decay=all", UserError, "does not fit this configuration.*nothing was changed"),
    }[failure]
    if failure == "callback":
        newest = run_folder.checkpoints(folder)[0]
        saved = checkpoint.read(newest)
        saved["callbacks"]["Broken"] = {"count": 1}
        checkpoint.save(saved, newest)
    before = content(folder)
    with pytest.raises(expected, match=message):
        run(*MORE, extra, *(["allow_changes=[optimizer.decay]"] if failure == "groups" else []))
    assert content(folder) == before


def without(key: str):
    return lambda saved: saved[key].clear()


def best_in(saved: dict) -> dict:
    return next(state for state in saved["callbacks"].values() if "best" in state and "kept" in state)


def groups_in(saved: dict) -> list:
    return saved["optimizer_states"][0]["param_groups"]


def misshaped(saved: dict):
    saved["optimizer_states"][0]["state"][3]["exp_avg_sq"] = torch.zeros(1)


MALFORMED = {  # by a change of a checkpoint
    "ValueError: .* parameter group.*nothing was changed": lambda saved: groups_in(saved).pop(),
    "holds no optimizer_states, so training cannot go on": without("optimizer_states"),
    "state is damaged: one belongs to no parameter": lambda saved: saved["optimizer_states"][0]["state"].update(
        {999: {}}
    ),
    "the state of callbacks.checkpoints is damaged: best": lambda saved: best_in(saved).update(best="x"),
    r"state is damaged: exp_avg_sq has not the shape \(\d+, 64\)": misshaped,
    "KeyError: 'fit_loop'.*nothing was changed": without("loops"),
    "KeyError: 'consumed'.*nothing was changed": without("WindowsData"),
    "a field is missing or has the wrong type": lambda saved: saved["WindowsData"].update(consumed=-1),
}


@pytest.mark.parametrize(("message", "made"), [(message, i == 0) for i, message in enumerate(MALFORMED)])
def test_a_malformed_state_leaves_no_folder(trained_run, run, tmp_path, message, made):
    """Or an empty one, if it was there before."""
    start = run_folder.checkpoints(trained_run(tmp_path / "source"))[0]
    saved = checkpoint.read(start)
    MALFORMED[message](saved)
    checkpoint.save(saved, start)
    if made:
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / ".notes").touch()
    with mistake(message):
        run(*MORE, f"resume={start}", "logger=csv")
    assert sorted(path.name for path in (tmp_path / "run").glob("*")) == ([".lock", ".notes"] if made else [])
    assert (tmp_path / "run").exists() == made


def groups(folder: Path) -> list[dict]:
    return final_state(folder)[1][0]["param_groups"]


@pytest.mark.parametrize(
    ("key", "value", "found"),
    [
        ("optimizer.lr", "1e-7", lambda folder: groups(folder)[0]["lr"] == pytest.approx(1e-7)),
        pytest.param(
            "optimizer.betas",
            "[0.5,0.6]",
            lambda folder: tuple(groups(folder)[0]["betas"]) == (0.5, 0.6),
            marks=pytest.mark.slow,
        ),
        pytest.param("optimizer.eps", "1e-3", lambda folder: groups(folder)[1]["eps"] == 1e-3, marks=pytest.mark.slow),
        ("optimizer.weight_decay", "0.7", lambda folder: 0.7 in [group["weight_decay"] for group in groups(folder)]),
        ("schedule.warmup_steps", "6", lambda folder: True),
        pytest.param("trainer.gradient_clip_val", "1e-9", lambda folder: True, marks=pytest.mark.slow),
        ("data.validation_windows", "2", lambda folder: True),
    ],
)
def test_an_allowed_change_takes_effect(trained_run, run, tmp_path, key, value, found):
    folder = trained_run(tmp_path / "run")
    with mistake(f"{key}: .* -> .*allow_changes="):
        run(*MORE, f"{key}={value}")
    plain = run(*MORE, folder="plain")
    run(*MORE, f"{key}={value}", f"allow_changes=[{key}]")
    assert found(folder)
    same = torch.equal(*(final_state(each)[0]["model.head.weight"] for each in (plain, folder)))
    losses = [history(each)[-1]["val/loss"] for each in (plain, folder)]
    assert not same or losses[0] != losses[1]


RMSPROP = "optimizer._target_=torch.optim.RMSprop", "~optimizer.decay", "~optimizer.betas"
MUON = "optimizer=muon", "callbacks.samples=null"
ADAMW = "optimizer._target_=torch.optim.AdamW", "~optimizer.decay"


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ([], ["optimizer=muon"], "AdamW -> slm.optim.muon.Muon, which cannot use the state of the first"),
        (RMSPROP, [*RMSPROP, "+optimizer.centered=true"], "needs grad_avg, which the checkpoint does not hold"),
        (RMSPROP, [*RMSPROP, "+optimizer.momentum=0.9"], "needs momentum_buffer, which"),
        (ADAMW, [*ADAMW, "+optimizer.amsgrad=true"], "needs max_exp_avg_sq, which"),
        (MUON, [*MUON, "optimizer.neuron_normalization=true"], "needs row_squares, which"),
    ],
)
def test_an_optimizer_whose_state_is_missing_is_refused(run, before, after, message):
    folder = run(*QUICK, "budget.steps=1", *before)
    kept = content(folder)
    with mistake(message):
        run(*QUICK, "budget.steps=2", *after, "allow_changes=[optimizer]")
    assert content(folder) == kept


def test_settings_in_the_restored_state_of_a_callback_change_too(run):
    """Lightning's own class, which saves its patience. An unchanged setting keeps what the training made of it."""
    stop = "+callbacks.stop={_target_: lightning.pytorch.callbacks.EarlyStopping, monitor: val/loss, patience: %d}"
    every = "val_every_n_steps=1", "optimizer.lr=1e-12", "schedule=constant", "callbacks.samples=null"
    every = *every, "callbacks.early_stopping=null"
    run(*every, "budget.steps=2", stop % 50)
    folder = run(*every, "budget.steps=9", (stop % 2).replace("patience: 2", "patience: 2, min_delta: 1.0"))
    assert final_state(folder)[2] < 6


# -- states that could not be read back -----------------------------------------------------------------------------


ODD = {
    "numpy": np.float64(1.5),
    "long": [0.5] * 150_000,
    "lambda": lambda: 0,
    "object": Broken(),
    "date": datetime.datetime(2020, 1, 1),
    "tuple": collections.namedtuple("Pair", "a b")(1, 2),
    "array": np.zeros(3),
    "default": collections.defaultdict(list, a=[1]),
    "sparse": torch.zeros(3, 3).to_sparse(),
    "nested tensors": torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)], layout=torch.jagged),
    "no numbers": torch.zeros(3, device="meta"),
    "sixteen bits without a sign": torch.zeros(3, dtype=torch.uint16),
    "no bytes": b"",
    "deep": functools.reduce(lambda inner, _: [inner], range(70), 0),
}
PARTS = {  # in the message
    "numpy": "a numpy.float64 at kept.value",
    "sparse": r"torch.Tensor \(torch.float32, torch.sparse_coo, cpu\) at kept.value",
    "no numbers": "torch.strided, meta",
    "sixteen bits without a sign": "torch.uint16",
    "no bytes": "empty bytes at kept.value",
    "default": "a collections.defaultdict at kept.value",
    "deep": "more than 64 levels",
}


class Keeps(Callback):
    """A callback whose state is one value, from its first or from its third step on."""

    def __init__(self, *, kind: str, late: bool = False):
        self.kind, self.late, self.steps = kind, late, 0

    def on_train_batch_end(self, *_):
        self.steps += 1

    def state_dict(self):
        return {"kept": {"value": 0 if self.late and self.steps < 3 else ODD[self.kind]}}


@pytest.mark.parametrize("kind", ODD)
def test_a_state_that_could_not_be_read_back_is_refused_before_the_first_step(run, tmp_path, kind):
    pattern = "the state of Keeps holds (a .* at .*could not be read back|more than 100,000 values|empty bytes at)"
    with mistake(pattern) as error:
        run(*QUICK, f"+callbacks.keeps={{_target_: {__name__}.Keeps, kind: {kind}}}")
    assert re.search(PARTS.get(kind, ""), str(error.value))
    assert not (tmp_path / "run").exists()


SHARED = torch.arange(40_000.0)
ACCEPTED = {
    "counts": collections.Counter("aab"),
    "ordered": collections.OrderedDict(a=torch.zeros(2), b={1: (2, None), (1, 2): 1 + 2j}),
    "one tensor, five names": dict.fromkeys("abcde", SHARED),
    "views": [SHARED[i : i + 30_000] for i in range(5)],
    "expanded": [torch.ones(1).expand(50_000)] * 3,
    "numbers": [float("inf"), -(10**400), b"a\xff", {1, 2}, torch.Size([1]), torch.float16, "\ud800"],
    "complex": torch.ones(3, dtype=torch.complex64).conj(),
}


@pytest.mark.parametrize("kind", ACCEPTED)
def test_a_state_that_is_accepted_is_read_back_as_it_was(finished, tmp_path, kind):
    newest = run_folder.checkpoints(finished)[0]
    content, value = checkpoint.read(newest), ACCEPTED[kind]
    content["callbacks"]["Mine"] = {"kept": value}
    checkpoint_io.refuse_unreadable(content)
    checkpoint.save(checkpoint_io.copied(content), tmp_path / newest.name)
    kept = checkpoint.read(tmp_path / newest.name)["callbacks"]["Mine"]["kept"]
    assert type(kept) is type(value)
    assert repr(kept) == repr(value)


def test_the_file_of_a_state_with_as_many_tensors_as_are_accepted_is_read_back(monkeypatch):
    """Tensors of four dimensions, beside other values; with more of them the state is refused before it is written."""
    monkeypatch.setattr(archive, "MAX_OPCODES", 10_000)
    numbers, file = {f"number {i}": [i + 0.5, b"a\xff"] for i in range(300)}, io.BytesIO()

    def state(tensors: int) -> dict:
        return {
            "callbacks": {
                "Mine": numbers | {str(i): torch.nn.Parameter(torch.ones(1, 1, 1, i)) for i in range(tensors)}
            }
        }

    most = bisect.bisect(range(1000), 0, key=lambda tensors: not checkpoint_io._is_readable(state(tensors))) - 1
    assert 50 < most < 200
    checkpoint_io.refuse_unreadable(state(most))
    torch.save(state(most), file)
    assert archive.is_plain(file, archive.MAX_OPCODES)


def test_such_a_state_is_refused_at_a_later_save_too(run, tmp_path):
    keeps = f"+callbacks.keeps={{_target_: {__name__}.Keeps, kind: numpy, late: true}}"
    with mistake("the state of Keeps holds a numpy.float64 at kept.value"):
        run(*QUICK, keeps, "callbacks.checkpoints.every_n_steps=1")
    assert [run_folder.step_of(path) for path in run_folder.checkpoints(tmp_path / "run")] == [2, 1]
    checkpoint.load(run_folder.checkpoints(tmp_path / "run")[0])
