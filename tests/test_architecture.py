"""The shape of the code base, checked: who may import whom and which framework, how long anything may be."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = [  # a module may import only from the floors listed before its own
    {"console", "errors"},
    {"durable", "doors"},
    {"tokenizers", "events"},  # text and files: no torch
    {"corpora"},  # nor here
    {"model", "loss", "hooks", "precision"},  # tensors: no Lightning, no Hydra
    {"data", "checkpoint", "optim"},  # what knows the parts of a GPT, or what a loss ignores
    {"runs", "report", "estimate"},  # what knows a run folder, or what a model costs
    {"generation"},  # a model put to use
    {"evaluate", "verify"},
    {"training"},  # Lightning
    {"build"},  # from here on: the composition root
    {"plan"},
    {"prepare"},
    {"assemble", "lives"},
    {"run", "rehearse"},
    {"cli"},  # Hydra
]
OWNERS = {  # framework -> the only modules that may import it
    "lightning": {"training", "assemble"},
    "hydra": {"cli"},
    "omegaconf": {"cli"},
    "matplotlib": {"report"},
    "datasets": {"corpora"},
    "huggingface_hub": {"corpora"},
    "tiktoken": {"tokenizers"},
    "sentencepiece": {"tokenizers"},
    "transformers": {"export"},
    "wandb": set(),
}
NAMELESS = {"utils", "util", "common", "helpers", "misc", "base", "core"}
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names}
FILES = sorted(path for path in (ROOT / "slm").rglob("*.py") if path.parent != ROOT / "slm" or path.stem != "__init__")


def part(path: Path) -> str:
    return path.relative_to(ROOT / "slm").with_suffix("").parts[0]


def imported(path: Path) -> set[tuple[str, ...]]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {tuple(alias.name.split(".")) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: write absolute imports"
            names |= {(*node.module.split("."), alias.name) for alias in node.names}
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path):
    me = part(path)
    for name in imported(path):
        if name[0] == "slm":
            assert name[1] == me or FLOOR[name[1]] < FLOOR[me], f"{me} imports {name[1]}, which is not below it"
        elif name[0] == "torch":
            assert FLOOR[me] > FLOOR["corpora"], f"{me} must work without torch"
        elif name[0] in OWNERS:
            assert me in OWNERS[name[0]], f"{name[0]} belongs to {OWNERS[name[0]] or 'conf/'}, not to {me}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_sizes_and_names(path):
    assert path.stem not in NAMELESS
    text = path.read_text()
    assert len(text.splitlines()) <= 300, "split the file"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 60, f"{node.name} is too long"


def test_nothing_unpickles_code():
    """Every torch.load says weights_only=True, and nothing else that runs what it reads is used anywhere."""
    nowhere = r"weights_only\s*[=:]\s*[Ff]alse|trust_remote_code\s*[=:]|allow_pickle\s*=\s*True|load_from_checkpoint\("
    not_here = r"\bpickle\.(load|Unpickler)|yaml\.(unsafe_|full_)?load\(|shell\s*=\s*True|(?<![.\w])(eval|exec)\("
    tree = [path for folder in ("slm", "conf", "tests", "benchmarks") for path in (ROOT / folder).rglob("*.*")]
    for path in [*tree, ROOT / "train.py", ROOT / "generate.py"]:
        if path.suffix in (".py", ".yaml"):
            text = path.read_text(encoding="utf-8")
            assert not re.search(nowhere, text), path
            assert "tests" in path.parts or not re.search(not_here, text), path
            assert text.count("torch.load(") <= text.count("weights_only=True)"), path


def test_git_ignores_no_source():
    """slm/data/ and conf/data/ must not fall to a pattern that means a folder of data."""
    try:
        done = subprocess.run(
            ["git", "check-ignore", "slm/data/store.py", "conf/data/text.yaml", "conf/model/small.yaml"],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
    except FileNotFoundError:
        pytest.skip("git is not installed")
    assert done.stdout == ""
