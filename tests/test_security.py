"""Doors that stay shut: nothing read is executed, nothing leads out of its folder, no secret is written."""

import io
import json
import pickle
import random
import shutil
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CONF, trained

from slm import checkpoint, evaluate, security, tokenizers
from slm.corpora.text import Text
from slm.corpora.tinystories import TinyStories
from slm.errors import UserError
from slm.files import atomic, run_folder
from slm.model import GPT, GPTConfig
from slm.run import cli
from slm.run.config import make_plan
from slm.run.instantiate import build, locate
from slm.run.train import train
from slm.run.verify_resume import rehearse
from slm.tokenizers.sentencepiece import SentencePieceTokenizer

TOKENIZER = {"tokenizer.json": b'{"kind": "bytes"}'}
SECRET = "XYZZY-0123456789-plugh"
POINTERS = ['{"file": "../../outside.ckpt"}', '{"file": "/etc/passwd"}', '{"file": ["a"]}', "[]", "{", "[" * 9999]
CARDS = [
    "[]",
    "{}",
    "{",
    "[" * 99_999,
    {"run_id": "../../x"},
    {"run_id": 3},
    {"config": None},
    {"lives": "2"},
    {"rewinds": [3]},
]


class Evil:
    """Unpickled by anything that allows it, it makes a file."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


def content(**changes) -> dict:
    """A checkpoint of a very small model, as a training writes it."""
    config = GPTConfig(
        vocab_size=257, context=16, depth=1, width=8, head_dim=8, positions="rope", norm="rmsnorm", mlp="gelu",
        bias=False, tied=False,
    )  # fmt: skip
    slm = {"format": checkpoint.FORMAT, "model": config.__dict__, "tokenizer": TOKENIZER, "config": {"seed": 1}}
    slm |= {"run_id": "a", "corpus": "b"}
    weights = {f"model.{name}": value for name, value in GPT(config).state_dict().items()}
    return {"global_step": 3, "state_dict": weights, "slm": slm | changes.pop("slm", {}), **changes}


@pytest.fixture
def saved(tmp_path):
    """A function that writes a checkpoint and returns its path."""

    def save(raw, name="crafted.ckpt") -> Path:
        torch.save(raw, tmp_path / name)
        return tmp_path / name

    return save


def refused(call, *messages: str):
    with pytest.raises(UserError) as error:
        call()
    text = str(error.value)
    assert all(message in text for message in messages), text
    assert "\n" not in text
    return text


def said(capsys) -> str:
    """The one line on stderr."""
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ")
    return line


# -- checkpoints ----------------------------------------------------------------------------------------------------


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
        assert "contains code or is damaged" in said(capsys)
    assert not marker.exists()
    pickle.loads(pickle.dumps(Evil(marker)))  # it does what it threatens
    assert marker.exists()


def test_resume_executes_no_pickle(tmp_path, saved, composed):
    marker = tmp_path / "executed"
    path = saved(content(callbacks=Evil(marker)))
    config = composed(f"resume='{path}'")
    refused(lambda: train(config, run_dir=tmp_path / "run", overrides=[]), "contains code or is damaged")
    assert not marker.exists()
    assert not (tmp_path / "run").exists()


def test_targets_in_a_checkpoint_are_never_built(tmp_path, saved, monkeypatch):
    """Hyper-parameters that other loaders import and call: they stay what they are, text."""
    marker = tmp_path / "executed"
    node = {"_target_": "pathlib.Path.touch", "_instantiator": "pathlib.Path.touch", "_class_path": "pathlib.Path"}
    node |= {"self": str(marker), "init_args": {"path": str(marker)}}
    raw = content(hyper_parameters=node, hparams_name="kwargs", slm={"config": {"data": {"corpus": node}, **node}})
    raw["pytorch-lightning_version"] = "2.6.6"
    monkeypatch.setattr("slm.run.instantiate.import_module", None)  # would raise
    path = saved(raw)
    assert checkpoint.load(path).config["_target_"] == "pathlib.Path.touch"
    refused(lambda: evaluate.evaluate(path, 2, [1.0], 0), "was not trained on data=storyworld")
    assert not marker.exists()


def nested(depth: int):
    value = []
    for _ in range(depth):
        value = [value] * 10
    return value


def cyclic() -> dict:
    value = {}
    value["self"] = value
    return value


CRAFTED = {
    "a list": lambda: [1, 2],
    "a tensor": lambda: torch.zeros(3),
    "nothing": lambda: None,
    "another program's": lambda: {"state_dict": {}},
    "no format": lambda: content(slm={"format": None}),
    "a format that is a bomb": lambda: content(slm={"format": nested(30)}),
    "no weights": lambda: content(state_dict=None),
    "a weight that is text": lambda: content(state_dict={"model.tokens.weight": "a"}),
    "names that are numbers": lambda: content(state_dict={1: torch.zeros(1)}),
    "a step that is text": lambda: content(global_step="3"),
    "a configuration that is a list": lambda: content(slm={"config": []}),
    "a configuration that is a bomb": lambda: content(slm={"config": {"data": nested(30)}}),
    "a configuration in itself": lambda: content(slm={"config": cyclic()}),
    "an optimizer state that is a bomb": lambda: content(optimizer_states=nested(30)),
    "an unknown setting": lambda: content(slm={"model": {"colour": 1}}),
    "a width that is text": lambda: content(slm={"model": content()["slm"]["model"] | {"width": "8"}}),
    "a width that is a fraction": lambda: content(slm={"model": content()["slm"]["model"] | {"depth": 0.5}}),
    "a depth without end": lambda: content(slm={"model": content()["slm"]["model"] | {"depth": 10**12}}),
    "a context without end": lambda: content(slm={"model": content()["slm"]["model"] | {"context": 10**15}}),
    "a width without end": lambda: content(slm={"model": content()["slm"]["model"] | {"width": 8 * 10**18}}),
    "an empty claim": lambda: content(state_dict={"model.tokens.weight": torch.zeros(1).expand(10**6, 10**6)}),
    "a sparse tensor": lambda: content(state_dict={"model.a": torch.zeros(2, 2).to_sparse()}),
    "a tensor without content": lambda: content(state_dict={"model.a": torch.zeros(2, device="meta")}),
    "a set": lambda: content(slm={"tokenizer": {"a"}}),
    "a huge array": lambda: content(extra=bytearray(10)),
    "tokenizer.json is text": lambda: content(slm={"tokenizer": {"tokenizer.json": "text"}}),
}


@pytest.mark.parametrize("what", CRAFTED)
def test_crafted_content_is_one_line(what, saved):
    path = saved(CRAFTED[what]())
    if what == "a huge array":  # as its pickle, not its author, says
        path.write_bytes(path.read_bytes().replace(b"bytearray", b"bytearrax"))
    text = refused(lambda: checkpoint.load(path), str(path))
    assert len(text) < len(str(path)) + 300


def test_truncated_and_flipped_files_are_one_line(saved):
    """Cut anywhere, and any bytes of the pickle or of the directory changed, with no digest to tell."""
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
    refusals = 0
    for one in damaged:
        path.write_bytes(one)
        said = ""
        try:
            checkpoint.load(path)
        except UserError as error:
            said, refusals = str(error), refusals + 1
        assert not said or (str(path) in said and "\n" not in said)
    assert refusals > len(damaged) / 2


def test_what_is_packed_is_not_unpacked(saved, tmp_path):
    """A zip that holds a gigabyte in a megabyte is refused by its directory."""
    path = saved(content())
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(tmp_path / "b.ckpt", "w", zipfile.ZIP_DEFLATED) as packed:
        for part in archive.infolist():
            packed.writestr(part.filename, archive.read(part))
    refused(lambda: checkpoint.read(tmp_path / "b.ckpt"), "not a checkpoint")


@pytest.mark.parametrize(("version", "message"), [(99, "written by a newer version"), (1, "an older version")])
def test_other_formats_say_so(version, message, saved):
    refused(lambda: checkpoint.read(saved(content(slm={"format": version}))), message, f"format is {version}")


def test_other_weights_are_named(saved):
    """Missing, extra and of another shape: the first three with their shapes."""
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
    "a kind that is code": '{"kind": "os:system"}',
    "a kind that is a list": '{"kind": []}',
    "a bomb": "[" * 100_000,
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
    """Even with the digest that belongs to them; a truncated model neither."""
    documents = ["the small cat saw a big dog and then the dog saw the cat"] * 50
    SentencePieceTokenizer.build(documents, vocab_size=300, algorithm="bpe", sample_documents=50, seed=0).save(tmp_path)
    whole, settings = (tmp_path / "sentencepiece.model").read_bytes(), tokenizers.read_settings(tmp_path)
    for model in (random.Random(0).randbytes(5000), whole[: len(whole) // 2], b"\n", b"\x80\x04" + whole):
        (tmp_path / "sentencepiece.model").write_bytes(model)
        tokenizers.write_settings(tmp_path, settings | {"sha256": atomic.sha256(tmp_path / "sentencepiece.model")})
        files = {name: (tmp_path / name).read_bytes() for name in ("tokenizer.json", "sentencepiece.model")}
        refused(lambda: checkpoint.load(saved(content(slm={"tokenizer": files}))), "tokenizer")  # noqa: B023


# -- run folders ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory, text_file) -> Path:
    """A finished run, made by the command line with secrets in the environment and W&B kept offline."""
    folder, patch = tmp_path_factory.mktemp("secrets"), pytest.MonkeyPatch()
    environment = {"WANDB_API_KEY": SECRET, "HF_TOKEN": SECRET, "MY_PASSWORD": SECRET, "WANDB_MODE": "offline"}
    for name, value in {**environment, "HOME": str(folder), "WANDB_SILENT": "true"}.items():
        patch.setenv(name, value)
    arguments = ["data=text", f"data.path={text_file}", "data.separator=<|endoftext|>", "tokenizer=bytes"]
    arguments += ["trainer=cpu", "debug=default", "logger=wandb", f"run_dir={folder / 'run'}"]
    patch.setattr(sys, "argv", ["train.py", *arguments, f"cache_dir={folder / 'cache'}"])
    patch.chdir(folder)
    with pytest.raises(SystemExit) as exit_:
        cli.train_main()
    patch.undo()
    assert exit_.value.code == 0
    return folder / "run"


def test_secrets_of_the_environment_are_written_nowhere(run_dir):
    files = [path for path in run_dir.parent.rglob("*") if path.is_file()]
    assert any(path.suffix == ".wandb" for path in files)
    assert any(path.suffix == ".ckpt" for path in files)
    assert [path for path in files if SECRET.encode() in path.read_bytes()] == []


@pytest.fixture
def copy(run_dir, tmp_path) -> Path:
    return Path(shutil.copytree(run_dir, tmp_path / "copy"))


@pytest.mark.parametrize("pointer", POINTERS)
def test_pointers_name_only_what_lies_beside_them(pointer, copy, saved):
    saved(content(), "outside.ckpt")
    for name in ("last", "best"):
        (copy / "checkpoints" / f"{name}.json").write_text(pointer)
    for ckpt in (str(copy), "latest", "last", "best"):
        refused(lambda: run_folder.find_checkpoint(ckpt, copy.parent), "is damaged: it must name a file beside it")  # noqa: B023


def test_a_crafted_card_is_one_line(copy, composed):
    config, card = composed(), run_folder.read_run_json(copy)
    for change in CARDS:
        (copy / "run.json").write_text(change if isinstance(change, str) else json.dumps(card | change))
        refused(lambda: train(config, run_dir=copy, overrides=[]), "run.json is damaged")


def test_resume_takes_only_a_whole_and_fitting_checkpoint(copy, composed, tmp_path):
    raw = checkpoint.read(copy / "checkpoints" / "step-000005.ckpt")
    stripped = {key: value for key, value in raw.items() if key != "optimizer_states"}
    weights = {**raw["state_dict"], "model.tokens.weight": torch.zeros(3, 4)}
    for crafted, message in (
        (stripped, "holds no optimizer_states"),
        ({**raw, "state_dict": weights}, "tokens.weight is (3, 4), not (257, 64)"),
        ({**raw, "state_dict": raw["state_dict"] | {"model.more": torch.zeros(1)}}, "more (1,) is not the model's"),
    ):
        torch.save(crafted, tmp_path / "crafted.ckpt")
        config = composed(f"resume='{tmp_path / 'crafted.ckpt'}'")
        refused(lambda: train(config, run_dir=tmp_path / "new", overrides=[]), message)  # noqa: B023
        assert not (tmp_path / "new").exists()


def test_nothing_is_deleted_that_is_not_ours(copy, composed, tmp_path):
    """A folder of somebody else's is refused untouched; in a run folder only torn files of ours go."""
    foreign = tmp_path / "home"
    (foreign / "sub").mkdir(parents=True)
    for name in ("thesis.txt", "film.partial", "sub/film.123.partial", "config.yaml"):
        (foreign / name).write_text("mine")
    before = {path: path.read_bytes() for path in foreign.rglob("*") if path.is_file()}
    refused(lambda: train(composed(), run_dir=foreign, overrides=[]), "holds config.yaml but no run.json")
    assert {path: path.read_bytes() for path in foreign.rglob("*") if path.is_file()} == before

    kept = [copy / "film.partial", copy / "notes" / "a.1.partial", copy / "checkpoints" / "x.partial"]
    torn = [copy / "run.json.123.partial", copy / "checkpoints" / "step-000005.ckpt.7.partial"]
    (copy / "notes").mkdir()
    for path in kept + torn:
        path.write_text("")
    (copy / "folder.1.partial").mkdir()
    train(composed("budget.steps=11"), run_dir=copy, overrides=[])
    assert all(path.exists() for path in [*kept, copy / "folder.1.partial"])
    assert not any(path.exists() for path in torn)


