"""format=gguf: a model in one file for llama.cpp and the programs built on it, such as ollama and LM Studio.

llama.cpp computes a model by the name of its architecture: LAYOUTS are those that equal a GPT of slm.
"""

import errno
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import Tensor

from slm.chat_template import chat_template
from slm.classes import optional
from slm.errors import file_operation, one_line
from slm.export import llama_cpp
from slm.export.fitting import LLAMA, Choices, fitting
from slm.export.gguf_tokenizer import vocabulary
from slm.export.llama import named_tensors
from slm.generation.language_model import LanguageModel
from slm.model import GPTConfig

Type = Literal["f32", "bf16", "q8_0"]

LAYOUTS: dict[str, Choices] = {  # architecture of llama.cpp -> what it computes
    "llama": LLAMA,
    "qwen3": {**LLAMA, "qk_norm": [True], "bias": [False]},
    "arcee": {**LLAMA, "mlp": ["relu2"], "bias": [False]},
    "gpt2": {**LLAMA, "positions": ["learned"], "norm": ["layernorm"], "mlp": ["gelu_tanh"], "bias": [True]},
}
NEIGHBOURS = "llama", "arcee"  # which rotate neighbours
FILE = "model.gguf"
BLOCK = 32  # weights of q8_0 with one scale


def export(model: LanguageModel, folder: Path, *, type: Type = "f32") -> list[str]:
    """model.gguf, with the matrices in this type and the rest in float32; read back, and run by llama.cpp if
    llama-cpp-python is installed. Raises: UserError: for a model or tokenizer without a counterpart."""
    package = optional("gguf", "gguf", "format=gguf")
    architecture = fitting(model.model, "gguf", LAYOUTS)
    words = vocabulary(model.tokenizer)
    tensors = named_tensors(model.model, interleave=architecture in NEIGHBOURS)
    path, tolerance = folder / FILE, 1e-3 if architecture == "gpt2" else 1e-5  # its GELU is a table of float16
    with file_operation("write", path):
        write(package, path, model, architecture, words, tensors, type)
    return [
        f"architecture {architecture}, tokenizer {words['tokenizer_model']}",
        read_back(package, path, tensors, type),
        llama_cpp.compare(model, path, tolerance if type == "f32" else math.inf),
    ]


def write(
    package: Any,
    path: Path,
    model: LanguageModel,
    architecture: str,
    words: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    type: Type,
):
    writer = package.GGUFWriter(path, architecture)
    kind = getattr(package.GGMLQuantizationType, type.upper())
    for add, value in settings(package, model, words, type).items():
        getattr(writer, f"add_{add}")(value)
    for name, tensor in tensors.items():
        stored = stored_as(package, name, tensor, kind)
        writer.add_tensor(name, package.quants.quantize(tensor.float().numpy(), stored), raw_dtype=stored)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    except OSError as error:
        if error.errno is None:  # of NumPy, which could write a part only
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from None
        raise
    finally:
        writer.close()


def settings(package: Any, model: LanguageModel, words: Mapping[str, Any], type: Type) -> dict[str, Any]:
    """The metadata: what a method `add_...` of GGUFWriter takes, by its name."""
    config: GPTConfig = model.model.config
    files = package.LlamaFileType
    rotation = {"rope_dimension_count": config.head_dim, "rope_freq_base": config.rope_base}
    values = {
        "name": one_line(model.config.get("name") or "slm", 100),
        "file_type": {"f32": files.ALL_F32, "bf16": files.MOSTLY_BF16, "q8_0": files.MOSTLY_Q8_0}[type],
        "vocab_size": config.vocab_size,
        "context_length": config.context,
        "embedding_length": config.width,
        "block_count": config.depth,
        "feed_forward_length": config.hidden_width,
        "head_count": config.heads,
        "head_count_kv": config.kv_heads or config.heads,
        "key_length": config.head_dim,
        "value_length": config.head_dim,
        **(rotation if config.positions == "rope" else {}),
        "layer_norm_rms_eps" if config.norm == "rmsnorm" else "layer_norm_eps": config.norm_eps,
        **words,
        "add_bos_token": model.eos_first,
        "add_eos_token": False,
    }
    if type == "q8_0":
        values["quantization_version"] = package.GGML_QUANT_VERSION
    if chat := chat_template(model.config):
        values["chat_template"] = "{{- bos_token -}}" * model.eos_first + chat.jinja()
    return values


def stored_as(package: Any, name: str, tensor: Tensor, kind: Any) -> Any:
    """The type of a tensor in the file: float32 for vectors, positions, and rows that are no multiple of BLOCK."""
    divisible = kind.name != "Q8_0" or tensor.size(-1) % BLOCK == 0
    matrix = tensor.dim() == 2 and not name.startswith("position")
    return kind if matrix and divisible else package.GGMLQuantizationType.F32


def read_back(package: Any, path: Path, tensors: Mapping[str, Tensor], type: Type) -> str:
    """Compares the file with the tensors, in a line. Float32 is equal; bfloat16 and q8_0 are as near as they can be."""
    read = {one.name: one for one in package.GGUFReader(path).tensors}
    assert read.keys() == tensors.keys()
    kind, plain, largest = getattr(package.GGMLQuantizationType, type.upper()), 0, 0.0
    for name, tensor in tensors.items():
        stored, exact = read[name].tensor_type, tensor.float().numpy()
        found = package.quants.dequantize(read[name].data, stored).reshape(exact.shape)
        assert stored == stored_as(package, name, tensor, kind)
        if stored.name == "F32":
            plain += 1
            assert np.array_equal(found, exact), name
        elif stored.name == "BF16":
            assert np.array_equal(found, tensor.bfloat16().float().numpy()), name
        largest = max(largest, float(np.abs(found - exact).max() / max(np.abs(exact).max(), 1e-30)))
    rest = "equal" if type == "f32" else f"{plain} in f32 equal, of the others the largest difference is {largest:.2%}"
    return f"{len(tensors)} tensors in {type}; read back: {rest}"
