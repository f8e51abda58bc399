"""Phase 6: scale up. Your tokenizer and your GPT in train.py; the size of a model, its evaluation, its tuning.

    python train.py data=storyworld model=own model._target_=phase3_gpt.GPT model.context=192 +model.width=128 \\
        +model.heads=4 +model.depth=4 tokenizer._target_=phase2_bpe.BPE.build +tokenizer.vocab_size=600

in this folder trains them; with trainer=gpu and larger numbers it is the same at another scale.
"""

import math

from slm.attention import Attention
from slm.learn.phases.phase3_gpt import MultiHead
from slm.model import GPT, GPTConfig


class OwnAttention(Attention):
    """The attention of slm.model.GPT, computed by your MultiHead. It has the same parts: heads, qkv and out."""

    def forward(self, x, tokens, rotation, masks, cache):
        """The normed residual stream x (B, T, C) to (B, T, C). Your attention needs x alone.

        MultiHead.forward is a function of two arguments; its first, `self`, is any object with heads, qkv and out.
        """
        # your code
        return MultiHead.forward(self, x)


class OwnGPT(GPT):
    """slm's GPT with your attention, so that you can combine it with other norms and MLPs:

    model=own model._target_=phase6_scale_up.OwnGPT +model.width=128 ... +model.norm=rmsnorm +model.mlp=swiglu
    """

    def __init__(
        self,
        vocab_size: int,
        context: int,
        width: int,
        heads: int,
        depth: int,
        norm: str = "layernorm",
        mlp: str = "gelu",
    ):
        sizes = {"vocab_size": vocab_size, "context": context, "depth": depth, "width": width}
        kinds = {"positions": "learned", "norm": norm, "mlp": mlp, "tied": True, "bias": True}
        config = GPTConfig(**sizes, **kinds, head_dim=width // heads)
        super().__init__(config)
        for layer, block in enumerate(self.blocks):
            own = OwnAttention(config, layer)
            own.load_state_dict(block.attention.state_dict())  # the same first weights
            block.attention = own


def parameters(vocab_size, context, width, depth):
    """How many weights the GPT of phase 3 has.

    V * C in the embedding of tokens (the head has the same matrix), T * C in that of positions; per block 4 C^2 in the
    attention's matrices, 8 C^2 in the feed-forward's, and 13 C in biases and norms (which ones?); the last norm.
    """
    # your code
    embeddings = (vocab_size + context) * width
    block = 12 * width**2 + 13 * width  # 13: biases 3 + 1 + 4 + 1, two norms of 2
    return embeddings + depth * block + 2 * width


def perplexity(nats):
    """e to the loss: among how many equally likely tokens the model is as unsure. ln(V) gives V."""
    # your code
    return math.exp(nats)


def bits_per_byte(nats, tokens, size):
    """The loss of a text in bits per byte, which tokenizers of different size have in common.

    `nats` is the mean loss per token; the text has `tokens` tokens and `size` bytes. A bit is ln(2) nats.
    """
    # your code
    return nats * tokens / size / math.log(2)


def best_rate(losses):
    """The best of several learning rates, and whether it is at an edge of them: (rate, True or False).

    `losses` is {learning rate: validation loss}; that of a run that diverged is NaN, and such a run cannot be the best.
    If the best is the lowest or highest rate that was tried, a better one may be outside, so try more.
    """
    # your code
    finite = {rate: loss for rate, loss in losses.items() if not math.isnan(loss)}
    best = min(finite, key=finite.get)
    return best, best in (min(losses), max(losses))
