"""Settings that changed since a checkpoint: they take effect, although its state holds the earlier ones."""

import inspect
from collections.abc import Mapping
from typing import Any

import torch

from slm.errors import UserError
from slm.run.config import RunConfig


def check_optimizer(optimizer: torch.optim.Optimizer):
    """Raises UserError if the restored state of an optimizer of torch or slm lacks what its settings need, or has a
    tensor of another shape, which fused kernels would read beyond its end."""
    if not type(optimizer).__module__.startswith(("torch.optim", "slm.optim")):
        return
    fresh: dict[tuple, dict[str, tuple[int, ...] | None]] = {}  # by what a state depends on: one step for each
    for parameter, state in optimizer.state.items():
        if not isinstance(parameter, torch.Tensor):  # torch keeps a state that belongs to no parameter
            raise UserError("the optimizer's state is damaged: one belongs to no parameter; take another checkpoint")
        kind = parameter.shape, parameter.dtype, parameter.device, tuple(state)
        if state and kind not in fresh:
            fresh[kind] = _fresh_state(optimizer, parameter)
        needed = fresh[kind] if state else {}
        if missing := [name for name in needed if name not in state]:
            raise UserError(
                f"with these settings the optimizer needs {missing[0]}, which the checkpoint does not hold; "
                "give the settings of its run, or start another run"
            )
        for name, shape in needed.items():
            value = state[name]
            if shape is not None and not (isinstance(value, torch.Tensor) and value.shape == shape):
                raise UserError(
                    f"the optimizer's state is damaged: {name} has not the shape {shape}; take another checkpoint"
                )


def _fresh_state(optimizer: torch.optim.Optimizer, parameter: torch.Tensor) -> dict[str, tuple[int, ...] | None]:
    """Name and shape, None for other values than tensors, of a parameter's state after one step."""
    if type(optimizer).__module__.startswith("slm.optim"):
        return {name: tuple(parameter.shape) for name in optimizer.state[parameter] if name != "step"}
    sizes = tuple(range(2, 2 + parameter.dim()))  # all different, so that a shape tells its dimensions
    small = torch.ones(sizes, dtype=parameter.dtype, device=parameter.device, requires_grad=True)
    arguments = inspect.signature(type(optimizer)).parameters
    fresh = type(optimizer)([small], **{key: value for key, value in optimizer.defaults.items() if key in arguments})
    small.grad = torch.ones_like(small)
    fresh.step()
    shapes = {name: getattr(value, "shape", None) for name, value in fresh.state[small].items()}
    return {
        name: None if shape is None else tuple(parameter.size(size - 2) if size > 1 else 1 for size in shape)
        for name, shape in shapes.items()
    }


def apply_settings(callbacks: Mapping[str, Any], old: Mapping[str, Any], config: RunConfig):
    """Gives callbacks those settings that changed and that the state of the checkpoint has set back.

    `old` is the configuration of the checkpoint. A setting is known by the same name in state and callback.
    """
    before = old.get("callbacks")
    for name, callback in callbacks.items():
        earlier = before.get(name) if isinstance(before, Mapping) else None
        if isinstance(earlier, Mapping):
            state = callback.state_dict()
            for key, value in config.plain["callbacks"][name].items():
                if key in state and hasattr(callback, key) and earlier.get(key) != value:
                    setattr(callback, key, value)
