"""Peak memory of training, counted: one training step on tensors without content, whose sizes are added up.

No formula has to follow the model: what `GPT`, the loss and the optimizer would allocate is what counts.
"""

import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from math import ceil, lcm

import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from slm.estimate import weights
from slm.hardware import AUTOCAST, is_here
from slm.loss import chunk_rows, cross_entropy
from slm.masks import takes_blocks
from slm.model import GPT, GPTConfig
from slm.own_model import AnyConfig, build
from slm.planning.distributed import sharded

PARTS = ("weights", "gradients", "optimizer", "activations", "loss", "working")
# The constants of a CPU are fitted to 26 trainings and tested on 20 others (docs/plan.md). The heap keeps what is freed
# (slm.hardware.keep_freed_memory) and has holes: glibc cuts an aligned tensor out of a larger piece, small objects take
# the rest, and no tensor of this size fits into the hole again. So each chunk of logits leaves holes, and each block
# whose activations are computed again.
CPU_PAGES = 39e6  # bytes: of libraries, touched by the first step
CPU_HOLES = {"activations": 0.36, "loss": 0.90}  # bytes per byte; half of the loss's if its logits are one chunk
CPU_RECOMPUTED = 0.44  # bytes per block, and per byte that the backward pass of a block computes again
CPU_CHECKPOINT = 0.46  # bytes per byte of weights and optimizer: their copy, until it is written
CUDA_SMALL = 1.5e6  # bytes within torch's own count, measured on an H100


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes at the moment of the peak, by what they hold; a part that is not there at that moment is small or 0."""

    weights: float
    gradients: float
    optimizer: float
    activations: float  # kept by the forward for the backward pass
    loss: float  # logits of one chunk, and the gradients that the chunked loss keeps
    working: float  # of the backward pass or the optimizer, for a moment
    gathered: float = 0.0  # of a sharded model: weights of the block that is computed, and their gradients
    copies: float  # a checkpoint being written (CPU), averaged weights, buckets of a distributed run
    overhead: float  # of the framework, beside all tensors

    @property
    def peak(self) -> float:
        return sum(vars(self).values())


class _Allocations(TorchDispatchMode):
    """Live bytes by part, and their copy at the highest total."""

    def __init__(self):
        super().__init__()
        self.part, self.live, self.highest = "weights", Counter(), Counter()
        self.parts: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()  # storage -> part

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        result = operator(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and (storage := tensor.untyped_storage()) not in self.parts:
                self.parts[storage] = part = [self.part]
                self.live[self.part] += storage.nbytes()
                weakref.finalize(storage, self._free, part, storage.nbytes())
                if self.live.total() > self.highest.total():
                    self.highest = self.live.copy()
        return result

    def _free(self, part: list[str], size: int):
        self.live[part[0]] -= size

    def move(self, tensor: torch.Tensor, part: str):
        """Counts a tensor as another part from now on."""
        storage = tensor.untyped_storage()
        known, size = self.parts[storage], storage.nbytes()
        self.live[known[0]] -= size
        self.live[part] += size
        known[0] = part


def training_memory(
    config: AnyConfig,
    optimizer: Callable[[GPT], torch.optim.Optimizer],
    *,
    microbatch: int,
    device: torch.device,
    precision: str,
    averaged: bool = False,
    distributed: bool = False,
    shards: int = 1,
    saves: bool = True,
    compiles: bool = False,
) -> Memory:
    """The memory of training with microbatches of so many windows, in steps after the first.

    On a CPU that of the process beyond what it has before the model; on CUDA that of torch's allocator, without
    torch.compile, which needs less: of what it saves, only masks are left out, if it `compiles`. `averaged`: a callback
    averages weights. `distributed`: each device holds buckets of all gradients. `shards`: the model is divided among so
    many devices, and its checkpoint gathered in the memory of the CPU. `saves`: a checkpoint is written while training
    goes on.
    """
    if compiles and isinstance(config, GPTConfig) and takes_blocks(config, device.type, training=True):
        config = replace(config, document_start=None)
    here = is_here({"cuda": "gpu"}.get(device.type, device.type))
    counted = device if here else torch.device("cpu")
    one_step = partial(_one_step, optimizer=optimizer, microbatch=microbatch, device=counted, precision=precision)
    forward, backward = _moments(config, one_step)
    saved = forward["weights"] + forward["optimizer"]
    if shards > 1:
        if precision == "bf16-mixed":  # weights are rounded as they are gathered, and activations with them
            rounded = _moments(config, partial(one_step, rounded=True))[0]
            forward |= {part: rounded[part] for part in ("activations", "loss")}
        forward, backward = sharded([forward, backward], weights(config), precision, shards)
    copies, overheads = (averaged + distributed) * forward["weights"], [_cuda_overhead()] * 2
    if device.type == "cpu":
        copies += saves * (CPU_CHECKPOINT if shards == 1 else 1) * saved
        chunks = ceil(microbatch * config.context / chunk_rows(config.vocab_size, "cpu"))
        holes = CPU_HOLES["activations"] * forward["activations"]
        holes += CPU_HOLES["loss"] * (1 - 0.5 / chunks) * forward["loss"]
        recomputed = CPU_RECOMPUTED * config.depth * backward["working"] if config.gradient_checkpointing else 0.0
        overheads = CPU_PAGES + holes, CPU_PAGES + recomputed
    moments = zip((forward, backward), overheads, strict=True)
    return max((Memory(**parts, copies=copies, overhead=more) for parts, more in moments), key=lambda m: m.peak)


def _cuda_overhead() -> float:
    """Bytes of torch's two workspaces for products of matrices, of the forward and of the backward thread."""
    hopper = torch.cuda.is_available() and torch.cuda.get_device_capability() == (9, 0)
    return 2 * (2**25 if hopper else 8_519_680) + CUDA_SMALL


