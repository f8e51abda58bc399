"""Activations, transforms of gradients, auxiliary losses: observers change nothing, and the others what they should."""

import json
import math
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from conftest import mistake
from test_distributed import TWO, command, small_run
from test_model import model_of
from test_resume import assert_same, final_state, history, resumes_exactly

from slm import checkpoint
from slm.data.store import prepare
from slm.data.windows import Windows
from slm.files import jsonl, run_folder
from slm.model import GPT
from slm.run import code
from slm.tokenizers.bytes import ByteTokenizer
from slm.training.callbacks import gradients as transforms
from slm.training.callbacks.activations import Activations
from slm.training.callbacks.auxiliary_loss import AuxiliaryLoss, ZLoss

PLAIN = "callbacks.samples=null", "trainer.precision=32-true", "model.dropout=0.0", "log_every_n_steps=1"
ACTIVATIONS = "callbacks=activations", "callbacks.activations.every_n_steps=2"
SGD = (
    "optimizer=sgd",
    "optimizer.momentum=0",
    "optimizer.nesterov=false",
    "schedule=constant",
    "trainer.gradient_clip_val=null",
    "budget.steps=1",
)
NOISE = "callbacks=gradients", "callbacks.gradients.apply=[centralize,noise]"
Z_LOSS = "callbacks=auxiliary_loss", "callbacks.auxiliary_loss.weight=0.01"


def lines_of(folder, prefix: str) -> list[dict]:
    return [line for line in history(folder) if any(name.startswith(prefix) for name in line)]


def moved(folder, before) -> dict[str, torch.Tensor]:
    """Parameter name -> its change during the run."""
    after = checkpoint.load(folder).model.state_dict()
    return {name: after[name] - weight for name, weight in before.state_dict().items()}


@pytest.fixture
def untrained(composed) -> GPT:
    """The model of `composed` runs before the first step."""
    config = composed(*PLAIN)
    torch.manual_seed(config.seed)
    return GPT(type(config.model)(**{**vars(config.model), "vocab_size": ByteTokenizer().vocab_size}))


