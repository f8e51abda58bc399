"""Standard parts of Lightning in a run, and the module and data of this project in a standard Trainer."""

import json

import lightning.pytorch as L
import pytest
import torch
from conftest import mistake
from faults import override as fault
from lightning.pytorch.callbacks import Callback
from test_resume import history, resumes_exactly

from slm import checkpoint
from slm.corpora.text import Text
from slm.data.store import prepare
from slm.data.windows import split_windows
from slm.errors import Stopped
from slm.files import run_folder
from slm.model import GPT, GPTConfig
from slm.tokenizers.bytes import ByteTokenizer
from slm.training.datamodule import WindowsData
from slm.training.module import Pretraining

LIGHTNING = "lightning.pytorch.callbacks."
LOG = "+callbacks.log._target_=test_lightning.LogsEverywhere"
SMALL = {"context": 64, "depth": 1, "width": 32, "head_dim": 16, "positions": "rope", "norm": "rmsnorm"}


def added(name: str, target: str, **settings) -> str:
    """An override that adds a callback."""
    values = ", ".join(f"{key}: {value}" for key, value in {"_target_": target, **settings}.items())
    return f"+callbacks.{name}={{{values}}}"


class LogsEverywhere(Callback):
    """Logs from every hook that may: once per step, and once per validation."""

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        module.log("logged/start", float(trainer.global_step))

    def on_before_optimizer_step(self, trainer, module, optimizer):
        module.log("logged/update", float(trainer.global_step))

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        module.log("logged/end", float(trainer.global_step))

    def on_validation_epoch_end(self, trainer, module):
        module.log("logged/validation", float(trainer.global_step))


class Facts(Callback):
    """A callback with facts of the data in its constructor."""

    built = 0

    def __init__(self, tokenizer, data, store, folder, steps, model_config, corpus, config, mine: int):
        type(self).built += 1
        assert tokenizer.vocab_size == model_config.vocab_size == 257
        assert (folder.name, steps, mine) == ("run", config.budget.steps, 7)
        assert store.tokens("train") > len(data.train)
        assert corpus is data.corpus


def values_of(folder, name: str) -> dict[int, float]:
    return {line["step"]: line[name] for line in history(folder) if name in line}


def test_values_logged_by_callbacks_arrive_at_their_steps(run):
    """All of them, also with accumulation, over a stop and a resume, and beside checkpoints at every step."""
    common = (LOG, "trainer.microbatch=2", "callbacks.samples=null", "callbacks.checkpoints.every_n_steps=1")
    with pytest.raises(Stopped, match="SIGTERM"):
        run(*common, fault("terminate"))
    folder, steps = run(*common), range(1, 11)
    assert values_of(folder, "logged/start") == {step: step - 1 for step in steps}
    assert values_of(folder, "logged/update") == {step: step - 1 for step in steps}
    assert values_of(folder, "logged/end") == {step: step for step in steps}
    assert values_of(folder, "logged/validation") == {5: 5, 10: 10}
    names = [name for line in history(folder) for name in line]
    assert names.count("logged/end") == 10
    assert "epoch" not in names


def test_logging_follows_log_every_n_steps(run):
    folder = run(LOG, "log_every_n_steps=4", "callbacks.samples=null")
    assert values_of(folder, "logged/end") == {4: 4, 8: 8, 10: 10}
    assert list(values_of(folder, "train/loss")) == [1, 4, 8, 10]


def test_a_callback_of_ones_own_is_built_once_with_real_facts(run):
    Facts.built = 0
    run(added("facts", "test_lightning.Facts", mine=7), "callbacks.samples=null")
    assert Facts.built == 1


