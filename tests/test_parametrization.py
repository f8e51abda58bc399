"""parametrization=mup and completep: the numbers of the table, equality at the base size, transfer, exports."""

import json
import math
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import mistake, small_run, trained
from test_export import saved_model
from test_model import LATER, moved
from test_optim import MUON, SETTINGS

from slm import checkpoint
from slm.corpora.storyworld.corpus import Storyworld
from slm.export import __main__ as export_command
from slm.files import jsonl
from slm.generation.quantize import for_decoding
from slm.generation.reader import Reader
from slm.lora import LoRAConfig
from slm.loss import cross_entropy, token_nats
from slm.model import GPT, MLPS, GPTConfig
from slm.optim.adamw import AdamW
from slm.optim.muon import Muon
from slm.optim.roles import kinds
from slm.run import cli
from slm.tokenizers.bytes import ByteTokenizer
from slm.transfer import Source, standardized, start_from

SIZES = {"vocab_size": 257, "context": 24, "depth": 4, "width": 64, "head_dim": 8, "bias": True}
PLAIN = {**SIZES, "positions": "rope", "norm": "layernorm", "mlp": "gelu", "tied": True}
BASE = {"base_width": 16, "base_depth": 2}
MUP, COMPLETEP = ({**BASE, "parametrization": name} for name in ("mup", "completep"))
CHOICES = [
    {"tied": True},
    {"tied": False, "qk_norm": True, "norm": "rmsnorm", "positions": "learned"},
    *({"tied": False, "mlp": name} for name in MLPS),
    {"tied": True, "kv_heads": 2, **LATER},
]


def model_of(**choices) -> GPT:
    torch.manual_seed(0)
    return GPT(GPTConfig(**{**PLAIN, **choices}))


def settings_of(optimizer, model: GPT) -> dict[str, dict]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {names[id(p)]: group for group in optimizer.param_groups for p in group["params"]}


def expected(name: str, shape: tuple, L: float, writer_std: float) -> tuple:
    """Start, and factors of learning rate, decay and eps at four times the width: the rules, by names and shapes."""
    eps = 1 / 4 / (L if name.startswith("blocks") else 1)
    if len(shape) < 2:
        return None, 1, 0, eps
    part = name.split(".")[-2]
    if part in ("qkv", "up", "gate"):
        return 0.02 / 2, 1 / 4, 4, eps
    if part == "out":
        return writer_std, 1 / 4, 4, eps
    if part == "bigrams":
        return 0.0, 1, 1, eps
    assert part in ("tokens", "positions", "head", "value_embedding", "value_gate")
    return 0.02, 1, 1, eps


@pytest.mark.parametrize(("kind", "deep"), [("mup", 1), ("completep", 2)])
@pytest.mark.parametrize("choice", CHOICES, ids=lambda choice: "-".join(map(str, choice.values())))
def test_the_table_is_that_of_the_papers(kind, deep, choice):
    """m = 4 and, for completep, L = 2; the starts are measured on the weights themselves."""
    model = model_of(**choice, **BASE, parametrization=kind)
    writer_std = 0.02 / 2 / math.sqrt(2 * 4 / deep)
    adamw = settings_of(AdamW(**SETTINGS)(model), model)
    assert adamw.keys() == dict(model.named_parameters()).keys()
    for name, parameter in model.named_parameters():
        std, lr, decay, eps = expected(name, tuple(parameter.shape), deep, writer_std)
        found = [adamw[name][key] for key in ("lr", "weight_decay", "eps")]
        assert found == pytest.approx([1e-3 * lr, 0.1 * decay, 1e-8 * eps], rel=1e-12), name
        if std is not None:
            error = 4 / math.sqrt(2 * parameter.numel())  # four standard errors
            assert parameter.std().item() == pytest.approx(std, rel=error), name
    muon = settings_of(Muon(**MUON)(model), model)
    for name, kind_of in kinds(model).items():
        if kind_of in ("reader", "writer", "narrow"):
            assert (muon[name]["lr"], muon[name]["weight_decay"], "rows" in muon[name]) == (0.02, 0.5, True)
        else:
            decay = 0.0 if kind_of == "vector" else 0.3
            assert (muon[name]["lr"], muon[name]["weight_decay"]) == (0.01, decay)
            assert muon[name]["eps"] == adamw[name]["eps"]
    assert model.output == 1 / 4
    assert {block.share for block in model.blocks} == {1 / deep}


