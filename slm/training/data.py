"""The DataModule: microbatches of windows in endless order, from wherever the last run stopped."""

from typing import Literal

import lightning.pytorch as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from slm.data.store import TokenStore
from slm.data.windows import Documents, EndlessOrder, Windows, spread
from slm.errors import UserError


class WindowsData(L.LightningDataModule):
    """Its state is one integer: the windows that all devices together have consumed."""

    def __init__(
        self,
        store: TokenStore,
        *,
        layout: Literal["packed", "documents"],
        eos: int,
        context: int,
        microbatch: int,
        devices: int,
        validation_windows: int | None,
        workers: int,
        pin_memory: bool,
        seed: int,
    ):
        super().__init__()
        if layout == "documents":
            self.train, self.validation = (Documents(store, s, context, eos) for s in ("train", "validation"))
        else:
            self.train, self.validation = (Windows(store, s, context) for s in ("train", "validation"))
        if min(len(self.validation), validation_windows or devices) < devices:
            raise UserError(
                f"data.validation_windows={validation_windows} (of {len(self.validation)}) must be at least "
                f"the {devices} devices"
            )
        self.microbatch, self.devices, self.seed = microbatch, devices, seed
        self.validation_windows, self.workers, self.pin_memory = validation_windows, workers, pin_memory
        self.consumed = 0

    def train_dataloader(self) -> DataLoader:
        order = EndlessOrder(len(self.train), self.seed, self.consumed, self.trainer.global_rank, self.devices)
        return self._loader(self.train, sampler=order)

    def val_dataloader(self) -> DataLoader:
        """The same windows every time, spread over the split."""
        chosen = spread(len(self.validation), self.validation_windows)
        return self._loader(Subset(self.validation, chosen[self.trainer.global_rank :: self.devices]))

    def _loader(self, windows, sampler=None) -> DataLoader:
        return DataLoader(
            windows,
            batch_size=self.microbatch,
            sampler=sampler,
            collate_fn=as_it_is,
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
            pin_memory=self.pin_memory,
            generator=torch.Generator().manual_seed(self.seed),  # else a loader draws from the global one
        )

    def state_dict(self) -> dict[str, int]:
        trainer = self.trainer  # which saves between steps only
        per_step = self.microbatch * self.devices * trainer.accumulate_grad_batches
        return {"consumed": trainer.global_step * per_step}

    def load_state_dict(self, state: dict[str, int]):
        self.consumed = state["consumed"]


def as_it_is(batch: Tensor) -> Tensor:
    """The windows of a microbatch come as one tensor already."""
    return batch
