"""The weights of a GPT under the names, and in the shapes, of an architecture of transformers, in both directions."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from slm.errors import UserError, printable
from slm.model import MLPS, GPTConfig

LLAMA = {  # module of GPT -> theirs; several: ours is split, or repeated, among them
    "tokens": "model.embed_tokens",
    "blocks.{}.attention_norm": "model.layers.{}.input_layernorm",
    "blocks.{}.attention.qkv": (
        "model.layers.{}.self_attn.q_proj",
        "model.layers.{}.self_attn.k_proj",
        "model.layers.{}.self_attn.v_proj",
    ),
    "blocks.{}.attention.query_norm": "model.layers.{}.self_attn.q_norm",
    "blocks.{}.attention.key_norm": "model.layers.{}.self_attn.k_norm",
    "blocks.{}.attention.out": "model.layers.{}.self_attn.o_proj",
    "blocks.{}.mlp_norm": "model.layers.{}.post_attention_layernorm",
    "blocks.{}.mlp.gate": "model.layers.{}.mlp.gate_proj",
    "blocks.{}.mlp.up": "model.layers.{}.mlp.up_proj",
    "blocks.{}.mlp.out": "model.layers.{}.mlp.down_proj",
    "norm": "model.norm",
    "head": "lm_head",
}
MODULES: dict[str, Mapping[str, str | tuple[str, ...]]] = {  # by model_type
    "llama": LLAMA,
    "mistral": LLAMA,
    "qwen3": LLAMA,
    "arcee": LLAMA,
    "starcoder2": {
        **LLAMA,
        "blocks.{}.mlp.up": "model.layers.{}.mlp.c_fc",
        "blocks.{}.mlp.out": "model.layers.{}.mlp.c_proj",
    },
    "gpt_neox": {
        "tokens": "gpt_neox.embed_in",
        "blocks.{}.attention_norm": "gpt_neox.layers.{}.input_layernorm",
        "blocks.{}.attention.qkv": "gpt_neox.layers.{}.attention.query_key_value",
        "blocks.{}.attention.out": "gpt_neox.layers.{}.attention.dense",
        "blocks.{}.mlp_norm": "gpt_neox.layers.{}.post_attention_layernorm",
        "blocks.{}.mlp.up": "gpt_neox.layers.{}.mlp.dense_h_to_4h",
        "blocks.{}.mlp.out": "gpt_neox.layers.{}.mlp.dense_4h_to_h",
        "norm": "gpt_neox.final_layer_norm",
        "head": "embed_out",
    },
    "gpt2": {
        "tokens": "transformer.wte",
        "positions": "transformer.wpe",
        "blocks.{}.attention_norm": "transformer.h.{}.ln_1",
        "blocks.{}.attention.qkv": "transformer.h.{}.attn.c_attn",
        "blocks.{}.attention.out": "transformer.h.{}.attn.c_proj",
        "blocks.{}.mlp_norm": "transformer.h.{}.ln_2",
        "blocks.{}.mlp.up": "transformer.h.{}.mlp.c_fc",
        "blocks.{}.mlp.out": "transformer.h.{}.mlp.c_proj",
        "norm": "transformer.ln_f",
        "head": "lm_head",
    },
}
LINEAR = "qkv", "out", "up", "gate"
BIASED = {  # ends of modules that always have a bias
    "gpt_neox": ("norm", "mlp.up", "mlp.out"),
    "gpt2": ("norm", *LINEAR),
    "starcoder2": ("norm",),
}
BUFFERS = (".attn.bias", ".attn.masked_bias", ".attention.bias", ".attention.masked_bias", ".inv_freq")  # of old files


@dataclass(frozen=True)
class Pair:
    """A tensor of GPT and those of transformers that hold its numbers."""

    ours: str
    theirs: tuple[str, ...]
    form: str  # equal, parts, transposed, heads (the rows of query, key and value alternate by head), twice

    def out(self, value: Tensor, config: GPTConfig) -> Iterator[tuple[str, Tensor]]:
        """Their names and values."""
        parts = [value]
        if self.form == "parts":
            parts = value.split([config.width, config.kv_width, config.kv_width])
        elif self.form == "heads":
            parts = [value.unflatten(0, (3, config.heads, -1)).transpose(0, 1).flatten(0, 2)]
        elif self.form == "transposed":
            parts = [value.T]
        for name, part in zip(self.theirs, parts * len(self.theirs) if self.form == "twice" else parts, strict=True):
            yield name, part.clone(memory_format=torch.contiguous_format)

    def back(self, values: list[Tensor], config: GPTConfig) -> Tensor:
        """Our value. Raises: RuntimeError: for shapes that cannot be."""
        if self.form == "parts":
            return torch.cat(values)
        if self.form == "heads":
            return values[0].unflatten(0, (config.heads, 3, -1)).transpose(0, 1).flatten(0, 2)
        return values[0].mT.contiguous() if self.form == "transposed" else values[-1]


def pairs(config: GPTConfig, name: str) -> Iterator[Pair]:
    """All tensors of an architecture. It may always have a bias that ours has only with `bias`."""
    absent = set() if MLPS[config.mlp][1] else {"gate"}
    absent |= (set() if config.qk_norm else {"query_norm", "key_norm"}) | ({"head"} if config.tied else set())
    for module, names in MODULES[name].items():
        kind = module.rpartition(".")[2]
        if kind in absent:
            continue
        theirs, form = (names, "parts") if isinstance(names, tuple) else ((names,), "equal")
        if name == "gpt_neox" and kind == "qkv":
            form = "heads"
        elif name == "qwen3" and kind == "up" and config.mlp == "relu2":
            theirs, form = (LLAMA["blocks.{}.mlp.gate"], names), "twice"
        form_of_weight = "transposed" if name == "gpt2" and kind in LINEAR else form
        can_have_bias = kind in LINEAR or (kind.endswith("norm") and config.norm == "layernorm")
        biased = module.endswith(BIASED.get(name, ())) or (config.bias and can_have_bias)
        for layer in range(config.depth) if "{}" in module else (0,):
            ours, its = module.format(layer), [one.format(layer) for one in theirs]
            yield Pair(f"{ours}.weight", tuple(f"{one}.weight" for one in its), form_of_weight)
            if biased:
                yield Pair(f"{ours}.bias", tuple(f"{one}.bias" for one in its), form)


def to_theirs(config: GPTConfig, name: str, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a GPT as those of an architecture, in float32."""
    found = {}
    for pair in pairs(config, name):
        value = weights.get(pair.ours)
        found.update(pair.out(_zeros(weights, pair) if value is None else value.float(), config))
    return found