def test_the_logged_learning_rate_is_that_of_the_settings():
    """It is that of the first group, also with LoRA, of which no embedding is trained."""
    for choice in ({}, {"lora": LoRAConfig(rank=2)}):
        model = model_of(**MUP, **choice)
        groups = AdamW(**SETTINGS)(model).param_groups
        assert groups[0]["lr"] == 1e-3
        assert {group["lr"] for group in groups} == {1e-3, 1e-3 / 4}


def take_steps(model: GPT, optimizer, count: int = 4) -> list[torch.Tensor]:
    generator, losses = torch.Generator().manual_seed(0), []
    for _ in range(count):
        tokens = torch.randint(257, (4, 12), generator=generator)
        optimizer.zero_grad()
        losses.append(cross_entropy(model.features(tokens), targets=tokens.roll(-1, 1), **model.readout))
        losses[-1].backward()
        optimizer.step()
    return [loss.detach() for loss in losses]


@pytest.mark.parametrize("make", [AdamW(**SETTINGS), AdamW(**{**SETTINGS, "weight_decay": 0.0}), Muon(**MUON)])
@pytest.mark.parametrize("choice", [{}, {"tied": False, "kv_heads": 2, "zero_init_residual": True, **LATER}])
def test_at_the_base_size_all_are_equal_to_the_bit(make, choice):
    kinds_of = [{}, *({"parametrization": name, "base_width": 64, "base_depth": 4} for name in ("mup", "completep"))]
    models = [model_of(**choice, **kind) for kind in kinds_of]
    optimizers = [make(model) for model in models]
    states = [[{k: v for k, v in group.items() if k != "params"} for group in its.param_groups] for its in optimizers]
    assert states[0] == states[1] == states[2]
    losses = [take_steps(*pair) for pair in zip(models, optimizers, strict=True)]
    assert losses[0] == losses[1] == losses[2]
    for a, b, c in zip(*(model.parameters() for model in models), strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)


def test_groups_of_the_standard_are_two_as_in_earlier_checkpoints():
    """Decayed ones, also where the decay is 0, then the others."""
    for decay in (0.1, 0.0):
        model = model_of(tied=False)
        groups = AdamW(**{**SETTINGS, "weight_decay": decay})(model).param_groups
        assert [group["weight_decay"] for group in groups] == [decay, 0.0]
        assert [{p.ndim for p in group["params"]} for group in groups] == [{2}, {1}]


@pytest.mark.parametrize("choice", [{"tied": True, "head_bias": True}, {"tied": False, "logit_softcap": 3.0}])
@pytest.mark.parametrize("kind", [MUP, COMPLETEP])
def test_each_multiplier_counts_once_in_loss_logits_and_generation(kind, choice):
    """Against the residual stream and the head, by hand."""
    model = moved(model_of(**kind, **choice)).eval()
    tokens, streams = torch.randint(257, (2, 24)), []
    hook = model.blocks[-1].register_forward_hook(lambda module, inputs, x: streams.append(x))
    with torch.no_grad():
        logits = model(tokens)
        by_hand = F.linear(model.norm(streams[0]) / 4, model.head.weight, model.head.bias)
        hook.remove()
        cap = choice.get("logit_softcap")
        torch.testing.assert_close(logits, cap * (by_hand / cap).tanh() if cap else by_hand)
        nats = token_nats(model.features(tokens), targets=tokens, **model.readout)
        torch.testing.assert_close(nats, F.cross_entropy(logits.mT, tokens, reduction="none"))
        read = [Reader(model, rows=2, positions=24).read(tokens.tolist()), logits[:, -1]]
        torch.testing.assert_close(*read)
    block, x = model.blocks[0], torch.randn(2, 5, 64)
    rotation = model.rotary(slice(0, 5))
    share = 1 / 2 if kind is COMPLETEP else 1.0
    middle = x + share * block.attention(block.attention_norm(x), tokens[:, :5], rotation, {}, None)
    after = middle + share * block.mlp(block.mlp_norm(middle))
    torch.testing.assert_close(block(x, tokens[:, :5], rotation, {}, None), after)


@pytest.mark.parametrize("kind", [MUP, COMPLETEP])
def test_a_standard_model_has_the_same_function(kind):
    """To the bit, since all multipliers here are powers of two; also of the weights in 8 bits, near it."""
    model = moved(model_of(**kind, tied=False, **LATER)).eval()
    plain, tokens = standardized(model), torch.randint(257, (2, 24))
    assert (plain.config.parametrization, plain.config.base_width) == ("standard", None)
    with torch.no_grad():
        before = model(tokens)
        torch.testing.assert_close(plain(tokens), before, atol=1e-5, rtol=1e-5)
        assert standardized(plain) is plain
        assert F.mse_loss(for_decoding(model, "int8")(tokens), before) < 1e-3 * before.var()


