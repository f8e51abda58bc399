"""A decoder-only transformer: everything that defines the function tokens -> logits, and nothing else.

Pre-norm residual blocks as in GPT-2 (Radford et al., 2019), with the parts that later work has replaced as options.
Attention is in slm/attention.py. Left out: training, sampling, counting and export.

Shapes: B batch, T new positions, C width, V vocabulary.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from slm.attention import Attention, Cache, Masks, RMSNorm, Rotary, Rotation
from slm.errors import UserError
from slm.lora import LoRAConfig, add_lora
from slm.loss import softcapped
from slm.masks import document_masks, document_starts, takes_blocks
from slm.parametrization import Kind, ScalingConfig

# name -> activation, and whether a second projection is multiplied by it (a gated MLP, arXiv:2002.05202)
MLPS: dict[str, tuple[Callable[[Tensor], Tensor], bool]] = {
    "gelu": (F.gelu, False),
    "gelu_tanh": (lambda x: F.gelu(x, approximate="tanh"), False),  # GPT-2's
    "relu2": (lambda x: F.relu(x).square(), False),  # arXiv:2109.08668
    "swiglu": (F.silu, True),
    "geglu": (F.gelu, True),
}

HASH = 1_000_003  # a prime: pairs spread evenly over any number of rows


@dataclass(frozen=True, kw_only=True)
class GPTConfig(ScalingConfig):
    """The choices that fix the shape and the arithmetic of a model. Stored in every checkpoint.

    Raises: UserError: if a value is impossible, alone or beside another.
    """

    mlp_width: int | None = None  # None: 4 * width; gated 8 / 3 * width, rounded up to a multiple of 32
    positions: str  # rope or learned
    norm: str  # of NORMS
    mlp: str  # of MLPS
    tied: bool  # one matrix embeds tokens and reads them out (arXiv:1608.05859)
    head_bias: bool = False  # a learned bias for each logit
    embedding_dropout: float | None = None  # on the sum of embeddings; None: dropout
    residual_dropout: float | None = None  # on the results of attention and MLP; None: dropout
    bigram_embeddings: int | None = None  # rows of a table for pairs of a token and the one before it, by hash
    residual_scalars: bool = False  # a learned scalar for each block's input and one for the embedding added to it
    logit_softcap: float | None = None  # logits become softcap * tanh(logits / softcap) (arXiv:2408.00118)
    gradient_checkpointing: bool = False  # recompute each block in the backward pass to save memory
    lora: LoRAConfig | None = None  # thin matrices beside those of the blocks, which alone are trained

    def __post_init__(self):
        super().__post_init__()
        if isinstance(self.lora, dict):  # of a file of conf/model
            object.__setattr__(self, "lora", None if self.lora.get("rank") is None else LoRAConfig(**self.lora))
        if self.mlp_width is not None and self.mlp_width < 1:
            raise UserError(f"model.mlp_width={self.mlp_width} must be at least 1, or null")
        if self.bigram_embeddings is not None and self.bigram_embeddings < 1:
            raise UserError(f"model.bigram_embeddings={self.bigram_embeddings} must be at least 1 (rows), or null")
        if self.logit_softcap is not None and not 0 < self.logit_softcap < math.inf:
            raise UserError(f"model.logit_softcap={self.logit_softcap} must be above 0 and finite, or null")
        for name, known in (("positions", POSITIONS), ("norm", NORMS), ("mlp", MLPS)):
            if getattr(self, name) not in known:
                raise UserError(f"model.{name}={getattr(self, name)} is not one of {', '.join(known)}")
        if self.positions == "rope" and self.head_dim % 2:
            raise UserError(f"model.head_dim={self.head_dim} must be even: model.positions=rope rotates pairs")

    @property
    def hidden_width(self) -> int:
        """Width of the MLP's hidden layer."""
        _, gated = MLPS[self.mlp]
        return self.mlp_width or (32 * math.ceil(8 * self.width / 3 / 32) if gated else 4 * self.width)


POSITIONS = ("rope", "learned")
NORMS: dict[str, Callable[[GPTConfig], nn.Module]] = {
    "layernorm": lambda config: nn.LayerNorm(config.width, eps=config.norm_eps, bias=config.bias),
    "rmsnorm": lambda config: RMSNorm(config.width, eps=config.norm_eps),
}


def dropout(share: float) -> nn.Module:
    return nn.Dropout(share) if share else nn.Identity()


