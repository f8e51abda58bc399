"""Crafted checkpoints, tokenizers and data: each is read or gives one line; nothing in them is executed."""

import io
import pickle
import random
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from slm import checkpoint, evaluate, tokenizers
from slm.corpora.storyworld.corpus import Storyworld
from slm.corpora.text import Text
from slm.corpora.tinystories import TinyStories
from slm.errors import UserError
from slm.files import atomic
from slm.model import GPT, GPTConfig
from slm.run import cli
from slm.run.train import train
from slm.tokenizers.sentencepiece import SentencePieceTokenizer

TOKENIZER = {"tokenizer.json": b'{"kind": "bytes"}'}
STORIES = {"level": "tiny", "stories": 2, "validation_stories": 2, "seed": 0}


class Evil:
    """Makes a file when it is unpickled."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


def content(**changes) -> dict:
    """A checkpoint of a very small model as a training writes it, with these changes."""
    config = GPTConfig(
        vocab_size=257, context=16, depth=1, width=8, head_dim=8, positions="rope", norm="rmsnorm", mlp="gelu",
        bias=False, tied=False,
    )  # fmt: skip
    slm = {"format": checkpoint.FORMAT, "model": config.__dict__, "tokenizer": TOKENIZER, "config": {"seed": 1}}
    slm |= {"run_id": "a", "corpus": Storyworld(**STORIES).fingerprint()}
    weights = {f"model.{name}": value for name, value in GPT(config).state_dict().items()}
    return {"global_step": 3, "state_dict": weights, "slm": slm | changes.pop("slm", {}), **changes}


@pytest.fixture
def saved(tmp_path):
    """A function that writes a checkpoint and returns its path."""

    def save(raw, name="crafted.ckpt") -> Path:
        torch.save(raw, tmp_path / name)
        return tmp_path / name

    return save


def refused(call, *messages: str) -> str:
    """The one-line message of the UserError that the call raises."""
    with pytest.raises(UserError) as error:
        call()
    text = str(error.value)
    assert all(message in text for message in messages), text
    assert "\n" not in text
    return text


def test_the_crafted_checkpoint_loads_when_nothing_is_wrong(saved):
    loaded = checkpoint.load(saved(content()))
    assert loaded.step == 3
    assert loaded.tokenizer.vocab_size == 257


def test_a_pickle_with_code_is_not_executed(tmp_path, saved, monkeypatch, capsys):
    """Through every command that takes a checkpoint."""
    marker = tmp_path / "executed"
    path = saved(content(callbacks=Evil(marker)))
    refused(lambda: checkpoint.read(path), "contains code or is damaged", "not loaded")
    for main, *arguments in (
        (cli.generate_main, "generate.py", f"ckpt={path}", "prompt=a"),
        (evaluate.main, "evaluate", str(path)),
    ):
        monkeypatch.setattr(sys, "argv", arguments)
        with pytest.raises(SystemExit) as exit_:
            main()
        assert exit_.value.code == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert "contains code or is damaged" in line
    assert not marker.exists()
    pickle.loads(pickle.dumps(Evil(marker)))  # elsewhere it is executed
    assert marker.exists()


def test_resume_executes_no_pickle(tmp_path, saved, composed):
    marker = tmp_path / "executed"
    config = composed(f"resume={saved(content(callbacks=Evil(marker)))}")
    refused(lambda: train(config, run_dir=tmp_path / "run", overrides=[]), "contains code or is damaged")
    assert not marker.exists()
    assert not (tmp_path / "run").exists()


def test_targets_in_a_checkpoint_stay_text(tmp_path, saved, composed, monkeypatch):
    """Hyper-parameters that other loaders import and call; through loading, evaluation and resume."""
    marker = tmp_path / "executed"
    node = {"_target_": "pathlib.Path.touch", "_instantiator": "pathlib.Path.touch", "_class_path": "pathlib.Path"}
    node |= {"self": str(marker), "init_args": {"path": str(marker)}}
    raw = content(hyper_parameters=node, hparams_name="kwargs", slm={"config": {"data": {"corpus": node}, **node}})
    raw["pytorch-lightning_version"] = "2.6.6"
    path = saved(raw)
    config = composed(f"resume={path}")
    monkeypatch.setattr("slm.run.instantiate.import_module", None)  # raises when it is called
    assert checkpoint.load(path).config["_target_"] == "pathlib.Path.touch"
    refused(lambda: evaluate.evaluate(path, 2, [1.0], 0), "was not trained on data=storyworld")
    refused(lambda: train(config, run_dir=tmp_path / "run", overrides=[]), "_target_: pathlib.Path.touch -> None")
    assert not marker.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stories": "2"}, "its data.corpus is not a storyworld"),
        ({"level": []}, "its data.corpus is not a storyworld"),
        ({"path": "/etc/passwd"}, "its data.corpus is not a storyworld"),
        ({"level": "../tiny"}, "data.level=../tiny is not one of"),
        ({"stories": 10**18}, "was trained on another storyworld"),
    ],
    ids=str,
)
def test_a_crafted_storyworld_is_one_line(change, message, saved):
    """The only class that evaluation builds from a checkpoint's configuration."""
    corpus = {"_target_": evaluate.TARGET, **STORIES, **change}
    path = saved(content(slm={"config": {"data": {"corpus": corpus}}}))
    refused(lambda: evaluate.evaluate(path, 2, [1.0], 0), message)


