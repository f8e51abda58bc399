"""A model of one's own: the module of docs/own_model.md trains, resumes, generates, and is refused in one line."""

import importlib
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import exit_code, mistake
from test_resume import resumes_exactly

import slm
from slm import checkpoint, evaluate, lens, verify
from slm.corpora.storyworld.corpus import Storyworld
from slm.data.store import store_identity
from slm.estimate import parameters
from slm.files import jsonl
from slm.generation.quantize import for_decoding
from slm.generation.sampling import Sampler
from slm.generation.stream import generate
from slm.loss import IGNORE, cross_entropy, token_nats
from slm.optim.roles import roles
from slm.own_model import OwnConfig, OwnModel
from slm.run import cli
from slm.run.init_from import load_source
from slm.tokenizers.bytes import ByteTokenizer
from slm.tokenizers.characters import CharacterTokenizer
from slm.transfer import start_from

PAGE = (Path(__file__).parents[1] / "docs" / "own_model.md").read_text(encoding="utf-8")
WRONG = """

class Blind(Recurrent):
    def forward(self, tokens):
        return super().forward(tokens.flip(1))


class Features(Recurrent):
    def forward(self, tokens):
        return self.tokens(tokens)


class Random(Recurrent):
    def forward(self, tokens):
        return super().forward(tokens) + torch.rand(1)


class Broken(Recurrent):
    def forward(self, tokens):
        return self.nothing(tokens)


class Lazy(Recurrent):
    def __init__(self, *, vocab_size: int):
        super().__init__(vocab_size=vocab_size, width=8)
        self.head = nn.LazyLinear(vocab_size)


class Shared(nn.Module):
    # blocks that return tuples and share their matrices, a tied head, a scalar, a buffer that counts, a convolution
    def __init__(self, *, vocab_size: int, width: int):
        super().__init__()
        self.head = nn.Linear(width, vocab_size, bias=False)
        self.embedding = nn.Embedding(vocab_size, width)
        self.head.weight = self.embedding.weight
        self.blocks = nn.ModuleList(nn.GRU(width, width, batch_first=True) for _ in range(4))
        for block in self.blocks:
            block.weight_ih_l0, block.weight_hh_l0 = self.blocks[0].weight_ih_l0, self.blocks[0].weight_hh_l0
        self.conv, self.scale = nn.Conv1d(width, width, 2), nn.Parameter(torch.ones(()))
        self.register_buffer("passes", torch.zeros((), dtype=torch.long))

    def forward(self, tokens):
        self.passes += self.training
        x = self.embedding(tokens)
        for block in self.blocks:
            x = x + block(x)[0]
        x = x + self.scale * self.conv(nn.functional.pad(x.mT, (1, 0))).mT
        return self.head(x)


class Sizes:
    def __call__(self, hidden):
        assert len(hidden) == 4
        return sum(x.square().mean() for x in hidden)


def number(vocab_size: int):
    return vocab_size
"""
KEYS = "model=own", "model._target_=my_models.Recurrent", "+model.width=32", "model.context=64"


@pytest.fixture
def own(tmp_path, monkeypatch):
    """The module of the page, beside wrong ones, as a file that can be imported."""
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    (tmp_path / "my_models.py").write_text("import torch\n" + code + WRONG)
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("my_models", None)
    yield __import__("my_models")
    sys.modules.pop("my_models", None)


def test_it_trains_resumes_and_generates_from_a_checkpoint(own, composed, tmp_path, monkeypatch):
    config = composed(*KEYS, "val_every_n_steps=4", "callbacks.checkpoints.every_n_steps=4", "trainer.microbatch=2")
    folder = resumes_exactly(config, tmp_path, monkeypatch, [9])
    assert list(verify.find_problems(folder)) == []
    with mistake("holds a model of a class outside slm, my_models.Recurrent; give the class: .*model_class="):
        slm.load(folder, device="cpu")
    with mistake("not hold the settings of this class but those of my_models.Recurrent: .*unexpected .* 'width'"):
        slm.load(folder, device="cpu", model=torch.nn.Linear)
    model = slm.load(folder, device="cpu", model=own.Recurrent)
    assert isinstance(model.model.net, own.Recurrent)
    ids, net = model.encode("the cat"), model.model.net
    for _ in range(80):  # longer than the context: by the whole window each time, as if there were no cache
        window = ids if len(ids) <= 64 else ids[-(64 - (64 - len(ids) % 32) % 32) :]
        ids.append(net(torch.tensor([window]))[0, -1].argmax().item())
    steps = generate(model.model, [model.encode("the cat")], sampler=Sampler(greedy=True, temperature=1.0),
                     max_new_tokens=50, eos=None, seed=0)  # fmt: skip
    assert [token for [(_, token)] in steps] == ids[7:57]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["generate.py", f"ckpt={folder}", "model_class=my_models.Recurrent", "dtype=int8"])
    cli.generate_main()
    starts_another_of_its_class(own, composed, folder)


