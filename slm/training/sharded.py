"""Fully sharded training (FSDP2): each process keeps a part of every weight, gradient and state of the optimizer.

A block's weights are gathered for its forward and backward pass. Checkpoints are read by any number of devices, with
any strategy: they hold whole weights, in the format of every other run, or are sharded.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning.pytorch as L
import torch
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from slm import checkpoint
from slm.checkpoint import shards
from slm.files import run_folder
from slm.model import GPT
from slm.optim.shares import is_divided, part_of, whole

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


def shard(model: GPT, mesh: "DeviceMesh", precision: str) -> GPT:
    """Divides the weights of each block, and those outside of blocks, among the processes of a mesh. In place.

    Weights outside of blocks stay gathered until the end of the backward pass: the loss reads the head's. In
    `bf16-mixed` weights are rounded before they are sent, and gradients are summed in float32. In `16-mixed` they are
    not: the residual stream would be in float16 too.
    """
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

    rounded = torch.bfloat16 if precision == "bf16-mixed" else None
    policy = MixedPrecisionPolicy(
        param_dtype=rounded, reduce_dtype=rounded and torch.float32, cast_forward_inputs=False
    )
    for block in model.blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy, reshard_after_forward=False)
    register_fsdp_forward_method(model, "features")
    return model


class ShardedStrategy(ModelParallelStrategy):
    """Lightning's strategy for FSDP2, with all devices for the data, whole checkpoints, and averaged weights."""

    lightning_restore_optimizer = True

    def __init__(self):
        super().__init__(tensor_parallel_size=1)

    def setup_environment(self):
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def setup(self, trainer: L.Trainer):
        """As that of Lightning, which leaves the sharding to the module, and cannot shard averaged weights."""
        self.accelerator.setup(trainer)
        for module in self._modules(trainer):
            shard(module.model, self.device_mesh["data_parallel"], self.precision_plugin.precision)
        self.precision_plugin.convert_module(self.model)
        self.model_to_device()
        self.barrier()
        if trainer.state.fn == TrainerFn.FITTING:
            self.setup_optimizers(trainer)
        self.setup_precision_plugin()

    def teardown(self):
        """Also waits for the checkpoint that is being written, which Lightning's does not."""
        super().teardown()
        self.checkpoint_io.teardown()

    def validation_step(self, *arguments) -> Any:
        with torch.compiler.set_stance("force_eager"):  # as without sharding, only training is compiled
            result = super().validation_step(*arguments)
        self.lightning_module.model.reshard()  # what a backward pass would have done
        return result

    def lightning_module_state_dict(self) -> dict[str, Any]:
        return self.lightning_module.state_dict()

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        return optimizer.state_dict()

    def save_checkpoint(self, content: dict[str, Any], filepath, storage_options=None):
        if storage_options and storage_options["sharded"]:
            self.checkpoint_io.save_sharded(content, Path(filepath))
        else:
            Strategy.save_checkpoint(self, gathered(content, self.is_global_zero), filepath, storage_options)

    def load_checkpoint(self, checkpoint_path, weights_only: bool | None = None) -> dict[str, Any]:
        """A sharded checkpoint is read part by part, whatever the number of processes that wrote it."""
        path = Path(checkpoint_path)
        content = checkpoint.read(path, outline=True, intact=True)  # slm.run.resume has read it
        parameters = dict(self.lightning_module.named_parameters(remove_duplicate=False))
        for name in {"state_dict", "current_model_state"} & content.keys():
            content[name] = {key: divided(value, parameters.get(key)) for key, value in content[name].items()}
        for optimizer, state in zip(self.optimizers, content["optimizer_states"], strict=True):
            own = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            for place, values in state["state"].items():
                state["state"][place] = {key: divided(value, own[place]) for key, value in values.items()}
        return shards.filled(path, content) if run_folder.is_sharded(path) else content

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True):
        Strategy.load_model_state_dict(self, checkpoint, strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]):
        Strategy.load_optimizer_state_dict(self, checkpoint)

    def _modules(self, trainer: L.Trainer) -> list[L.LightningModule]:
        return [self.lightning_module, *(callback._average_model.module for callback in averaging(trainer))]


def averaging(trainer: L.Trainer) -> list[WeightAveraging]:
    """The callbacks that keep averaged weights by now."""
    return [c for c in trainer.callbacks if isinstance(c, WeightAveraging) and c._average_model is not None]


def gathered_model(model: GPT, keep: bool) -> GPT | None:
    """A model with whole weights, on the same device, where `keep` is true; one that is not sharded is itself.

    A collective: one tensor after the other is gathered, and dropped by the other processes.
    """
    parameters = list(model.parameters())
    if not any(map(is_divided, parameters)):
        return model if keep else None
    with parameters[0].device:
        plain = GPT(model.config).to(parameters[0].dtype) if keep else None
    own = plain.state_dict() if plain else {}
    for name, weight in model.state_dict().items():
        found = whole(weight)
        if plain:
            own[name].copy_(found)
    return plain and plain.eval()


def gathered(tree: Any, keep: bool) -> Any:
    """Nested values with every divided tensor whole, in memory of the CPU, where `keep` is true, else None.

    A collective: one tensor after the other is gathered.
    """

    def gather(place: str, leaf: Any) -> Any:
        if not is_divided(leaf):
            return leaf
        found = whole(leaf.detach())
        return found.cpu() if keep else None

    return shards.mapped(tree, gather)


def divided(value: Any, parameter: Tensor | None) -> Any:
    """This process's part of a tensor in the shape of a divided parameter, or with a number for each of its rows, not
    filled if that has no memory; any other value as it is."""
    shapes = (parameter.shape, (*parameter.shape[:1], 1)) if is_divided(parameter) else ()
    if isinstance(value, Tensor) and value.shape in shapes:
        if value.is_meta:
            place = {"device_mesh": parameter.device_mesh, "placements": parameter.placements}
            return torch.distributed.tensor.empty(value.shape, dtype=value.dtype, **place)
        return part_of(value.to(parameter.device), parameter)
    return value
