"""Imported by the benchmarks: the same model in other projects' code.

nanoGPT is not a package: git clone https://github.com/karpathy/nanoGPT, and give its folder. The others are
pip install transformers litgpt; one that is not installed is left out.
"""

import contextlib
import importlib.util
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from measure import seconds
from torch import Tensor, nn

from slm.model import GPTConfig

Loss = Callable[[Tensor], Tensor]  # of windows (B, context + 1)


def nano(config: GPTConfig, folder: Path) -> tuple[nn.Module, Loss]:
    spec = importlib.util.spec_from_file_location("nanogpt_model", folder / "model.py")
    module = sys.modules["nanogpt_model"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sizes = {"n_layer": config.depth, "n_head": config.heads, "n_embd": config.width, "dropout": 0.0, "bias": True}
    with contextlib.redirect_stdout(sys.stderr):
        vocab_size = -(-config.vocab_size // 64) * 64  # its train.py has 50,304 for GPT-2's 50,257
        model = module.GPT(module.GPTConfig(block_size=config.context, vocab_size=vocab_size, **sizes))
    return model, lambda windows: model(windows[:, :-1], windows[:, 1:].contiguous())[1]


def hf_gpt2(config: GPTConfig) -> tuple[nn.Module, Loss]:
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"n_layer": config.depth, "n_head": config.heads, "n_embd": config.width, "n_positions": config.context}
    off = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    ends = {"bos_token_id": 0, "eos_token_id": None}
    return hf(GPT2LMHeadModel(GPT2Config(vocab_size=config.vocab_size, **sizes, **off, **ends)))


def hf_llama(config: GPTConfig) -> tuple[nn.Module, Loss]:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads,
        "intermediate_size": 8 * config.width // 3,
        "max_position_embeddings": config.context,
    }
    ends = {"bos_token_id": 0, "eos_token_id": None, "pad_token_id": 0}
    return hf(LlamaForCausalLM(LlamaConfig(**sizes, **ends, tie_word_embeddings=True)))


def hf(model: nn.Module) -> tuple[nn.Module, Loss]:
    def loss(windows: Tensor) -> Tensor:
        targets = windows[:, 1:].contiguous()
        return model(input_ids=windows[:, :-1], labels=targets, shift_labels=targets).loss

    return model, loss


def lit(config: GPTConfig) -> tuple[nn.Module, Loss]:
    from litgpt import GPT, Config

    model = GPT(
        Config(
            n_layer=config.depth,
            n_head=config.heads,
            n_embd=config.width,
            block_size=config.context,
            vocab_size=config.vocab_size,
            padded_vocab_size=config.vocab_size,
            rotary_percentage=1.0,
            parallel_residual=False,
            bias=True,
            norm_class_name="LayerNorm",
            mlp_class_name="GptNeoxMLP",
            intermediate_size=4 * config.width,
        )
    )
    model.lm_head.weight = model.transformer.wte.weight
    for parameter in model.parameters():
        if parameter.dim() == 2:
            nn.init.normal_(parameter, std=0.02)  # with its embedding's 1.0, subnormal gradients slow products down

    def loss(windows: Tensor) -> Tensor:
        logits = model(windows[:, :-1])
        return nn.functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())

    return model, loss


def names(nanogpt: str | None) -> list[str]:
    """The names of the projects that are present. Prints those that are missing."""
    installed = [name for name, (package, _) in PACKAGED.items() if importlib.util.find_spec(package)]
    here = (["nanoGPT"] if nanogpt else []) + installed
    if missing := [name for name in ("nanoGPT", *PACKAGED) if name not in here]:
        print(f"left out, not installed: {', '.join(missing)}", file=sys.stderr)
    return here


@cache
def peer(name: str, config: GPTConfig, nanogpt: str | None, device: str) -> tuple[nn.Module, Loss]:
    """A model of that depth, width, heads and vocabulary, and its loss in mean nats."""
    model, loss = nano(config, Path(nanogpt)) if name == "nanoGPT" else PACKAGED[name][1](config)
    return model.to(device), loss


@cache
def train_step(
    name: str, config: GPTConfig, nanogpt: str | None, windows: int, dtype: torch.dtype, compile: bool, device: str
) -> Callable[[], None]:
    """A step of nanoGPT's loop: autocast, clipping, AdamW, fused on a GPU."""
    torch.set_float32_matmul_precision("high")  # TF32 on a GPU, as in slm and nanoGPT
    model, loss = peer(name, config, nanogpt, device)
    loss = torch.compile(loss) if compile else loss
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), fused=device == "cuda")
    batch = torch.randint(config.vocab_size, (windows, config.context + 1), device=device)

    def step():
        with torch.autocast(device, dtype, enabled=dtype != torch.float32):
            value = loss(batch)
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def tokens_per_second(steps: int, *what) -> float:
    """The speed of `train_step(*what)`. For a process of its own, since slm changes settings of the allocator."""
    config, windows, device = what[1], what[3], what[-1]
    return windows * config.context / seconds(train_step(*what), device, steps)


PACKAGED = {  # name -> its package, and the function that makes the model
    "HF GPT-2": ("transformers", hf_gpt2),
    "HF Llama": ("transformers", hf_llama),
    "litgpt": ("litgpt", lit),
}
