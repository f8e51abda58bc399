"""Files of the user's own: a mistake in one is one line with its name, exit code 2, before anything else happens."""

import sys
from pathlib import Path

import pytest
from conftest import trained
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from slm.run import cli, start
from slm.run.overrides import read_arguments

HEADER = "# @package _global_\n"
DATA = ["data=text", "data.path=no such file", "tokenizer=bytes", "trainer=cpu"]
FILES = {  # content of experiment/mine.yaml -> message
    HEADER + "model:\n\twidth: 32\n": r"mine.yaml, line 3: found character '\t' that cannot start any token; indent",
    HEADER + "model: {width: 32\n": "mine.yaml, line 3: expected ',' or '}'",
    HEADER + "seed: 1\nseed: 2\n": "mine.yaml, line 3: found duplicate key seed",
    HEADER + "seed: 1\n---\nseed: 2\n": "mine.yaml, line 3: but found another document",
    HEADER + "seed: !!python/name:os.getcwd\n": "mine.yaml, line 2: could not determine a constructor",
    (HEADER + "seed: 1\n").encode("utf-16"): "mine.yaml, line 1: this is not UTF-8 text",
    (HEADER + "name: grün\n").encode("latin-1"): "mine.yaml, line 2: this is not UTF-8 text",
    HEADER + "seed: \0\n": r"mine.yaml, line 2: YAML has no character '\x00'",
    HEADER + "- a\n": "mine.yaml must hold keys and values",
    HEADER + "tags: " + "[" * 3000: "mine.yaml is nested too deeply",
    HEADER + "1: 2\n": "there is no key 1",
    HEADER + "model.width: 32\n": "there is no key model.width; in a file, write model: {width: ...}",
    HEADER + "data: {batch_size: 8}\n": "there is no key data.batch_size; did you mean data.batch_windows",
    HEADER + "data: {data: {batch_windows: 8}}\n": "there is no key data.data",
    HEADER + "budget: {max_time: 1:30:00}\n": 'must be hh:mm:ss, in a file with quotes: "01:30:00"',
    HEADER + "defaults: [mine]\n": "mine.yaml; a file must not include itself",
    HEADER + "data: 3\n": "there is no key data.path, since data is left out or has another option",
    HEADER
    + "schedule: {min_lr_ratio: {_target_: math.sin}}\n": "schedule.min_lr_ratio={_target_: ...} must be a number",
    HEADER + 'defaults: ["\\ud800"]\n': r"mine.yaml: ",
    HEADER + "defaults: {a: 1}\n": "mine.yaml: Invalid defaults list",
    HEADER + "defaults: [/modle: tiny]\n": "there is no group modle",
    HEADER + "seed: ${no.key}\n": "seed: Interpolation key 'no.key' not found",
    HEADER + "seed: ${seed}\n": "seed: Recursive interpolation detected",
    "# @package\nseed: 1\n": "mine.yaml: Expected header format",
    "seed: 1\n": "mine.yaml must begin with the line: # @package _global_",
    "": "mine.yaml must begin with the line: # @package _global_",
}


def one_line(capsys) -> str:
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ")
    return line


