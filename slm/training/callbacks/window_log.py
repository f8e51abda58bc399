"""windows.jsonl: the windows of every step, for log_windows=true."""

from pathlib import Path

from lightning.pytorch.callbacks import Callback

from slm.files import jsonl
from slm.training.callbacks import step_ends


class WindowLog(Callback):
    """Logs the indices of the windows that each step consumed, in the order of the data."""

    def __init__(self, folder: Path):
        self.path = folder / "windows.jsonl"

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if step_ends(trainer, batch_idx):
            windows = trainer.datamodule.step_windows(trainer.datamodule.indices)
            if trainer.is_global_zero:
                jsonl.append(self.path, {"step": trainer.global_step, "windows": windows})
