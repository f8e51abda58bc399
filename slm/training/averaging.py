"""The weights to evaluate: averaged ones, if a callback such as EMAWeightAveraging keeps them."""

import contextlib
from collections.abc import Iterator

import lightning.pytorch as L
from lightning.pytorch.callbacks import WeightAveraging


@contextlib.contextmanager
def averaged_weights(trainer: L.Trainer) -> Iterator[None]:
    """Puts the averaged weights into the model within the block, as Lightning does within a validation."""
    averaging = [c for c in trainer.callbacks if isinstance(c, WeightAveraging) and c._average_model is not None]
    for callback in averaging:
        callback._swap_models(trainer.lightning_module)
    try:
        yield
    finally:
        for callback in averaging:
            callback._swap_models(trainer.lightning_module)
