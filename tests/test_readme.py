"""Every command of the README and of docs/ runs: here on a small text or few stories, and for two steps."""

import gzip
import json
import re
import shlex
import shutil

import pytest
from conftest import ROOT, exit_code, small_run, trained
from test_scaling_laws import points, write_sweep

from slm import cache, compare, evaluate, hardware, lens, report, scaling, verify
from slm.data import __main__ as corpus_command
from slm.export import __main__ as export_command
from slm.learn import __main__ as learn_command
from slm.run import cli
from slm.run.overrides import read_arguments
from slm.tokenizers import __main__ as tokenizers_command

README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [README, *(page.read_text(encoding="utf-8") for page in sorted((ROOT / "docs").glob("*.md")))]
LINES = [
    line.split("  #")[0].strip()
    for page in PAGES
    for block in re.findall(r"```sh\n(.*?)```", page, re.S)
    for line in block.splitlines()
    if not line.startswith(("git clone", "python3 -m venv", "pip install", "uv sync"))  # they need the network
]
COMMANDS = list(dict.fromkeys(LINES))
TABLE = [
    words for line in README.splitlines() if line.startswith("| ") for words in re.findall(r"`([^`]*=[^`]*)`", line)
]
QUICKSTART = "python train.py experiment=quickstart"  # run as it stands by .ci/run
TRAINING = [
    command
    for command in COMMANDS
    if command.startswith("python train.py") and command != QUICKSTART and "=submitit_slurm" not in command
]
SERVERS = [
    command for command in COMMANDS if " ui=web" in command or " serve=openai" in command
]  # test_web, test_openai
TRANSFORMERS = [command for command in COMMANDS if re.search(r" (ckpt=)?FOLDER\b", command)]  # tests/test_export.py
GENERATION = [
    command
    for command in COMMANDS
    if command.startswith("python generate.py") and command not in (*SERVERS, *TRANSFORMERS)
]
RENTED = [
    command
    for command in COMMANDS
    if command.startswith(("modal ", "sky ", "docker ", "deploy/vast.sh", "python deploy/"))  # tests/test_deploy.py
]
SLURM = [command for command in COMMANDS if "sbatch " in command or "=submitit_slurm" in command]  # tests/test_slurm.py
STANDARD_TESTS = [command for command in COMMANDS if " tasks=" in command]  # tests/test_standard_tests.py
EVALUATION = [
    command
    for command in COMMANDS
    if command.startswith("python -m slm.evaluate") and command not in (*STANDARD_TESTS, *TRANSFORMERS)
]
VERIFICATION = [command for command in COMMANDS if command.startswith("python -m slm.verify")]
LENS = [command for command in COMMANDS if command.startswith("python -m slm.lens")]
REPORTS = [command for command in COMMANDS if command.startswith("python -m slm.report")]
SCALING = [command for command in COMMANDS if command.startswith("python -m slm.scaling")]
COMPARISON = [command for command in COMMANDS if command.startswith("python -m slm.compare")]
TOKENIZERS = [command for command in COMMANDS if command.startswith("python -m slm.tokenizers")]
CORPORA = [command for command in COMMANDS if command.startswith("python -m slm.data ")]
RUNTIMES = [command for command in COMMANDS if re.search("format=(gguf|llama2c|onnx)", command)]  # test_runtimes.py
REVISIONS = [command for command in COMMANDS if " revisions=true" in command]  # test_words_read.py
EXPORTS = [
    command
    for command in COMMANDS
    if command.startswith("python -m slm.export") and command not in (*RUNTIMES, *REVISIONS, *TRANSFORMERS)
]
LEARN = [command for command in COMMANDS if command.startswith("python -m slm.learn")]
CACHE = "python -m slm.cache"
DOCTOR = "python -m slm.doctor"  # tests/test_doctor.py
COORDINATES = [command for command in COMMANDS if command.startswith("python -m slm.coordinate_check")]
PLAIN_LOOP = "python examples/plain_loop.py"  # tests/test_examples.py
LONG = {
    "data.path=babylm/*.txt budget.epochs": "test_words_read.py",
    "sweep_dir": "test_sweeps.py",
    "fork": "test_fork.py",
    "init_from": "test_continue.py",
    "detect": "test_ablation.py",
    "budget.minutes": "test_budget.py",
    "data.sources.stories.weight": "test_mixture.py",
    "data.repository": "test_hub.py",
    "data.streaming": "test_hub.py",
    "data=litdata data.path": "test_litdata.py",
    "prepare": "test_prepare.py",
    "experiment=gpt2_124m debug": "test_presets.py",
    "verify_resume": "test_verify.py",
    "model=dial model.size": "test_dial.py",
}
SMALL = ["trainer=cpu", "budget.steps=2", "model.depth=1", "tokenizer=sentencepiece", "cache_dir=cache"]
TEXT = ["data=text", "data.path=novels/*.txt", "data.separator='<|endoftext|>'", "model.context=32"]
STORIES = ["data.stories=200", "data.validation_stories=4", "callbacks.stories.count=1"]


