"""format=gguf: a model in one file for llama.cpp and the programs built on it, such as ollama and LM Studio.

llama.cpp computes a model by the name of its architecture: LAYOUTS are those that equal a GPT of slm.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from torch import Tensor

from slm.classes import optional
from slm.errors import UserError, file_operation, one_line
from slm.export import llama_cpp
from slm.export.gguf_tokenizer import vocabulary
from slm.export.llama import named_tensors, require
from slm.generation.language_model import LanguageModel
from slm.model import GPT, GPTConfig

Type = Literal["f32", "bf16", "q8_0"]

LAYOUTS = {  # mlp, qk_norm -> architecture of llama.cpp, and whether it rotates neighbours
    ("swiglu", False): ("llama", True),
    ("swiglu", True): ("qwen3", False),
    ("relu2", False): ("arcee", True),
}
FILE = "model.gguf"
BLOCK = 32  # weights of q8_0 with one scale


def export(model: LanguageModel, folder: Path, *, type: Type = "f32") -> list[str]:
    """model.gguf, with the matrices in this type and the rest in float32; read back, and run by llama.cpp if
    llama-cpp-python is installed. Raises: UserError: for a model or tokenizer without a counterpart."""
    package = optional("gguf", "gguf", "format=gguf")
    if type not in get_args(Type):
        raise UserError(f"type={type} must be one of {', '.join(get_args(Type))}")
    architecture, interleave = layout(model.model)
    words = vocabulary(model.tokenizer)
    tensors = named_tensors(model.model, interleave=interleave)
    path = folder / FILE
    with file_operation("write", path):
        write(package, path, model, architecture, words, tensors, type)
    return [
        f"architecture {architecture}, tokenizer {words['tokenizer_model']}",
        read_back(package, path, tensors, type),
        llama_cpp.compare(model, path, exact=type == "f32"),
    ]


def layout(model: GPT) -> tuple[str, bool]:
    """The architecture of llama.cpp, and whether it rotates neighbours. Raises: UserError: if there is none."""
    require(model, "gguf", mlp=("swiglu", "relu2"))
    config = model.config
    if (found := LAYOUTS.get((config.mlp, config.qk_norm))) is None:
        raise UserError(
            f"format=gguf has no counterpart of model.mlp={config.mlp} with model.qk_norm=true; train with "
            "model.mlp=swiglu or model.qk_norm=false, such as experiment=portable"
        )
    if found[0] != "llama":
        require(model, "gguf", bias=(False,))
    return found


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
        stored = stored_as(package, tensor, kind)
        writer.add_tensor(name, package.quants.quantize(tensor.float().numpy(), stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def settings(package: Any, model: LanguageModel, words: Mapping[str, Any], type: Type) -> dict[str, Any]:
    """The metadata: what a method `add_...` of GGUFWriter takes, by its name."""
    config: GPTConfig = model.model.config
    files = package.LlamaFileType
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
        "rope_dimension_count": config.head_dim,
        "rope_freq_base": config.rope_base,
        "layer_norm_rms_eps": config.norm_eps,
        **words,
        "add_bos_token": model.eos_first,
        "add_eos_token": False,
    }
    return {**values, "quantization_version": package.GGML_QUANT_VERSION} if type == "q8_0" else values


def stored_as(package: Any, tensor: Tensor, kind: Any) -> Any:
    """The type of a tensor in the file: float32 for vectors, and for rows that q8_0 cannot divide into blocks."""
    divisible = kind.name != "Q8_0" or tensor.size(-1) % BLOCK == 0
    return kind if tensor.dim() == 2 and divisible else package.GGMLQuantizationType.F32


def read_back(package: Any, path: Path, tensors: Mapping[str, Tensor], type: Type) -> str:
    """Compares the file with the tensors, in a line. Float32 is equal; bfloat16 and q8_0 are as near as they can be."""
    read = {one.name: one for one in package.GGUFReader(path).tensors}
    assert read.keys() == tensors.keys()
    kind, plain, largest = getattr(package.GGMLQuantizationType, type.upper()), 0, 0.0
    for name, tensor in tensors.items():
        stored, exact = read[name].tensor_type, tensor.float().numpy()
        found = package.quants.dequantize(read[name].data, stored).reshape(exact.shape)
        assert stored == stored_as(package, tensor, kind)
        if stored.name == "F32":
            plain += 1
            assert np.array_equal(found, exact), name
        elif stored.name == "BF16":
            assert np.array_equal(found, tensor.bfloat16().float().numpy()), name
        largest = max(largest, float(np.abs(found - exact).max() / max(np.abs(exact).max(), 1e-30)))
    rest = "equal" if type == "f32" else f"{plain} in f32 equal, of the others the largest difference is {largest:.2%}"
    return f"{len(tensors)} tensors in {type}; read back: {rest}"
