"""Facts that only an import of torch and torchmetrics can tell, as lines of JSON: python -m slm.checks.probe.

In a process of its own, since such an import can take long, fail, or end the process.
"""

import json
import time
from importlib import import_module
from typing import Any


def device_facts() -> dict[str, Any]:
    import torch

    from slm.errors import UserError
    from slm.hardware import has_fast_bfloat16, resolve_hardware, why_no_cuda
    from slm.planning.devices import memory_of

    flags = {"avx512_bf16": "_is_avx512_bf16_supported", "amx": "_is_amx_tile_supported"}
    facts = {
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "why_no_cuda": None if torch.cuda.is_available() else why_no_cuda(),
        "flags": [name for name, test in flags.items() if getattr(torch.cpu, test, lambda: False)()],
    }
    try:
        hardware = resolve_hardware("auto", 1, 1, "auto")
    except UserError as error:
        return {**facts, "problem": str(error)}
    device = {"name": hardware.name, "accelerator": hardware.accelerator, "precision": hardware.precision}
    fast = has_fast_bfloat16(hardware.device)
    return {**facts, **device, "memory": memory_of(hardware.device), "fast_bfloat16": fast}


def main():
    begin = time.monotonic()
    facts = device_facts()
    print(json.dumps({**facts, "seconds": time.monotonic() - begin}), flush=True)
    import_module("torchmetrics")  # which Lightning imports; the whole of Lightning takes twice as long
    print(json.dumps({"torchmetrics_seconds": time.monotonic() - begin}), flush=True)


if __name__ == "__main__":
    main()