def test_the_readme_has_commands():
    assert len(TRAINING) >= 8
    assert len(GENERATION) >= 2
    assert len(EVALUATION) >= 1
    assert len(TABLE) >= 4
    known = {
        *TRAINING,
        *GENERATION,
        *SERVERS,
        *EVALUATION,
        *STANDARD_TESTS,
        *VERIFICATION,
        *LENS,
        *COMPARISON,
        *SCALING,
        *REPORTS,
        *TOKENIZERS,
        *CORPORA,
        *LEARN,
        *EXPORTS,
        *RUNTIMES,
        *REVISIONS,
        *TRANSFORMERS,
        *RENTED,
        *SLURM,
        *COORDINATES,  # tests/test_coordinate_check.py
        CACHE,
        DOCTOR,
        PLAIN_LOOP,
        QUICKSTART,
    }
    assert known == set(COMMANDS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, text_file, finished):
    """A working folder with what the commands name."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "novels").mkdir()
    for name in ("a.txt", "b.txt"):
        shutil.copy(text_file, folder / "novels" / name)
    rows = "".join(f"the cat {index};{'the dog saw a big cat ' * 20}\n" for index in range(60))
    (folder / "reviews.csv.gz").write_bytes(gzip.compress(f"title;body\n{rows}".encode()))
    (folder / "texts.jsonl").write_text('{"text": "user: who saw a big cat?"}\n' * 200)
    (folder / "prompts.txt").write_text("the cat\nthe dog\n")
    shutil.copytree(finished, folder / "runs" / "text")
    return folder


@pytest.fixture(autouse=True)
def working_folder(folder, monkeypatch):
    monkeypatch.chdir(folder)


def check(arguments: list[str]):
    read_arguments(arguments) if "-m" in arguments else cli.compose(arguments)


SLOW = "data.level=tiny,standard,rich", "variants.swiglu"


@pytest.mark.parametrize(
    "command",
    [pytest.param(line, marks=pytest.mark.slow) if any(word in line for word in SLOW) else line for line in TRAINING],
)
def test_training(command, monkeypatch):
    named = command.replace("RUN@1000", "runs/text@10").replace("=RUN ", "=runs/text cache_dir=cache ")
    arguments = shlex.split(named)[2:]
    check(arguments)
    monkeypatch.setenv("WANDB_MODE", "offline")
    if long := [key for key in LONG if f"{key}=" in command or f" {key} " in command]:
        pytest.skip(f"a short one with {long[0]} is in tests/{LONG[long[0]]}")
    own = ["model.context=32"] if "data=files" in arguments else TEXT
    data = STORIES if "data=storyworld" in arguments else [*own, "tokenizer.vocab_size=300"]
    debug = (
        []
        if any(word.startswith("debug=") for word in arguments)
        else ["debug=default", "callbacks.samples.max_new_tokens=5"]
    )
    assert trained(monkeypatch, *arguments, *SMALL, *data, *debug) == 0


@pytest.mark.parametrize("command", GENERATION)
def test_generation(command, monkeypatch, capsys):
    monkeypatch.setattr("builtins.input", lambda prompt: (_ for _ in ()).throw(EOFError))
    assert exit_code(monkeypatch, cli.generate_main, *shlex.split(command)[2:], "max_new_tokens=5") == 0
    assert capsys.readouterr().out


@pytest.mark.parametrize("command", EVALUATION)
def test_evaluation(command, text_file, folder, monkeypatch, capsys):
    """Of a run on stories."""
    data = "data=storyworld", "data.level=tiny", "data.stories=20", "data.validation_stories=4"
    small = small_run(text_file, folder, data)
    stories = "run_dir=runs/stories", "model.context=900", "callbacks.stories=null"
    assert trained(monkeypatch, *small, *stories) == 0
    models = {"RUN": "runs/stories", "OTHER": "runs/stories/checkpoints/step-000005.ckpt"}
    arguments = [models.get(word, word) for word in shlex.split(command)[3:]]
    arguments += ["samples=2"] if "--text" not in command else []
    assert exit_code(monkeypatch, evaluate.main, *arguments) == 0
    kinds = {"--text": "1 document(s)", "data.": "two-choice probes", "OTHER": "saved by the second"}
    expected = next((text for kind, text in kinds.items() if kind in command), "2 validation stories")
    assert expected in capsys.readouterr().out


@pytest.mark.parametrize("command", sorted(set(VERIFICATION)))
def test_verification(command, monkeypatch, capsys):
    arguments = ["runs/text" if word == "RUN" else word for word in shlex.split(command)[3:]]
    assert exit_code(monkeypatch, verify.main, *arguments) == 0
    expected = "equal bit for bit" if len(arguments) == 2 else "checkpoints of steps 5, 10 open"
    assert expected in capsys.readouterr().out


@pytest.mark.parametrize("command", REPORTS)
def test_report(command, folder, monkeypatch, capsys):
    shutil.copytree(folder / "runs" / "text", folder / "sweeps" / "mine" / "one", dirs_exist_ok=True)
    name, *others = shlex.split(command)[3:]
    assert exit_code(monkeypatch, report.main, name, *others) == 0
    assert capsys.readouterr().out.startswith(f"{others[-1] if '--zip' in others else name + '/report.html'}\n")


@pytest.mark.parametrize("command", EXPORTS)
def test_export(command, folder, monkeypatch, capsys):
    run, target, *settings = ({"RUN": "runs/text"}.get(word, word) for word in shlex.split(command)[3:])
    assert exit_code(monkeypatch, export_command.main, run, target, *settings) == 0
    assert f" bytes  {target}/" in capsys.readouterr().out


@pytest.mark.parametrize("command", LENS)
def test_lens(command, finished, folder, monkeypatch, capsys):
    monkeypatch.setattr(
        lens, "largest_jump", lambda folder: (7, "largest jump of the loss: step 7")
    )  # of 10 falling losses
    words = [{"RUN": "runs/text", "1000": "10"}.get(word, word) for word in shlex.split(command)[3:]]
    assert exit_code(monkeypatch, lens.main, *words) == 0
    assert "nats per token under" in capsys.readouterr().out


@pytest.mark.parametrize("command", COMPARISON)
def test_comparison(command, folder, monkeypatch, capsys):
    """Of two runs that differ in one setting, alone and as a sweep."""
    for name in ("one", "two"):
        shutil.copytree(folder / "runs" / "text", folder / "compared" / name, dirs_exist_ok=True)
    info = json.loads((folder / "compared" / "two" / "run.json").read_text())
    info["config"]["optimizer"]["lr"] = 0.5
    (folder / "compared" / "two" / "run.json").write_text(json.dumps(info))
    names = {"SWEEP": "compared", "sweeps/mine": "compared", "sweeps/parts": "compared", "RUN": "compared/one"}
    words = command.replace("RUN RUN", "RUN compared/two").split()[3:]
    assert exit_code(monkeypatch, compare.main, *(names.get(word, word) for word in words)) == 0
    assert "optimizer.lr" in capsys.readouterr().out


@pytest.mark.parametrize("command", SCALING)
def test_scaling(command, folder, monkeypatch, capsys):
    """Of runs that follow a law."""
    write_sweep(folder / "sweeps" / "isoflop", points(0, seeds=1))
    assert exit_code(monkeypatch, scaling.main, *command.split()[3:], "resamples=20") == 0
    assert "best N ~ C^x" in capsys.readouterr().out


@pytest.mark.parametrize("command", TOKENIZERS)
def test_tokenizers(command, monkeypatch, capsys):
    words = ["runs/text" if word == "RUN" else word for word in shlex.split(command)[3:]]
    assert exit_code(monkeypatch, tokenizers_command.main, *words) == 0
    assert "bytes/token" in capsys.readouterr().out


@pytest.mark.parametrize("command", CORPORA)
def test_corpus_report(command, monkeypatch, capsys):
    words = ["runs/text" if word == "RUN" else word for word in shlex.split(command)[3:]]
    assert exit_code(monkeypatch, corpus_command.main, *words, "cache_dir=cache") == 0
    assert "written: " in capsys.readouterr().out


def test_learn(monkeypatch, capsys):
    """In their order: an unchanged start folder does not pass."""
    codes = [exit_code(monkeypatch, learn_command.main, *command.split()[3:]) for command in LEARN]
    assert codes == [1 if "check mine" in command else 0 for command in LEARN]
    assert "Value.__mul__ is not written yet" in capsys.readouterr().out


def test_cache(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("SLM_CACHE", str(tmp_path))
    assert exit_code(monkeypatch, cache.main) == 0
    assert "0 folders" in capsys.readouterr().out


def test_ci_runs_the_installation_and_the_quickstart():
    script = (ROOT / ".ci" / "run").read_text()
    assert 'pip install -e ".[dev]" && pytest' in README
    assert QUICKSTART in COMMANDS
    for line in ('pip install --quiet -e ".[dev]"', "\npytest", QUICKSTART):
        assert line in script


@pytest.mark.parametrize("words", TABLE)
def test_commands_of_the_table_compose(words):
    check(shlex.split(words))


@pytest.mark.slow
def test_settings_of_the_troubleshooting_page_compose(text_file, monkeypatch):
    monkeypatch.setattr(hardware.torch.cuda, "is_available", lambda: True)
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    cells = [line.rpartition(" | ")[2] for line in page.splitlines() if line.startswith("| ")]
    found = {code for cell in cells for code in re.findall(r"`([^`]*=[^`]*)`", cell)}
    settings = [code for code in found if re.match(r"(-m )?\+?[a-z_.]+=", code) and not re.search(r"[A-Z]{3}", code)]
    assert len(settings) > 20
    for code in settings:
        data = [] if re.search(r"tokenizer|data=", code) else ["data=text", f"data.path={text_file}"]
        alphabet = ["tokenizer=characters"] if "alphabet" in code else []
        check([*data, *alphabet, *shlex.split(code)])


def test_options_named_in_the_readme_exist():
    for group, name in (("data", "Data"), ("optimizer", "Optimizers"), ("tokenizer", "Tokenizers")):
        named = set(re.findall(r"`(\w+)`", re.search(rf"{name}: (.*?)\.\s", README, re.S)[1]))
        assert named <= {path.stem for path in (ROOT / "conf" / group).glob("*.yaml")}
