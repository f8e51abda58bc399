"""What happens between the restored state of a training and its first step."""

from collections.abc import Callable
from typing import Any

import lightning.pytorch as L
from lightning.pytorch.callbacks import Callback

from slm.training.checkpoint_io import refuse_unreadable


class Opening(Callback):
    """Calls `open_run` with the Trainer once the state is restored: until then a run folder is left as it was.

    `opened` is True from then on. Raises UserError at once for a state that a checkpoint could not give back.
    """

    def __init__(self, open_run: Callable[[L.Trainer], Any]):
        self.open_run, self.opened = open_run, False

    def on_train_start(self, trainer, module):
        refuse_unreadable(trainer._checkpoint_connector.dump_checkpoint())
        self.open_run(trainer)
        self.opened, self.open_run = True, None

    def on_fit_end(self, trainer, module):
        if not self.opened:  # Lightning skips a training whose last step is done, after a kill before its run was
            self.on_train_start(trainer, module)
