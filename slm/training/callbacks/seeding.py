"""Counter-based random numbers, so that dropout resumes exactly without a saved generator state."""

import torch
from lightning.pytorch.callbacks import Callback


class Seeding(Callback):
    """Seeds torch before every microbatch from (seed, microbatch, rank).

    A saved generator state would not be enough: after a resume, iterators and validation draw a different number of
    times from the global generator.
    """

    def __init__(self, seed: int):
        self.seed = seed

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        seed = ((self.seed * 1_000_003 + batch_idx) * 8191 + trainer.global_rank) % 2**63
        if module.device.type not in ("cpu", "cuda"):
            torch.manual_seed(seed)
            return
        torch.default_generator.manual_seed(seed)  # torch.manual_seed takes a millisecond for absent devices
        if module.device.type == "cuda":
            torch.cuda.manual_seed_all(seed)
