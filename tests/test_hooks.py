"""Activations, transforms of gradients, auxiliary losses: observers change nothing, and the others what they should."""

import json
import math
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT, mistake
from forks import forked
from test_distributed import TWO, small_run
from test_model import model_of
from test_resume import assert_same, final_state, history, resumes_exactly

from slm import checkpoint
from slm.data.store import prepare
from slm.data.windows import Windows
from slm.files import jsonl, run_folder
from slm.model import GPT
from slm.run import code
from slm.run.changes import check_unchanged
from slm.run.cli import compose
from slm.tokenizers.bytes import ByteTokenizer
from slm.training.callbacks import gradients as transforms
from slm.training.callbacks.activations import Activations
from slm.training.callbacks.auxiliary_loss import AuxiliaryLoss, ZLoss

PAGE = (ROOT / "docs" / "hooks.md").read_text(encoding="utf-8")
(OWN,) = re.findall(r"^```python\n(.*?)^```", PAGE, re.M | re.S)
COMMANDS = [shlex.split(line) for line in re.findall(r"^python train\.py (.*)$", PAGE, re.M)]
PLAIN = "callbacks.samples=null", "trainer.precision=32-true", "model.dropout=0.0", "log_every_n_steps=1"
SGD = (
    *("optimizer=sgd", "optimizer.momentum=0", "optimizer.nesterov=false", "schedule=constant", "budget.steps=1"),
    *("trainer.gradient_clip_val=null", "trainer.microbatch=1", "log_windows=true", "val_every_n_steps=9"),
)
NOISE = "callbacks=gradients", "callbacks.gradients.apply=[centralize,noise]"
Z_LOSS = "callbacks=auxiliary_loss", "callbacks.auxiliary_loss.weight=0.01"


def lines_of(folder, prefix: str | tuple[str, ...]) -> list[dict]:
    return [line for line in history(folder) if any(name.startswith(prefix) for name in line)]


class Start:
    """What a run of `composed` begins with: the model, and the windows of its first step."""

    def __init__(self, config, cache: Path):
        self.config, self.cache = config, cache

    def model(self, **changes) -> GPT:
        torch.manual_seed(self.config.seed)
        return GPT(type(self.config.model)(**{**vars(self.config.model), "vocab_size": 257, **changes}))

    def windows(self, folder: Path) -> torch.Tensor:
        store = prepare(self.config.data.corpus, ByteTokenizer(), self.cache)
        chosen = next(jsonl.lines(folder / "windows.jsonl"))["windows"]
        return torch.as_tensor(Windows(store, "train", 64).__getitems__(chosen))

    def moved(self, folder: Path) -> dict[str, torch.Tensor]:
        """Parameter name -> its change during the run."""
        after = checkpoint.load(folder).model.state_dict()
        return {name: after[name] - weight.detach() for name, weight in self.model().named_parameters()}


@pytest.fixture
def start(composed, tmp_path) -> Start:
    return Start(composed(*PLAIN), tmp_path / "cache")


