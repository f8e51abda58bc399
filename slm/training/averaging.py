"""Evaluation within a training: eval mode, and averaged weights if a callback such as EMAWeightAveraging keeps them."""

import contextlib
from collections.abc import Iterator

import lightning.pytorch as L
from lightning.pytorch.callbacks import WeightAveraging


@contextlib.contextmanager
def evaluating(trainer: L.Trainer) -> Iterator[None]:
    """Puts the module into eval mode and averaged weights into it within the block, as Lightning does to validate."""
    module = trainer.lightning_module
    training = module.training
    averaging = [c for c in trainer.callbacks if isinstance(c, WeightAveraging) and c._average_model is not None]
    for callback in averaging:
        callback._swap_models(module)
    module.eval()
    try:
        yield
    finally:
        module.train(training)
        for callback in averaging:
            callback._swap_models(module)