class MLP(nn.Module):
    """Two linear layers (B, T, C) -> (B, T, C) around an activation, or three with a gate."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.activation, gated = MLPS[config.mlp]
        self.gate = nn.Linear(config.width, config.hidden_width, bias=config.bias) if gated else None
        self.up = nn.Linear(config.width, config.hidden_width, bias=config.bias)
        self.out = nn.Linear(config.hidden_width, config.width, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.activation(self.gate(x)) * self.up(x) if self.gate else self.activation(self.up(x))
        return self.out(hidden)


class Block(nn.Module):
    """Attention, then an MLP: each reads the normed residual stream (B, T, C) and adds a share of its result to it."""

    def __init__(self, config: GPTConfig, layer: int):
        super().__init__()
        norm = NORMS[config.norm]
        self.attention_norm, self.attention = norm(config), Attention(config, layer)
        self.mlp_norm, self.mlp = norm(config), MLP(config)
        self.dropout = dropout(config.dropout_of("residual"))
        self.share = config.rules()["writer"].forward

    def forward(
        self, x: Tensor, tokens: Tensor, rotation: Rotation | None, masks: Masks, cache: Cache | None
    ) -> Tensor:
        branch = self.dropout(self.attention(self.attention_norm(x), tokens, rotation, masks, cache))
        x = torch.add(x, branch, alpha=self.share)
        return torch.add(x, self.dropout(self.mlp(self.mlp_norm(x))), alpha=self.share)


class GPT(nn.Module):
    """Token ids (B, T) to logits (B, T, V), in two steps: `features`, then `logits`.

    The loss takes features and the `readout` instead, so that the logits of a whole batch never exist.
    """

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.config = config
        learned = config.positions == "learned"
        self.tokens = nn.Embedding(config.vocab_size, config.width)
        self.positions = nn.Embedding(config.context, config.width) if learned else None
        self.rotary = None if learned else Rotary(config)
        self.bigrams = nn.Embedding(config.bigram_embeddings, config.width) if config.bigram_embeddings else None
        self.dropout = dropout(config.dropout_of("embedding"))
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.depth))
        self.residual_scales = nn.Parameter(torch.empty(config.depth)) if config.residual_scalars else None
        self.embedding_scales = nn.Parameter(torch.empty(config.depth)) if config.residual_scalars else None
        self.norm = NORMS[config.norm](config)
        self.output = config.rules()["readout"].forward
        self.head = nn.Linear(config.width, config.vocab_size, bias=config.head_bias)
        if config.tied:
            self.head.weight = self.tokens.weight
        self.reset_parameters()
        if config.lora:
            add_lora(self, config.lora)

    def matrices(self) -> dict[nn.Parameter, Kind]:
        """The kind of each embedding and each matrix of a linear layer."""
        linear = [module.weight for module in self.modules() if isinstance(module, nn.Linear)]
        tables = [module.weight for module in self.modules() if isinstance(module, nn.Embedding)]
        found: dict[nn.Parameter, Kind] = dict.fromkeys(linear, "reader") | {self.head.weight: "readout"}
        found |= dict.fromkeys(tables, "embedding")  # a tied head, too
        if self.bigrams:
            found[self.bigrams.weight] = "bigram"
        for block in self.blocks:
            found |= dict.fromkeys((block.attention.out.weight, block.mlp.out.weight), "writer")
            if block.attention.value_gate:
                found[block.attention.value_gate.weight] = "narrow"
        return found

    def reset_parameters(self):
        """The standard deviation of each kind of weight is that of slm.parametrization; at the base size it is
        GPT-2's."""
        kinds, rules = self.matrices(), self.config.rules()
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=rules[kinds[module.weight]].std)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        for block in self.blocks:
            for writer in (block.attention.out, block.mlp.out):  # drawn again, as the start of earlier runs was
                nn.init.normal_(writer.weight, std=rules["writer"].std)
        if self.config.residual_scalars:  # at first the same function as without, as in nanochat's first version
            nn.init.ones_(self.residual_scales)
            nn.init.zeros_(self.embedding_scales)

    def features(self, tokens: Tensor, cache: Cache | None = None) -> Tensor:
        """Tokens (B, T) to features (B, T, C), normed and scaled for the head. A cache supplies and receives the past.

        With `document_start`, tokens see their own document only, and learned positions begin anew in each; all that is
        in a cache is one document. Rotary positions need no new beginning: only their differences count.
        Raises: ValueError: if cached plus new positions exceed the context.
        """
        start = cache.length if cache else 0
        end = start + tokens.size(1)
        if end > self.config.context:
            raise ValueError(f"{start} + {tokens.size(1)} positions exceed the context of {self.config.context}")
        positions = cache.begin(tokens.size(1)) if cache else slice(0, end)
        masks, starts = cache.masks if cache else {}, None
        if self.config.document_start is not None and not cache:
            starts = document_starts(tokens, self.config.document_start)
            blocks = torch.compiler.is_compiling() and takes_blocks(self.config, tokens.device.type, self.training)
            masks = document_masks(starts, self.config.windows, blocks)
        x = self.tokens(tokens)
        if self.positions:
            own = positions if starts is None else torch.arange(end, device=tokens.device) - starts
            x = x + self.positions.weight[own]
        if self.bigrams:
            x = x + self.bigrams(self._pairs(tokens, cache, starts))
        rotation = self.rotary(positions) if self.rotary else None
        x = embedding = self.dropout(x)
        for layer, block in enumerate(self.blocks):
            if self.config.residual_scalars:
                x = self.residual_scales[layer] * x + self.embedding_scales[layer] * embedding
            if self.config.gradient_checkpointing and self.training:
                x = checkpoint(block, x, tokens, rotation, masks, cache, use_reentrant=False)
            else:
                x = block(x, tokens, rotation, masks, cache)
        if cache:
            cache.length = end
        return self.norm(x) * self.output

    def _pairs(self, tokens: Tensor, cache: Cache | None, starts: Tensor | None) -> Tensor:
        """Tokens (B, T) to rows of the table, one for each token and the one before it; pairs may share a row.

        Before the first token of the context, and of a document that sees only itself, stands no token: vocab_size.
        """
        nothing = self.config.vocab_size
        before = cache.preceding(tokens) if cache else F.pad(tokens, (1, 0), value=nothing)[:, :-1]
        if starts is not None:
            before = before.masked_fill(starts == torch.arange(tokens.size(1), device=tokens.device), nothing)
        return (tokens + HASH * before) % self.bigrams.num_embeddings

    @property
    def readout(self) -> dict[str, Any]:
        """The way from features to logits, as arguments of the functions of slm.loss."""
        return {"weight": self.head.weight, "bias": self.head.bias, "softcap": self.config.logit_softcap}

    def logits(self, features: Tensor) -> Tensor:
        """Features (..., C) to logits (..., V)."""
        return softcapped(self.head(features), self.config.logit_softcap)

    def forward(self, tokens: Tensor, cache: Cache | None = None) -> Tensor:
        """Logits (B, T, V) for the token after each position."""
        return self.logits(self.features(tokens, cache))
