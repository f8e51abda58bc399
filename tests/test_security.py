"""The trust rule of docs/security.md: what the user gives is run, run folders of others are only read, and no secret is
written. tests/test_foreign_files.py has checkpoints, tokenizers and data of others."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
import yaml
from conftest import refused, trained

from slm import checkpoint, security
from slm.files import run_folder
from slm.run import cli
from slm.run.train import train
from slm.run.verify_resume import verify_resume

SECRET = "XYZZY-0123456789-plugh"


# -- run folders of others ------------------------------------------------------------------------------------------

POINTERS = ['{"file": "../../outside.ckpt"}', '{"file": "/etc/passwd"}', '{"file": ["a"]}', "[]", "{", "[" * 9999]
RUN_INFOS = ["[]", "{}", "{", "[" * 99_999, {"run_id": "../../x"}, {"run_id": 3}, {"config": None}, {"attempts": "2"}]


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory, text_file) -> Path:
    """A finished run, made by the command line with secrets in the environment and W&B kept offline."""
    folder = tmp_path_factory.mktemp("secrets")
    environment = {
        "DB_PASS": SECRET,
        "WANDB_API_KEY": SECRET,
        "HF_TOKEN": SECRET,
        "MY_PASSWORD": SECRET,
        "WANDB_MODE": "offline",
    }
    text = ["data=text", f"data.path={text_file}", "data.separator=<|endoftext|>", "tokenizer=bytes", "trainer=cpu"]
    places = [f"run_dir={folder / 'run'}", f"cache_dir={folder / 'cache'}"]
    with pytest.MonkeyPatch.context() as monkeypatch:
        for name, value in {**environment, "HOME": str(folder), "WANDB_SILENT": "true"}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.chdir(folder)
        tags = "tags=['${oc.env:DB_PASS}', 'a longer ${oc.env:DB_PASS}']"
        assert trained(monkeypatch, *text, tags, "debug=default", "model.context=64", "logger=wandb", *places) == 0
    return folder / "run"


@pytest.fixture
def copy(run_dir, tmp_path) -> Path:
    return Path(shutil.copytree(run_dir, tmp_path / "copy"))


@pytest.mark.parametrize("pointer", POINTERS)
def test_a_pointer_names_only_a_file_beside_it(pointer, copy):
    shutil.copy(copy / "checkpoints" / "step-000005.ckpt", copy.parent / "outside.ckpt")
    for name in ("last", "best"):
        (copy / "checkpoints" / f"{name}.json").write_text(pointer)
    for ckpt in (str(copy), "latest", "last", "best"):
        refused(lambda: run_folder.find_checkpoint(ckpt, copy.parent), "is damaged: it must name a file beside it")  # noqa: B023


def test_a_crafted_run_json_is_one_line(copy, composed):
    config, run_info = composed(), run_folder.read_run_json(copy)
    for change in RUN_INFOS:
        (copy / "run.json").write_text(change if isinstance(change, str) else json.dumps(run_info | change))
        refused(lambda: train(config, run_dir=copy, overrides=[]), "run.json is damaged")


def test_resume_takes_only_a_complete_and_fitting_checkpoint(copy, composed, tmp_path):
    raw = checkpoint.read(copy / "checkpoints" / "step-000005.ckpt")
    stripped = {key: value for key, value in raw.items() if key != "optimizer_states"}
    weights = {**raw["state_dict"], "model.tokens.weight": torch.zeros(3, 4)}
    for crafted, message in (
        (stripped, "holds no optimizer_states"),
        ({**raw, "state_dict": weights}, "tokens.weight is (3, 4), not (257, 64)"),
        ({**raw, "state_dict": raw["state_dict"] | {"model.more": torch.zeros(1)}}, "more (1,) is not the model's"),
    ):
        torch.save(crafted, tmp_path / "crafted.ckpt")
        config = composed(f"resume={tmp_path / 'crafted.ckpt'}")
        refused(lambda: train(config, run_dir=tmp_path / "new", overrides=[]), message)  # noqa: B023
        assert not (tmp_path / "new").exists()


def test_a_run_deletes_only_its_own_partial_files(copy, composed, tmp_path):
    """A folder that is not a run is refused and stays as it was."""
    foreign = tmp_path / "home"
    (foreign / "sub").mkdir(parents=True)
    for name in ("thesis.txt", "film.partial", "sub/film.123.partial", "config.yaml"):
        (foreign / name).write_text("mine")
    before = {path: path.read_bytes() for path in foreign.rglob("*") if path.is_file()}
    refused(lambda: train(composed(), run_dir=foreign, overrides=[]), "holds config.yaml but no run.json")
    assert {path: path.read_bytes() for path in foreign.rglob("*") if path.is_file()} == before

    kept = [copy / "film.partial", copy / "notes" / "a.1.partial", copy / "checkpoints" / "x.partial"]
    partial = [copy / "run.json.123.partial", copy / "checkpoints" / "step-000005.ckpt.7.partial"]
    (copy / "notes").mkdir()
    for path in kept + partial:
        path.write_text("")
    (copy / "folder.1.partial").mkdir()
    train(composed("budget.steps=11"), run_dir=copy, overrides=[])
    assert all(path.exists() for path in [*kept, copy / "folder.1.partial"])
    assert not any(path.exists() for path in partial)


def test_verify_resume_takes_no_existing_folder(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    refused(lambda: verify_resume([], tmp_path), "exists, and would be deleted")
    assert (tmp_path / "thesis.txt").exists()


# -- secrets and URLs -----------------------------------------------------------------------------------------------


def test_secrets_of_the_environment_are_not_written(run_dir):
    files = [path for path in run_dir.parent.rglob("*") if path.is_file()]
    assert {".wandb", ".ckpt"} <= {path.suffix for path in files}
    assert [path for path in files if SECRET.encode() in path.read_bytes()] == []


@pytest.mark.parametrize(
    "overrides",
    [
        ["tags=['${oc.env:GH_PAT}']"],
        ["tags=['a ${oc.env:GH_PAT,none} b']"],
        ["tags=['${oc.decode:${oc.env:GH_PAT}}']"],
        ["tags=['${oc.env:GH_PAT}']", "callbacks.samples.prompts=${tags}"],
        ["tags=['${callbacks.samples.prompts.0}']", "callbacks.samples.prompts=['${oc.env:GH_PAT}']"],
        ["tags=['${slm.or:null,${oc.env:GH_PAT}}']"],
    ],
)
def test_values_of_the_environment_are_written_as_interpolations(overrides, monkeypatch):
    monkeypatch.setenv("GH_PAT", SECRET)
    config = cli.compose(["data=text", "data.path=x", "tokenizer=bytes", *overrides])
    assert SECRET in str((config.tags, config.callbacks))
    assert SECRET not in str(config.plain)
    assert "${" in str(config.plain["tags"])


def test_the_projects_own_variable_is_written_as_its_value(monkeypatch):
    monkeypatch.setenv("SLM_CACHE", "/somewhere")
    assert cli.compose(["data=text", "data.path=x", "tokenizer=bytes"]).plain["cache_dir"] == "/somewhere"


@pytest.mark.parametrize("name", ["DB_PASS", "OPENAI_KEY", "AWS_ACCESS_KEY_ID", "GH_PAT", "SMTP_PWD", "MY_PASSPHRASE"])
def test_a_typed_value_of_a_secret_variable_is_refused(name, monkeypatch):
    monkeypatch.setenv(name, SECRET)
    refused(lambda: security.refuse_secrets({"tags": [f"a{SECRET}"]}), f"tags.0 holds the value of {name}")


REFUSED = {
    "logger.wandb.api_key={secret}": "logger.wandb.api_key looks like a secret",
    "+logger.wandb={{api_key: {secret}}}": "looks like a secret",
    "+callbacks.mine.password={secret}": "looks like a secret",
    "+hydra.job.env_set.WANDB_API_KEY={secret}": "looks like a secret",
    "+logger.wandb={{api_key: {secret}": "cannot read logger.wandb; write key=value",
    "name=${{oc.env:SLM_TEST_TOKEN}}": "name holds the value of SLM_TEST_TOKEN",
    "name=a{known}": "name holds the value of SLM_TEST_TOKEN",
    "data.path=https://me:{known}x@example.org/a.txt": "data.path holds",
    "data.path=https://me:hunter2@example.org/a.txt": "data.path holds a URL with a password or token",
    "data.path=https://hunter2@example.org/a.txt": "data.path holds a URL with a password or token",
    "tags=['https://example.org/x?api_key=hunter2']": "tags holds a URL with a password or token",
    "tags=['s3://b/x?n=1&X-Amz-Signature=hunter2']": "tags holds a URL with a password or token",
    "seed=${{oc.env:SLM_TEST_TOKEN}}": "seed='${{oc.env:SLM_TEST_TOKEN}}' must be a whole number",
    "model=${{oc.env:SLM_TEST_TOKEN}}": "model=${{oc.env:SLM_TEST_TOKEN}} is not one of",
    "trainer.strategy=${{oc.env:SLM_TEST_TOKEN}}": "trainer.strategy=${{oc.env:SLM_TEST_TOKEN}} must be",
    "{known}=3": "${{oc.env:SLM_TEST_TOKEN}}",
    "--{known}": "${{oc.env:SLM_TEST_TOKEN}}",
    "{known}": "'${{oc.env:SLM_TEST_TOKEN}}' is not key=value",
    "resume=http://127.0.0.1:9/x.ckpt": "is a URL, and must be a path",
    "run_dir=s3://bucket/run": "is a URL, and must be a path",
    "name=../../x": "name=../../x must consist of",
    "experiment=../../evil": "experiment=../../evil is not one of",
    "+callbacks=../../evil": "callbacks=../../evil is not one of",
    "+hydra/launcher=../../evil": "hydra/launcher=../../evil is not one of",
}


@pytest.mark.parametrize("argument", REFUSED)
def test_a_secret_or_url_on_the_command_line_is_refused(argument, text_file, tmp_path, monkeypatch, capsys):
    """One line that does not repeat the secret; nothing is written."""
    known = SECRET[::-1]
    monkeypatch.setenv("SLM_TEST_TOKEN", known)
    monkeypatch.chdir(tmp_path)
    small = ["data=text", f"data.path={text_file}", "trainer=cpu", "debug=default"]
    assert trained(monkeypatch, *small, argument.format(secret=SECRET, known=known)) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert REFUSED[argument].format() in line
    assert not any(secret in line for secret in (SECRET, known, "hunter2"))
    assert list(tmp_path.iterdir()) == []


def test_generation_takes_no_url_or_secret(monkeypatch, capsys):
    arguments = {"ckpt=http://127.0.0.1:9/x.ckpt": "is a URL", f"+api_key={SECRET}": "looks like a secret"}
    arguments |= {"+callbacks=../../evil": "callbacks=../../evil is not one of"}
    for argument, message in arguments.items():
        monkeypatch.setattr(sys, "argv", ["generate.py", argument])
        with pytest.raises(SystemExit) as exit_:
            cli.generate_main()
        assert exit_.value.code == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert message in line
        assert SECRET not in line


def test_data_is_a_path(composed):
    urls = "https://example.org/x", "s3://a/b", "hf://datasets/a/b", "file:///etc/passwd"
    for data, url in zip(("text", "shakespeare", "tinystories", "jsonl"), urls):
        refused(lambda: composed(f"data.path={url}", data=[f"data={data}"]), f"data.path={url} is a URL")  # noqa: B023


def test_which_keys_are_secrets():
    for key in ("pad_token", "eos_token", "token_every", "max_tokens", "budget.tokens", "tokenizer", "key"):
        security.refuse_secrets({key: "x"})
    for key in ("api_key", "api-key", "hf_token", "HF_TOKEN", "password", "access_token", "token", "client_secret"):
        refused(lambda: security.refuse_secrets({"a": [{key: "x"}]}), f"a.0.{key} looks like a secret")  # noqa: B023
    for key in ("private_key", "ACCESS_KEY", "credentials", "headers.Authorization", "smtp_pwd", "auth", "passphrase"):
        refused(lambda: security.refuse_secrets({"a": [{key: "x"}]}), f"a.0.{key} looks like a secret")  # noqa: B023


def test_which_values_are_secrets(monkeypatch):
    monkeypatch.setenv("SLM_TEST_TOKEN", SECRET)
    monkeypatch.setenv("OTHER_TOKEN", "true")  # too short to be a secret
    for tree in ({"stream": "true"}, {"tags": ["api_key", "token"]}, {"path": "a@b:c/d"}, {"url": "https://a.b/c@d:e"}):
        security.refuse_secrets(tree)
    for tree in ({"tags": [f"a {SECRET}"]}, {"url": "s3://a:b@c"}, {SECRET: 1}):
        assert SECRET not in refused(lambda: security.refuse_secrets(tree), "holds")  # noqa: B023


# -- what the user gives is trusted ---------------------------------------------------------------------------------

PACKAGE = """
import os
from pathlib import Path
import lightning.pytorch as L
import torch
from hydra.experimental.callback import Callback
from slm.tokenizers.bytes import ByteTokenizer