def test_a_rehearsal_deletes_only_what_it_made(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    refused(lambda: rehearse([], tmp_path), "is there already")
    assert (tmp_path / "thesis.txt").exists()


# -- the command line -----------------------------------------------------------------------------------------------

SHUT = {
    "logger.wandb.api_key={secret}": "looks like a secret",
    "+logger.wandb.api_key={secret}": "looks like a secret",
    "++logger.wandb.apikey={secret}": "looks like a secret",
    "+logger.wandb={{api_key: {secret}}}": "looks like a secret",
    "+logger.wandb={{settings: {{a: [{{HF_TOKEN: {secret}}}]}}}}": "looks like a secret",
    "hooks.mine.password={secret}": "looks like a secret",
    "hydra.job.env_set.WANDB_API_KEY={secret}": "looks like a secret",
    "+logger.wandb={{api_key: {secret}": "cannot read +logger.wandb; write key=value",
    "name=${{oc.env:SLM_TEST_TOKEN}}": "name holds what SLM_TEST_TOKEN does",
    "name=a{known}": "name holds what SLM_TEST_TOKEN does",
    "data.path=https://me:{known}x@example.org/a.txt": "data.path holds",
    "data.path=https://me:hunter2@example.org/a.txt": "data.path holds a URL with a password",
    "data.path=https://example.org/a.txt": "is a URL",
    "resume=http://127.0.0.1:9/x.ckpt": "is a URL",
    "run_dir=s3://bucket/run": "is a URL",
    "name=../../x": "name=../../x must consist of",
    "experiment=../../evil": "experiment=../../evil is not one of",
    "+grp=../../../outside/evil": "there is no key grp",
    "+callbacks=../../evil": "callbacks=../../evil is not one of",
    "+experiment@hydra=quickstart": "is none of the options in conf/",
    "+hydra/launcher=../../../evil": "is none of the options in conf/",
    "model/../../evil=x": "error: ",
    "--config-dir=/tmp": "--config-dir is not taken",
    "--config-d=/tmp": "--config-d is not taken",
    "-cd": "-cd is not taken",
    "--config-path=/tmp": "--config-path is not taken",
    "--config-name=generate": "--config-name is not taken",
    "--experimental-rerun=x.pickle": "--experimental-rerun is not taken",
    "hydra.searchpath=[/tmp]": "hydra.searchpath would run or load",
    "+hydra.callbacks.x._target_=pathlib.Path": "hydra.callbacks would run or load",
    "hydra.launcher._target_=os.system": "hydra.launcher._target_=os.system is outside",
    "+hydra.job_logging.handlers.x.class=os.system": "hydra.job_logging would run or load",
    "+hydra.job.env_set.GIT_EXTERNAL_DIFF=x": "hydra.job.env_set would run or load",
    "trusted_targets=['']": "trusted_targets='' must be a package",
    "optimizer._target_=torch.load": "optimizer._target_=torch.load is outside",
}


@pytest.mark.parametrize("argument", SHUT)
def test_shut_to_the_command_line(argument, text_file, tmp_path, monkeypatch, capsys):
    """One line that does not repeat the secret; nothing is written."""
    known = SECRET[::-1]
    monkeypatch.setenv("SLM_TEST_TOKEN", known)
    monkeypatch.chdir(tmp_path)
    small = ["data=text", f"data.path={text_file}", "trainer=cpu", "debug=default"]
    assert trained(monkeypatch, *small, argument.format(secret=SECRET, known=known)) == 2
    line = said(capsys)
    assert SHUT[argument] in line
    assert not any(secret in line for secret in (SECRET, known, "hunter2"))
    assert list(tmp_path.iterdir()) == []


def test_generation_takes_no_url_secret_or_other_configuration(tmp_path, monkeypatch, capsys):
    for argument, message in (
        ("ckpt=http://127.0.0.1:9/x.ckpt", "is a URL"),
        ("ckpt=s3://bucket/x.ckpt", "is a URL"),
        (f"+api_key={SECRET}", "looks like a secret"),
        ("+callbacks=../../../evil", "there is no key callbacks"),
        ("+hydra.searchpath=[/tmp]", "there is no key hydra.searchpath"),
    ):
        monkeypatch.setattr(sys, "argv", ["generate.py", argument])
        with pytest.raises(SystemExit) as exit_:
            cli.generate_main()
        assert exit_.value.code == 2
        assert message in (line := said(capsys))
        assert SECRET not in line


def test_what_only_sounds_like_a_secret_is_taken():
    security.refuse_secrets(
        {"budget.tokens": 1e8, "max_new_tokens": 5, "tokenizer": "bytes", "tags": ["api_key", "token"]}
    )
    security.refuse_secrets(
        {"optimized_metric": "train/tokens", "data.path": "a@b:c/d", "url": "https://example.org/a@b:c"}
    )
    cli.check_overrides(["budget.tokens=1e8", "callbacks.samples.max_new_tokens=5", "tokenizer=bytes"], sweep=False)


def test_secrets_in_files_and_from_interpolation_are_refused(monkeypatch):
    monkeypatch.setenv("SLM_TEST_TOKEN", SECRET)
    monkeypatch.setenv("OTHER_TOKEN", "true")  # too short to be one
    security.refuse_secrets({"stream": "true"})
    for tree in ({"a": {"b": [{"api-key": "x"}]}}, {"tags": [f"a {SECRET}"]}, {"url": "s3://a:b@c"}, {SECRET: 1}):
        assert SECRET not in refused(lambda: security.refuse_secrets(tree))  # noqa: B023


@pytest.fixture
def conf(tmp_path, monkeypatch) -> Path:
    """A copy of conf/ to put files into."""
    folder = Path(shutil.copytree(CONF, tmp_path / "conf"))
    monkeypatch.setattr(cli, "CONF", folder)
    return folder


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 9)
)
MERGES = "a0: &a0 {x: 1}\n" + "".join(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}\n" for i in range(1, 9))
EXPERIMENTS = {
    "bomb": (BOMB, "expands to more than"),
    "merges": (MERGES, "expands to more than"),
    "itself": ("a: &a\n  b: *a\n", "expands to more than"),
    "deep": ("a: " + "[" * 500 + "]" * 500, "expands to more than"),
    "out": ("defaults:\n  - ../../evil\n", "leads out of conf/"),
    "option out": ("defaults:\n  - override /model: ../../evil\n", "leads out of conf/"),
    "absolute": ("defaults:\n  - //etc/evil\n", "leads out of conf/"),
    "trust": ("trusted_targets: [os]\n", "only you may"),
    "secret": ("logger: {wandb: {api_key: x}}\n", "logger.wandb.api_key looks like a secret"),
    "callbacks": ("hydra: {callbacks: {x: {_target_: os.system}}}\n", "hydra.callbacks would run"),
    "logging": ("hydra: {job_logging: {handlers: {x: {(): os.system}}}}\n", "hydra.job_logging would run"),
    "environment": ("hydra: {job: {env_set: {GIT_EXTERNAL_DIFF: x}}}\n", "hydra.job.env_set would run"),
    "sweep out": ("hydra: {sweeper: {params: {+grp: ../../evil}}}\n", "there is no key grp"),
    "sweep option": ("hydra: {sweeper: {params: {model: 'tiny,../evil'}}}\n", "model=../evil is not one of"),
    "sweep trust": ("hydra: {sweeper: {params: {trusted_targets: '[os]'}}}\n", "neither hydra nor trusted_targets"),
}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_shut_to_an_experiment_from_somebody_else(name, conf):
    text, message = EXPERIMENTS[name]
    (conf / "experiment" / "evil.yaml").write_text("# @package _global_\n" + text)

    def command():
        security.check_files(conf)
        cli.check_overrides(["experiment=evil"], sweep=False)

    refused(command, message)