def to_ours(config: GPTConfig, name: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `to_theirs`. Raises: UserError: for a missing, wrongly shaped or unknown tensor."""
    found, used = {}, set()
    for pair in pairs(config, name):
        used.update(pair.theirs)
        is_bias = pair.ours.endswith(".bias")
        if is_bias and not config.bias:
            continue
        if not is_bias and (absent := [one for one in pair.theirs if one not in tensors]):
            raise UserError(f"{absent[0]} is missing")
        try:
            values = [tensors[one].float() for one in pair.theirs if one in tensors]
            found[pair.ours] = pair.back(values, config) if values else _zeros(found, pair)
        except (RuntimeError, IndexError):
            raise UserError(f"{pair.theirs[0]} has the shape {tuple(tensors[pair.theirs[0]].shape)}") from None
    if config.tied:
        used.add(f"{MODULES[name]['head']}.weight")
        found["head.weight"] = found["tokens.weight"]
    if left := sorted(one for one in tensors.keys() - used if has_effect(one, tensors[one])):
        raise UserError(f"{printable(left[0], 100)} has no counterpart in GPT, one of {len(left)}")
    return found


def has_effect(name: str, value: Tensor) -> bool:
    """False for a buffer, and for a bias of zeros."""
    return not name.endswith(BUFFERS) and not (name.endswith(".bias") and not value.any())


def _zeros(weights: Mapping[str, Tensor], pair: Pair) -> Tensor:
    """In place of a bias."""
    return torch.zeros(weights[pair.ours.removesuffix("bias") + "weight"].size(0))
