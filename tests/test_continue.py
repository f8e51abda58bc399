"""init_from=: what a run takes over from a trained model, and LoRA."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from conftest import refused, trained
from test_resume import assert_same, final_state, resumes_exactly

from slm import checkpoint
from slm.files import run_folder
from slm.lora import LoRAConfig, merge
from slm.model import GPT, GPTConfig
from slm.run import cli
from slm.tokenizers.bytes import ByteTokenizer
from slm.tokenizers.characters import CharacterTokenizer
from slm.transfer import Source, described, pieces_of, start_from

BYTES = ByteTokenizer.build(documents=[])
SMALL = GPTConfig(
    **{"vocab_size": 257, "context": 16, "depth": 2, "width": 8, "head_dim": 4, "bias": True},
    **{"positions": "learned", "norm": "rmsnorm", "mlp": "swiglu", "tied": False, "residual_scalars": True},
    bigram_embeddings=40,
)
IDS = torch.arange(32).view(2, 16) * 7


@pytest.fixture
def source() -> Source:
    torch.manual_seed(0)
    model = GPT(SMALL).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return Source("a.ckpt", model, BYTES, 7, "a-run")


def continued(source: Source, tokenizer=BYTES, **changes) -> tuple[GPT, dict]:
    model = GPT(replace(SMALL, vocab_size=tokenizer.vocab_size, **changes)).eval()
    return model, start_from(source, model, tokenizer)


def test_a_longer_and_deeper_model_starts_as_the_same_function(source):
    model, start = continued(source, depth=4, context=40)
    assert torch.equal(model(IDS), source.model(IDS))
    positions = source.model.positions.weight
    assert torch.equal(model.positions.weight, torch.cat([positions, positions, positions[:8]]))
    assert start["left_over"] == []
    assert {name.split(".")[1] for name in start["new"]} == {"2", "3"}
    lines = "\n".join(described(start))
    assert all(text in lines for text in ("step 7", "context 16 -> 40", "depth 2 -> 4", "blocks.2, blocks.3"))
    model, start = continued(source, depth=1, context=4)
    assert torch.equal(model.positions.weight, positions[:4])
    assert torch.equal(model.residual_scales, source.model.residual_scales[:1])
    assert all(name.startswith("blocks.1.") for name in start["left_over"])
    assert not start["new"]


def test_another_vocabulary_keeps_equal_pieces_and_spells_the_others(source):
    """Against the rule by hand: a character of two bytes is the mean of both, and one without bytes the mean of all."""
    characters = CharacterTokenizer.build(documents=["abä"], alphabet="corpus")
    model, start = continued(source, characters)
    for own, old in ((model.tokens.weight, source.model.tokens.weight), (model.head.weight, source.model.head.weight)):
        for text, ids in {"a": [97], "b": [98], "ä": [0xC3, 0xA4]}.items():
            (token,) = characters.encode(text)
            assert torch.allclose(own[token], old[ids].mean(0))
        assert torch.equal(own[characters.eos], old[BYTES.eos])
    assert start["left_over"] == ["bigrams.weight"]
    assert not model.bigrams.weight.any()
    assert start["vocabulary"]["equal"] == 3
    assert start["vocabulary"]["spelled"] == characters.vocab_size - 3
    back = pieces_of(characters, BYTES)
    assert back.rows[98] == characters.encode("b")
    assert back.rows[0xC3] == []
    assert back.counts["equal"] == 3


def test_a_model_of_another_shape_is_refused(source):
    assert "model.width 8 -> 16" in refused(lambda: source.check(replace(SMALL, width=16)), "a.ckpt")
    source.check(replace(SMALL, depth=5, context=99, vocab_size=3, tied=True))
    tied, start = continued(source, tied=True)
    assert torch.equal(tied.head.weight, source.model.tokens.weight)
    assert start["left_over"] == ["head.weight"]


def test_lora_starts_as_the_base_trains_thin_matrices_and_merges(source):
    model, start = continued(source, lora=LoRAConfig(rank=3, targets=["attention", "mlp.gate"]))
    assert torch.equal(model(IDS), source.model(IDS))
    assert not start["new"]
    trained_names = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    layers = [f"blocks.{block}.{name}" for block in (0, 1) for name in ("attention.qkv", "attention.out", "mlp.gate")]
    assert trained_names == {f"{layer}.lora_{part}" for layer in layers for part in "ab"}
    for name in trained_names:
        torch.nn.init.normal_(model.get_parameter(name), std=0.3)
    logits = model(IDS)
    merged = merge(model)
    assert not torch.allclose(logits, source.model(IDS), atol=0.1)
    assert torch.allclose(merged(IDS), logits, atol=1e-5)
    assert merged.config == SMALL
    assert merged.state_dict().keys() == source.model.state_dict().keys()
    refused(lambda: continued(source, qk_norm=True, lora=LoRAConfig(rank=3)), "blocks.0, blocks.1")
    for wrong in (
        {"rank": 0},
        {"rank": 2, "alpha": 0.0},
        {"rank": 2, "targets": ["heads"]},
        {"rank": 2, "targets": []},
    ):
        refused(lambda wrong=wrong: LoRAConfig(**wrong), "model.lora")


def test_a_run_with_lora_resumes_exactly_and_is_loaded_as_a_plain_model(composed, finished, tmp_path, monkeypatch):
    """The command line gives no key of the model: they are those of the source. The source may be gone at the end."""
    copy = tmp_path / "source"
    shutil.copytree(finished, copy)
    words = f"init_from={copy}", "model.lora.rank=2", "optimizer.lr=0.1", "callbacks.checkpoints.every_n_steps=4"
    straight = resumes_exactly(composed(*words), tmp_path, monkeypatch, [7])
    info, before = run_folder.read_run_json(straight), checkpoint.load(copy)
    assert info["init"]["run_id"] == before.run_id
    assert info["init"]["new"] == info["init"]["left_over"] == []
    weights, (optimizer,), _ = final_state(straight)
    frozen = {name.removeprefix("model."): its for name, its in weights.items() if ".lora_" not in name}
    assert_same(frozen, dict(before.model.state_dict()))
    thin = [its for name, its in weights.items() if ".lora_" in name]
    assert [its["exp_avg"].shape for its in optimizer["state"].values()] == [its.shape for its in thin]
    after = checkpoint.load(straight)
    assert after.model.config == before.model.config
    assert not any(".lora_" in name for name in after.model.state_dict())
    moved = [not torch.equal(a, b) for a, b in zip(after.model.state_dict().values(), frozen.values())]
    assert 0 < sum(moved) < len(moved)
    shutil.rmtree(copy)
    config = cli.compose([*words, f"run_dir={straight}", f"cache_dir={tmp_path / 'cache'}"])
    assert config.tokenizer.settings["path"] == str(straight / "tokenizer")


def test_mistakes_are_answered_before_any_work(composed, finished, monkeypatch, capsys):
    base = f"init_from={finished}"
    refused(lambda: composed(base, "model=tiny"), "init_from", "model=tiny")
    refused(lambda: composed(base, f"fork={finished}"), "fork")
    refused(lambda: composed("init_from=nowhere"), "init_from=", "does not exist")
    refused(lambda: composed("init_from=latest"), "init_from=latest")
    refused(lambda: composed("model.lora.rank=2"), "init_from=RUN")
    refused(lambda: composed(base, "model.lora.rank=2", "optimizer=muon"), "optimizer=adamw")
    refused(lambda: composed(f"init_from=hf:{finished}"), "hf:")
    assert trained(monkeypatch, base, "plan=true", "model.width=48") == 2
    assert "model.width" in capsys.readouterr().err
    assert composed(base).model == replace(composed("debug=default").model, vocab_size=1)
    assert json.loads((finished / "run.json").read_text())["config"].get("init_from") is None
