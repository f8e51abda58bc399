"""Callbacks of a training, one file each."""

from torch.utils.hooks import RemovableHandle


def step_ends(trainer, batch_idx: int) -> bool:
    """True for the last microbatch of an optimizer step."""
    return (batch_idx + 1) % trainer.accumulate_grad_batches == 0


def remove_hooks(handles: list[RemovableHandle]):
    """Takes the hooks off their modules, and empties the list."""
    while handles:
        handles.pop().remove()


def is_due(step: int, every_n_steps: int) -> bool:
    """True at the first step and every so many steps."""
    return step == 1 or step % every_n_steps == 0
