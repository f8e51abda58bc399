"""Settings that changed since a checkpoint: they take effect, although its state holds the earlier ones."""

import inspect
from collections.abc import Mapping
from typing import Any

import torch

from slm.errors import UserError
from slm.run.config import RunConfig


def check_optimizer(optimizer: torch.optim.Optimizer):
    """Raises UserError if a setting of a torch optimizer needs state that the restored one does not hold."""
    restored = next((state for state in optimizer.state.values() if state), None)
    if restored is None or not type(optimizer).__module__.startswith("torch.optim"):
        return
    parameter = optimizer.param_groups[0]["params"][0]
    small = torch.ones(1, 1, dtype=parameter.dtype, device=parameter.device, requires_grad=True)
    arguments = inspect.signature(type(optimizer)).parameters
    fresh = type(optimizer)([small], **{key: value for key, value in optimizer.defaults.items() if key in arguments})
    small.grad = torch.ones_like(small)
    fresh.step()
    if missing := [name for name in fresh.state[small] if name not in restored]:
        raise UserError(
            f"with these settings the optimizer needs {missing[0]}, which the checkpoint does not hold; "
            "give the settings of its run, or start another run"
        )


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
