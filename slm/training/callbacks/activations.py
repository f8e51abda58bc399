"""Statistics of the activations of each block and its parts, taken from the training step itself.

Shapes: B windows of a microbatch, T positions, N positions with a target, U units of a part.
"""

from collections.abc import Iterator

import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from slm.errors import UserError
from slm.loss import IGNORE
from slm.own_model import stream_of
from slm.training.callbacks import is_due, remove_hooks, step_ends
from slm.training.callbacks.dynamics import block, evaluated
from slm.training.callbacks.guard import flush_checks
from slm.training.loggers import write_metrics
from slm.training.module import split

STATISTICS = ("mean", "std", "rms", "zeros", "max_abs")


class Activations(Callback):
    """Logs activations/<block>/<part>/<statistic> at the first step and every `every_n_steps` steps.

    Parts are attention and mlp, which add to the residual stream, stream, which is the latter after the block, and
    hidden, the MLP's units behind their activation. Over all microbatches and devices, at positions with a target.
    Only observes, without a forward pass of its own; compiled code hides its parts, so there the microbatches go
    forward once more, without dropout. Raises UserError if every_n_steps is below 1, or for a model without blocks.
    """

    def __init__(self, *, every_n_steps: int):
        if every_n_steps < 1:
            raise UserError(f"callbacks.activations.every_n_steps={every_n_steps} must be at least 1")
        self.every_n_steps = every_n_steps
        self.handles: list[torch.utils.hooks.RemovableHandle] = []
        self.sums: dict[str, Tensor] = {}  # N, and N times the means of x, of its square and of x == 0
        self.highest: dict[str, Tensor] = {}  # of the absolute values

    def on_fit_start(self, trainer, module):
        if not list(parts(module.model)):
            raise UserError("callbacks.activations needs a model with blocks, a ModuleList (docs/own_model.md)")

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if not is_due(trainer.global_step + 1, self.every_n_steps):
            return
        inputs, targets = split(batch)
        self.kept = targets != IGNORE  # (B, T)
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self.sums, self.highest = {}, {}
        for name, part, of_input in parts(module.model):
            self.handles.append(part.register_forward_hook(self._hook(name, of_input)))
        if module.features is not None:
            with torch.no_grad(), trainer.precision_plugin.forward_context():
                evaluated(module.model, inputs)
            remove_hooks(self.handles)

    def on_before_backward(self, trainer, module, loss):
        remove_hooks(self.handles)  # before gradient checkpointing runs the blocks again

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if self.sums and step_ends(trainer, batch_idx):
            flush_checks(trainer)
            sums = trainer.strategy.reduce(torch.stack([*self.sums.values()]), reduce_op="sum")
            highest = trainer.strategy.reduce(torch.stack([*self.highest.values()]), reduce_op="max")
            mean, square, zeros = (sums[:, 1:] / sums[:, :1]).unbind(1)
            std = (square - mean.square()).clamp(min=0).sqrt()
            table = torch.stack([mean, std, square.sqrt(), zeros, highest], dim=1)  # (parts, 5)
            names = [f"activations/{part}/{statistic}" for part in self.sums for statistic in STATISTICS]
            self.sums, self.highest = {}, {}
            write_metrics(trainer, dict(zip(names, table.flatten().tolist(), strict=True)))

    def on_exception(self, trainer, module, exception):
        remove_hooks(self.handles)

    def _hook(self, name: str, of_input: bool):
        @torch.no_grad()
        def note(part: nn.Module, inputs: tuple, output: Tensor):
            x = stream_of(inputs[0] if of_input else output).detach()[self.kept].float()  # (N, U)
            means = torch.stack([x.new_ones(()), x.mean(), x.square().mean(), (x == 0).float().mean()])
            self.sums[name] = self.sums.get(name, 0) + means * len(x)
            self.highest[name] = torch.maximum(self.highest.get(name, x.new_zeros(())), x.abs().amax())

        return note


def parts(model: nn.Module) -> Iterator[tuple[str, nn.Module, bool]]:
    """Name, module, and whether its input is meant instead of its output, of each block and those parts that it has."""
    for layer, its in enumerate(model.blocks):
        attention, mlp = getattr(its, "attention", None), getattr(its, "mlp", None)
        found = {"stream": its, "attention": attention, "mlp": mlp, "hidden": getattr(mlp, "out", None)}
        yield from ((f"{block(layer)}/{n}", part, n == "hidden") for n, part in found.items() if part is not None)
