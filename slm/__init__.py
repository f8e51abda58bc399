"""slm: small language models, trained from scratch and understood.

    run = slm.train(["experiment=quickstart", "run_dir=runs/mine"])    the run of `python train.py`
    model = slm.load("runs/mine")                                      model and tokenizer in one object
    slm.runs("runs")                                                   a table of runs

docs/python.md is a tour. torch is imported when one of these is used.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from slm.errors import UserError
    from slm.generation.language_model import LanguageModel, load
    from slm.results import Run, runs
    from slm.run.cli import train

__all__ = ["LanguageModel", "Run", "UserError", "load", "runs", "train"]
__version__ = "0.2.0"

_MODULES = {
    "LanguageModel": "slm.generation.language_model",
    "load": "slm.generation.language_model",
    "Run": "slm.results",
    "runs": "slm.results",
    "train": "slm.run.cli",
    "UserError": "slm.errors",
}


def __getattr__(name: str):
    if name not in _MODULES:
        raise AttributeError(f"module 'slm' has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)
