"""Crafted checkpoints, tokenizers and data: each is read or gives one line; nothing in them is executed."""

import codecs
import copy
import errno
import io
import pickle
import random
import sys
import zipfile
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import mistake, refused
from test_model import model_of

import slm
from slm import checkpoint, evaluate, tokenizers
from slm.classes import name_of
from slm.corpora.storyworld.corpus import Storyworld
from slm.corpora.text import Text
from slm.corpora.tinystories import TinyStories
from slm.errors import UserError
from slm.evaluation.measures import Settings
from slm.files import archive, atomic
from slm.model import GPT, GPTConfig
from slm.run import cli
from slm.run.train import train
from slm.tokenizers.bytes import ByteTokenizer
from slm.tokenizers.sentencepiece import SentencePieceTokenizer

TOKENIZER = {"tokenizer.json": b'{"kind": "bytes"}'}
STORIES = {"level": "tiny", "stories": 2, "validation_stories": 2, "seed": 0}


class Evil:
    """Makes a file when it is unpickled."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


def content(slm=None, **changes) -> dict:
    """A checkpoint of a very small model as a training writes it, with these changes."""
    model = model_of(vocab_size=257, depth=1, width=8, head_dim=8, tied=False, window=[3, None])
    described = {"format": checkpoint.FORMAT, "model": asdict(model.config), "tokenizer": TOKENIZER, "run_id": "a"}
    described |= {"config": {"seed": 1}, "corpus": Storyworld(**STORIES).fingerprint()}
    weights = {f"model.{name}": value for name, value in model.state_dict().items()}
    return {"global_step": 3, "state_dict": weights, "slm": described | (slm or {}), **changes}


def model(**changes) -> dict:
    """The checkpoint with changes of its model's configuration."""
    return content({"model": content()["slm"]["model"] | changes})


@pytest.fixture
def saved(tmp_path):
    """A function that writes a checkpoint and returns its path."""

    def save(raw, name="crafted.ckpt") -> Path:
        torch.save(raw, tmp_path / name)
        return tmp_path / name

    return save


def test_the_checkpoint_loads_when_nothing_is_wrong(saved):
    """Configuration, tokenizer and weights."""
    raw, tokens = content(), torch.tensor([[3, 1, 4, 1, 5]])
    loaded, written = checkpoint.load(saved(raw)), GPT(GPTConfig(**raw["slm"]["model"])).eval()
    written.load_state_dict({name.removeprefix("model."): value for name, value in raw["state_dict"].items()})
    assert (loaded.step, loaded.tokenizer.vocab_size, loaded.model.config) == (3, 257, written.config)
    assert torch.equal(loaded.model(tokens), written(tokens))


def test_a_pickle_with_code_is_not_executed(tmp_path, saved, composed, monkeypatch, capsys):
    """Through resume and every command that takes a checkpoint."""
    marker, message = tmp_path / "executed", "contains code or is damaged"
    path = saved(content(callbacks=Evil(marker)))
    refused(lambda: checkpoint.read(path), message, "not loaded")
    config = composed(f"resume={path}")
    refused(lambda: train(config, run_dir=tmp_path / "run", overrides=[]), message)
    assert not (tmp_path / "run").exists()
    for main, *arguments in (
        (cli.generate_main, "generate.py", f"ckpt={path}", "prompt=a"),
        (evaluate.main, "evaluate", str(path)),
    ):
        monkeypatch.setattr(sys, "argv", arguments)
        with pytest.raises(SystemExit) as exit_:
            main()
        assert exit_.value.code == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert message in line
    assert not marker.exists()
    pickle.loads(pickle.dumps(Evil(marker)))  # elsewhere it is executed
    assert marker.exists()


