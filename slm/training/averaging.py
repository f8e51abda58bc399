"""Evaluation within a training: eval mode, and averaged weights if a callback such as EMAWeightAveraging keeps them."""

import contextlib
from collections.abc import Iterator

import lightning.pytorch as L

from slm.model import GPT
from slm.training.sharded import averaging, gathered_model


@contextlib.contextmanager
def evaluating(trainer: L.Trainer) -> Iterator[GPT | None]:
    """The model in eval mode, with averaged weights if there are some, as Lightning validates it; in the first process.

    None in the others, of which each must enter the block: the parts of a sharded model are gathered.
    """
    module = trainer.lightning_module
    training = module.training
    callbacks = averaging(trainer)
    for callback in callbacks:
        callback._swap_models(module)
    module.eval()
    try:
        yield gathered_model(module.model, trainer.is_global_zero)
    finally:
        module.train(training)
        for callback in callbacks:
            callback._swap_models(module)