def nested(depth: int):
    return [nested(depth - 1)] * 10 if depth else []


def cyclic() -> dict:
    value = {}
    value["self"] = value
    return value


CRAFTED = {
    "a list": lambda: [1, 2],
    "a tensor": lambda: torch.zeros(3),
    "nothing": lambda: None,
    "of another program": lambda: {"state_dict": {}},
    "no format": lambda: content(slm={"format": None}),
    "a deeply nested format": lambda: content(slm={"format": nested(30)}),
    "no weights": lambda: content(state_dict=None),
    "a weight that is text": lambda: content(state_dict={"model.tokens.weight": "a"}),
    "names that are numbers": lambda: content(state_dict={1: torch.zeros(1)}),
    "a step that is text": lambda: content(global_step="3"),
    "a configuration that is a list": lambda: content(slm={"config": []}),
    "a deeply nested configuration": lambda: content(slm={"config": {"data": nested(30)}}),
    "a configuration that contains itself": lambda: content(slm={"config": cyclic()}),
    "a deeply nested optimizer state": lambda: content(optimizer_states=nested(30)),
    "an unknown setting": lambda: content(slm={"model": {"colour": 1}}),
    "a width that is text": lambda: content(slm={"model": content()["slm"]["model"] | {"width": "8"}}),
    "a width that is a fraction": lambda: content(slm={"model": content()["slm"]["model"] | {"depth": 0.5}}),
    "a huge depth": lambda: content(slm={"model": content()["slm"]["model"] | {"depth": 10**12}}),
    "a huge context": lambda: content(slm={"model": content()["slm"]["model"] | {"context": 10**15}}),
    "a huge width": lambda: content(slm={"model": content()["slm"]["model"] | {"width": 8 * 10**18}}),
    "an expanded tensor": lambda: content(state_dict={"model.tokens.weight": torch.zeros(1).expand(10**6, 10**6)}),
    "a sparse tensor": lambda: content(state_dict={"model.a": torch.zeros(2, 2).to_sparse()}),
    "a meta tensor": lambda: content(state_dict={"model.a": torch.zeros(2, device="meta")}),
    "a set": lambda: content(slm={"tokenizer": {"a"}}),
    "a huge array": lambda: content(extra=bytearray(10)),
    "tokenizer.json is text": lambda: content(slm={"tokenizer": {"tokenizer.json": "text"}}),
}


@pytest.mark.parametrize("what", CRAFTED)
def test_crafted_content_is_one_line(what, saved):
    path = saved(CRAFTED[what]())
    if what == "a huge array":
        path.write_bytes(path.read_bytes().replace(b"bytearray", b"bytearrax"))
    text = refused(lambda: checkpoint.load(path), str(path))
    assert len(text) < len(str(path)) + 300


def test_truncated_and_flipped_files_are_one_line(saved):
    """Cut anywhere, or with changed bytes in the pickle or the zip directory, and without a digest."""
    path = saved(content())
    whole, rng = path.read_bytes(), random.Random(0)
    (pickled,) = [part for part in zipfile.ZipFile(path).infolist() if part.filename.endswith("data.pkl")]
    begin = whole.index(zipfile.ZipFile(path).read(pickled))
    damaged = [whole[: rng.randrange(len(whole))] for _ in range(30)]
    for first, last in [(begin, begin + pickled.file_size)] * 80 + [(len(whole) - 1000, len(whole))] * 30:
        flipped = bytearray(whole)
        for _ in range(rng.choice((1, 1, 4))):
            flipped[rng.randrange(first, last)] = rng.randrange(256)
        damaged.append(bytes(flipped))
    messages = []
    for one in damaged:
        path.write_bytes(one)
        try:
            checkpoint.load(path)
        except UserError as error:
            messages.append(str(error))
    assert len(messages) > len(damaged) / 2
    assert all(str(path) in message and "\n" not in message for message in messages)


def test_compressed_entries_are_refused(saved, tmp_path):
    """A megabyte of zip can hold a gigabyte."""
    path = saved(content())
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(tmp_path / "b.ckpt", "w", zipfile.ZIP_DEFLATED) as packed:
        for part in archive.infolist():
            packed.writestr(part.filename, archive.read(part))
    refused(lambda: checkpoint.read(tmp_path / "b.ckpt"), "not a checkpoint")