def test_targets_in_a_checkpoint_stay_text(tmp_path, saved, composed, monkeypatch):
    """Hyper-parameters that other loaders import and call; through loading, evaluation and resume."""
    marker = tmp_path / "executed"
    node = {"_target_": "pathlib.Path.touch", "_instantiator": "pathlib.Path.touch", "_class_path": "pathlib.Path"}
    node |= {"self": str(marker), "init_args": {"path": str(marker)}}
    raw = content(hyper_parameters=node, hparams_name="kwargs", slm={"config": {"data": {"corpus": node}, **node}})
    raw["pytorch-lightning_version"] = "2.6.6"
    path = saved(raw)
    config = composed(f"resume={path}")
    monkeypatch.setattr("slm.classes.import_module", None)  # raises when it is called
    assert checkpoint.load(path).config["_target_"] == "pathlib.Path.touch"
    refused(lambda: evaluate.evaluate(slm.load(path), Settings(cache_dir=str(tmp_path)), []), "are not in the cache")
    refused(lambda: train(config, run_dir=tmp_path / "run", overrides=[]), "_target_: pathlib.Path.touch -> None")
    assert not marker.exists()


def test_a_crafted_storyworld_is_one_line(saved):
    """The only class that evaluation builds from a checkpoint's configuration."""
    for change, message in (
        ({"stories": "2"}, "its data.corpus is not a storyworld"),
        ({"level": []}, "its data.corpus is not a storyworld"),
        ({"path": "/etc/passwd"}, "its data.corpus is not a storyworld"),
        ({"level": "../tiny"}, "data.level=../tiny is not one of"),
        ({"stories": 10**18}, "was trained on another storyworld"),
    ):
        path = saved(content({"config": {"data": {"corpus": {"_target_": name_of(Storyworld), **STORIES, **change}}}}))
        refused(lambda: evaluate.evaluate(slm.load(path), Settings(), []), message)  # noqa: B023


def nested(depth: int):
    return [nested(depth - 1)] * 10 if depth else []


def cyclic() -> dict:
    value = {}
    value["self"] = value
    return value


