"""The largest model with the shape of another that a device's memory holds."""

from bisect import bisect
from dataclasses import replace

from slm.estimate import Weights, weights
from slm.model import GPTConfig
from slm.planning.memory import Memory

MAX_HEADS = 2**10


def largest(config: GPTConfig, counted: Memory, memory: float) -> GPTConfig | None:
    """The largest model with the same ratio of depth to width and the same options that trains in `memory` bytes.

    `counted`: the memory of the given model. None if not even one head fits.
    """
    step = config.heads // (config.kv_heads or config.heads)
    sizes = range(step, MAX_HEADS + 1, step)
    count = bisect(sizes, memory, key=lambda heads: scaled_peak(config, counted, scaled(config, heads)))
    return scaled(config, sizes[count - 1]) if count else None


def scaled(config: GPTConfig, heads: int) -> GPTConfig:
    """The model with so many heads, and depth and MLP in proportion."""
    ratio = heads / config.heads
    return replace(
        config,
        width=heads * config.head_dim,
        depth=max(1, round(config.depth * ratio)),
        kv_heads=config.kv_heads and round(config.kv_heads * ratio),
        mlp_width=config.mlp_width and round(config.mlp_width * ratio),
    )


def scaled_weights(config: GPTConfig) -> Weights:
    """As `weights`, of a model of any depth: from one of two blocks, with which a pattern of blocks is over."""
    two = weights(replace(config, depth=2))
    blocks = two.blocks * config.depth // 2
    return replace(two, depth=config.depth, blocks=blocks, trained=blocks + two.outside)


def scaled_peak(config: GPTConfig, counted: Memory, other: GPTConfig) -> float:
    """Bytes that another size takes: what holds numbers per weight in proportion to the weights, activations to depth
    times width, the loss to the width, what is gathered to the weights of blocks and outside of them."""
    before, after = scaled_weights(config), scaled_weights(other)
    share, wide = after.total / before.total, other.width / config.width
    gathered = (after.outside + 2 * after.block) / (before.outside + 2 * before.block)
    held = counted.weights + counted.gradients + counted.optimizer + counted.copies + counted.working
    passing = counted.activations * wide * other.depth / config.depth + counted.loss * max(wide, 1)
    return held * share + counted.gathered * gathered + passing + counted.overhead