def test_model_checkpoint_writes_into_the_run_folder(run, tmp_path):
    """Its files resume and load like those of a run; the oldest is deleted with its sidecar."""
    settings = {"monitor": "val/loss", "save_top_k": 1, "filename": "'best-{step}'"}
    folder = run(added("mc", LIGHTNING + "ModelCheckpoint", **settings), "callbacks.samples=null")
    (best,) = (folder / "checkpoints").glob("best-*.ckpt")
    assert sorted(path.name for path in best.parent.glob("best-*")) == [best.name, f"{best.name}.sha256"]
    assert checkpoint.load(best).step == run_folder.step_of(run_folder.checkpoints(folder)[0]) == 10
    assert not list(tmp_path.glob("*.ckpt"))


@pytest.mark.parametrize("accumulation", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_averaged_weights_resume_exactly_and_are_saved(composed, run, tmp_path, monkeypatch, accumulation):
    """Exponential averages: validated, sampled and saved in place of the current weights, which a resume restores."""
    plain = f"trainer.microbatch={4 // accumulation}", "val_every_n_steps=3", "model.dropout=0.1"
    config = composed(*plain, "callbacks=ema", "callbacks.ema.decay=0.5", "callbacks.checkpoints.every_n_steps=2")
    straight = resumes_exactly(config, tmp_path, monkeypatch, [5 * accumulation, 2 * accumulation])
    newest = run_folder.checkpoints(straight)[0]
    content = checkpoint.read(newest)
    averaged, current = content["state_dict"], content["current_model_state"]
    assert not torch.equal(averaged["model.head.weight"], current["model.head.weight"])
    loaded = checkpoint.load(newest)
    assert torch.equal(loaded.model.head.weight, averaged["model.head.weight"])
    monkeypatch.undo()
    with mistake("holds averaged weights; add callbacks=ema"):
        run(*plain, "budget.steps=12", folder="straight")
    folder = run(*plain)
    assert values_of(folder, "train/loss") == values_of(straight, "train/loss")  # it only observes
    assert values_of(folder, "val/loss") != values_of(straight, "val/loss")
    assert (folder / "samples.md").read_text() != (straight / "samples.md").read_text()


def test_lightnings_monitors_summary_and_profiler(run, caplog):
    callbacks = [
        added("lr", LIGHTNING + "LearningRateMonitor"),
        added("summary", LIGHTNING + "ModelSummary", max_depth=2),
        added("timer", LIGHTNING + "Timer", duration="'00:01:00:00'"),
        added("bar", LIGHTNING + "RichProgressBar"),
    ]
    folder = run(*callbacks, "trainer.profiler=simple", "callbacks.samples=null")
    assert "Total params" in caplog.text
    assert values_of(folder, "lr-AdamW/pg1") == pytest.approx(values_of(folder, "train/lr"))
    assert "run_training_batch" in (folder / "fit-profile.txt").read_text()


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("StochasticWeightAveraging", {"swa_lrs": 0.01}, "use callbacks=ema"),
        ("GradientAccumulationScheduler", {"scheduling": "{0: 2}"}, "use data.batch_windows"),
        ("BatchSizeFinder", {}, "use trainer.auto_microbatch=true"),
        ("LearningRateFinder", {}, "sweep it"),
    ],
)
def test_callbacks_that_need_epochs_are_refused_by_name(run, tmp_path, name, settings, message):
    with mistake(f"callbacks.x: {name} .*{message}"):
        run(added("x", LIGHTNING + name, **settings))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "overrides",
    [
        ["optimizer=sgd"],
        ["optimizer=adafactor"],
        pytest.param(
            ["optimizer._target_=torch.optim.NAdam", "~optimizer.decay", "optimizer.lr=1e-3"], marks=pytest.mark.slow
        ),
    ],
    ids=lambda overrides: overrides[0].rpartition("=")[2],
)
def test_optimizers_of_torch_learn_and_resume_exactly(composed, tmp_path, monkeypatch, overrides):
    config = composed(*overrides, "callbacks.samples=null", "callbacks.checkpoints.every_n_steps=2")
    losses = values_of(resumes_exactly(config, tmp_path, monkeypatch, [6]), "train/loss")
    assert losses[10] < losses[1]


# -- the module and its data in a plain Trainer, beside test_python.test_the_tour_runs -------------------------------


