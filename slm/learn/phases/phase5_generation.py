"""Phase 5: from logits to text. Greedy decoding, temperature, top-k, and the loop that adds one token after another.

A model is any module from token ids (1, T) to logits (1, T, V). Shapes: V vocabulary.
"""

import math

import torch


def greedy(logits):
    """The id of the largest of the logits (V,), as an int."""
    # your code
    return int(logits.argmax())


def temperature(logits, value):
    """The logits divided by the temperature: below 1 the likely tokens become more likely, above 1 less."""
    # your code
    return logits / value


def top_k(logits, k):
    """The k largest of the logits (V,), the others -infinity. With k above V nothing changes.

    Exactly k stay: of equal logits the one with the smaller id, as a stable sort in descending order has them.
    """
    # your code
    kept = logits.sort(descending=True, stable=True).indices[:k]
    result = torch.full_like(logits, -math.inf)
    result[kept] = logits[kept]
    return result


def probabilities(logits):
    """The softmax, exp(logit) / sum of all exp(logit), written out: (V,) to (V,).

    Subtract the largest logit first: exp(1000) overflows, and the result is the same.
    """
    # your code
    weights = (logits - logits.max()).exp()
    return weights / weights.sum()


def sample(logits, uniform):
    """An id, drawn with its probability, as an int. `uniform` is a random number from 0 to 1.

    The first id whose cumulative probability (p0, p0 + p1, ...) is above `uniform`: imagine the probabilities as
    pieces of a line of length 1, and `uniform` as a point on it.
    """
    # your code
    cumulative = probabilities(logits).cumsum(0)
    above = cumulative > uniform * cumulative[-1]
    return int(above.nonzero()[0])


def generate(model, ids, new, context, choose):
    """The list `ids` with `new` ids more, each `choose(logits of the last position)`.

    The model reads at most the last `context` ids, because it has no more positions. The model is in eval mode, and no
    gradients are computed.
    """
    # your code
    ids = list(ids)
    model.eval()
    with torch.no_grad():
        for _ in range(new):
            logits = model(torch.tensor([ids[-context:]]))
            ids.append(choose(logits[0, -1]))
    return ids


def sampler(seed, heat=1.0, k=None):
    """A function from logits to an id, for `generate`: temperature, then top-k (None: all), then a random choice."""
    generator = torch.Generator().manual_seed(seed)

    def choose(logits):
        logits = temperature(logits, heat)
        logits = logits if k is None else top_k(logits, k)
        return sample(logits, torch.rand((), generator=generator).item())

    return choose
