"""The DataModule: microbatches of windows in endless order, from wherever the last run stopped."""

import multiprocessing
from collections import deque
from collections.abc import Iterable
from typing import Literal

import lightning.pytorch as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from slm.data.store import TokenStore
from slm.data.windows import Documents, InfiniteShuffle, Windows, evenly_spaced
from slm.errors import ResourceError, UserError
from slm.training.callbacks.signals import ignore_requests


class WindowsData(L.LightningDataModule):
    """Its state is the position in the order: the windows that all devices together have consumed or passed over.

    `skipped` windows are passed over since they made the loss rise; `timeout` is in seconds, for loader processes.
    """

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
        timeout: float,
        skipped: int,
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
        self.validation_windows, self.pin_memory = validation_windows, pin_memory
        self.workers, self.timeout = workers, timeout if workers else 0
        self.skipped = self.position = skipped
        self.indices: deque[Tensor] = deque()  # of the windows of each of the step's microbatches, on this device
        self.loaders: list[DataLoader] = []

    def train_dataloader(self) -> DataLoader:
        self.indices = deque(maxlen=self.trainer.accumulate_grad_batches)
        order = InfiniteShuffle(len(self.train), self.seed, self.position, self.trainer.global_rank, self.devices)
        return self._loader(WithIndices(self.train), sampler=order)

    def on_before_batch_transfer(self, batch, dataloader_idx: int) -> Tensor:
        if torch.is_tensor(batch):  # of the validation
            return batch
        indices, windows = batch
        self.indices.append(indices)
        return windows

    def step_windows(self, indices: Iterable[Tensor]) -> list[int]:
        """A step's windows in their order, from its `indices`, once all are there. To be called by all processes."""
        mine = torch.cat(tuple(indices))
        if self.devices == 1:
            return mine.tolist()
        module = self.trainer.lightning_module
        return module.all_gather(mine.to(module.device)).T.flatten().tolist()

    def val_dataloader(self) -> DataLoader:
        """The same windows every time, spread over the split."""
        chosen = evenly_spaced(len(self.validation), self.validation_windows)
        return self._loader(Subset(self.validation, chosen[self.trainer.global_rank :: self.devices]))

    def _loader(self, windows, sampler=None) -> DataLoader:
        loader = DataLoader(
            windows,
            batch_size=self.microbatch,
            sampler=sampler,
            collate_fn=identity_collate,
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
            worker_init_fn=ignore_requests,
            timeout=self.timeout,
            pin_memory=self.pin_memory,
            generator=torch.Generator().manual_seed(self.seed),  # else a loader draws from the global one
        )
        self.loaders.append(loader)
        return loader

    def close(self):
        """Ends the loader processes, which ignore a friendly request, and of which one may hang."""
        for loader in self.loaders:
            if loader._iterator is not None:
                loader._iterator._shutdown_workers()
        for process in multiprocessing.active_children():  # Lightning may have let go of a hanging one
            if process.daemon:  # as torch's are
                process.kill()
                process.join(timeout=5)

    def state_dict(self) -> dict[str, int]:
        trainer = self.trainer  # which saves between steps only
        per_step = self.microbatch * self.devices * trainer.accumulate_grad_batches
        return {"consumed": trainer.global_step * per_step + self.skipped, "skipped": self.skipped}

    def load_state_dict(self, state: dict[str, int]):
        before = state.get("skipped", 0)  # more may be skipped now
        self.skipped = max(self.skipped, before)
        self.position = state["consumed"] + self.skipped - before


class WithIndices(Dataset):
    """With the windows of each microbatch, their indices, which an error in reading them names."""

    def __init__(self, windows: Dataset):
        self.windows = windows

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        try:
            return torch.tensor(indices), self.windows.__getitems__(indices)
        except OSError as error:
            raise ResourceError(f"windows {indices} cannot be read: {error.strerror}; is the disk well?") from None
        except Exception as error:
            error.add_note(f"in windows {indices}")
            raise


def identity_collate(batch):
    """The windows of a microbatch come as one tensor already."""
    return batch