@pytest.fixture
def mine(tmp_path, monkeypatch) -> Path:
    """A working folder with a configuration folder of one's own, in which experiment/mine.yaml is to be written."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "conf" / "experiment" / "sub").mkdir(parents=True)
    return tmp_path / "conf" / "experiment" / "mine.yaml"


@pytest.mark.parametrize("content", FILES)
def test_a_mistake_in_an_experiment_is_one_line(content, mine, monkeypatch, capsys):
    mine.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert trained(monkeypatch, *DATA, "--config-dir=conf", "experiment=mine") == 2
    assert FILES[content] in one_line(capsys)


@pytest.mark.parametrize("place", ["debug/mine.yaml", "experiment/sub/mine.yaml", "local/default.yaml"])
def test_a_file_whose_keys_would_have_no_effect_is_refused(place, mine, monkeypatch, capsys):
    file = mine.parents[1] / place
    file.parent.mkdir(exist_ok=True)
    file.write_text("seed: 3\n")
    group, _, option = place.removesuffix(".yaml").partition("/")
    chosen = [] if group == "local" else [f"{group}={option}"]
    assert trained(monkeypatch, *DATA, "--config-dir=conf", *chosen) == 2
    assert f"{place} must begin with the line: # @package _global_" in one_line(capsys)


@pytest.mark.parametrize(
    ("code", "message"),
    {
        "class A\n": "my_module.py, line 1: expected ':'",
        "from math import nothing\n": "cannot import name 'nothing' from 'math'",
        "import my\n": "needs the package my; pip install it",
        "\0": "null bytes",
    }.items(),
)
def test_a_module_that_cannot_be_imported_is_one_line(code, message, tmp_path, monkeypatch, capsys):
    (tmp_path / "my_module.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_module", raising=False)
    assert trained(monkeypatch, *DATA, "schedule._target_=my_module.A") == 2
    line = one_line(capsys)
    assert "schedule._target_=my_module.A" in line
    assert message in line


FLAGS = {
    "-sc": "Expecting one subcommand",
    "--resolve": "can only be used in conjunction with --cfg",
    "--package model": "--package=model has no effect without --cfg job",
    "--cfg nope": "invalid choice: 'nope'",
    "--cfg": "expected one argument",
    "--nope": "unrecognized arguments: --nope",
    "--experimental-rerun=x.pickle": "--experimental-rerun is not supported",
    "-m --cfg job": "Only one of",
    "-m seed=range(1,0)": "seed=range(1,0) gives no value to run",
    "-m model=glob(zz*)": "model=glob(zz*) gives no value to run",
    "-m seed=1,,2": "seed=1,,2 must have one value between two commas, as in seed=1,2",
    "-m model.mlp=gelu,,swiglu": "cannot read model.mlp",
    "model=glob(*)": "gives several values; add -m",
    "seed=\udcff": "seed is not text in this locale",
    "model.width=" + "9" * 5000: "cannot read model.width",
    "a" * 5000 + "=1": "File name too long",
    "callbacks=none +callbacks.samples.every_n_steps=5": "callbacks.samples.every_n_steps has no effect",
    "trainer.strategy=ddp_fork": "trainer.strategy=ddp_fork copies a process that has threads",
    "trainer.strategy=ddp_notebook_find_unused_parameters_true": "which can hang; use trainer.strategy=ddp",
}


@pytest.mark.parametrize("words", FLAGS)
def test_a_flag_or_value_without_sense_is_one_line(words, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert trained(monkeypatch, *DATA, *words.split(" ")) == 2
    assert FLAGS[words] in one_line(capsys)
    assert list(tmp_path.iterdir()) == []


def test_sweeps_of_every_kind_have_values(monkeypatch, tmp_path, capsys):
    """Each job is refused for its width, so none trains."""
    monkeypatch.chdir(tmp_path)
    for sweep in ("seed=range(1,4)", "seed=shuffle(1,2)", "model=choice(tiny)", "optimizer.lr=tag(a,choice(1,2))"):
        read_arguments(["-m", sweep])
    assert trained(monkeypatch, "-m", *DATA, "model=glob(*,exclude=[gpt*,own,dial])", "model.width=33") == 2
    assert "[3/3] model=tiny  failed: model.width=33 must" in capsys.readouterr().out


def test_children_of_a_job_receive_the_files_of_the_user(monkeypatch, mine, text_file):
    mine.write_text(HEADER + "seed: 7\n")
    seen = []
    monkeypatch.setattr("slm.run.verify_resume.verify_resume", lambda overrides, root: seen.extend(overrides) or True)
    words = *DATA, "verify_resume=true", "--config-dir", "conf", "experiment=mine", "runs_dir=r"
    assert trained(monkeypatch, *words) == 0
    overrides, _, read = read_arguments(seen)
    assert read.config_dir == "conf"
    assert "experiment=mine" in overrides


def test_somebody_elses_hydra_stays(mine):
    mine.parents[1].joinpath("theirs.yaml").write_text("a: 1\n")
    with initialize_config_dir(str(mine.parents[1]), version_base="1.3"):
        assert cli.compose(["seed=5"]).seed == 5
        assert compose("theirs").a == 1
    assert not GlobalHydra.instance().is_initialized()


def missing(*_):
    raise FileNotFoundError(2, "No such file or directory")


@pytest.mark.parametrize(
    ("name", "replacement", "code", "message"),
    [
        ("os.getcwd", missing, 2, "the working folder cannot be used: No such file"),
        ("os.path.expanduser", lambda path: path, 2, "no home folder is known, for caches; set HOME=<folder>"),
        ("os.path.expanduser", lambda path: "a/folder", 2, "an absolute path"),
        ("os.environ", {"WORLD_SIZE": ""}, 2, "WORLD_SIZE='' must be a whole number; unset WORLD_SIZE"),
        ("os.environ", {"LOCAL_RANK": "abc"}, 2, "LOCAL_RANK='abc' must be a whole number"),
        ("os.environ", {"RANK": "-1"}, 2, "RANK='-1' must be a whole number"),
        ("slm.run.cli.generate_main", lambda: [0] * sys.maxsize, 4, "out of memory"),
    ],
)
def test_a_machine_on_which_no_command_works(name, replacement, code, message, monkeypatch, capsys):
    monkeypatch.setattr("slm.run.start.make_stdio_robust", lambda **_: None)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    monkeypatch.setattr(name, replacement)
    with pytest.raises(SystemExit) as end:
        start.generate()
    monkeypatch.undo()
    assert end.value.code == code
    assert message in one_line(capsys)
