"""A model of one's own: the module of docs/own_model.md trains, resumes, generates, and is refused in one line."""

import re
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import mistake
from test_resume import resumes_exactly

import slm
from slm import checkpoint, verify
from slm.estimate import parameters
from slm.generation.quantize import for_decoding
from slm.generation.sampling import Sampler
from slm.generation.stream import generate
from slm.loss import IGNORE, cross_entropy, token_nats
from slm.optim.roles import roles
from slm.own_model import OwnConfig, OwnModel
from slm.run import cli

PAGE = (Path(__file__).parents[1] / "docs" / "own_model.md").read_text(encoding="utf-8")
WRONG = """

class Blind(Recurrent):
    def forward(self, tokens):
        return super().forward(tokens.flip(1))


class Features(Recurrent):
    def forward(self, tokens):
        return self.tokens(tokens)


def number(vocab_size: int):
    return vocab_size
"""
KEYS = "model=own", "model._target_=my_models.Recurrent", "+model.width=32", "model.context=64"


@pytest.fixture
def own(tmp_path, monkeypatch):
    """The module of the page, beside wrong ones, as a file that can be imported."""
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    (tmp_path / "my_models.py").write_text(code + WRONG)
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
    described = checkpoint.describe(config, slm_bytes())["model"]
    assert checkpoint._model_config(Path("x.ckpt"), described, own.Recurrent) == config
    whole = model.eval()(inputs)
    torch.testing.assert_close(for_decoding(model, "float32")(inputs), whole)


def slm_bytes():
    from slm.tokenizers.bytes import ByteTokenizer

    return ByteTokenizer.build([])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["model._target_=my_models.Blind", "+model.width=8"], "Blind sees the future: .*mask its attention"),
        (["model._target_=my_models.Features", "+model.width=8"], r"logits \(2, 8, 64\).* returns .* \(2, 8, 8\)"),
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
