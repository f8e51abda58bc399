"""The shape of the code base: which module may import which module and framework, and how long anything may be."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = [  # a part of slm/ may import only from the floors listed before its own
    {"errors", "system", "ranks"},
    {"security", "tables", "classes"},
    {"files", "chat_template"},
    {"tokenizers"},  # text: no torch
    {"corpora"},  # nor here
    {"cache"},
    {"attention", "loss"},  # tensors: no Lightning, no Hydra
    {"masks", "lora", "parametrization"},
    {"model"},
    {"own_model"},
    {"huggingface"},
    {"hardware", "energy", "estimate", "checkpoint", "data"},
    {"optim", "generation", "planning", "transfer"},
    {"verify", "results", "training"},  # Lightning
    {"analysis"},  # numpy, scipy: no torch, no Hydra
    {"checks"},
    {"compare", "report", "lens", "doctor"},
    {"serving"},  # a web server
    {"run"},  # the composition root: Hydra
    {"evaluation"},  # measures of a model, on any text that train.py can read
    {"evaluate", "export", "scaling", "coordinate_check"},
    {"learn"},  # lessons, whose checks compare with every room
    {"__main__"},
]
OWNERS = {  # framework -> the only parts of slm/ that may import it
    "lightning": ("training/", "run/trainer.py"),
    "hydra": ("run/",),
    "omegaconf": ("run/",),
    "matplotlib": ("analysis/", "learn/"),
    "datasets": ("corpora/",),
    "datasketch": ("analysis/",),
    "huggingface_hub": ("corpora/", "tokenizers/", "export/"),
    "tokenizers": ("tokenizers/", "export/"),
    "tiktoken": ("tokenizers/",),
    "sentencepiece": ("tokenizers/",),
    "transformers": ("export/",),
    "gradio": ("serving/",),
    "starlette": ("serving/",),
    "uvicorn": ("serving/",),
    "lm_eval": ("evaluation/",),
    "wandb": (),  # conf/logger names it
}
QUICK = ("run/start.py", "run/cli.py", "run/overrides.py", "run/names.py")  # answer a misspelt key at once
NAMELESS = {"utils", "util", "common", "helpers", "misc", "base", "core"}
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names}
FILES = [path for path in sorted((ROOT / "slm").rglob("*.py")) if path != ROOT / "slm" / "__init__.py"]


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
    file = path.relative_to(ROOT / "slm")
    part = "__main__" if file.stem == "__main__" else file.with_suffix("").parts[0]  # a command may use all
    assert part in FLOOR, f"give {part} a floor in FLOORS"
    for name in imported(path):
        if name[0] == "slm":
            assert name[1] == part or FLOOR[name[1]] < FLOOR[part], f"{part} imports {name[1]}, which is not below it"
        elif name[0] == "torch":
            assert FLOOR[part] > FLOOR["corpora"], f"{file} must work without torch"
        elif name[0] in OWNERS:
            owners = OWNERS[name[0]]
            assert str(file).startswith(owners), f"{name[0]} belongs to {owners or 'conf/'}, not to {file}"


def test_the_command_line_is_read_without_torch_and_a_plan_needs_no_lightning():
    modules = ["slm." + file.removesuffix(".py").replace("/", ".") for file in QUICK]
    code = f"""
import sys
def loaded(*names): return [name for name in names if name in sys.modules]
import {", ".join(modules)}
print(loaded("torch", "lightning", "matplotlib", "datasets"))
import slm.run.without_training
print(loaded("lightning", "matplotlib", "datasets", "torch.distributed.tensor", "torch._dynamo"))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["[]", "[]"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_sizes_and_names(path):
    assert path.stem not in NAMELESS
    assert len(path.read_text().splitlines()) <= 300, "split the file"
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 60, f"{node.name} is too long"


def test_nothing_unpickles_code():
    """Every torch.load says weights_only=True, and no other function that runs what it reads is used."""
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
    """A pattern for folders of data must not match slm/data/ and conf/data/."""
    command = ["git", "check-ignore", "slm/data/store.py", "conf/data/text.yaml", "conf/model/small.yaml"]
    try:
        assert subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout == ""
    except FileNotFoundError:
        pytest.skip("git is not installed")