@pytest.mark.parametrize(
    "settings",
    [
        ("trainer.precision=bf16-mixed", "model.dropout=0.1", "trainer.microbatch=2", "trainer.compile=false"),
        ("model.gradient_checkpointing=true", "data.layout=documents", "trainer.compile=false"),
        pytest.param(("trainer.compile=true", "trainer.microbatch=2"), marks=pytest.mark.slow),
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")  # of the compiler, about itself
def test_observers_and_the_identity_are_neutral(run, settings):
    common = *PLAIN, *settings, "budget.steps=3"
    plain = run(*common, folder="plain")
    hooks = "callbacks=[activations,gradients]", "callbacks.gradients.apply=[identity]", ACTIVATIONS[1]
    observed = run(*common, *hooks, folder="observed")
    assert_same(final_state(plain), final_state(observed))
    assert history(plain) == [line for line in history(observed) if line not in lines_of(observed, "activations/")]
    assert [line["step"] for line in lines_of(observed, "activations/")] == [1, 2]


def test_activations_are_those_of_the_whole_batch(run, composed, untrained, tmp_path):
    """Of four microbatches, against hooks on one forward pass of all windows."""
    folder = run(*PLAIN, *ACTIVATIONS, "trainer.microbatch=1", "budget.steps=1", "log_windows=true", "model.mlp=relu2")
    store = prepare(composed().data.corpus, ByteTokenizer(), tmp_path / "cache")
    chosen = next(jsonl.lines(folder / "windows.jsonl"))["windows"]
    windows = torch.as_tensor(Windows(store, "train", 64).__getitems__(chosen))
    model, seen = GPT(type(untrained.config)(**{**vars(untrained.config), "mlp": "relu2"})), {}
    model.load_state_dict(untrained.state_dict())
    model.blocks[1].register_forward_hook(lambda module, inputs, x: seen.update(stream=x))
    model.blocks[0].mlp.out.register_forward_hook(lambda module, inputs, x: seen.update(hidden=inputs[0], mlp=x))
    with torch.no_grad():
        model(windows[:, :-1])
    (found,) = lines_of(folder, "activations/")
    for name, x in (("block01", seen["stream"]), ("block00/hidden", seen["hidden"]), ("block00/mlp", seen["mlp"])):
        expected = {"mean": x.mean(), "std": x.std(correction=0), "rms": x.square().mean().sqrt()}
        expected |= {"zeros": (x == 0).float().mean(), "max_abs": x.abs().max()}
        for statistic, value in expected.items():
            assert found[f"activations/{name}/{statistic}"] == pytest.approx(value.item(), rel=1e-4, abs=1e-7), name
    assert found["activations/block00/hidden/zeros"] > 0.3


def test_half_the_gradient_is_half_the_update_of_sgd(run, untrained):
    whole = moved(run(*PLAIN, *SGD, folder="whole"), untrained)
    half = moved(
        run(*PLAIN, *SGD, "callbacks=gradients", "callbacks.gradients.apply=[scale]", folder="half"), untrained
    )
    for name, change in whole.items():
        torch.testing.assert_close(half[name], change / 2, rtol=1e-3, atol=2e-7)
    assert whole["tokens.weight"].abs().max() > 1e-5


def test_frozen_parameters_stay_and_all_others_do_not(run, untrained):
    frozen = (
        "callbacks.gradients.apply=[freeze]",
        "callbacks.gradients.transforms.freeze.parameters=[embedding,blocks.0.*]",
    )
    changes = moved(run(*PLAIN, "callbacks=gradients", *frozen, "budget.steps=2"), untrained)
    for name, change in changes.items():
        fixed = name.startswith(("tokens.", "head.", "positions.", "blocks.0."))
        assert bool(change.any()) is not fixed, name


def test_noise_and_centralized_rows():
    gradients = {"a": torch.randn(300, 400), "b": torch.zeros(500)}
    noise = transforms.Noise(eta=0.3, gamma=0.55, seed=1)
    added = {name: g - gradients[name] for name, g in noise(gradients, 9).items()}
    assert added["a"].std().item() == pytest.approx(math.sqrt(0.3 / 10**0.55), rel=0.01)
    assert abs(added["a"].mean().item()) < 0.01
    assert not torch.equal(noise(gradients, 8)["b"], added["b"])
    assert torch.equal(transforms.Noise(eta=0.3, gamma=0.55, seed=1)(gradients, 9)["b"], added["b"])
    central = transforms.Centralize()(gradients, 0)
    assert central["a"].sum(1).abs().max() < 1e-3
    assert central["b"] is gradients["b"]


def test_z_loss_has_the_gradient_of_its_formula():
    """In chunks of rows, and without targets to ignore."""
    model = model_of()
    features, targets = torch.randn(3, 40, model.config.width, requires_grad=True), torch.randint(17, (3, 40))
    targets[1, 20:] = -100
    value = ZLoss()(model, features, targets)
    logits = model.logits(features)[targets != -100]
    expected = logits.exp().sum(-1).log().square().mean()
    torch.testing.assert_close(value, expected)
    ours, theirs = (torch.autograd.grad(loss, [features, model.head.weight]) for loss in (value, expected))
    torch.testing.assert_close(ours, theirs)


def test_an_auxiliary_loss_is_added_and_logged_apart(run, composed, untrained, tmp_path):
    """Its gradient in one step of SGD is that of cross-entropy plus weight * loss; train/loss has none of it."""
    plain = run(*PLAIN, *SGD, folder="plain")
    folder = run(*PLAIN, *SGD, *Z_LOSS, "trainer.microbatch=1", "log_windows=true", folder="added")
    changes = moved(folder, untrained)
    store = prepare(composed().data.corpus, ByteTokenizer(), tmp_path / "cache")
    chosen = next(jsonl.lines(folder / "windows.jsonl"))["windows"]
    windows = torch.as_tensor(Windows(store, "train", 64).__getitems__(chosen))
    logits = untrained(windows[:, :-1])
    z = logits.logsumexp(-1).square().mean()
    loss = F.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten()) + 0.01 * z
    rate = history(folder)[0]["train/lr"]
    for name, gradient in zip(dict(untrained.named_parameters()), torch.autograd.grad(loss, untrained.parameters())):
        torch.testing.assert_close(changes[name], -rate * gradient, rtol=1e-2, atol=1e-6)
    (logged,) = lines_of(folder, "auxiliary/")
    assert logged["auxiliary/ZLoss"] == pytest.approx(z.item(), rel=1e-4)
    assert history(folder)[0]["train/loss"] == pytest.approx(history(plain)[0]["train/loss"], rel=1e-5)


@pytest.mark.parametrize("checkpointing", ["true", pytest.param("false", marks=pytest.mark.slow)])
def test_own_hooks_resume_exactly(composed, tmp_path, monkeypatch, checkpointing):
    """A loss of the hidden states, and a transform with a state, from a file beside the command."""
    (tmp_path / "own_hooks.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_hooks", raising=False)
    config = composed(
        *("callbacks=[gradients,auxiliary_loss]", f"model.gradient_checkpointing={checkpointing}"),
        *("callbacks.gradients.apply=[mine,noise]", "+callbacks.gradients.transforms.mine._target_=own_hooks.Momentum"),
        *("callbacks.auxiliary_loss.loss._target_=own_hooks.Smooth", "callbacks.auxiliary_loss.weight=0.1"),
        *("budget.steps=6", "callbacks.checkpoints.every_n_steps=2", "trainer.microbatch=2", "callbacks.samples=null"),
    )
    straight = resumes_exactly(config, tmp_path, monkeypatch, [7])
    assert len(lines_of(straight, "auxiliary/Smooth")) == 6
    info = run_folder.read_run_json(straight)
    for key in ("callbacks.gradients.transforms.mine", "callbacks.auxiliary_loss.loss"):
        assert info["classes"][key]["sha256"] == code.file_hash(sys.modules["own_hooks"].Momentum)
    assert info["classes"]["model"]["class"] == "slm.model.GPT"


OWN = """
import torch


class Momentum:
    def __init__(self):
        self.sums = {}

    def __call__(self, gradients, step):
        self.sums = {name: 0.5 * self.sums.get(name, 0) + g for name, g in gradients.items()}
        return self.sums

    def state_dict(self):
        return self.sums

    def load_state_dict(self, state):
        self.sums = state


class Smooth:
    def __call__(self, hidden):
        return torch.stack([(b - a).square().mean() for a, b in zip(hidden, hidden[1:], strict=False)]).mean()
"""


def test_mistakes_are_one_line(run, composed):
    apply = "callbacks=gradients", "callbacks.gradients.apply=[nose]"
    with mistake(r"nose is not one of identity, noise, centralize, scale, freeze; add your own with \+callbacks"):
        run(*apply)
    with mistake(r"freeze.parameters: readuot is neither a role of this model's parameters \(embedding, "):
        run(
            *apply[:1],
            "callbacks.gradients.apply=[freeze]",
            "callbacks.gradients.transforms.freeze.parameters=[readuot]",
        )
    with mistake("noise: eta=-1 and gamma=0.55 must be at least 0"):
        run(*apply[:1], "callbacks.gradients.transforms.noise.eta=-1")
    with mistake("callbacks.activations.every_n_steps=0 must be at least 1"):
        Activations(every_n_steps=0)
    with mistake("function asks for gradients, which is not one of model, inputs, targets, features, logits, hidden"):
        AuxiliaryLoss(loss=lambda gradients: 0, weight=1, every_n_steps=1)
    with mistake("transforms.mine must return a dictionary from names of parameters to gradients"):
        transforms.fitting("mine", {"a": torch.zeros(2)}, {"a": torch.zeros(3)})


def test_a_resumed_run_keeps_what_changes_its_training(run):
    folder = run(*PLAIN, *NOISE, "budget.steps=1")
    with mistake(
        r"callbacks.gradients.transforms.noise.eta: 0.01 -> 0.3\); give .*allow_changes=\[callbacks.gradients"
    ):
        run(*PLAIN, *NOISE, "callbacks.gradients.transforms.noise.eta=0.3", "budget.steps=2")
    with mistake("callbacks.gradients: slm.training.callbacks.gradients.Gradients -> None"):
        run(*PLAIN, "budget.steps=2")
    assert run(*PLAIN, *NOISE, "log_every_n_steps=2", "budget.steps=2") == folder


def test_new_files_are_changes(tmp_path, monkeypatch):
    """Of Python and YAML, wherever they lie; not those that git ignores, and no logs."""
    for words in (
        ["init", "-q"],
        ["-c", "user.name=a", "-c", "user.email=a", "commit", "-q", "--allow-empty", "-m", "a"],
    ):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    monkeypatch.setattr(code, "PACKAGE", tmp_path / "slm")
    hashes = []
    for name, text in (
        ("train.log", "1"),
        ("hooks.py", "1"),
        ("hooks.py", "2"),
        ("runs/a.py", "3"),
        (".gitignore", "/runs/"),
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
        hashes.append(code.source_code.__wrapped__()["git_dirty"])
    assert hashes[0] is None
    assert len({*hashes}) == 4
    assert hashes[4] == hashes[2]


@pytest.mark.slow
def test_two_processes_equal_one(text_file, tmp_path):
    hooks = "callbacks=[activations,gradients,auxiliary_loss]", "callbacks.gradients.apply=[centralize,noise]"
    common = *small_run(text_file, tmp_path), *PLAIN, *hooks, "trainer.microbatch=1", "budget.steps=3"
    for name, extra in (("one", ()), ("two", TWO)):
        done = command(*common, *extra, f"run_dir={tmp_path / name}")
        assert done.returncode == 0, done.stderr
    one, two = (lines_of(tmp_path / name, ("activations/", "auxiliary/", "train/")) for name in ("one", "two"))
    assert len(one) == len(two)
    for a, b in zip(one, two):
        a, b = ({k: v for k, v in line.items() if "/" in k} for line in (a, b))
        assert json.loads(json.dumps(a)) == pytest.approx(b, rel=2e-3, abs=1e-5)