@pytest.fixture
def data(text_file, tmp_path) -> WindowsData:
    corpus = Text(path=str(text_file), separator="<|endoftext|>", split="contiguous", train_ratio=0.95, seed=0)
    store = prepare(corpus, ByteTokenizer(), tmp_path / "cache")
    tokenizer = ByteTokenizer()
    return WindowsData(split_windows(store, tokenizer.eos, context=64), tokenizer=tokenizer, microbatch=8, seed=0)


@pytest.fixture
def module() -> Pretraining:
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=257, mlp="gelu", bias=False, tied=True, **SMALL))
    return Pretraining(model, optimizer=lambda model: torch.optim.AdamW(model.parameters(), lr=1e-2))


def plain_trainer(folder, **settings) -> L.Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    return L.Trainer(default_root_dir=folder, logger=L.loggers.CSVLogger(folder), **quiet | settings)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("clip", [None, 1e-3])
def test_clipping_and_accumulation_of_a_plain_trainer(data, module, tmp_path, clip):
    """The update is clipped as by torch, and two microbatches make one step."""
    trainer = plain_trainer(tmp_path, max_steps=2, gradient_clip_val=clip, accumulate_grad_batches=2)
    norms = []

    class Norms(Callback):
        def on_before_zero_grad(self, trainer, module, optimizer):
            gradients = [p.grad for p in module.parameters() if p.grad is not None]
            norms.extend([torch.nn.utils.get_total_norm(gradients).item()] if gradients else [])

    trainer.callbacks.append(Norms())
    trainer.fit(module, data)
    assert data.state_dict()["consumed"] == 32
    assert norms
    assert all(norm <= 1.001e-3 for norm in norms) == (clip is not None)


@pytest.mark.filterwarnings("ignore")
def test_a_plain_trainer_takes_plain_loaders(module, tmp_path):
    windows = torch.randint(257, (32, 65), generator=torch.Generator().manual_seed(0))
    loader = torch.utils.data.DataLoader(windows, batch_size=8)
    trainer = plain_trainer(tmp_path, max_epochs=3)
    trainer.fit(module, loader, loader)
    assert trainer.logged_metrics.keys() >= {"val/loss", "val/perplexity"}
    assert json.dumps({k: v.item() for k, v in trainer.callback_metrics.items()})


class GrowingSGD(torch.optim.SGD):
    """Keeps state in its parameter groups, as Prodigy and schedule-free optimizers do."""

    def __init__(self, params, lr: float):
        super().__init__(params, lr=lr)
        self.param_groups[0]["grown"] = 1.0

    def step(self, closure=None):
        self.param_groups[0]["grown"] *= 1.01
        self.param_groups[0]["lr"] *= self.param_groups[0]["grown"]
        return super().step(closure)


def test_state_in_parameter_groups_resumes_exactly(composed, tmp_path, monkeypatch):
    common = "callbacks.samples=null", "callbacks.checkpoints.every_n_steps=2"
    config = composed("optimizer._target_=test_lightning.GrowingSGD", "optimizer.lr=0.1", *common)
    resumes_exactly(config, tmp_path, monkeypatch, [6])


def test_no_validation_at_all_still_saves(run):
    folder = run("trainer.limit_val_batches=0", "callbacks.samples=null", "budget.steps=12", "val_every_n_steps=1")
    assert [run_folder.step_of(path) for path in run_folder.checkpoints(folder)] == [12, 10]


def test_clipping_by_value_beside_a_skipped_update(run):
    spoiled = added("fault", "faults.Fault", kind="nonfinite", step=3)
    folder = run(spoiled, "trainer.gradient_clip_algorithm=value", "on_nonfinite=skip", "callbacks.samples=null")
    assert values_of(folder, "train/skipped") == {3: 1}


def test_settings_of_torch_end_with_a_run(run):
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        run("trainer=debug", "callbacks.samples=null")
        assert not torch.are_deterministic_algorithms_enabled()
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)