@pytest.fixture
def saved(tmp_path):
    """A function from choices to a model and the path of its checkpoint."""

    def save(**choices) -> tuple[GPT, Path]:
        model = moved(model_of(**choices)).eval()
        return model, saved_model(tmp_path / "model.ckpt", model.config, model.state_dict())

    return save


@pytest.mark.parametrize(("format", "kind"), [("hf", MUP), ("weights", COMPLETEP)])
def test_exports_compute_the_same_function(format, kind, saved, tmp_path, monkeypatch):
    """All formats get the standard model; here one is read by its own library, and one by its names alone."""
    layout = {"norm": "rmsnorm", "mlp": "swiglu", "bias": False} if format == "hf" else LATER
    library = pytest.importorskip("transformers" if format == "hf" else "safetensors.torch")
    model, path = saved(**kind, **layout, tied=False)
    folder = tmp_path / "out"
    monkeypatch.setattr("sys.argv", ["export", str(path), str(folder), f"format={format}"])
    assert not export_command.main()
    tokens = torch.randint(1, 257, (2, 24))
    with torch.no_grad():
        if format == "hf":
            theirs = library.AutoModelForCausalLM.from_pretrained(folder)(tokens).logits
        else:
            theirs = GPT(GPTConfig(**json.loads((folder / "model.json").read_text()))).eval()
            theirs.load_state_dict(library.load_file(folder / "model.safetensors"))
            theirs = theirs(tokens)
        torch.testing.assert_close(theirs, model(tokens), atol=1e-4, rtol=1e-4)


def test_a_checkpoint_keeps_its_multipliers_and_an_older_one_has_none(saved):
    model, path = saved(**COMPLETEP)
    tokens = torch.randint(257, (2, 24))
    loaded = checkpoint.load(path).model
    assert loaded.config == model.config
    assert torch.equal(loaded(tokens), model(tokens))
    raw = checkpoint.read(path)
    for name in ("parametrization", "base_width", "base_depth"):
        del raw["slm"]["model"][name]
    checkpoint.save(raw, path)
    older = checkpoint.load(path).model
    assert (older.config.parametrization, older.output) == ("standard", 1.0)


def test_lora_is_merged_with_the_same_multipliers(saved):
    model, path = saved(**COMPLETEP, lora=LoRAConfig(rank=2))
    tokens = torch.randint(257, (2, 24))
    loaded = checkpoint.load(path).model
    assert (loaded.config.lora, loaded.output) == (None, 1 / 4)
    torch.testing.assert_close(loaded(tokens), model(tokens), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "choice",
    [{}, {"parametrization": "standard"}, {"parametrization": "mup", "base_width": 8}, {"depth": 8}, {"depth": 3}],
)
def test_a_run_that_starts_from_such_a_model_has_its_function(choice):
    """Also with another parametrization; further blocks change 1 / L and start as identities; fewer are another one."""
    model = moved(model_of(**{**COMPLETEP, "norm": "rmsnorm"})).eval()
    new = model_of(**{**COMPLETEP, "norm": "rmsnorm", **choice}).eval()
    start_from(Source("a", model, ByteTokenizer()), new, ByteTokenizer())
    tokens = torch.randint(257, (2, 24))
    if choice.get("depth") == 3:
        model.blocks = model.blocks[:3]
    torch.testing.assert_close(new(tokens), model(tokens), atol=1e-5, rtol=1e-5)


def test_init_from_takes_the_parametrization_of_its_source(saved, tmp_path):
    _, path = saved(**MUP)
    words = [f"init_from={path}", f"runs_dir={tmp_path}", "data=text", f"data.path={path}"]
    config = cli.compose([*words, "model.dropout=0.1"]).model
    assert (config.parametrization, config.base_width, config.dropout) == ("mup", 16, 0.1)
    with mistake("init_from=.* and parametrization=standard exclude one another"):
        cli.compose([*words, "parametrization=standard"])


@pytest.mark.parametrize(
    ("words", "pattern"),
    [
        (["parametrization=mup"], "model.parametrization=mup needs model.base_width, the width of the small model"),
        (["parametrization=completep", "model.base_width=64"], "completep needs model.base_depth"),
        (["parametrization=mup", "base_width=64"], r"no key base_width; did you mean model\.base_width\?"),
        (["model.parametrization=sp"], "model.parametrization=sp is not one of standard, mup, completep"),
        (["model.base_width=0"], "model.base_width=0 must be at least 1"),
        (["parametrization=mup", "model=own", "model._target_=a.B"], "parametrization is for slm's GPT"),
        (["parametrization=mup", "model.base_width=64", "optimizer=sgd"], "optimizer=adamw and optimizer=muon do"),
    ],
)
def test_mistakes(words, pattern):
    with mistake(pattern):
        cli.compose(words)


