"""Transforms of a step's gradients, applied in order before clipping.

A transform is called with the gradients by parameter name and the number of optimizer steps done, and returns the
gradients to use instead; a parameter that it leaves out is not updated in this step. It may have `begin(model)`, which
is called once before training, and `state_dict` and `load_state_dict`, with which its state is saved and resumed.
"""

import math
from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import Any

import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from slm.errors import UserError, one_line
from slm.model import GPT
from slm.optim.roles import roles

Named = dict[str, Tensor]  # parameter name -> gradient
Transform = Callable[[Named, int], Named]


class Gradients(Callback):
    """Applies those of the named `transforms` that `apply` lists, in its order, to the gradients of each step.

    They see the gradient of the whole batch, over all microbatches and devices, and not scaled for float16. Every
    process applies them to the same gradients. Raises UserError for an unknown name or a result that does not fit.
    """

    def __init__(self, *, apply: list[str], transforms: dict[str, Any]):
        for name in apply:
            if not callable(transforms.get(name)):
                known = ", ".join(other for other, its in transforms.items() if callable(its))
                raise UserError(
                    f"callbacks.gradients.apply=[{','.join(apply)}]: {name} is not one of {known}; add your own with "
                    f"+callbacks.gradients.transforms.{name}._target_=CLASS"
                )
        self.chain: list[tuple[str, Transform]] = [(name, transforms[name]) for name in apply]
        self.restored: dict[str, Any] = {}  # states from a checkpoint, on the CPU

    def on_fit_start(self, trainer, module):
        for name, transform in self.chain:
            if hasattr(transform, "begin"):
                transform.begin(module.model)
            if name in self.restored:
                transform.load_state_dict(move_data_to_device(self.restored[name], module.device))

    def on_before_optimizer_step(self, trainer, module, optimizer):
        parameters = {name: p for name, p in module.model.named_parameters() if p.grad is not None}
        gradients = {name: parameter.grad for name, parameter in parameters.items()}
        with torch.no_grad():
            for name, transform in self.chain:
                gradients = fitting(name, transform(dict(gradients), trainer.global_step), gradients)
        for name, parameter in parameters.items():
            parameter.grad = gradients.get(name)

    def state_dict(self) -> dict:
        states = {name: its.state_dict() for name, its in self.chain if hasattr(its, "state_dict")}
        return {"states": states} if states else {}

    def load_state_dict(self, state: dict):
        self.restored = state["states"]


def fitting(name: str, changed: Any, given: Named) -> Named:
    """The result of a transform. Raises UserError unless it holds tensors like the given ones under their names."""
    odd = changed if isinstance(changed, dict) else {"": changed}
    odd = [key for key, g in odd.items() if key not in given or kind_of(g) != kind_of(given[key])]
    if odd:
        raise UserError(
            f"callbacks.gradients.transforms.{name} must return a dictionary from names of parameters to gradients of "
            f"the shape, dtype and device that it received, not {one_line(repr(changed), 80)}"
        )
    return changed


def kind_of(gradient: Any) -> list:
    return [getattr(gradient, attribute, None) for attribute in ("shape", "dtype", "device")]


class Identity:
    """Changes nothing: the run is bit for bit that without it."""

    def __call__(self, gradients: Named, step: int) -> Named:
        return gradients


class Noise:
    """Adds normal noise of variance eta / (1 + step) ** gamma (arXiv:1511.06807).

    Drawn anew from (seed, step), so a resumed run and every process of a distributed one have the same.
    """

    def __init__(self, *, eta: float, gamma: float, seed: int):
        if not (0 <= eta < math.inf and 0 <= gamma < math.inf):
            raise UserError(f"callbacks.gradients.transforms.noise: {eta=} and {gamma=} must be at least 0 and finite")
        self.eta, self.gamma, self.seed = eta, gamma, seed

    def __call__(self, gradients: Named, step: int) -> Named:
        std = math.sqrt(self.eta / (1 + step) ** self.gamma)
        generators: dict[torch.device, torch.Generator] = {}
        for g in gradients.values():
            if g.device not in generators:
                generators[g.device] = torch.Generator(g.device).manual_seed((self.seed * 1_000_003 + step) % 2**63)
        noise = {name: torch.empty_like(g).normal_(generator=generators[g.device]) for name, g in gradients.items()}
        return {name: g.add(noise[name], alpha=std) for name, g in gradients.items()}


class Centralize:
    """Subtracts from the gradient of each matrix (outputs, inputs) the mean of each row (arXiv:2004.01461)."""

    def __call__(self, gradients: Named, step: int) -> Named:
        return {name: g - g.mean(1, keepdim=True) if g.ndim > 1 else g for name, g in gradients.items()}


class Scale:
    """Multiplies the gradients of the parameters of some roles, or whose names match some patterns, by a factor."""

    def __init__(self, *, parameters: list[str], factor: float):
        self.parameters, self.factor = parameters, factor

    def begin(self, model: GPT):
        self.names = chosen(model, self.parameters, "scale")

    def __call__(self, gradients: Named, step: int) -> Named:
        return {name: g * self.factor if name in self.names else g for name, g in gradients.items()}


class Freeze:
    """Leaves the parameters of some roles, or whose names match some patterns, as they are.

    For the first `steps` steps; None: for all. Weight decay does not change them either.
    """

    def __init__(self, *, parameters: list[str], steps: int | None = None):
        self.parameters, self.steps = parameters, steps

    def begin(self, model: GPT):
        self.names = chosen(model, self.parameters, "freeze")

    def __call__(self, gradients: Named, step: int) -> Named:
        if self.steps is not None and step >= self.steps:
            return gradients
        return {name: g for name, g in gradients.items() if name not in self.names}


def chosen(model: GPT, entries: list[str], transform: str) -> set[str]:
    """The names of the parameters of roles, or that match patterns. Raises UserError for an entry that chooses none."""
    role, found = roles(model), set()
    for entry in entries:
        names = [name for name in role if role[name] == entry or fnmatchcase(name, entry)]
        if not names:
            raise UserError(
                f"callbacks.gradients.transforms.{transform}.parameters: {entry} is neither a role of this model's "
                f"parameters ({', '.join(dict.fromkeys(role.values()))}) nor matches a name such as {[*role][1]}"
            )
        found.update(names)
    return found
