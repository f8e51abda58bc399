"""How many windows a forward and backward pass may hold: tried out, since no formula knows what an allocator does."""

import torch

from slm.errors import ResourceError
from slm.loss import cross_entropy
from slm.model import GPT, GPTConfig
from slm.training.hardware import CPU_MICROBATCH, Hardware, divisors

AUTOCAST = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
SPARE = 3  # times the parameters, in their own type: two moments of AdamW, and room for what else there is


def is_out_of_memory(error: Exception) -> bool:
    """Of a GPU or of the machine: only some of its ways to say so have an exception of their own."""
    words = "out of memory", "can't allocate memory", "cublas_status_alloc_failed", "cannot allocate memory"
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(word in str(error).lower() for word in words)


def largest_microbatch(config: GPTConfig, share: int, hardware: Hardware) -> int:
    """The largest divisor of a device's `share` of windows that fits, beside gradients and the optimizer's state."""
    model = GPT(config).to(hardware.device)
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
    spare = [torch.empty_like(p) for p in model.parameters() for _ in range(SPARE)]
    windows = torch.randint(model.config.vocab_size, (size, model.config.context + 1), device=hardware.device)
    dtype = AUTOCAST.get(hardware.precision)
    with torch.autocast(hardware.device.type, dtype=dtype, enabled=dtype is not None):
        features = model.features(windows[:, :-1])
        cross_entropy(features, model.head.weight, windows[:, 1:]).backward()
    del spare
