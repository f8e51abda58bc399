"""The LightningModule: loss, optimizer and learning rate. Everything else in a training is a callback."""

import time
from collections.abc import Callable
from functools import cached_property

import lightning.pytorch as L
import torch
from torch import Tensor
from torchmetrics import Metric

from slm.checkpoint import describe
from slm.loss import IGNORE, RowLoss, bits_per_byte, cross_entropy, ids_of, text_sizes, token_nats
from slm.model import GPT
from slm.optim.shares import whole

SUMS = {"nats": torch.float32, "text_nats": torch.float32, "tokens": torch.long, "bytes": torch.long}
SAME_EVERYWHERE = {"sync_dist": True, "reduce_fx": "max"}  # of values equal on all devices, which a mean might round


class Pretraining(L.LightningModule):
    """Next-token prediction on windows (B, up to context + 1), whose shorter rows end in IGNORE.

    `optimizer` makes the optimizer once the model is on its device. `schedule` maps the optimizer steps done to a
    multiplier of the learning rate; None keeps it constant. `features` and `row_loss` replace `model.features` and
    `slm.loss.loss_of_rows` in training, for example by compiled versions. `description` (slm.checkpoint.describe) makes
    checkpoints sufficient on their own; None: it is made from the datamodule's tokenizer. Works in any Trainer; a
    WindowsData adds bits per byte.
    """

    def __init__(
        self,
        model: GPT,
        *,
        optimizer: Callable[[GPT], torch.optim.Optimizer],
        schedule: Callable[[int], float] | None = None,
        features: Callable[[Tensor], Tensor] | None = None,
        row_loss: RowLoss | None = None,
        description: dict | None = None,
    ):
        super().__init__()
        self.model, self.make_optimizer, self.schedule = model, optimizer, schedule
        self.features, self.row_loss = features, row_loss
        self.description = description
        self.auxiliary: list[Callable[..., Tensor]] = []  # (model, inputs, targets, features) -> added to the mean loss
        self.validation = LanguageModelMetrics()
        self.sources: list[str] = []  # of a mixture
        self.by_source = torch.nn.ModuleList()  # the metrics of each
        self.on_train = LanguageModelMetrics()  # of windows of train, which a loader after all others has
        self.targets_per_window: float = model.config.context  # mean, over the training split
        self.text_lengths: Tensor | None = None  # (2, V) bytes per id; no buffer, which averaging would change
        self.nats: Tensor | float = 0.0  # summed over the current step on this device, like its targets
        self.targets: Tensor | int = 0
        self.grad_norm: Tensor | None = None  # of the newest step, before clipping
        self.batch_ended: float | None = None  # the previous microbatch, with all callbacks, on time.perf_counter
        self.configured: list[dict] = []  # settings of the optimizer's groups, as configured

    def __getstate__(self) -> dict:
        """Without compiled functions: a copy, as weight averaging makes one, computes its own features."""
        return {**super().__getstate__(), "features": None, "row_loss": None, "auxiliary": []}

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits (B, T, V) for tokens (B, T)."""
        return self.model(tokens)

    def setup(self, stage: str):
        vars(self).pop("weights", None)  # of an earlier training
        data = self.trainer.datamodule
        self.targets_per_window = getattr(data, "targets_per_window", self.targets_per_window)
        self.text_lengths = getattr(data, "text_lengths", None)
        self.sources = [*filter(None, getattr(data, "validations", ()))]
        self.by_source = torch.nn.ModuleList(LanguageModelMetrics() for _ in self.sources)

    def on_train_start(self):
        optimizer = self.trainer.optimizers[0]
        names = {*optimizer.defaults, "initial_lr"}  # settings; other entries of a group are the optimizer's state
        for group, configured in zip(optimizer.param_groups, self.configured):
            group.update({k: v for k, v in configured.items() if k in names})  # not those of the checkpoint
        self._set_learning_rate()

    def on_train_batch_start(self, windows: Tensor, index: int):
        if index % self.trainer.accumulate_grad_batches == 0:
            self.nats, self.targets = 0.0, 0

    def training_step(self, windows: Tensor, index: int) -> Tensor:
        """The nats of all targets over the mean number of targets: each target has the same weight in every
        microbatch and on every device, whatever the lengths of their windows."""
        inputs, targets = split(windows)
        features = (self.features or self.model.features)(inputs)
        mean = cross_entropy(features, targets=targets, **self.model.readout, row_loss=self.row_loss)
        count = (targets != IGNORE).sum()
        self.nats, self.targets = self.nats + mean.detach() * count, self.targets + count
        for added in self.auxiliary:
            mean = mean + added(self.model, inputs, targets, features)
        return mean * (count.to(mean.dtype) / (len(windows) * self.targets_per_window))  # default: perhaps 16 bits

    def on_train_batch_end(self, outputs, windows: Tensor, index: int):
        if (index + 1) % self.trainer.accumulate_grad_batches == 0:
            self._set_learning_rate()
        self.batch_ended = time.perf_counter()

    def on_validation_end(self):
        self.batch_ended = time.perf_counter()

    def validation_step(self, windows: Tensor, index: int, dataloader_idx: int = 0) -> Tensor:
        """Nats of each target (B, T), 0 for IGNORE. The loader after those of the sources has windows of train."""
        inputs, targets = split(windows)
        nats = token_nats(self.model.features(inputs), targets=targets, **self.model.readout)
        if self.text_lengths is not None:
            self.text_lengths = self.text_lengths.to(nats.device)
        own = (self.validation, *self.by_source[dataloader_idx : dataloader_idx + 1])
        for metrics in own if dataloader_idx < max(len(self.sources), 1) else (self.on_train,):
            metrics.update(nats, windows, self.text_lengths)
        return nats

    def on_validation_epoch_end(self):
        names = ["val", *(f"val/{source}" for source in self.sources)]
        for prefix, metrics in zip(names, (self.validation, *self.by_source)):
            self.log_dict({f"{prefix}/{name}": value for name, value in metrics.compute().items()}, **SAME_EVERYWHERE)
            metrics.reset()
        if self.on_train.tokens > 0:
            self.log("val/train_loss", self.on_train.compute()["loss"], **SAME_EVERYWHERE)
            self.on_train.reset()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        optimizer = self.make_optimizer(self.model)
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])
        self.configured = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
        return optimizer

    def on_save_checkpoint(self, checkpoint: dict):
        tokenizer = getattr(self.trainer.datamodule, "tokenizer", None)
        if self.description is None and tokenizer is not None:
            self.description = describe(self.model.config, tokenizer)
        if self.description is not None:
            checkpoint["slm"] = self.description

    @cached_property
    def weights(self) -> tuple[torch.nn.Parameter, ...]:
        """Weights of the model. A search through its modules, which takes a millisecond, is made once in a training."""
        return tuple(self.model.parameters())

    def gradient_norm(self) -> Tensor:
        """The norm of all gradients before clipping, computed once per step."""
        if self.grad_norm is None:
            gradients = [p.grad for p in self.weights if p.grad is not None]
            gradients = [g.float() if g.dtype.itemsize < 4 else g for g in gradients]  # squares overflow float16
            self.grad_norm = whole(torch.nn.utils.get_total_norm(gradients))
        return self.grad_norm

    def on_before_zero_grad(self, optimizer: torch.optim.Optimizer):
        self.grad_norm = None  # Lightning calls this before the first backward pass of a step

    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None):
        norm = self.gradient_norm()
        if gradient_clip_val is None:
            return
        if gradient_clip_algorithm == "value":
            if any(p.grad is not None for p in self.weights):  # none if the update is skipped
                torch.nn.utils.clip_grad_value_(self.weights, gradient_clip_val)
        else:
            torch.nn.utils.clip_grads_with_norm_(self.weights, gradient_clip_val, norm)

    def skip_update(self):
        """Skips the update of the current step: optimizers ignore parameters without a gradient."""
        for parameter in self.weights:
            parameter.grad = None

    def _set_learning_rate(self):
        """Of the next step, in all groups of the optimizer, and its other settings that change from step to step."""
        optimizer, step = self.trainer.optimizers[0], self.trainer.global_step
        factor, changes = self.schedule(step) if self.schedule else 1.0, getattr(optimizer, "changes", None)
        for group, configured in zip(optimizer.param_groups, self.configured):
            if self.schedule:
                group["lr"] = group["initial_lr"] * factor
            if changes:
                group.update(changes(configured, step, self.trainer.max_steps, factor))


def split(windows: Tensor) -> tuple[Tensor, Tensor]:
    """Inputs and targets (B, T) of windows (B, T + 1). Inputs after the end of a row become 0, and have no target."""
    return ids_of(windows[:, :-1]), windows[:, 1:].clamp(min=IGNORE)


class LanguageModelMetrics(Metric):
    """Loss in nats per token, perplexity, and bits per byte where bytes are known, over all batches and devices.

    bits_per_byte has the bits of all ids: what it takes to compress the documents with their ends. text_bits_per_byte
    leaves out those of ids without text, which end documents. Bytes are those of the text, the same for all tokenizers.
    All sums are in float32, in any precision.
    """

    def __init__(self):
        super().__init__()
        for name, dtype in SUMS.items():
            self.add_state(name, torch.zeros((), dtype=dtype), dist_reduce_fx="sum")

    def update(self, nats: Tensor, windows: Tensor, lengths: Tensor | None):
        """Nats of the targets (B, T) of windows (B, T + 1); `lengths` as in slm.loss.text_sizes, None if unknown."""
        self.nats = self.nats + nats.sum(dtype=torch.float32)  # in place fails after trainer.validate, which infers
        self.tokens = self.tokens + (windows[:, 1:] >= 0).sum()
        if lengths is not None:
            sizes, is_text = text_sizes(windows, lengths)
            self.text_nats = self.text_nats + (nats * is_text).sum(dtype=torch.float32)
            self.bytes = self.bytes + sizes.sum()

    def compute(self) -> dict[str, Tensor]:
        loss = self.nats / self.tokens
        metrics = {"loss": loss, "perplexity": loss.exp()}
        if self.bytes > 0:
            metrics["bits_per_byte"] = torch.as_tensor(bits_per_byte(self.nats, self.bytes))
            metrics["text_bits_per_byte"] = torch.as_tensor(bits_per_byte(self.text_nats, self.bytes))
        return metrics