@pytest.mark.parametrize(
    "settings",
    [
        (
            "trainer.precision=bf16-mixed",
            "model.dropout=0.1",
            "model.gradient_checkpointing=true",
            "trainer.compile=false",
        ),
        pytest.param(("model.dropout=0.1", "data.layout=documents"), marks=pytest.mark.slow),
        pytest.param(("trainer.compile=true", "optimizer=muon"), marks=pytest.mark.slow),
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")  # of the compiler, about itself
def test_observers_and_the_identity_are_neutral(run, settings):
    common = *PLAIN, *settings, "trainer.microbatch=2", "budget.steps=3", "val_every_n_steps=3"
    hooks = "callbacks=[activations,gradients]", "callbacks.gradients.apply=[identity]"
    plain = run(*common, folder="plain")
    observed = run(*common, *hooks, "callbacks.activations.every_n_steps=2", folder="observed")
    assert_same(final_state(plain), final_state(observed))
    found = lines_of(observed, "activations/")
    assert history(plain) == [line for line in history(observed) if line not in found]
    assert [line["step"] for line in found] == [1, 2]


def test_activations_and_half_a_gradient(run, start):
    """Of four microbatches, against hooks on one forward pass of all windows, and autograd's gradients."""
    hooks = "callbacks=[activations,gradients]", "callbacks.gradients.apply=[scale]"
    folder, seen = run(*PLAIN, *SGD, *hooks, "model.mlp=relu2"), {}
    model, windows = start.model(mlp="relu2"), start.windows(folder)
    model.blocks[1].register_forward_hook(lambda module, inputs, x: seen.update({"block01/stream": x}))
    model.blocks[0].mlp.out.register_forward_hook(
        lambda module, inputs, x: seen.update({"block00/hidden": inputs[0], "block00/mlp": x})
    )
    loss = F.cross_entropy(model(windows[:, :-1]).flatten(0, 1), windows[:, 1:].flatten())
    (found,) = lines_of(folder, "activations/")
    for name, x in seen.items():
        expected = {"mean": x.mean(), "std": x.std(correction=0), "rms": x.square().mean().sqrt()}
        expected |= {"zeros": (x == 0).float().mean(), "max_abs": x.abs().max()}
        for statistic, value in expected.items():
            assert found[f"activations/{name}/{statistic}"] == pytest.approx(value.item(), rel=1e-4, abs=1e-7), name
    assert found["activations/block00/hidden/zeros"] > 0.3
    names, changes = [name for name, _ in model.named_parameters()], start.moved(folder)
    for name, gradient in zip(names, torch.autograd.grad(loss, model.parameters()), strict=True):
        torch.testing.assert_close(changes[name], -0.5 * 0.1 * gradient, rtol=1e-2, atol=1e-6)
    assert changes["tokens.weight"].abs().max() > 1e-3


def test_frozen_parameters_stay_and_all_others_do_not(run, start):
    frozen = "callbacks.gradients.transforms.freeze.parameters=[embedding,blocks.0.*]"
    folder = run(*PLAIN, "callbacks=gradients", "callbacks.gradients.apply=[freeze]", frozen, "budget.steps=2")
    for name, change in start.moved(folder).items():
        fixed = name.startswith(("tokens.", "positions.", "blocks.0."))
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


def test_an_auxiliary_loss_is_added_and_logged_apart(run, start):
    """Its gradient in one step of SGD is that of cross-entropy plus weight * loss; train/loss has none of it."""
    folder = run(*PLAIN, *SGD, *Z_LOSS)
    model, windows = start.model(), start.windows(folder)
    logits, changes = model(windows[:, :-1]), start.moved(folder)
    z = logits.logsumexp(-1).square().mean()
    loss = F.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())
    names = [name for name, _ in model.named_parameters()]
    for name, gradient in zip(names, torch.autograd.grad(loss + 0.01 * z, model.parameters()), strict=True):
        torch.testing.assert_close(changes[name], -0.1 * gradient, rtol=1e-2, atol=1e-6)
    (logged,) = lines_of(folder, "auxiliary/")
    assert logged["auxiliary/ZLoss"] == pytest.approx(z.item(), rel=1e-4)
    assert history(folder)[0]["train/loss"] == pytest.approx(loss.item(), rel=1e-5)


@pytest.mark.parametrize("checkpointing", ["true", pytest.param("false", marks=pytest.mark.slow)])
def test_the_example_of_the_page_resumes_exactly(composed, tmp_path, monkeypatch, checkpointing):
    """A loss of hidden states, and a transform with a state, from a file beside the command."""
    (tmp_path / "my_hooks.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_hooks", raising=False)
    own = {word for words in COMMANDS for word in words if "my_hooks." in word}
    config = composed(
        *("callbacks=[gradients,auxiliary_loss]", f"model.gradient_checkpointing={checkpointing}", *own),
        *("callbacks.gradients.apply=[slow,noise]", "callbacks.auxiliary_loss.weight=0.1", "trainer.microbatch=2"),
        *("budget.steps=4", "callbacks.checkpoints.every_n_steps=2", "callbacks.samples=null", "val_every_n_steps=4"),
    )
    straight = resumes_exactly(config, tmp_path, monkeypatch, [7])
    assert len(lines_of(straight, "auxiliary/Smooth")) == 4
    info = run_folder.read_run_json(straight)
    for key in ("callbacks.gradients.transforms.slow", "callbacks.auxiliary_loss.loss"):
        assert info["classes"][key]["sha256"] == code.file_hash(sys.modules["my_hooks"].Smooth)
    assert info["classes"]["model"]["class"] == "slm.model.GPT"
    for words in (words for words in COMMANDS if "-m" not in words):
        compose(words)


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
    with mistake("gradients has no Nose; did you mean Noise"):
        composed("+callbacks.mine._target_=slm.training.callbacks.gradients.Nose")
    with mistake("gradients has no Mine; it has Gradients, Identity, Noise, Centralize, Scale, Freeze"):
        composed("+callbacks.mine._target_=slm.training.callbacks.gradients.Mine")
    with mistake("noise: eta=-1 and gamma=0.55 must be at least 0"):
        run(*apply[:1], "callbacks.gradients.transforms.noise.eta=-1")
    with mistake("callbacks.activations.every_n_steps=0 must be at least 1"):
        Activations(every_n_steps=0)
    with mistake("function asks for gradients, which is not one of model, inputs, targets, features, logits, hidden"):
        AuxiliaryLoss(loss=lambda gradients: 0, weight=1, every_n_steps=1)
    with mistake("transforms.mine must return a dictionary from names of parameters to gradients"):
        transforms.fitting("mine", {"a": torch.zeros(2)}, {"a": torch.zeros(3)})


def test_a_resumed_run_keeps_what_changes_its_training(composed):
    old = composed(*PLAIN, *NOISE).plain
    with mistake(
        r"callbacks.gradients.transforms.noise.eta: 0.01 -> 0.3\); give .*allow_changes=\[callbacks.gradients"
    ):
        check_unchanged(Path("run"), old, composed(*PLAIN, *NOISE, "callbacks.gradients.transforms.noise.eta=0.3"))
    with mistake("callbacks.gradients: slm.training.callbacks.gradients.Gradients -> None"):
        check_unchanged(Path("run"), old, composed(*PLAIN))
    allowed = "allow_changes=[callbacks.gradients]", "callbacks=[dynamics,auxiliary_loss]"
    with mistake("callbacks.auxiliary_loss: None -> "):
        check_unchanged(Path("run"), old, composed(*PLAIN, *allowed))
    check_unchanged(Path("run"), old, composed(*PLAIN, *NOISE, "callbacks.checkpoints.every_n_steps=7"))


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
        done = forked(*common, *extra, f"run_dir={tmp_path / name}")
        assert done.returncode == 0, done.stderr
    one, two = (lines_of(tmp_path / name, ("activations/", "auxiliary/", "train/")) for name in ("one", "two"))
    assert len(one) == len(two)
    for a, b in zip(one, two):
        a, b = ({k: v for k, v in line.items() if "/" in k} for line in (a, b))
        assert json.loads(json.dumps(a)) == pytest.approx(b, rel=2e-3, abs=1e-5)