def starts_another_of_its_class(own, composed, folder: Path):
    """By names and shapes, with the tokenizer of the source; with another one the rows of its ids are new."""
    config = cli.compose([f"init_from={folder}", *KEYS, f"cache_dir={folder / 'cache'}"])
    assert config.tokenizer.settings["path"]
    source = load_source(str(folder), make=own.Recurrent)
    source.check(config.model)
    model = OwnModel(source.model.config)
    start = start_from(source, model, source.tokenizer)
    assert start["new"] == start["left_over"] == []
    torch.testing.assert_close(model.state_dict(), source.model.state_dict(), rtol=0, atol=0)
    characters = CharacterTokenizer.build(documents=["abc"], alphabet="corpus")
    other = OwnModel(replace(source.model.config, vocab_size=characters.vocab_size))
    rows = ["net.tokens.weight", "net.head.weight", "net.head.bias"]
    assert start_from(source, other, characters)["new"] == rows
    with mistake("model.width 32 -> 48"):
        source.check(composed(f"init_from={folder}", *KEYS[:2], "+model.width=48", KEYS[3]).model)
    with mistake("model=own model._target_="):
        composed(f"init_from={folder}")
    with mistake("a sweep starts from one model"):
        composed(f"init_from={folder},{folder}")


def test_its_loss_roles_and_counts(own):
    settings = {"target": "my_models.Recurrent", "make": own.Recurrent, "settings": {"width": 8, "depth": 2}}
    config = OwnConfig(**settings, vocab_size=17, context=12)
    model, windows = OwnModel(config), torch.randint(17, (3, 13))
    windows[0, 5:] = IGNORE
    inputs, targets = windows[:, :-1].clamp(min=0), windows[:, 1:]
    expected = F.cross_entropy(model(inputs).mT, targets, ignore_index=IGNORE)
    loss = cross_entropy(model.features(inputs), targets=targets, **model.readout)
    torch.testing.assert_close(loss, expected)
    nats = token_nats(model.features(inputs), targets=targets, **model.readout)
    torch.testing.assert_close(nats.sum() / (targets != IGNORE).sum(), expected)
    ours, theirs = (torch.autograd.grad(each, [*model.parameters()]) for each in (loss, expected))
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other)
    found = roles(model)
    assert {name for name, role in found.items() if role == "embedding"} == {"net.tokens.weight"}
    assert {name for name, role in found.items() if role == "vector"} == {n for n in found if "bias" in n}
    assert parameters(config).total == sum(p.numel() for p in model.parameters())
    assert parameters(config).total - parameters(config).non_embedding == 17 * 8
    described = checkpoint.describe(config, ByteTokenizer.build([]))["model"]
    assert checkpoint._model_config(Path("x.ckpt"), described, own.Recurrent) == config
    whole = model.eval()(inputs)
    torch.testing.assert_close(for_decoding(model, "float32")(inputs), whole)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["model._target_=my_models.Blind", "+model.width=8"], "Blind sees the future: .*mask its attention"),
        (["model._target_=my_models.Features", "+model.width=8"], r"logits \(2, 8, 64\).* returns .* \(2, 8, 8\)"),
        (["model._target_=my_models.Random", "+model.width=8"], "Random gives other logits for the same ids"),
        (["model._target_=my_models.Broken", "+model.width=8"], r"try: AttributeError: .* \(.*my_models.py, line "),
        (["model._target_=my_models.Lazy"], "Lazy must have parameters, and make them in its constructor"),
        ([], "model=own needs a class of yours; give model._target_="),
        (["model._target_=my_models.Recurrent", "+model.n_head=4"], "n_head is not a setting of my_models.Recurrent$"),
        (["model._target_=my_models.number"], "number must make a torch.nn.Module, not int"),
        (["model._target_=my_models.nothing"], "model._target_=my_models.nothing cannot be imported"),
        (["model._target_=my_models.Recurrent"], "model.width is missing: my_models.Recurrent needs it"),
        (["model._target_=my_models.Recurrent", "+model.width=wide"], "model.width='wide' must be a whole number"),
        (["model._target_=my_models.Recurrent", "+model.width=8", "+model.vocab_size=9"], "decided by the tokenizer"),
        (["model._target_=my_models.Recurrent", "+model.width=8", "model.context=0"], "model.context=0 must be"),
    ],
)
@pytest.mark.usefixtures("own")
def test_a_wrong_one_is_one_line(arguments, message):
    with mistake(message):
        cli.compose(["model=own", *arguments])