@pytest.mark.parametrize(("version", "message"), [(99, "written by a newer version"), (1, "an older version")])
def test_another_format_is_named(version, message, saved):
    refused(lambda: checkpoint.read(saved(content(slm={"format": version}))), message, f"format is {version}")


def test_the_first_three_wrong_weights_are_named(saved):
    """Missing, unknown or of another shape."""
    raw = content()
    weights = raw["state_dict"]
    del weights["model.blocks.0.mlp.up.weight"]
    weights["model.bonus"] = torch.zeros(2, 3)
    weights["model.head.weight"] = torch.zeros(257, 9)
    weights["model.tokens.weight"] = torch.zeros(2)
    text = refused(lambda: checkpoint.load(saved(raw)), "does not hold the weights of its model")
    assert "blocks.0.mlp.up.weight (32, 8) is missing, bonus (2, 3) is not the model's, tokens.weight is (2,)" in text
    assert text.endswith("and 1 more")


FILES = {
    "../outside.json": TOKENIZER["tokenizer.json"],
    "{folder}/outside.json": TOKENIZER["tokenizer.json"],
    "..": b"",
    "": b"",
    "tokenizer.json": b'{"kind": "byt',
    "tokenizer.json ": TOKENIZER["tokenizer.json"],
}
SETTINGS = {
    "no object": "[1]",
    "no kind": "{}",
    "a kind that names code": '{"kind": "os:system"}',
    "a kind that is a list": '{"kind": []}',
    "deep nesting": "[" * 100_000,
    "half a character": '{"kind": "characters", "characters": "\\ud800"}',
    "too few ids": '{"kind": "characters", "characters": "abc"}',
    "no model": '{"kind": "sentencepiece"}',
}


@pytest.mark.parametrize("name", FILES)
def test_files_of_a_tokenizer_stay_in_their_folder(name, saved, tmp_path):
    before = set(tmp_path.parent.rglob("*"))
    path = saved(content(slm={"tokenizer": {name.format(folder=tmp_path): FILES[name]}}))
    refused(lambda: checkpoint.load(path), str(path))
    assert set(tmp_path.parent.rglob("*")) == {*before, path}


@pytest.mark.parametrize("settings", SETTINGS)
def test_damaged_tokenizers_in_a_checkpoint(settings, saved):
    path = saved(content(slm={"tokenizer": {"tokenizer.json": SETTINGS[settings].encode()}}))
    refused(lambda: checkpoint.load(path), str(path), "tokenizer")


def test_random_bytes_are_no_tokenizer_model(saved, tmp_path):
    """Even with a matching sha256; nor is a truncated model."""
    documents = ["the small cat saw a big dog and then the dog saw the cat"] * 50
    SentencePieceTokenizer.build(documents, vocab_size=300, algorithm="bpe", sample_documents=50, seed=0).save(tmp_path)
    whole, settings = (tmp_path / "sentencepiece.model").read_bytes(), tokenizers.read_settings(tmp_path)
    for model in (random.Random(0).randbytes(5000), whole[: len(whole) // 2], b"\n", b"\x80\x04" + whole):
        (tmp_path / "sentencepiece.model").write_bytes(model)
        tokenizers.write_settings(tmp_path, settings | {"sha256": atomic.sha256(tmp_path / "sentencepiece.model")})
        files = {name: (tmp_path / name).read_bytes() for name in ("tokenizer.json", "sentencepiece.model")}
        refused(lambda: checkpoint.load(saved(content(slm={"tokenizer": files}))), "tokenizer")  # noqa: B023


def test_data_is_never_executed(tmp_path):
    """A folder with a loading script and pickles holds no data; an array of pickled objects is no text."""
    marker, folder = tmp_path / "executed", tmp_path / "evil"
    (folder / "data").mkdir(parents=True)
    for script in ("evil.py", "data/train-0.py", "data/loading.py"):
        (folder / script).write_text(f"open({str(marker)!r}, 'w')")
    buffer = io.BytesIO()
    np.save(buffer, np.array([Evil(marker)], dtype=object))
    for name in ("data/train-0.parquet", "data/validation-0.parquet", "array.txt"):
        (folder / name).write_bytes(buffer.getvalue())
    corpus = TinyStories(path=str(folder), streaming=False, repository="a/b", revision="main", cache=str(tmp_path))
    refused(lambda: list(corpus.documents("train")), "is not a parquet file")
    text = Text(path=str(folder / "array.txt"), separator=None, split="contiguous", train_ratio=0.5, seed=0)
    refused(lambda: list(text.documents("train")), "is not UTF-8")
    assert not marker.exists()
