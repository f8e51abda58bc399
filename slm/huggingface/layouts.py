"""The architectures of transformers that compute the same function as a GPT of some choices, and their config.json."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from slm.errors import UserError, printable
from slm.model import MLPS, GPTConfig

SIZES = "vocab_size", "width", "depth", "heads", "context"
NAMES = {  # key of config.json -> of GPTConfig
    **{"vocab_size": "vocab_size", "hidden_size": "width", "num_hidden_layers": "depth"},
    **{"num_attention_heads": "heads", "max_position_embeddings": "context", "intermediate_size": "hidden_width"},
    **{"tie_word_embeddings": "tied", "initializer_range": "init_std"},
}
GROUPED = {"num_key_value_heads": "kv_heads"}
GPT2_NAMES = {
    **{"vocab_size": "vocab_size", "n_embd": "width", "n_layer": "depth", "n_head": "heads", "n_positions": "context"},
    **{"n_inner": "hidden_width", "layer_norm_epsilon": "norm_eps", "tie_word_embeddings": "tied"},
    "initializer_range": "init_std",
}
GATED = {"swiglu": "silu", "geglu": "gelu"}  # model.mlp -> the activation of transformers
PLAIN = {"gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh", "relu2": "relu2"}
SAME = {"gelu_new": "gelu_pytorch_tanh", "gelu_fast": "gelu_pytorch_tanh", "swish": "silu"}  # equal functions
ROPE_BASE = 10_000.0


@dataclass(frozen=True, kw_only=True)
class Layout:
    """An architecture: the choices of a GPTConfig that it computes, and how its config.json says the rest."""

    architecture: str  # its class
    names: Mapping[str, str]
    norm: str
    activations: Mapping[str, str]
    positions: str = "rope"
    qk_norm: bool = False
    grouped: bool = True  # may have fewer key/value heads
    windows: Sequence[str | None] = (None,)  # also one, the same in each block, or some, in some blocks
    biases: tuple[str, ...] = ()  # keys that say that linear layers have biases; "": without a key
    activation: str = "hidden_act"
    tied: bool = False  # unless config.json says it
    fixed: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)  # key -> the value needed, that of a missing key

    @property
    def choices(self) -> dict[str, Sequence[Any]]:
        """The values of a GPTConfig that it computes."""
        found = {"norm": [self.norm], "positions": [self.positions], "qk_norm": [self.qk_norm]}
        found |= {"mlp": [*self.activations], "window": self.windows, "bias": [False, True] if self.biases else [False]}
        return found if self.grouped else {**found, "kv_heads": [None]}


LLAMA_NAMES = {**NAMES, **GROUPED, "head_dim": "head_dim", "rms_norm_eps": "norm_eps"}
LAYOUTS: dict[str, Layout] = {  # by model_type; the first one that fits is taken
    "llama": Layout(
        architecture="LlamaForCausalLM",
        names=LLAMA_NAMES,
        norm="rmsnorm",
        activations=GATED,
        biases=("attention_bias", "mlp_bias"),
    ),
    "mistral": Layout(
        architecture="MistralForCausalLM", names=LLAMA_NAMES, norm="rmsnorm", activations=GATED, windows=(None, "one")
    ),
    "qwen3": Layout(
        architecture="Qwen3ForCausalLM",
        names=LLAMA_NAMES,
        norm="rmsnorm",
        activations={**GATED, "relu2": "relu"},  # relu(x) * x, with equal matrices gate and up
        qk_norm=True,
        windows=(None, "one", "some"),
    ),
    "arcee": Layout(
        architecture="ArceeForCausalLM",
        names=LLAMA_NAMES,
        norm="rmsnorm",
        activations=PLAIN,
        biases=("attention_bias", "mlp_bias"),
    ),
    "gpt_neox": Layout(
        architecture="GPTNeoXForCausalLM",
        names={**NAMES, "layer_norm_eps": "norm_eps"},
        norm="layernorm",
        activations=PLAIN,
        grouped=False,
        biases=("attention_bias",),
        fixed={"use_parallel_residual": (False, True)},
    ),
    "starcoder2": Layout(
        architecture="Starcoder2ForCausalLM",
        names={**NAMES, **GROUPED, "norm_epsilon": "norm_eps"},
        norm="layernorm",
        activations=PLAIN,
        windows=(None, "one"),
        biases=("use_bias",),
        tied=True,
    ),
    "gpt2": Layout(
        architecture="GPT2LMHeadModel",
        names=GPT2_NAMES,
        norm="layernorm",
        positions="learned",
        activations={**PLAIN, "gelu_tanh": "gelu_new"},
        grouped=False,
        biases=("",),
        activation="activation_function",
        tied=True,
        fixed={
            **{"scale_attn_weights": (True, True), "scale_attn_by_inverse_layer_idx": (False, False)},
            "add_cross_attention": (False, False),
        },
    ),
}


def settings_of(config: GPTConfig, name: str) -> dict[str, Any]:
    """The content of config.json, without the ids of tokens."""
    layout, rope = LAYOUTS[name], config.positions == "rope"
    values = {key: getattr(config, ours) for key, ours in layout.names.items()}
    values |= {key: config.kv_width // config.head_dim for key in GROUPED if key in values}
    values |= {key: config.bias for key in layout.biases if key}
    values |= {key: needed for key, (needed, _) in layout.fixed.items()}
    values |= {"architectures": [layout.architecture], "model_type": name, "dtype": "float32"}
    values[layout.activation] = layout.activations[config.mlp]
    if rope:
        rotary = {"rope_type": "default", "rope_theta": config.rope_base}
        values["rope_parameters"] = rotary | ({"partial_rotary_factor": 1.0} if name == "gpt_neox" else {})
    if len(layout.windows) > 1:
        values["sliding_window"] = next((window for window in config.windows if window), None)
    if name == "qwen3":
        values["use_sliding_window"] = values["sliding_window"] is not None
        values["layer_types"] = ["sliding_attention" if window else "full_attention" for window in config.windows]
    shares = {"attention_dropout": config.dropout_of("attention")}
    if name == "gpt2":
        parts = {"embd_pdrop": "embedding", "attn_pdrop": "attention", "resid_pdrop": "residual"}
        shares = {key: config.dropout_of(part) for key, part in parts.items()}
    return values | shares


def config_of(values: Mapping[str, Any], bias: bool, relu_squared: bool) -> GPTConfig:
    """The GPTConfig of a config.json. `bias`: the weights have some that are not zero; `relu_squared`: their matrices
    gate and up are equal. Raises: UserError: for anything that GPT cannot compute."""
    name = values.get("model_type")
    if not isinstance(name, str) or name not in LAYOUTS:
        raise UserError(f"its model_type {printable(repr(name), 100)} is not one of {', '.join(LAYOUTS)}")
    layout = LAYOUTS[name]
    for key, (needed, default) in layout.fixed.items():
        if values.get(key, default) != needed:
            raise UserError(f"{key} must be {json.dumps(needed)}: GPT cannot compute the other one")
    found = {ours: values[key] for key, ours in layout.names.items() if values.get(key) is not None}
    for key, ours in layout.names.items():
        if ours in SIZES and not (type(size := values.get(key)) is int and size > 0):
            raise UserError(f"{key} must be a whole number from 1")
    heads, rope = found.pop("heads"), _rope(values, layout)
    found.setdefault("head_dim", found["width"] // heads)
    if found["head_dim"] * heads != found["width"]:
        raise UserError(
            f"its heads have {heads} x {found['head_dim']} numbers, and GPT needs the {found['width']} of its width"
        )
    found["mlp_width"] = found.pop("hidden_width", 4 * found["width"])
    found["kv_heads"] = found.get("kv_heads", heads)
    found.setdefault("tied", layout.tied)
    found.setdefault("norm_eps", 1e-6 if layout.norm == "rmsnorm" else 1e-5)
    parts = {"norm": layout.norm, "positions": layout.positions, "qk_norm": layout.qk_norm, "bias": bias}
    mlp, window = _mlp(values, layout, relu_squared), _window(values, name, found["depth"])
    return GPTConfig(**found, **parts, **rope, mlp=mlp, window=window)


def _mlp(values: Mapping[str, Any], layout: Layout, relu_squared: bool) -> str:
    default = "silu" if layout.activations.get("swiglu") else next(iter(layout.activations.values()))
    given = values.get(layout.activation, default)
    wanted = SAME.get(given, given) if isinstance(given, str) else given
    found = next((mlp for mlp, its in layout.activations.items() if SAME.get(its, its) == wanted), None)
    if found is None or (MLPS[found][1] is False and layout.qk_norm and not relu_squared):
        raise UserError(f"its activation {printable(repr(given), 100)} has no counterpart in model.mlp")
    return found


def _rope(values: Mapping[str, Any], layout: Layout) -> dict[str, float]:
    """The base of rotary positions, as written by transformers 5 or before. Raises: UserError: for a scaled one."""
    if layout.positions != "rope":
        return {}
    rotary = values.get("rope_parameters") or values.get("rope_scaling") or {}
    if not isinstance(rotary, Mapping) or rotary.get("rope_type", rotary.get("type", "default")) != "default":
        raise UserError("its rotary positions are scaled, which GPT cannot compute")
    part = rotary.get("partial_rotary_factor", values.get("rotary_pct", 0.25 if "Neo" in layout.architecture else 1.0))
    if part != 1:
        raise UserError(f"only a part of its heads is rotated ({part}), which GPT cannot compute")
    base = rotary.get("rope_theta", values.get("rope_theta", values.get("rotary_emb_base", ROPE_BASE)))
    if not isinstance(base, int | float):
        raise UserError("rope_theta must be a number")
    return {"rope_base": float(base)}


def _window(values: Mapping[str, Any], name: str, depth: int) -> int | list[int | None] | None:
    width, kinds = values.get("sliding_window", 4096 if name == "mistral" else None), values.get("layer_types")
    if len(LAYOUTS[name].windows) == 1 or width is None or (name == "qwen3" and not values.get("use_sliding_window")):
        return None
    if not isinstance(kinds, list):
        first = values.get("max_window_layers", 28) if name == "qwen3" else 0
        kinds = ["full_attention" if layer < first else "sliding_attention" for layer in range(min(depth, 10**4))]
    return [width if kind == "sliding_attention" else None for kind in kinds]