def test_every_option_of_a_sweep_is_looked_at(conf):
    (conf / "experiment" / "evil.yaml").write_text("# @package _global_\nhydra: {callbacks: {x: {_target_: os.x}}}\n")
    refused(lambda: cli.check_overrides(["experiment=quickstart,evil"], sweep=True), "hydra.callbacks would run")
    (conf / "experiment" / "good.yaml").write_text("# @package _global_\nhydra: {sweeper: {params: {seed: '1,2'}}}\n")
    cli.check_overrides(["experiment=quickstart,good", "optimizer.lr=1e-3,1e-4"], sweep=True)


def test_a_bomb_in_local_and_trust_in_it(conf):
    (conf / "local").mkdir()
    (conf / "local" / "default.yaml").write_text("# @package _global_\ntrusted_targets: [my_lab]\n")
    security.check_files(conf)
    cli.check_overrides([], sweep=False)
    (conf / "local" / "default.yaml").write_text(BOMB)
    refused(lambda: security.check_files(conf), "local/default.yaml expands to more than")


# -- targets --------------------------------------------------------------------------------------------------------

OUTSIDE = [
    *(
        "os.system",
        "torch.load",
        "torch.hub.load",
        "pathlib.Path.unlink",
        "code.InteractiveConsole",
        "slm",
        "",
        "slm.",
        3,
    ),
    *(
        "slm.files.atomic.os.remove",
        "slm.files.run_folder.subprocess.run",
        "slm.files.atomic.write_text",
        "slm.run.cli.own_folder",
    ),
    *("slm.training.callbacks.checkpoints.durable.write", "slm.training.callbacks.checkpoints.signal.raise_signal"),
    *("slm.tokenizers.import_module", "slm.corpora.download.urlopen", "slm.tokenizers.json.loads"),
    *("slm.training.module.Pretraining.load_from_checkpoint", "lightning.pytorch.LightningModule.load_from_checkpoint"),
    *("torch.optim.optimizer.functools.partial", "torch.optim.optimizer.torch.load", "torch.optim.AdamW.__class__"),
    *("torch.optim.AdamW.__subclasses__", "lightning.pytorch.callbacks.Callback.__init__.__globals__.get"),
    *("lightning.pytorch.callbacks.model_checkpoint.shutil.rmtree", "lightning.pytorch.loggers.wandb.os.system"),
    *("lightning.pytorch.cli.LightningCLI", "lightning.fabric.Fabric", "slm.optim.nothing", "slm.optim..os.system"),
]
INSIDE = [
    *("slm.tokenizers.sentencepiece.SentencePieceTokenizer.build", "slm.corpora.text.Text", "slm.optim.muon.muon"),
    *(
        "slm.generation.sampling.Sampler",
        "slm.training.callbacks.progress.ProgressBar",
        "torch.optim.AdamW",
        "torch.optim.sgd.SGD",
    ),
    *("lightning.pytorch.callbacks.LearningRateMonitor", "lightning.pytorch.loggers.WandbLogger"),
]