def _moments(config: AnyConfig, one_step: Callable[[AnyConfig], list[Counter[str]]]) -> list[dict[str, float]]:
    """Bytes by part at each moment. A deep model is counted as a line through two shallow ones with the same pattern
    of blocks."""
    if not isinstance(config, GPTConfig):
        return [{name: float(moment[name]) for name in PARTS} for moment in one_step(config)]
    period = lcm(len(config.window) if isinstance(config.window, list | tuple) else 1, 1 + config.value_embeddings)
    shallow = 3 * period + config.depth % period
    if config.depth <= shallow + period:
        return [{name: float(moment[name]) for name in PARTS} for moment in one_step(config)]
    low, high = (one_step(replace(config, depth=depth)) for depth in (shallow, shallow + period))
    more = (config.depth - shallow) / period
    return [{name: a[name] + more * (b[name] - a[name]) for name in PARTS} for a, b in zip(low, high, strict=True)]


def _one_step(
    config: AnyConfig,
    *,
    optimizer: Callable,
    microbatch: int,
    device: torch.device,
    precision: str,
    rounded: bool = False,
) -> list[Counter[str]]:
    """The live bytes by part at their highest total up to the loss, with the gradients of the step before (which
    Lightning frees then), and after it. `rounded`: with weights in bfloat16, beside autocast."""
    typed = _precision(precision, device, torch.bfloat16 if rounded else None)
    with FakeTensorMode(), _Allocations() as memory, torch.device(device), typed:
        model = build(config)
        windows = torch.randint(config.vocab_size, (microbatch, config.context + 1))
        for parameter in model.parameters():
            memory.part = "gradients"
            parameter.grad = torch.empty_like(parameter)
            parameter.register_post_accumulate_grad_hook(lambda p: memory.move(p.grad, "gradients"))
        memory.part = "optimizer"
        made = optimizer(model)
        _step(made)
        memory.part = "activations"
        features = model.features(windows[:, :-1])
        memory.part = "loss"
        loss = cross_entropy(features, targets=windows[:, 1:], **model.readout)
        forward, memory.highest = memory.highest, Counter()
        model.zero_grad(set_to_none=True)
        memory.part = "working"
        del features
        with torch.autocast(device.type, enabled=False):
            loss.backward()
        del loss
        _step(made)
    return [forward, memory.highest]


def _step(optimizer: torch.optim.Optimizer):
    """A step, up to the first number that it reads from a tensor, which has none: its state exists by then."""
    with suppress(DataDependentOutputException):
        optimizer.step()


@contextmanager
def _precision(precision: str, device: torch.device, weights: torch.dtype | None = None) -> Iterator[None]:
    """Default type, unless `weights` have another, and autocast of one of Lightning's precisions."""
    before = torch.get_default_dtype()
    true = {"bf16-true": torch.bfloat16, "16-true": torch.float16, "64-true": torch.float64}.get(precision)
    torch.set_default_dtype(weights or true or before)
    dtype = AUTOCAST.get(precision)
    try:
        with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
            yield
    finally:
        torch.set_default_dtype(before)
