"""The DataModule: microbatches of windows in the endless order, from any position."""

import multiprocessing
from collections import deque
from collections.abc import Iterable, Iterator

import lightning.pytorch as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, Subset

from slm.corpora import Corpus
from slm.data.order import Order
from slm.data.windows import Splits, evenly_spaced
from slm.errors import ResourceError, UserError
from slm.tokenizers import Tokenizer, text_lengths
from slm.training.callbacks.signals import ignore_signals
from slm.training.equal_stores import check_stores


class WindowsData(L.LightningDataModule):
    """The windows of `split_windows`. Its state is a position: the windows consumed by all devices.

    `validation_windows` limits that split of each source to so many windows, evenly spaced; None: all.
    `validated_train_windows` of train, evenly spaced, are validated as well, in the last loader; None: none.
    `timeout` in seconds is for loader processes. Works in any Trainer.
    """

    def __init__(
        self,
        splits: Splits,
        *,
        tokenizer: Tokenizer,
        microbatch: int,
        seed: int,
        validation_windows: int | None = None,
        validated_train_windows: int | None = None,
        workers: int = 0,
        timeout: float = 300,
        pin_memory: bool = False,
        corpus: Corpus | None = None,
    ):
        super().__init__()
        self.validation, self.context = splits.validation, splits.train.context
        self.validations = {source: part.validation for source, part in splits.by_source().items()}
        self.stores = {source: part.store for source, part in splits.by_source().items()}
        self.targets_per_window = splits.targets_per_window
        self.longest = max(splits.train.longest, self.validation.longest)  # context that fits every window
        self.train = splits.chosen_windows
        parts, count = [*splits.by_source().values()], validated_train_windows
        self.validated_train = [  # indices, as many of each source
            index * len(parts) + source
            for source, part in enumerate(parts if count else ())
            for index in evenly_spaced(len(part.chosen), -(-count // len(parts)))
        ]
        self.order = splits.order(seed)
        self.tokenizer, self.corpus = tokenizer, corpus
        lossless = not splits.store.manifest["splits"]["validation"].get("lost_bytes")
        self.text_lengths = torch.from_numpy(text_lengths(tokenizer)) if lossless else None  # (2, V)
        self.microbatch, self.seed, self.validation_windows = microbatch, seed, validation_windows
        self.workers, self.timeout, self.pin_memory = workers, timeout if workers else 0, pin_memory
        self.start = 0, 0  # step and position at which training starts
        self.earlier_targets = 0  # of the steps until then, beyond what this order has until that position
        self.indices: deque[Tensor] = deque()  # of the windows of the current step, a tensor per microbatch
        self.loaders: list[DataLoader] = []

    def setup(self, stage: str):
        check_stores(self.stores)

    @property
    def windows_per_step(self) -> int:
        return self.microbatch * self.trainer.world_size * self.trainer.accumulate_grad_batches

    def position_at(self, step: int) -> int:
        """Windows that all devices have consumed when that many steps are done, from the first step trained here on."""
        return self.start[1] + (step - self.start[0]) * self.windows_per_step

    def targets_at(self, step: int) -> int:
        """All targets of that many steps, also of those before a fork that changed the data or its order."""
        return self.earlier_targets + self.order.targets_before(self.position_at(step))

    def train_dataloader(self) -> DataLoader:
        self.indices = deque(maxlen=self.trainer.accumulate_grad_batches)
        rank, world = self.trainer.global_rank, self.trainer.world_size
        return self._loader(WithIndices(self.train), sampler=Positions(self.order, self.start[1], rank, world))

    def val_dataloader(self) -> DataLoader | list[DataLoader]:
        """The same evenly spaced windows at every validation; of each source of a mixture in a loader of its own, then
        those of train."""
        rank, world, loaders = self.trainer.global_rank, self.trainer.world_size, []
        for windows in self.validations.values():
            chosen = evenly_spaced(len(windows), self.validation_windows)
            loaders.append(self._loader(Subset(windows, chosen[rank::world])))
        if self.validated_train:
            loaders.append(self._loader(Subset(self.train, self.validated_train[rank::world])))
        return loaders if len(loaders) > 1 else loaders[0]

    def on_before_batch_transfer(self, batch, dataloader_idx: int) -> Tensor:
        if torch.is_tensor(batch):  # of the validation
            return batch
        indices, windows = batch
        self.indices.append(indices)
        return windows

    def step_windows(self, indices: Iterable[Tensor]) -> list[int]:
        """A step's windows in the global order, from its `indices`. A collective: all processes must call it."""
        own = torch.cat(tuple(indices))
        if self.trainer.world_size == 1:
            return own.tolist()
        module = self.trainer.lightning_module
        return module.all_gather(own.to(module.device)).T.flatten().tolist()

    def _loader(self, windows, sampler=None) -> DataLoader:
        loader = DataLoader(
            windows,
            batch_size=self.microbatch,
            sampler=sampler,
            collate_fn=identity_collate,
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
            worker_init_fn=ignore_signals,
            timeout=self.timeout,
            pin_memory=self.pin_memory,
            generator=torch.Generator().manual_seed(self.seed),  # the default would draw from the global generator
        )
        self.loaders.append(loader)
        return loader

    def close(self):
        """Ends the loader processes, which ignore SIGTERM and may hang."""
        for loader in self.loaders:
            if loader._iterator is not None:
                loader._iterator._shutdown_workers()
        for process in multiprocessing.active_children():  # Lightning may have dropped a loader that hangs
            if process.daemon:  # as torch's are
                process.kill()
                process.join(timeout=5)

    def state_dict(self) -> dict[str, int]:
        step = self.trainer.global_step  # a run saves between steps only
        return {"step": step, "consumed": self.position_at(step), "targets": self.targets_at(step)}

    def load_state_dict(self, state: dict[str, int]):
        consumed = state["consumed"]
        self.start = state.get("step", consumed // self.windows_per_step), consumed
        expected = self.order.targets_before(consumed)
        self.earlier_targets = state.get("targets", expected) - expected


class Positions(Sampler[int]):
    """The indices of an order from a position on, for one rank."""

    def __init__(self, order: Order, start: int, rank: int = 0, world: int = 1):
        self.order, self.arguments = order, (start, rank, world)

    def __iter__(self) -> Iterator[int]:
        return self.order.indices(*self.arguments)


class WithIndices(Dataset):
    """Adds the window indices to each microbatch, for errors and logs."""

    def __init__(self, windows: Dataset):
        self.windows = windows

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        """Indices (B,) and windows (B, T). Raises ResourceError if they cannot be read."""
        try:
            return torch.tensor(indices), self.windows.__getitems__(indices)
        except OSError as error:
            raise ResourceError(f"windows {indices} cannot be read: {error.strerror}; check the disk") from None
        except UserError:  # with a sentence of its own
            raise
        except Exception as error:
            error.add_note(f"in windows {indices}")
            raise


def identity_collate(batch):
    """Windows of a microbatch are one tensor already."""
    return batch
