"""Weights in the type and order that decode fastest: each token reads all of them once, so its time is their bytes."""

from functools import cache
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slm.errors import UserError
from slm.hardware import has_fast_bfloat16, is_x86
from slm.model import GPT

Dtype = Literal["float32", "bfloat16", "int8"]
ROWS = 32  # that weights are packed for; more of them, or fewer, are as fast


def for_decoding(model: GPT, dtype: Dtype) -> GPT:
    """Changes the model in place, for generation and evaluation: it cannot be trained any more.

    int8 stores the matrices of all linear layers in 8 bits; their inputs and all other parameters stay as they are.
    Raises: UserError: if dtype is int8 and the model is not on a CPU.
    """
    device = next(model.parameters()).device
    check_dtype(dtype, device)
    if dtype == "int8":
        _replace_linear(model, Int8Linear)
        return model
    model.to(getattr(torch, dtype))
    if device.type == "cpu" and has_packed_products(dtype):
        _replace_linear(model, PackedLinear)
    return model


def has_packed_products(dtype: Dtype) -> bool:
    """True if this CPU has oneDNN's kernels for these weights. Those of other kinds than x86 were not measured."""
    return is_x86() and torch.backends.mkldnn.is_available() and (dtype == "float32" or has_fast_bfloat16("cpu"))


def _replace_linear(model: GPT, kind: type[nn.Module]):
    for name, module in list(model.named_modules()):
        if type(module) in (nn.Linear, PackedLinear):
            model.set_submodule(name, kind(module))


def fastest(device: torch.device, texts: int) -> Dtype:
    """The type of weights that generates so many texts at a time fastest on a device (benchmarks/generate.py)."""
    sixteen_bit = has_fast_bfloat16(device)
    few = 4 if sixteen_bit else 8  # up to so many, to read the weights takes longer on a CPU than to multiply them
    if device.type == "cpu" and texts <= few:
        return "int8"
    return "bfloat16" if sixteen_bit else "float32"


def check_dtype(dtype: Dtype, device: torch.device):
    """Raises UserError if the device has no such weights."""
    if dtype == "int8" and device.type != "cpu":
        raise UserError(f"dtype=int8 is for CPUs, whose memory is slow; on device={device.type} use dtype=bfloat16")


def in_eight_bits(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A matrix (rows, columns) as int8, and the scales (rows,) in bfloat16 of which its rows are multiples."""
    weight = weight.detach().float()
    scales = (weight.abs().amax(dim=1) / 127).clamp(min=1e-12).bfloat16()
    return (weight / scales.float()[:, None]).round().clamp(-127, 127).to(torch.int8), scales


class PackedLinear(nn.Linear):
    """The same layer, with its weights a second time in the order of oneDNN's kernels, which take half of the time
    for a few rows. These are used without gradients. MKL multiplies one row in float32 on one thread only: with at
    least as many outputs, which is faster by columns, as parts of the row, about one for each thread."""

    def __init__(self, linear: nn.Linear):
        super().__init__(linear.in_features, linear.out_features, linear.bias is not None, device="meta")
        self.in_parts = linear.weight.dtype == torch.float32 and linear.out_features >= linear.in_features
        if self.in_parts:  # by columns
            linear.weight.data = linear.weight.data.T.contiguous().T
        self.weight, self.bias = linear.weight, linear.bias
        self.packed: Tensor | None = None
        self.source: Tensor | None = None  # the weights that are packed; kept, so that no others can take their place
        self.version = 0  # of the source

    def __getstate__(self) -> dict:
        """Without what torch cannot copy."""
        return {**vars(self), "packed": None, "source": None}

    def forward(self, x: Tensor) -> Tensor:
        packable = x.is_cpu and x.dtype in (torch.float32, torch.bfloat16)
        if not packable or torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
            return super().forward(x)
        one_row, threads = x.numel() == self.in_features and x.dtype == torch.float32, torch.get_num_threads()
        if one_row and threads == 1:
            return super().forward(x)
        if one_row and self.in_parts:
            return self._sum_of_parts(x, parts_of(self.in_features, threads))
        version = 0 if self.weight.is_inference() else self.weight._version
        if self.source is None or (self.source.data_ptr(), self.version) != (self.weight.data_ptr(), version):
            self.packed = torch.ops.mkldnn._reorder_linear_weight(self.weight.detach().contiguous(), ROWS)
            self.source, self.version = self.weight.detach(), version
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")

    def _sum_of_parts(self, x: Tensor, parts: int) -> Tensor:
        """One row, as the sum of the products of its parts and those of the weights."""
        products = torch.bmm(x.reshape(parts, 1, -1), self.weight.T.view(parts, -1, self.out_features))
        y = products.sum(0).view(*x.shape[:-1], -1)
        return y if self.bias is None else y + self.bias


@cache
def parts_of(features: int, threads: int) -> int:
    """The largest number of equal parts that is at most the threads; more than 16 take longer to add."""
    return max(parts for parts in range(1, min(threads, 16) + 1) if features % parts == 0)


class Int8Linear(nn.Module):
    """W x + b, each row of W in 8 bits as a multiple of its own scale, computed in bfloat16 with sums in float32.

    Rows are padded with zeros, since torch's kernel reads 16 numbers at a time, also after the end of a row.
    """

    def __init__(self, linear: nn.Linear):
        super().__init__()
        eight, scales = in_eight_bits(linear.weight)
        self.padding = -eight.size(1) % 16
        self.register_buffer("weight", F.pad(eight, (0, self.padding)).contiguous())
        self.register_buffer("scales", scales)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(0, -2).bfloat16()
        rows = F.pad(rows, (0, self.padding)) if self.padding else rows
        y = torch._weight_int8pack_mm(rows, self.weight, self.scales).view(*x.shape[:-1], -1)
        return y.to(x.dtype) if self.bias is None else y + self.bias  # whose type is that of x
