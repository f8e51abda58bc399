"""format=onnx: token ids (B, T) to logits (B, T, V), for ONNX Runtime and what builds on it, without a cache.

Every GPT of slm without a window, and a module of one's own as far as torch's exporter takes it.
"""

import logging
import warnings
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from slm.classes import optional
from slm.errors import UserError, file_operation, one_line
from slm.export.compared import check_logits
from slm.generation.language_model import LanguageModel
from slm.model import GPT


def export(model: LanguageModel, folder: Path) -> list[str]:
    """model.onnx, compared with the model in ONNX Runtime, and the files of the tokenizer, in tokenizer/.

    Raises: UserError: for a window, and for a module of one's own that torch cannot export.
    """
    optional("onnxscript", "onnx", "format=onnx")
    runtime = optional("onnxruntime", "onnx", "format=onnx")
    if isinstance(model.model, GPT) and any(model.model.config.windows):
        window = model.model.config.window
        raise UserError(f"format=onnx has no counterpart of model.window={window}; train with model.window=null")
    program, path = graph(one_document(model.model)), folder / "model.onnx"
    with file_operation("write", path):
        program.save(path)
    (folder / "tokenizer").mkdir()
    model.tokenizer.save(folder / "tokenizer")
    return [compared(runtime, path, model.model)]


def one_document(model: nn.Module) -> nn.Module:
    """The model without the mask that hides other documents: an input is one document, as in generation."""
    if not isinstance(model, GPT) or model.config.document_start is None:
        return model
    plain = GPT(replace(model.config, document_start=None)).eval()
    plain.load_state_dict(model.state_dict())
    return plain


def graph(model: nn.Module) -> Any:
    """torch's ONNX program, for any number of rows and positions. Raises: UserError: if torch cannot export."""
    any_size = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    example = torch.zeros(2, min(8, model.config.context), dtype=torch.int64)
    names = {"input_names": ["tokens"], "output_names": ["logits"]}
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # torchvision is not installed
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of libraries about each other
            return torch.onnx.export(
                model, (example,), dynamo=True, dynamic_shapes=(any_size,), verbose=False, optimize=True, **names
            )
    except import_module("torch.onnx").OnnxExporterError as error:
        raise UserError(f"torch cannot export this model to ONNX: {one_line(error, 300)}; try format=weights") from None


@torch.inference_mode()
def compared(runtime: Any, path: Path, model: nn.Module) -> str:
    """The difference of the logits of random ids in ONNX Runtime, in a line."""
    session, found = runtime.InferenceSession(path, providers=["CPUExecutionProvider"]), []
    generator, context = torch.Generator().manual_seed(0), model.config.context
    for rows, positions in ((1, 1), (3, context // 2 or 1), (1, context)):
        tokens = torch.randint(model.config.vocab_size, (rows, positions), generator=generator)
        if (start := model.config.document_start) is not None:
            tokens[tokens == start] = (start + 1) % model.config.vocab_size
        (logits,) = session.run(None, {"tokens": tokens.numpy()})
        found.append([model(tokens).numpy().ravel(), logits.ravel()])
    largest, _ = check_logits("ONNX Runtime", *map(np.concatenate, zip(*found)))
    return f"ONNX Runtime {runtime.__version__}: logits of 1 to {context} ids differ by at most {largest:.1e}"
