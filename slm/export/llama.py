"""The tensors of a model by their names in llama.cpp, which the formats gguf and llama2c share.

Shapes: H heads, D head_dim.
"""

from torch import Tensor

from slm.attention import Attention
from slm.model import GPT


def named_tensors(model: GPT, *, interleave: bool) -> dict[str, Tensor]:
    """The tensors by their names in GGUF, without a tied head. `interleave`: for programs that rotate neighbours."""
    modules = {"token_embd": model.tokens, "position_embd": model.positions, "output_norm": model.norm}
    modules |= {} if model.config.tied else {"output": model.head}
    tensors = {}
    for layer, block in enumerate(model.blocks):
        attention, mlp = block.attention, block.mlp
        parts = {"attn_norm": block.attention_norm, "attn_output": attention.out}
        parts |= {"attn_q_norm": attention.query_norm, "attn_k_norm": attention.key_norm}
        parts |= {"ffn_norm": block.mlp_norm, "ffn_gate": mlp.gate, "ffn_up": mlp.up, "ffn_down": mlp.out}
        modules |= {f"blk.{layer}.{part}": module for part, module in parts.items()}
        if model.rotary:
            tensors |= {f"blk.{layer}.{part}": rows for part, rows in _apart(attention, interleave).items()}
        else:
            modules[f"blk.{layer}.attn_qkv"] = attention.qkv
    for name, module in modules.items():
        tensors |= {f"{name}.{kind}": tensor for kind, tensor in (module.named_parameters() if module else ())}
    return {name: tensor.detach() for name, tensor in tensors.items()}


def _apart(attention: Attention, interleave: bool) -> dict[str, Tensor]:
    """The rows of the common matrix of queries, keys and values, and of its bias, apart."""
    sizes = [heads * attention.head_dim for heads in (attention.heads, attention.kv_heads, attention.kv_heads)]
    parts = {}
    for kind, joined in attention.qkv.named_parameters():
        queries, keys, values = joined.split(sizes)
        if interleave:
            queries, keys = interleaved(queries, attention.head_dim), interleaved(keys, attention.head_dim)
        parts |= {f"attn_q.{kind}": queries, f"attn_k.{kind}": keys, f"attn_v.{kind}": values}
    return parts


def interleaved(rows: Tensor, head_dim: int) -> Tensor:
    """Rows (HD, ...) of queries or keys, in which the pair (i, i + D/2) of a rotation becomes (2i, 2i + 1)."""
    return rows.unflatten(0, (-1, 2, head_dim // 2)).transpose(1, 2).flatten(0, 2)
