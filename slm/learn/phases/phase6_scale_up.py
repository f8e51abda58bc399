"""Phase 6: scale up. Your tokenizer and your attention in train.py, the size of a model, its evaluation, its tuning.

    python train.py experiment=quickstart model._target_=phase6_scale_up.OwnGPT model.positions=learned \\
        model.qk_norm=false tokenizer._target_=phase2_bpe.BPE.build +tokenizer.vocab_size=600

trains the quickstart with them, started in this folder, and a GPU does the same a hundred times larger.
"""

import math

from slm.attention import Attention
from slm.errors import UserError
from slm.learn.phases.phase3_gpt import MultiHead
from slm.model import GPT


class OwnAttention(Attention):
    """The attention of slm.model.GPT, computed by your MultiHead. It has the same parts: heads, qkv and out."""

    def forward(self, x, tokens, rotation, masks, cache):
        """The normed residual stream x (B, T, C) to (B, T, C).

        In training and validation there is no cache, and MultiHead.forward(self, x) does all. Generation gives a cache
        with the keys and values of earlier positions, so that a step reads one new token; leave that to the original:
        super().forward with the same arguments.
        """
        # your code
        if cache:
            return super().forward(x, tokens, rotation, masks, cache)
        return MultiHead.forward(self, x)


class OwnGPT(GPT):
    """slm's GPT, with the same first weights, in which your code computes the attention.

    Your attention has neither rotary positions nor dropout, normed queries, fewer key/value heads or windows.
    """

    def __init__(self, config):
        super().__init__(config)
        if config.positions != "learned" or config.dropout or config.qk_norm or config.kv_heads or config.window:
            raise UserError(
                "OwnGPT needs model.positions=learned model.dropout=0 model.qk_norm=false model.kv_heads=null "
                "model.window=null"
            )
        for layer, block in enumerate(self.blocks):
            own = OwnAttention(config, layer)
            own.load_state_dict(block.attention.state_dict())
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
