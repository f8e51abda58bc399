"""A training in plain torch over the parts of slm, without Lightning and Hydra: python examples/plain_loop.py

Losses and weights are, bit for bit, those of
python train.py trainer=cpu trainer.precision=32-true data=storyworld data.level=tiny data.stories=200 \
    data.validation_stories=9 data.layout=packed callbacks.stories=null tokenizer=bytes model.context=128 \
    model.depth=2 model.width=64 data.batch_windows=8 budget.steps=20 log_every_n_steps=1
"""

from itertools import islice
from pathlib import Path

import torch

from slm.corpora.storyworld.corpus import Storyworld
from slm.data.store import prepare
from slm.data.windows import split_windows
from slm.loss import cross_entropy
from slm.model import GPT, GPTConfig
from slm.optim.adamw import AdamW
from slm.optim.schedule import cosine
from slm.tokenizers.bytes import ByteTokenizer

SIZES = {"vocab_size": 257, "context": 128, "depth": 2, "width": 64, "head_dim": 64}
PARTS = {"positions": "rope", "norm": "layernorm", "mlp": "gelu", "bias": True, "tied": True}


def train(cache: Path, seed: int = 42, steps: int = 20, batch: int = 8) -> tuple[GPT, list[float]]:
    """The trained model, and the loss of each step in nats per token."""
    corpus = Storyworld(level="tiny", stories=200, validation_stories=9, seed=0)
    tokenizer = ByteTokenizer()
    splits = split_windows(prepare(corpus, tokenizer, cache), tokenizer.eos, context=SIZES["context"])
    windows, order = splits.chosen_windows, splits.order(seed).indices(0)
    torch.manual_seed(seed)
    model, losses = GPT(GPTConfig(**SIZES, **PARTS)), []
    optimizer = AdamW(lr=1e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1, decay="matrices")(model)
    for step in range(steps):
        multiplier = cosine(step, steps, warmup_fraction=0.02, warmup_steps=None, min_lr_ratio=0.01)
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * multiplier
        rows = windows.__getitems__(list(islice(order, batch)))  # (B, context + 1) ids
        loss = cross_entropy(model.features(rows[:, :-1]), model.head.weight, rows[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    return model, losses


if __name__ == "__main__":
    for step, loss in enumerate(train(Path("~/.cache/slm").expanduser())[1], 1):
        print(f"step {step:2}  train/loss {loss:.4f}")
