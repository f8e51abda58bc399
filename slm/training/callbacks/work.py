"""Which process the others wait for: each one's seconds for its own part of a step."""

import statistics
import sys
import time

import lightning.pytorch as L
import torch

from slm.training.module import Pretraining

FACTOR, SHARE = 1.5, 0.1  # of the others' seconds, and of a step, from which on a process is named


class OwnWork:
    """Seconds from the end of a microbatch to the backward pass of the next, for reading and the forward pass.

    The backward pass waits for all processes. A process is named once it is the slowest at two log lines in a row.
    """

    def __init__(self):
        self.seconds = 0.0  # of the current step
        self.slowest = self.named = None

    def add(self, module: Pretraining):
        """Before a backward pass."""
        if module.batch_ended is not None:
            if module.device.type == "cuda":
                torch.cuda.synchronize(module.device)
            self.seconds += time.perf_counter() - module.batch_ended

    def compared(self, trainer: L.Trainer, step_seconds: float) -> dict[str, float]:
        """The slowest process and its seconds over the median of the others'. A collective."""
        own = torch.tensor(self.seconds, dtype=torch.float32, device=trainer.strategy.root_device)
        each, self.seconds = trainer.strategy.all_gather(own).tolist(), 0.0
        rank = max(range(len(each)), key=each.__getitem__)
        usual = statistics.median(each[:rank] + each[rank + 1 :])
        if not usual:
            return {}
        late = each[rank] > FACTOR * usual and each[rank] - usual > SHARE * step_seconds
        if late and rank == self.slowest != self.named and trainer.is_global_zero:
            node = f" (of node {rank // trainer.num_devices})" if trainer.num_nodes > 1 else ""
            print(
                f"warning: step {trainer.global_step}: process {rank}{node} takes {each[rank]:.3g} seconds to read and "
                f"pass on its windows, the others {usual:.3g}, and all wait for it",
                file=sys.stderr,
            )
            self.named = rank
        self.slowest = rank if late else None
        return {"slowest_process": rank, "slowest_over_others": round(each[rank] / usual, 2)}
