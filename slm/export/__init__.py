"""Trained models in the file formats of other programs. A format is a module with the function `export`:

    export(model: LanguageModel, folder: Path, **options) -> list[str]

writes its files into the empty `folder` and returns the lines to print, among them what was compared with the model.
Its keyword-only arguments are the options of the command. It raises UserError, before it writes, for a model without a
counterpart in the format. The multipliers of slm.parametrization are in the model's weights: slm.transfer.standardized.
"""

from collections.abc import Callable
from importlib import import_module

from slm.classes import did_you_mean
from slm.errors import UserError

FORMATS = {  # name -> its module, imported when the format is used
    "hf": "slm.export.hf",
    "weights": "slm.export.weights",
    "gguf": "slm.export.gguf",
    "llama2c": "slm.export.llama2c",
    "page": "slm.export.page",
    "onnx": "slm.export.onnx",
}
MEANT = {  # other names of a format
    "safetensors": "weights",
    "transformers": "hf",
    "huggingface": "hf",
    "llama.cpp": "gguf",
    "ollama": "gguf",
    "html": "page",
}


def export_of(name: str) -> Callable[..., list[str]]:
    """The function of a format. Raises: UserError: for an unknown format, or one whose package is not installed."""
    if name not in FORMATS:
        hint = (
            f"; did you mean {MEANT[name.lower()]}?"
            if name.lower() in MEANT
            else did_you_mean(name.lower(), [*FORMATS])
        )
        raise UserError(f"format={name} is not one of {', '.join(FORMATS)}{hint}")
    return import_module(FORMATS[name]).export
