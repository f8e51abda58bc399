"""The LightningModule: loss and optimizer, and nothing else. Every other concern is a callback."""

from collections.abc import Callable

import lightning.pytorch as L
import torch
from torch import Tensor
from torchmetrics import Metric

from slm.loss import IGNORE, bits_per_byte, cross_entropy, token_nats
from slm.model import GPT
from slm.optim.schedule import Schedule


class Pretraining(L.LightningModule):
    """Next-token prediction on windows (B, up to context + 1), whose shorter rows end in IGNORE.

    `features` computes those of `model` in training, perhaps by other means; `optimizer` makes the optimizer once the
    model is on its device; `targets_per_window` is their mean number; `token_lengths` (V,) are the bytes of text that
    each id stands for; `clip` is the largest gradient norm, None for no limit.
    """

    def __init__(
        self,
        model: GPT,
        *,
        features: Callable[[Tensor], Tensor],
        optimizer: Callable[[GPT], torch.optim.Optimizer],
        schedule: Schedule,
        targets_per_window: float,
        token_lengths: Tensor,
        clip: float | None,
    ):
        super().__init__()
        self.model, self.make_optimizer, self.schedule, self.clip = model, optimizer, schedule, clip
        self.features = features
        self.targets_per_window = targets_per_window
        self.register_buffer("token_lengths", token_lengths, persistent=False)
        self.validation = LanguageModelMetrics()
        self.nats: Tensor | float = 0.0  # of the step under way, and its targets, on this device
        self.targets: Tensor | float = 0.0
        self.grad_norm: Tensor | None = None  # of the newest step, before clipping
        self.before_update: list[Callable[[], None]] = []  # called when a step's gradients are clipped; see `no_update`
        self.before_use: list[Callable[[], None]] = []  # called before anybody is shown what a step has made

    def on_train_batch_start(self, windows: Tensor, index: int):
        if index % self.trainer.accumulate_grad_batches == 0:
            self.nats = self.targets = 0.0

    def training_step(self, windows: Tensor, index: int) -> Tensor:
        """The nats of all targets over the mean number of targets, so that each target weighs the same in every
        microbatch and on every device, however long their windows are."""
        inputs, targets = split(windows)
        mean = cross_entropy(self.features(inputs), self.model.head.weight, targets)
        count = (targets != IGNORE).sum()
        self.nats, self.targets = self.nats + mean.detach() * count, self.targets + count
        return mean * (count / (len(windows) * self.targets_per_window))

    def validation_step(self, windows: Tensor, index: int) -> Tensor:
        """Nats of each target (B, T), 0 where there is none."""
        inputs, targets = split(windows)
        nats = token_nats(self.model.features(inputs), self.model.head.weight, targets)
        self.validation.update(nats, targets, self.token_lengths)
        return nats

    def on_validation_epoch_end(self):
        self.log_dict({f"val/{name}": value for name, value in self.validation.compute().items()}, logger=False)
        self.validation.reset()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        optimizer = self.make_optimizer(self.model)
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])
        return optimizer

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer):
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * self.schedule(self.trainer.global_step)

    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None):
        limit = float("inf") if self.clip is None else self.clip
        self.grad_norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), limit)
        for act in self.before_update:
            act()

    def settle(self):
        """Waits for all that is to be said of the steps so far; raises where one has gone wrong."""
        for act in self.before_use:
            act()

    def no_update(self):
        """Leaves the step's update out: optimizers pass over parameters without a gradient."""
        for parameter in self.model.parameters():
            parameter.grad = None


def split(windows: Tensor) -> tuple[Tensor, Tensor]:
    """Inputs and targets (B, T). Behind the end of a row any id will do as input: no target looks back at it."""
    return windows[:, :-1].clamp(min=0), windows[:, 1:]


class LanguageModelMetrics(Metric):
    """Loss in nats per token, perplexity and bits per byte of text, over all batches and devices.

    The bits include those of the ids that end documents, which stand for no byte.
    """

    def __init__(self):
        super().__init__()
        self.add_state("nats", torch.zeros(()), dist_reduce_fx="sum")
        self.add_state("tokens", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("bytes", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, nats: Tensor, targets: Tensor, token_lengths: Tensor):
        """Nats and ids of the targets (B, T), and the bytes of text of each id (V,)."""
        kept = targets != IGNORE
        self.nats += nats.sum()
        self.tokens += kept.sum()
        self.bytes += (token_lengths[targets.clamp(min=0)] * kept).sum()

    def compute(self) -> dict[str, Tensor]:
        loss = self.nats / self.tokens
        bits = torch.as_tensor(bits_per_byte(self.nats, self.bytes.clamp(min=1)))
        return {"loss": loss, "perplexity": loss.exp(), "bits_per_byte": bits}