class Corpus:
    def __init__(self, word: str):
        self.documents = lambda split: iter([word * 50] * 40)
    def fingerprint(self):
        return "my corpus"

class Tokenizer(ByteTokenizer): ...

class Optimizer(torch.optim.SGD): ...

def schedule(step, steps):
    return 1.0

class Observer(L.Callback):
    def __init__(self, folder, file: str):
        self.path = Path(folder, file)
    def on_train_start(self, trainer, module):
        self.path.write_text(f"{type(trainer.optimizers[0]).__name__} {os.environ.get('MY_VARIABLE')}")

class HydraCallback(Callback):
    def on_job_end(self, config, job_return, **kwargs):
        Path("job_end").write_text(config.name)
"""
OPTIONS = {
    "data/mine.yaml": {"corpus": {"_target_": "my_lab.Corpus", "word": "cat dog "}},
    "tokenizer/mine.yaml": {"_target_": "my_lab.Tokenizer.build"},
    "optimizer/mine.yaml": {"_target_": "my_lab.Optimizer", "lr": 0.1},
    "schedule/mine.yaml": {"_target_": "my_lab.schedule"},
    "hydra/callbacks/mine.yaml": {"mine": {"_target_": "my_lab.HydraCallback"}},
    "main.yaml": {"defaults": ["train", "_self_"], "name": "main"},
    "experiment/mine.yaml": """# @package _global_
