"""Weights in the type and order that decode fastest: each token reads all of them once, so its time is their bytes."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slm.errors import UserError
from slm.hardware import has_fast_bfloat16
from slm.model import GPT

Dtype = Literal["float32", "bfloat16", "int8"]
FEW = 8  # texts at a time up to which reading the weights takes longer on a CPU than multiplying them


def for_decoding(model: GPT, dtype: Dtype) -> GPT:
    """Changes the model in place, for generation and evaluation: it cannot be trained any more.

    int8 stores the matrices of all linear layers in 8 bits; their inputs and all other parameters stay as they are.
    Raises: UserError: if dtype is int8 and the model is not on a CPU.
    """
    device = next(model.parameters()).device
    check_dtype(dtype, device)
    if dtype == "int8":
        for name, module in list(model.named_modules()):
            if type(module) is nn.Linear:
                model.set_submodule(name, Int8Linear(module))
        return model
    model.to(getattr(torch, dtype))
    if dtype == "float32" and device.type == "cpu":
        for module in model.modules():
            if isinstance(module, nn.Linear):  # in this order the few rows of decoding are twice as fast
                module.weight.data = module.weight.data.T.contiguous().T
    return model


def fastest(device: torch.device, texts: int) -> Dtype:
    """The type of weights that generates so many texts at a time fastest on a device (benchmarks/generate.py)."""
    if device.type == "cpu" and texts <= FEW:
        return "int8"
    return "bfloat16" if has_fast_bfloat16(device) else "float32"


def check_dtype(dtype: Dtype, device: torch.device):
    """Raises UserError if the device has no such weights."""
    if dtype == "int8" and device.type != "cpu":
        raise UserError(f"dtype=int8 is for CPUs, whose memory is slow; on device={device.type} use dtype=bfloat16")


def in_eight_bits(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A matrix (rows, columns) as int8, and the scales (rows,) in bfloat16 of which its rows are multiples."""
    weight = weight.detach().float()
    scales = (weight.abs().amax(dim=1) / 127).clamp(min=1e-12).bfloat16()
    return (weight / scales.float()[:, None]).round().clamp(-127, 127).to(torch.int8), scales


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
        y = torch._weight_int8pack_mm(rows, self.weight, self.scales)
        y = y.view(*x.shape[:-1], -1).to(x.dtype)
        return y if self.bias is None else y + self.bias