class Call:
    """Pickled as a call of a function that weights_only allows."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def shared(depth: int) -> dict:
    """The same block many times, which takes no more room in the file than once."""
    raw = model(depth=depth)
    for name in [name for name in raw["state_dict"] if ".blocks.0." in name]:
        for layer in range(1, depth):
            raw["state_dict"][name.replace(".0.", f".{layer}.")] = raw["state_dict"][name]
    return raw


def weight(change) -> dict:
    raw = content()
    raw["state_dict"]["model.norm.weight"] = change(raw["state_dict"]["model.norm.weight"])
    return raw


def files(**more) -> dict:
    return content({"tokenizer": {**TOKENIZER, **more}})


CRAFTED = {
    "a context without weights": lambda: model(context=10**8),
    "another context without weights": lambda: model(context=2**23),
    "heads that make tables of positions large": lambda: model(context=2**24, head_dim=4),
    "a context that is a fraction": lambda: model(context=64.5),
    "a window that is a fraction": lambda: model(window=[2.5, None]),
    "a window that is a switch": lambda: model(window=True),
    "a window in lists": lambda: model(window=[[3]]),
    "LoRA that is a list": lambda: model(lora=[None]),
    "targets of LoRA that are one": lambda: model(lora={"rank": 1, "targets": "mlp"}),
    "a width that is a list": lambda: model(width=[]),
    "a softcap beyond any float": lambda: model(logit_softcap=10**400),
    "a norm with control characters": lambda: model(norm="\x1b[31m" * 100),
    "a norm that is a tensor": lambda: model(norm=torch.zeros(3, 3)),
    "a format that is a tensor": lambda: content({"format": torch.zeros(3)}),
    "a format that is a switch": lambda: content({"format": True}),
    "a negative step": lambda: content(global_step=-1),
    "a step beyond 64 bits": lambda: content(global_step=10**100),
    "a step that is a switch": lambda: content(global_step=True),
    "complex weights": lambda: weight(lambda tensor: tensor.to(torch.complex64)),
    "whole weights": lambda: weight(lambda tensor: tensor.int()),
    "eight hundred blocks in one": lambda: shared(800),
    "blocks without tensors": lambda: model(depth=40),
    "an optimizer state of one number": lambda: content(optimizer_states=[torch.zeros(1).expand(10**6, 10**6)]),
    "a gigabyte from one number": lambda: content(callbacks=Call(bytearray, 10**9)),
    "a tensor from one number": lambda: content(callbacks=Call(torch.Tensor, 10**9)),
    "a storage from one number": lambda: content(callbacks=Call(torch.UntypedStorage, 10**9)),
    "more values than are read": lambda: content(callbacks=[[i] for i in range(51_000)]),
    "counters of loops that are text": lambda: content(loops={"fit_loop": {"completed": "3"}}),
    "counters of loops in lists": lambda: content(loops={"fit_loop": {"completed": [3]}}),
    "negative counters of loops": lambda: content(loops={"fit_loop": {"completed": -3}}),
    "files that are one on some systems": lambda: files(**{"A.json": b"1", "a.json": b"2"}),
    "a file name that is too long": lambda: files(**{"a" * 300: b"1"}),
    "a file without a name": lambda: files(**{"": b"1"}),
    "a hidden file": lambda: files(**{".bashrc": b"1"}),
    "a file in another folder": lambda: files(**{"a\\b": b"1"}),
    "a file name with a line end": lambda: files(**{"a\n": b"1"}),
    "a list": lambda: [1, 2],
    "of another program": lambda: {"state_dict": {}},
    "no format": lambda: content({"format": None}),
    "a deeply nested format": lambda: content({"format": nested(30)}),
    "no weights": lambda: content(state_dict=None),
    "a weight that is text": lambda: content(state_dict={"model.tokens.weight": "a"}),
    "names that are numbers": lambda: content(state_dict={1: torch.zeros(1)}),
    "a step that is text": lambda: content(global_step="3"),
    "a configuration that is a list": lambda: content({"config": []}),
    "a deeply nested configuration": lambda: content({"config": {"data": nested(30)}}),
    "a configuration that contains itself": lambda: content({"config": cyclic()}),
    "a deeply nested optimizer state": lambda: content(optimizer_states=nested(30)),
    "an unknown setting": lambda: content({"model": {"colour": 1}}),
    "a width that is text": lambda: model(width="8"),
    "a depth that is a fraction": lambda: model(depth=0.5),
    "a huge depth": lambda: model(depth=10**12),
    "a huge context": lambda: model(context=10**15),
    "a huge width": lambda: model(width=8 * 10**18),
    "an expanded tensor": lambda: content(state_dict={"model.tokens.weight": torch.zeros(1).expand(10**6, 10**6)}),
    "a sparse tensor": lambda: content(state_dict={"model.a": torch.zeros(2, 2).to_sparse()}),
    "a meta tensor": lambda: content(state_dict={"model.a": torch.zeros(2, device="meta")}),
    "a set": lambda: content({"tokenizer": {"a"}}),
    "tokenizer.json is text": lambda: content({"tokenizer": {"tokenizer.json": "text"}}),
}


@pytest.mark.parametrize("what", CRAFTED)
def test_crafted_content_is_one_line(what, saved):
    path = saved(CRAFTED[what]())
    text = refused(lambda: checkpoint.load(path), str(path))
    assert len(text) < len(str(path)) + 300


def encoded(codec, text: str = "a" * 30) -> Call:
    return Call(codecs.encode, text, codec)


CODECS = "punycode", "p\xfcuny-code", encoded("rot13", "chalpbqr")


@pytest.mark.parametrize("value", [encoded(codec) for codec in CODECS])
def test_bytes_are_written_as_latin1_only(value, saved):
    """Other codecs are slow without bound, or spell names of codecs."""
    refused(lambda: checkpoint.read(saved(content(callbacks=value))), "contains code or is damaged")
    assert checkpoint.read(saved(content(callbacks=[b"a", b"a\xff", "latin1", b"a"])))["callbacks"][1] == b"a\xff"


def test_a_disk_that_fails_is_not_called_a_damaged_file(saved, monkeypatch):
    """zipfile turns its error into that of a bad archive."""

    def fail(*_):
        raise OSError(errno.EIO, "Input/output error")

    path = saved(content())
    monkeypatch.setattr(zipfile, "_EndRecData", fail)
    with pytest.raises(OSError, match="Input/output error"):
        checkpoint.read(path)


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


def archived(path: Path, change) -> Path:
    """The same archive written again, with a change before its directory is written."""
    changed = path.with_name("changed.ckpt")
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(changed, "w") as other:
        for part in archive.infolist():
            other.writestr(part.filename, archive.read(part))
        change(other)
    return changed


def repeated(archive: zipfile.ZipFile):
    """A thousand entries with the same bytes."""
    largest = max(archive.filelist, key=lambda part: part.file_size)
    for number in range(1000):
        part = copy.copy(largest)
        part.filename = f"archive/data/{number + 100}"
        archive.filelist.append(part)
        archive.NameToInfo[part.filename] = part


def larger(archive: zipfile.ZipFile):
    archive.filelist[1].file_size = archive.filelist[1].compress_size = 10**9


ARCHIVES = {
    "nothing": None,
    "entries with the same bytes": repeated,
    "an entry larger than the file": larger,
    "a second pickle": lambda archive: archive.writestr("other/data.pkl", b"."),
    "a pickle under a name of other letters": lambda archive: archive.writestr("ARCHIVE/DATA.PKL", b"."),
    "names of other letters": lambda archive: archive.writestr(archive.filelist[1].filename.upper(), b""),
    "a comment, in which another directory fits": lambda archive: setattr(archive, "comment", b"PK"),
    "an encrypted entry": lambda archive: setattr(archive.filelist[1], "flag_bits", 1),
}


@pytest.mark.parametrize("what", ARCHIVES)
def test_an_archive_is_the_same_for_every_reader_and_no_larger_than_its_file(what, saved):
    path = archived(saved(content()), ARCHIVES[what] or (lambda _: None))
    if what == "nothing":
        assert checkpoint.load(path).step == 3
    else:
        refused(lambda: checkpoint.load(path), str(path), "not a checkpoint, or a truncated one")


def test_a_pickle_of_many_gigabytes_of_nothing_is_not_read_into_memory(saved, monkeypatch):
    """A sparse file takes no room on a disk, and its pickle would take all of the memory."""
    path = saved(content())
    with zipfile.ZipFile(path) as archived:
        size = max(part.file_size for part in archived.infolist() if part.filename.endswith("data.pkl"))
    monkeypatch.setattr(archive, "MAX_BYTES", size)
    assert checkpoint.load(path).step == 3
    monkeypatch.setattr(archive, "MAX_BYTES", size - 1)
    monkeypatch.setattr(zipfile.ZipFile, "read", None)
    refused(lambda: checkpoint.load(path), str(path), "it holds more than tensors and plain values")


class Empty(ByteTokenizer):
    """A tokenizer of one's own that needs an empty file."""

    def save(self, folder: Path) -> None:
        super().save(folder)
        (folder / "my merges.txt").write_bytes(b"")

    @classmethod
    def load(cls, folder: Path):
        assert (folder / "my merges.txt").read_bytes() == b""
        return cls()