@pytest.mark.parametrize("path", OUTSIDE)
def test_targets_outside_are_refused(path):
    refused(lambda: locate(path, "hooks.x"), f"hooks.x._target_={path}")
    refused(lambda: build({"_target_": path}, "hooks.x"), f"hooks.x._target_={path}")


@pytest.mark.parametrize("path", INSIDE)
def test_targets_inside_are_found(path):
    assert callable(locate(path, "hooks.x"))


@pytest.fixture
def labs(tmp_path, monkeypatch):
    """Two packages of a user's, of which one pretends to be the other."""
    for name in ("my_lab", "my_lab_evil"):
        (tmp_path / f"{name}.py").write_text(
            "import os\nfrom pathlib import Path\nfrom lightning.pytorch.callbacks import Callback\n"
            f"Path({str(tmp_path / name)!r} + '.imported').touch()\n"
            "class Hook(Callback):\n    pass\ndef schedule(step):\n    return 1.0\nalias = os.getcwd\nlater = print\n"
            "class Call:\n    def __call__(self):\n        pass\ninstance = Call()\n"
        )
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in ("my_lab", "my_lab_evil"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("prefix", ["my_lab", "my_lab."])
def test_trusted_targets_end_where_a_package_ends(prefix, labs):
    refused(lambda: locate("my_lab.Hook", "hooks.x"), "name its package in trusted_targets")
    refused(lambda: locate("my_lab_evil.Hook", "hooks.x", [prefix]), "is outside")
    assert not list(labs.glob("*.imported"))  # nothing was imported to find that out
    assert locate("my_lab.Hook", "hooks.x", [prefix]).__name__ == "Hook"
    assert locate("my_lab.schedule", "hooks.x", [prefix])(0) == 1
    for borrowed in ("os.remove", "alias", "later", "instance", "Path", "os.path.join", "schedule.__globals__.get"):
        refused(lambda: locate(f"my_lab.{borrowed}", "hooks.x", [prefix]), "or not its own")  # noqa: B023


def test_trusted_targets_reach_every_constructor(labs, composed, tmp_path):
    """A hook of a trusted package runs; without trust the same configuration is refused before any data is read."""
    hook = "+hooks.mine._target_=my_lab.Hook"
    config = composed(hook, "budget.steps=1", "callbacks.samples=null")
    refused(lambda: train(config, run_dir=tmp_path / "run", overrides=[]), "hooks.mine._target_=my_lab.Hook is outside")
    train(config | {"trusted_targets": ["my_lab"]}, run_dir=tmp_path / "run", overrides=[])
    assert run_folder.read_run_json(tmp_path / "run")["status"] == "done"
    for group in ("optimizer", "tokenizer", "data", "schedule", "logger", "callbacks"):
        changed = json.loads(json.dumps(config | {"hooks": {}}))
        node = changed["data"]["corpus"] if group == "data" else changed[group]
        if group in ("logger", "callbacks"):
            node = node.setdefault("x", {})
        node["_target_"] = "my_lab.Missing"
        for trusted, message in (
            ([], "_target_=my_lab.Missing is outside"),
            (["my_lab"], "my_lab.Missing does not exist"),
        ):
            changed["trusted_targets"] = trusted
            refused(lambda: train(changed, run_dir=tmp_path / "new", overrides=[]), message)  # noqa: B023


# -- data -----------------------------------------------------------------------------------------------------------


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


def test_every_corpus_refuses_a_url(composed):
    for data in ("text", "shakespeare", "tinystories"):
        config = composed(data=[f"data={data}"])
        for url in ("https://example.org/x", "s3://a/b", "hf://datasets/a/b", "file:///etc/passwd"):
            config["data"]["path"] = url
            refused(lambda: make_plan(config), f"data.path={url} is a URL")  # noqa: B023