defaults: [override /data: mine, override /tokenizer: mine, override /optimizer: mine, override /schedule: mine,
           override /hydra/callbacks: mine]
name: mine
callbacks: {mine: {_target_: my_lab.Observer, file: observed}}
hydra: {job: {env_set: {MY_VARIABLE: set}}}
""",
}


@pytest.fixture
def arguments(tmp_path, monkeypatch) -> list[str]:
    """The arguments of a short run in tmp_path, which has a package and a configuration folder of the user's own."""
    for name, content in OPTIONS.items():
        (tmp_path / "mine" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "mine" / name).write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    (tmp_path / "my_lab.py").write_text(PACKAGE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "my_lab", raising=False)
    monkeypatch.setenv("MY_VARIABLE", "before")  # restored, whatever Hydra sets
    short = ["trainer=cpu", "debug=default", "model.context=16", "budget.steps=1", "callbacks.samples=null"]
    return [*short, "run_dir=run", "cache_dir=cache", "--config-dir=mine"]


def test_a_configuration_folder_and_classes_of_ones_own_work(arguments, tmp_path, monkeypatch):
    assert trained(monkeypatch, *arguments, "experiment=mine", "~logger") == 0
    assert run_folder.read_run_json(tmp_path / "run")["status"] == "done"
    assert (tmp_path / "run" / "observed").read_text() == "Optimizer set"
    assert (tmp_path / "job_end").read_text() == "mine"


def test_a_main_configuration_of_ones_own_works(arguments, tmp_path, monkeypatch, text_file):
    mine = ["--config-name=main", "data=text", f"data.path={text_file}", "tokenizer=bytes"]
    observer = ["+callbacks.mine._target_=my_lab.Observer", "+callbacks.mine.file=observed"]
    assert trained(monkeypatch, *arguments, *mine, *observer, "+hydra.job.env_set.MY_VARIABLE=typed") == 0
    assert (tmp_path / "run" / "observed").read_text() == "AdamW typed"
    assert "name: main" in (tmp_path / "run" / "config.yaml").read_text()


@pytest.mark.parametrize("group", ["optimizer", "tokenizer", "schedule", "data.corpus", "callbacks.mine"])
def test_a_class_that_does_not_exist_is_named(group, arguments, monkeypatch, capsys):
    assert trained(monkeypatch, *arguments, "experiment=mine", f"{group}._target_=my_lab.Missing") == 2
    assert f"{group}._target_=my_lab.Missing cannot be imported" in capsys.readouterr().err