def test_only_the_files_of_a_tokenizer_are_saved_and_all_of_them_are_loaded(saved):
    """An empty file; a name with a space."""
    files = checkpoint.tokenizer_files(Empty())
    assert set(files) == {"tokenizer.json", "my merges.txt"}
    assert type(checkpoint.load(saved(content({"tokenizer": files})), tokenizer=Empty).tokenizer) is Empty


@pytest.mark.parametrize("name", [".hidden", "a\\b", "a\nb"])
def test_a_tokenizer_that_would_not_be_loaded_again_is_refused(name):
    class Odd(ByteTokenizer):
        def save(self, folder):
            super().save(folder)
            (folder / name).write_text("")

    with mistake("Odd.save wrote .*visible files only"):
        checkpoint.tokenizer_files(Odd())


def test_a_checkpoint_is_given_as_text_path_or_run_folder(saved, finished, tmp_path):
    path = saved(content())
    for given in (path, str(path)):
        assert (checkpoint.load(given).step, slm.load(given).step) == (3, 3)
    for given in (finished, str(finished)):
        assert checkpoint.load(given).step == slm.load(given).step == 10
    for load in (checkpoint.load, slm.load):
        for given in (tmp_path / "missing", str(tmp_path / "missing.ckpt")):
            refused(lambda: load(given), "does not exist")  # noqa: B023
        (tmp_path / "empty").mkdir(exist_ok=True)
        refused(lambda: load(tmp_path / "empty"), "holds no checkpoint")  # noqa: B023


