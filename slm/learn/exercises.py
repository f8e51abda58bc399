"""The six phases as exercises: the reference files without the bodies that follow `# your code`, and their import."""

import importlib.util
import re
import sys
from dataclasses import dataclass
from importlib import import_module, resources
from pathlib import Path
from types import ModuleType

from slm.errors import UserError
from slm.files import atomic

MARK = "# your code"
REFERENCES = "slm.learn.phases"


@dataclass(frozen=True)
class Phase:
    """One of the six: the name of its file without .py, and what it teaches."""

    number: int
    module: str
    title: str

    @property
    def file(self) -> str:
        return self.module + ".py"


PHASES = [
    Phase(1, "phase1_autograd", "automatic differentiation, a neuron, an MLP, a toy classification"),
    Phase(2, "phase2_bpe", "byte pair encoding: text as token ids"),
    Phase(3, "phase3_gpt", "embeddings, attention, LayerNorm, block, GPT"),
    Phase(4, "phase4_training", "batches, schedule, training loop, validation, checkpoints, a plot"),
    Phase(5, "phase5_generation", "greedy, temperature, top-k"),
    Phase(6, "phase6_scale_up", "your parts in train.py: size, evaluation, tuning"),
]


def source(phase: Phase) -> str:
    """The reference file."""
    return (resources.files(REFERENCES) / phase.file).read_text(encoding="utf-8")


def blank(text: str) -> str:
    """The text in which every body after a mark, up to the end of its function, is replaced by an exception."""

    def left_out(found: re.Match) -> str:
        indent, body = found.groups()
        lines = body.count("\n")
        return f"{indent}{MARK}: about {lines} line{'s' * (lines > 1)}\n{indent}raise NotImplementedError\n"

    return re.sub(rf"^( +){MARK}\n((?:\1.*\n|\n)*\1.*\n)", left_out, text, flags=re.MULTILINE)


def start(folder: Path) -> list[Path]:
    """Writes the six exercises, and returns their paths. Raises: UserError: if one of the files exists."""
    atomic.check_folder(folder)
    paths = [folder / phase.file for phase in PHASES]
    if existing := [path for path in paths if path.exists()]:
        raise UserError(f"{existing[0]} exists and may hold your work; give a new folder")
    texts = [blank(source(phase)).replace(f"from {REFERENCES}.", "from ") for phase in PHASES]
    folder.mkdir(parents=True, exist_ok=True)
    for path, text in zip(paths, texts):
        atomic.write_text(path, text)
    return paths


def place_beside(own: ModuleType) -> Path:
    """The folder of a learner's file; of the reference the working folder."""
    return Path() if own.__name__.startswith("slm.") else Path(own.__file__).parent


def load(phase: Phase, folder: Path | None) -> ModuleType:
    """The learner's module, executed from its file; without a folder the reference.

    The folder is the first on Python's path from then on, so that phase 6 can import phases 2 and 3.
    Raises: UserError: if there is no such file; whatever the file itself raises.
    """
    if folder is None:
        return import_module(f"{REFERENCES}.{phase.module}")
    path = folder / phase.file
    if not path.is_file():
        raise UserError(f"{path} does not exist; python -m slm.learn start {folder} writes the six files")
    if str(folder.resolve()) not in sys.path:
        sys.path.insert(0, str(folder.resolve()))
    specification = importlib.util.spec_from_file_location(phase.module, path)
    module = importlib.util.module_from_spec(specification)
    sys.modules[phase.module] = module
    specification.loader.exec_module(module)
    return module
