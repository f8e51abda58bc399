"""Windows per forward pass: as asked for, the usual number, or the largest that fits."""

import torch

from slm.errors import ResourceError, UserError, is_out_of_memory
from slm.hardware import AUTOCAST, Hardware
from slm.loss import cross_entropy
from slm.model import GPT
from slm.own_model import AnyConfig, build

GPU_MICROBATCH, CPU_MICROBATCH = 32, 8  # windows, unless trainer.microbatch says otherwise
SPARE_COPIES = 3  # of the parameters, kept free for two moments of AdamW and what else a step needs


def choose_microbatch(asked: int | None, accumulation: int | None, batch_windows: int, hardware: Hardware) -> int:
    """Windows per forward pass and device: `asked`, what `accumulation` implies, or the largest usual divisor.

    Raises UserError unless whole microbatches on all devices make up the batch.
    """
    if batch_windows % hardware.devices:
        raise UserError(
            f"data.batch_windows={batch_windows} must be a multiple of the {hardware.devices} devices (trainer.devices)"
        )
    share = batch_windows // hardware.devices
    if accumulation is not None:
        if accumulation < 1 or share % accumulation:
            raise UserError(
                f"trainer.accumulate_grad_batches={accumulation} must divide the {share} windows of each device "
                "(data.batch_windows / devices)"
            )
        return share // accumulation
    if asked is None:
        return divisors(share, GPU_MICROBATCH if hardware.accelerator == "gpu" else CPU_MICROBATCH)[0]
    if asked < 1:
        raise UserError(f"trainer.microbatch={asked} must be at least 1")
    if share % asked:
        near = max(share // asked, 1) * asked * hardware.devices
        raise UserError(
            f"data.batch_windows={batch_windows} must be a multiple of trainer.microbatch={asked}"
            + (f" x {hardware.devices} devices" if hardware.devices > 1 else "")
            + f"; try trainer.microbatch={divisors(share, asked)[0]}, or data.batch_windows={near}"
        )
    return asked


def smaller_microbatch(size: int, batch_windows: int, hardware: Hardware) -> int:
    """The next microbatch below `size` that divides the batch."""
    return divisors(batch_windows // hardware.devices, max(size - 1, 1))[0]


def divisors(share: int, limit: int) -> list[int]:
    """The divisors of a device's share of the batch, from at most `limit` windows down."""
    return [size for size in range(min(share, limit), 0, -1) if share % size == 0]


def largest_microbatch(config: AnyConfig, share: int, hardware: Hardware) -> int:
    """The largest divisor of a device's `share` of windows that fits beside gradients and optimizer state.

    Each one is tried, since no formula predicts an allocator. Raises ResourceError if a single window does not fit.
    """
    model = build(config).to(hardware.device)
    for size in divisors(share, share if hardware.accelerator == "gpu" else CPU_MICROBATCH):
        try:
            _train_once(model, size, hardware)
            return size
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        finally:
            model.zero_grad(set_to_none=True)
            if hardware.accelerator == "gpu":
                torch.cuda.empty_cache()
    raise ResourceError(
        f"not even one window of model.context={config.context} fits into the memory of {hardware.name}; use a smaller "
        "model.width or model.depth, or model.gradient_checkpointing=true"
    )


def _train_once(model: GPT, size: int, hardware: Hardware):
    spare = [torch.empty_like(p) for p in model.parameters() for _ in range(SPARE_COPIES)]
    windows = torch.randint(model.config.vocab_size, (size, model.config.context + 1), device=hardware.device)
    dtype = AUTOCAST.get(hardware.precision)
    with torch.autocast(hardware.device.type, dtype=dtype, enabled=dtype is not None):
        features = model.features(windows[:, :-1])
        cross_entropy(features, targets=windows[:, 1:], **model.readout).backward()
    del spare