def test_an_interpolation_in_a_checkpoint_is_never_resolved(saved, composed, tmp_path, monkeypatch):
    """Of the environment, of another key, of a resolver; in what is loaded, evaluated, compared and written."""
    monkeypatch.setenv("HIDDEN", "value-of-the-environment")
    odd = {"a": "${oc.env:HIDDEN}", "b": "${oc.decode:${oc.env:HIDDEN}}", "seed": "${oc.env:HIDDEN}"}
    path = saved(
        content(
            {"config": {"data": {"corpus": {"_target_": name_of(Storyworld), **STORIES, "level": odd["a"]}}, **odd}}
        )
    )
    assert checkpoint.load(path).config["a"] == "${oc.env:HIDDEN}"
    texts = [refused(lambda: evaluate.evaluate(slm.load(path), Settings(), []), "${oc.env:HIDDEN}")]
    config = composed(f"resume={path}")
    texts.append(refused(lambda: train(config, run_dir=tmp_path / "run", overrides=[]), "seed: ${oc.env:HIDDEN} -> "))
    assert not any("value-of-the-environment" in text for text in texts)


def test_another_format_is_named(saved):
    for version, message in ((99, "written by a newer version"), (1, "an older version")):
        refused(lambda: checkpoint.read(saved(content({"format": version}))), message, f"format is {version}")  # noqa: B023


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


GOOD = TOKENIZER["tokenizer.json"]
TOKENIZERS = [  # name and content of a file
    *(("../outside.json", GOOD), ("{folder}/outside.json", GOOD), ("tokenizer.json ", GOOD), ("..", b""), ("", b"")),
    *(("tokenizer.json", text) for text in (b'{"kind": "byt', b'{"kind": "os:system"}', b'{"kind": "sentencepiece"}')),
    ("tokenizer.json", b'{"kind": "characters", "characters": "abc"}'),
]


@pytest.mark.parametrize(("name", "text"), TOKENIZERS)
def test_a_crafted_tokenizer_is_one_line_and_stays_in_its_folder(name, text, saved, tmp_path):
    before = set(tmp_path.parent.rglob("*"))
    path = saved(content({"tokenizer": {name.format(folder=tmp_path): text}}))
    refused(lambda: checkpoint.load(path), str(path), "tokenizer" if name == "tokenizer.json" else "")
    assert set(tmp_path.parent.rglob("*")) == {*before, path}


def test_random_bytes_are_no_tokenizer_model(saved, tmp_path):
    """Even with a matching sha256; nor is a truncated model."""
    documents = ["the small cat saw a big dog and then the dog saw the cat"] * 50
    SentencePieceTokenizer.build(documents, vocab_size=300, algorithm="bpe", sample_documents=50, seed=0).save(tmp_path)
    whole, settings = (tmp_path / "sentencepiece.model").read_bytes(), tokenizers.read_settings(tmp_path)
    for model in (random.Random(0).randbytes(5000), whole[: len(whole) // 2], b"\n", b"\x80\x04" + whole):
        (tmp_path / "sentencepiece.model").write_bytes(model)
        tokenizers.write_settings(tmp_path, settings | {"sha256": atomic.sha256(tmp_path / "sentencepiece.model")})
        files = {name: (tmp_path / name).read_bytes() for name in ("tokenizer.json", "sentencepiece.model")}
        refused(lambda: checkpoint.load(saved(content({"tokenizer": files}))), "tokenizer")  # noqa: B023


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
    refused(lambda: list(corpus.documents("train")), "failed, try again or copy it again")
    text = Text(path=str(folder / "array.txt"), separator=None, split="contiguous", train_ratio=0.5, seed=0)
    refused(lambda: list(text.documents("train")), "is not UTF-8")
    assert not marker.exists()