@pytest.mark.usefixtures("own")
def test_masked_documents_need_a_model_that_takes_their_start(run):
    with mistake("data.attention_across_documents=false needs a model that takes document_start, which my_models"):
        run(*KEYS, "data.attention_across_documents=false")


@pytest.mark.slow
def test_one_with_blocks_is_observed_and_loads_with_its_shared_weights_and_its_counts(own, run, monkeypatch, capsys):
    callbacks = "slm.training.callbacks"
    folder = run(
        *("model=own", "model._target_=my_models.Shared", "+model.width=16", "optimizer=muon", "budget.steps=4"),
        *("val_every_n_steps=2", "callbacks.checkpoints.every_n_steps=2", "callbacks.samples=null"),
        *(f"+callbacks.sizes._target_={callbacks}.dynamics.Dynamics", "+callbacks.sizes.every_n_steps=2"),
        *(f"+callbacks.parts._target_={callbacks}.activations.Activations", "+callbacks.parts.every_n_steps=2"),
        *(f"+callbacks.more._target_={callbacks}.auxiliary_loss.AuxiliaryLoss", "+callbacks.more.every_n_steps=2"),
        *("+callbacks.more.weight=0.1", "+callbacks.more.loss._target_=my_models.Sizes"),
    )
    names = {name for line in jsonl.lines(folder / "metrics.jsonl") for name in line}
    assert {"activations/block03/stream/rms", "auxiliary/Sizes"} <= names
    assert {"dynamics/block03/activation_rms", "dynamics/embedding/grad_norm"} <= names
    assert "model_class=my_models.Shared" in capsys.readouterr().out
    model = slm.load(folder, device="cpu", model=own.Shared).model
    assert model.net.passes > 0
    found = roles(model)
    assert (found["net.head.weight"], found["net.conv.weight"], found["net.scale"]) == (
        "embedding",
        "readout",
        "vector",
    )
    monkeypatch.syspath_prepend(Path(own.__file__).parent)
    assert exit_code(monkeypatch, lens.main, str(folder), "3") == 2
    assert exit_code(monkeypatch, lens.main, str(folder), "3", "--model-class", "my_models.Shared") == 0
    text = str(Path(own.__file__))
    assert exit_code(monkeypatch, evaluate.main, str(folder), "--text", text, "--model-class", "my_models.Shared") == 0


@pytest.mark.parametrize("kind", ["activations.Activations", "auxiliary_loss.AuxiliaryLoss"])
@pytest.mark.usefixtures("own")
def test_one_without_blocks_is_refused_by_callbacks_that_need_them(run, kind):
    more = ["+callbacks.own.weight=1", "+callbacks.own.loss._target_=my_models.Sizes"] * kind.startswith("aux")
    with mistake("needs a model with blocks"):
        run(*KEYS, f"+callbacks.own._target_=slm.training.callbacks.{kind}", "+callbacks.own.every_n_steps=1", *more)


def test_tokens_of_another_version_of_a_tokenizer_are_others(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    identities = []
    for text in ("text", "text.lower()"):
        sys.modules.pop("my_own_tokenizer", None)
        code = (
            "from slm.tokenizers.bytes import ByteTokenizer\nclass Own(ByteTokenizer):\n    def encode(self, text):\n"
        )
        (tmp_path / "my_own_tokenizer.py").write_text(f"{code}        return list({text}.encode())\n")
        importlib.invalidate_caches()
        made = importlib.import_module("my_own_tokenizer").Own.build([])
        identities.append(store_identity(Storyworld(level="tiny", stories=1, validation_stories=1, seed=0), made))
    sys.modules.pop("my_own_tokenizer")
    assert identities[0]["tokenizer"] == identities[1]["tokenizer"]
    assert identities[0] != identities[1]