def test_a_run_resumes_to_the_bit_and_logs_the_rate_of_its_settings(text_file, tmp_path, monkeypatch):
    words = [*small_run(text_file, tmp_path), "parametrization=completep", "model.base_width=32", "model.base_depth=1"]
    words += ["schedule=constant", "schedule.warmup_steps=0", "budget.steps=10"]
    assert trained(monkeypatch, *words, "verify_resume=true", f"run_dir={tmp_path / 'a'}") == 0
    assert trained(monkeypatch, *words, f"run_dir={tmp_path / 'b'}") == 0
    lines = [line for line in jsonl.lines(tmp_path / "b" / "metrics.jsonl") if "train/lr" in line]
    assert {line["train/lr"] for line in lines} == {1e-3}


def test_print_parameters(capsys, tmp_path, monkeypatch):
    """The table of a model as its optimizer has it, without data, a run folder or the memory of weights."""
    monkeypatch.chdir(tmp_path)
    words = ["print=parameters", "data=storyworld", "tokenizer=bytes", "optimizer=muon", "model.value_embeddings=true"]
    words += [
        "parametrization=completep",
        "model.base_width=96",
        "model.base_depth=2",
        "cache_dir=cache",
    ]
    assert trained(monkeypatch, *words) == 0
    lines = [re.split("  +", line) for line in capsys.readouterr().out.splitlines()]
    rows = {line[0]: line[1:] for line in lines}
    assert rows["tokens.weight"] == ["1", "257 x 384", "embedding", "0.02", "1", "0.01", "0.01", "2.5e-09"]
    assert rows["blocks.*.mlp.out.weight"] == ["8", "384 x 1,536", "writer", "0.005", "0.25", "0.02", "0.01"]
    assert rows["blocks.*.attention.value_gate.weight"][:3] == ["4", "6 x 12", "narrow"]
    assert rows["norm.bias"] == ["1", "384", "vector", "1", "0.01", "0", "2.5e-09"]
    assert lines[-1][0].endswith("features before the head times 0.25, results of attention and MLP times 0.25")
    assert not [*tmp_path.iterdir()]
    sweep = ["-m", *words[:4], "model.width=64,128", "print=json", "cache_dir=cache"]
    assert trained(monkeypatch, *sweep) == 0
    jobs = json.loads(capsys.readouterr().out)["jobs"]
    assert [job["parameters"][0]["shape"] for job in jobs] == [[257, 64], [257, 128]]


def words_of_stories() -> torch.Tensor:
    """Ids of the words of some stories."""
    texts = Storyworld(level="tiny", stories=400, validation_stories=1, seed=0).documents("train")
    text = " ".join(texts).replace(".", " .").split()
    ids = {word: place for place, word in enumerate(dict.fromkeys(text))}
    return torch.tensor([ids[word] for word in text])


def loss_after(tokens: torch.Tensor, rate: float = 2**-7, steps: int = 60, **choices) -> float:
    """The mean loss of the last steps of a training with warmup and decay, on 512 tokens each, at the rate 2^-7."""
    model = model_of(vocab_size=int(tokens.max()) + 1, context=64, head_dim=32, depth=2, tied=False, **choices)
    optimizer = AdamW(**{**SETTINGS, "lr": rate})(model)
    peaks, losses = [group["lr"] for group in optimizer.param_groups], []
    generator = torch.Generator().manual_seed(0)
    for step in range(steps):
        for group, peak in zip(optimizer.param_groups, peaks):
            group["lr"] = peak * min(1, (step + 1) / 6, (steps - step) / 24)
        windows = tokens[torch.randint(len(tokens) - 65, (8, 1), generator=generator) + torch.arange(65)]
        loss = cross_entropy(model.features(windows[:, :-1]), targets=windows[:, 1:], **model.readout)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    return sum(losses[-8:]) / 8


def test_a_learning_rate_fits_a_wider_model():
    """One of width 32 helps a wider model under muP, and ruins it otherwise."""
    tokens, choices = words_of_stories(), {"norm": "rmsnorm", "bias": False, "base_width": 32}
    small, wide, standard = (
        loss_after(tokens, 2**-6, width=width, parametrization=kind, **choices)
        for width, kind in ((32, "mup"), (128, "mup"), (128, "standard"))
    )
    assert wide < small - 0.1  # 2.00 and 2.15
    assert standard > small + 0.5  # 4.14
