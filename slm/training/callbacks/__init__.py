"""Callbacks of a training, one file each."""


def step_ends(trainer, batch_idx: int) -> bool:
    """True for the last microbatch of an optimizer step."""
    return (batch_idx + 1) % trainer.accumulate_grad_batches == 0
