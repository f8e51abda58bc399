"""A loss of features, logits or hidden states that is added to the cross-entropy of a training.

Shapes: B windows of a microbatch, T positions, C width, V vocabulary.
"""

import inspect
from collections.abc import Callable

import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from slm.errors import UserError
from slm.loss import IGNORE, chunk_rows
from slm.model import GPT
from slm.own_model import stream_of
from slm.training.callbacks import is_due, remove_hooks, step_ends
from slm.training.callbacks.guard import flush_checks
from slm.training.loggers import write_metrics

OFFERED = ("model", "inputs", "targets", "features", "logits", "hidden")


class AuxiliaryLoss(Callback):
    """Adds weight * loss to the cross-entropy of every microbatch, and logs auxiliary/<class of the loss>.

    `loss` is called with those of OFFERED that its signature names: model, inputs and targets (B, T) with IGNORE for
    none, features (B, T, C), logits (B, T, V), hidden, a list of the residual stream (B, T, C) after each block. It
    returns a scalar, a mean over the targets. Raises UserError for another name, and for `hidden` with compiled code.
    """

    def __init__(self, *, loss: Callable[..., Tensor], weight: float, every_n_steps: int):
        if not callable(loss):
            raise UserError(f"callbacks.auxiliary_loss.loss={loss!r} must be {{_target_: CLASS}}, and callable")
        self.names = list(inspect.signature(loss).parameters)
        if unknown := [name for name in self.names if name not in OFFERED]:
            raise UserError(
                f"callbacks.auxiliary_loss.loss: {type(loss).__name__} asks for {unknown[0]}, which is not one of "
                f"{', '.join(OFFERED)}"
            )
        self.loss, self.weight, self.every_n_steps = loss, weight, every_n_steps
        self.restored: dict | None = None  # state from a checkpoint, on the CPU
        self.hidden: list[Tensor] = []
        self.handles: list[torch.utils.hooks.RemovableHandle] = []
        self.sums: Tensor | float = 0.0  # of the loss times targets, and of targets, in this step

    @property
    def state_key(self) -> str:
        return f"AuxiliaryLoss/{type(self.loss).__name__}"

    def state_dict(self) -> dict:
        return {"state": self.loss.state_dict()} if hasattr(self.loss, "state_dict") else {}

    def load_state_dict(self, state: dict):
        self.restored = state["state"]

    def on_fit_start(self, trainer, module):
        if "hidden" in self.names and module.features is not None:
            raise UserError(
                "callbacks.auxiliary_loss: hidden states of compiled code are out of reach; give trainer.compile=false"
            )
        if "hidden" in self.names and not len(module.model.blocks):
            raise UserError(
                "callbacks.auxiliary_loss: hidden needs a model with blocks, a ModuleList (docs/own_model.md)"
            )
        if self.restored is not None:
            self.loss.load_state_dict(move_data_to_device(self.restored, module.device))
        module.auxiliary.append(self._added)

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self.sums = 0.0
        if "hidden" in self.names:
            hook = lambda block, inputs, output: self.hidden.append(stream_of(output))  # noqa: E731
            self.handles = [block.register_forward_hook(hook) for block in module.model.blocks]

    def _added(self, model: GPT, inputs: Tensor, targets: Tensor, features: Tensor) -> Tensor:
        """What is added to the mean loss of a microbatch."""
        remove_hooks(self.handles)
        offered = {"model": model, "inputs": inputs, "targets": targets, "features": features, "hidden": self.hidden}
        if "logits" in self.names:
            offered["logits"] = model.logits(features)
        value = self.loss(**{name: offered[name] for name in self.names})
        self.hidden, count = [], (targets != IGNORE).sum()
        self.sums = self.sums + torch.stack([value.detach() * count, count])
        return self.weight * value

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        step = trainer.global_step
        if step_ends(trainer, batch_idx) and (is_due(step, self.every_n_steps) or step == trainer.max_steps):
            flush_checks(trainer)
            total, count = trainer.strategy.reduce(self.sums, reduce_op="sum").tolist()
            write_metrics(trainer, {f"auxiliary/{type(self.loss).__name__}": total / count})

    def on_exception(self, trainer, module, exception):
        remove_hooks(self.handles)


class ZLoss:
    """The mean square of log Z, the logarithm of the softmax's denominator (PaLM, arXiv:2204.02311, section 5).

    Logits exist for some rows at a time, and once more in the backward pass.
    """

    def __call__(self, model: GPT, features: Tensor, targets: Tensor) -> Tensor:
        rows = features[targets != IGNORE]
        chunks = rows.split(chunk_rows(model.config.vocab_size, rows.device.type))
        sums = [checkpoint(self._squares, model, chunk, use_reentrant=False) for chunk in chunks]
        return torch.stack(sums).sum() / max(len(rows), 1)

    def _squares(self, model: GPT, rows: Tensor) -> Tensor:
        return model.logits(rows).float().logsumexp(-1).square().sum()
