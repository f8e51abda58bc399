"""The weights alone: model.safetensors with the names of slm.model.GPT; beside it the settings and the tokenizer."""

import json
from dataclasses import asdict
from pathlib import Path

import torch

from slm.classes import optional
from slm.files import atomic
from slm.generation.language_model import LanguageModel
from slm.own_model import OwnConfig


def export(model: LanguageModel, folder: Path) -> list[str]:
    """model.safetensors, model.json and the files of the tokenizer, in tokenizer/. A tensor with several names, such as
    that of a tied head, has the first one in the file."""
    safetensors = optional("safetensors.torch", "hf", "format=weights")
    config, weights = model.model.config, {}
    for name, tensor in model.model.state_dict().items():
        if not any(tensor.data_ptr() == other.data_ptr() for other in weights.values() if tensor.numel()):
            weights[name] = tensor.contiguous()
    settings = config.plain() if isinstance(config, OwnConfig) else asdict(config)
    path = folder / "model.safetensors"
    atomic.write(path, safetensors.save(weights, metadata={"format": "pt"}))
    atomic.write_text(folder / "model.json", json.dumps(settings, indent=1) + "\n")
    (folder / "tokenizer").mkdir()
    model.tokenizer.save(folder / "tokenizer")
    read = safetensors.load_file(path)
    assert read.keys() == weights.keys()
    assert all(torch.equal(read[name], weights[name]) for name in weights)
    return [f"{len(weights)} tensors, {sum(map(torch.Tensor.numel, weights.values())):,} numbers; read back: equal"]
