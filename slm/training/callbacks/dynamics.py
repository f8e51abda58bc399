"""Per-layer dynamics of a training: sizes of weights, gradients and updates, activations, attention, gradient noise.

docs/lens.md has the formula and the source of every quantity. Shapes: B windows of a microbatch, T positions, P
parameters, G groups of parameters, L blocks, H query heads, K key/value heads, D head_dim.
"""

import math
from collections import deque
from dataclasses import dataclass, field

import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from slm.attention import Attention, rotate, visible
from slm.errors import UserError
from slm.loss import IGNORE
from slm.model import GPT, MLP
from slm.optim.roles import roles
from slm.own_model import stream_of
from slm.training.callbacks import is_due, remove_hooks, step_ends
from slm.training.callbacks.guard import flush_checks
from slm.training.loggers import write_metrics
from slm.training.module import split

SAMPLE = 4, 16  # windows of the microbatch, and queries of each, whose attention is measured
NOISE_STEPS = 20  # logged steps over which the two parts of the gradient noise scale are averaged
SIZES = ("weight_norm", "grad_norm", "update_norm", "update_ratio")


@dataclass
class Step:
    """What is known of a logged step before its update, on the device."""

    weights: list[Tensor]  # copies
    sizes: list[Tensor]  # weight and gradient norms, (G,) each
    probed: dict[str, Tensor]  # quantity -> (L,)
    microbatch_power: list[Tensor] = field(default_factory=list)  # mean squared gradient norm of one microbatch


class Dynamics(Callback):
    """Logs dynamics/<group>/<quantity> at the first step and every `every_n_steps` steps.

    Groups are block00, block01, ..., outside of the blocks embedding, readout and vector (gains and scalars), and all.
    Only observes: weights and other metrics are those of a training without it. Raises UserError if every_n_steps is
    below 1.
    """

    def __init__(self, *, every_n_steps: int):
        if every_n_steps < 1:
            raise UserError(f"callbacks.dynamics.every_n_steps={every_n_steps} must be at least 1")
        self.every_n_steps = every_n_steps
        self.noise: deque[list[float]] = deque(maxlen=NOISE_STEPS)  # variance and squared mean of the gradient
        self.hooks: list[torch.utils.hooks.RemovableHandle] = []
        self.power: list[Tensor] = []  # squared gradient norms, one for each microbatch and parameter
        self.step: Step | None = None

    def state_dict(self) -> dict:
        return {"noise": list(self.noise)}

    def load_state_dict(self, state: dict):
        self.noise.extend(state["noise"])

    def on_train_start(self, trainer, module):
        self.parameters = list(module.model.parameters())
        self.groups, self.members = membership(module.model)
        self.members = self.members.to(module.device)
        self.microbatches = trainer.accumulate_grad_batches * trainer.world_size
        if self.microbatches == 1 and trainer.is_global_zero:
            print("note: dynamics has no gradient noise scale, which needs trainer.microbatch below data.batch_windows")

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        """The hooks see the gradient of each microbatch alone, before accumulation and before devices exchange it."""
        first = batch_idx % trainer.accumulate_grad_batches == 0
        if not is_due(trainer.global_step + 1, self.every_n_steps):
            return
        if first and self.microbatches > 1:
            self._remove_hooks()
            self.hooks = [parameter.register_hook(self._note_power) for parameter in self.parameters]
        self.batch = batch

    def on_before_optimizer_step(self, trainer, module, optimizer):
        if not is_due(trainer.global_step + 1, self.every_n_steps):
            return
        power = self._microbatch_power(trainer)
        self._remove_hooks()
        gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in self.parameters]
        with torch.no_grad(), trainer.precision_plugin.forward_context():
            probed = probe(module.model, self.batch) if trainer.is_global_zero else {}
        self.step = Step(
            weights=[parameter.detach().clone() for parameter in self.parameters],
            sizes=[norms(tensors, self.members) for tensors in (self.parameters, gradients)],
            probed=probed,
            microbatch_power=power,
        )
        self.batch = None

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        step, self.step = self.step, None
        if step and step_ends(trainer, batch_idx) and trainer.is_global_zero:
            flush_checks(trainer)
            write_metrics(trainer, self._values(step, trainer.datamodule.windows_per_step))

    def teardown(self, trainer, module, stage):
        self._remove_hooks()

    def on_exception(self, trainer, module, exception):
        self._remove_hooks()

    def _note_power(self, gradient: Tensor):
        self.power.append(torch.linalg.vector_norm(gradient, dtype=torch.float32).square())

    def _remove_hooks(self):
        remove_hooks(self.hooks)
        self.power = []

    def _microbatch_power(self, trainer) -> list[Tensor]:
        """The mean squared gradient norm of one microbatch, over all microbatches and devices; a collective."""
        if not self.power:
            return []
        accumulation, scaler = trainer.accumulate_grad_batches, getattr(trainer.precision_plugin, "scaler", None)
        factor = accumulation / (scaler.get_scale() if scaler else 1)  # Lightning divides each loss by `accumulation`
        mean = torch.stack(self.power).sum() * factor**2 / accumulation
        return [trainer.strategy.reduce(mean, reduce_op="mean")]

    def _values(self, step: Step, windows: int) -> dict[str, float]:
        """All quantities by name, read from the device at once."""
        with torch.no_grad():
            updates = torch._foreach_sub(self.parameters, step.weights)
        update = norms(updates, self.members)
        table = torch.stack([*step.sizes, update, update / step.sizes[0]], dim=1)  # (G, 4)
        names = [f"dynamics/{group}/{size}" for group in self.groups for size in SIZES]
        names += [f"dynamics/{block(layer)}/{name}" for name, row in step.probed.items() for layer in range(len(row))]
        names += ["microbatch_power"] * len(step.microbatch_power)
        numbers = [table.flatten(), *step.probed.values(), *(power.view(1) for power in step.microbatch_power)]
        values = dict(zip(names, torch.cat([part.float() for part in numbers]).tolist(), strict=True))
        if (power := values.pop("microbatch_power", None)) is not None:
            values |= self._noise_scale(power, values["dynamics/all/grad_norm"] ** 2, windows)
        return values

    def _noise_scale(self, small: float, big: float, windows: int) -> dict[str, float]:
        """Of the squared gradient norms of a microbatch and of the whole batch (arXiv:1812.06162, appendix A.1)."""
        microbatch = windows / self.microbatches
        variance = (small - big) / (1 / microbatch - 1 / windows)
        power = (windows * big - microbatch * small) / (windows - microbatch)
        values = {"dynamics/all/gradient_variance": variance, "dynamics/all/gradient_power": power}
        if math.isfinite(variance) and math.isfinite(power):
            self.noise.append([variance, power])
        variances, powers = (sum(part) for part in zip(*self.noise)) if self.noise else (0.0, 0.0)
        return values | ({"dynamics/all/gradient_noise_scale": variances / powers} if powers > 0 else {})


def block(layer: int) -> str:
    """The group of a block, such as block03."""
    return f"block{layer:02}"


def membership(model: GPT) -> tuple[list[str], Tensor]:
    """The groups of parameters, and which parameter is in which group, 0.0 or 1.0 (G, P)."""
    of: list[str] = []
    for name, role in roles(model).items():
        parts = name.removeprefix("net.").split(".")  # of a model of one's own
        of.append(block(int(parts[1])) if parts[0] == "blocks" else role)
    groups = list(dict.fromkeys(of))
    rows = [[float(group == its) for its in of] for group in groups]
    return [*groups, "all"], torch.tensor([*rows, [1.0] * len(of)])


def norms(tensors: list[Tensor], members: Tensor) -> Tensor:
    """The Euclidean norm of all elements of each group (G,), in float32."""
    squares = torch.stack(torch._foreach_norm([tensor.detach() for tensor in tensors], 2, torch.float32)).square()
    return (members * squares).sum(1).sqrt()


def probe(model: GPT, windows: Tensor) -> dict[str, Tensor]:
    """Activations and attention of each block (L,), from a forward pass without dropout and without compilation.

    Blocks of a class outside slm have those quantities only for which all of them have slm's MLP or attention.
    """
    inputs, targets = split(windows)
    kept = targets != IGNORE  # (B, T)
    rms, dead, attention = [], [], []
    hooks = []
    for layer in model.blocks:
        hooks.append(layer.register_forward_hook(lambda _, inputs, x: rms.append(rms_of(stream_of(x), kept))))
        if isinstance(mlp := getattr(layer, "mlp", None), MLP):
            hook = lambda _, inputs, x: dead.append(dead_share(x, kept))  # noqa: E731
            hooks.append((mlp.gate or mlp.up).register_forward_hook(hook))
        if isinstance(its := getattr(layer, "attention", None), Attention):
            look = lambda module, inputs: attention.append(entropies(module, inputs[0], inputs[2], kept))  # noqa: E731
            hooks.append(its.register_forward_pre_hook(look))
    try:
        evaluated(model, inputs)
    finally:
        remove_hooks(hooks)
    probed = {"activation_rms": rms, "dead_share": dead}
    probed |= {"attention_entropy": [heads.mean() for heads in attention]}
    probed |= {"attention_entropy_min": [heads.amin() for heads in attention]}
    return {name: torch.stack(found) for name, found in probed.items() if found and len(found) == len(model.blocks)}


def evaluated(model: GPT, inputs: Tensor):
    """A forward pass of inputs (B, T) for hooks to observe, without dropout and without compilation."""
    training = model.training
    model.eval()
    try:
        with torch.compiler.set_stance("force_eager"):
            model.features(inputs)
    finally:
        model.train(training)


def rms_of(x: Tensor, kept: Tensor) -> Tensor:
    """The root mean square of the residual stream (B, T, C) at the positions with a target."""
    return (x.float().square().mean(-1) * kept).sum().div(kept.sum()).sqrt()


def dead_share(x: Tensor, kept: Tensor) -> Tensor:
    """The share of the units (B, T, U) whose input to the activation is at most 0 at every position with a target."""
    return (x.masked_fill(~kept.unsqueeze(-1), -math.inf).amax((0, 1)) <= 0).float().mean()


def entropies(attention: Attention, x: Tensor, rotation: tuple[Tensor, Tensor] | None, kept: Tensor) -> Tensor:
    """The mean entropy in nats of the attention weights of each head (H,), for a sample of windows and queries."""
    rows, queries = SAMPLE
    count = min(queries, x.size(1))
    at = torch.arange(1, count + 1, device=x.device) * x.size(1) // count - 1
    weights = attention_weights(attention, x[:rows], rotation, at)
    kept = kept[:rows, at].unsqueeze(1)  # (B, 1, queries)
    return (torch.special.entr(weights).sum(-1) * kept).sum((0, 2)) / kept.sum()


def attention_weights(
    attention: Attention, x: Tensor, rotation: tuple[Tensor, Tensor] | None, queries: Tensor
) -> Tensor:
    """What each query pays to each key (B, H, queries, T), in float32, for the normed residual stream (B, T, C).

    The kernels of training never hold these, so they are computed anew, for the positions `queries`.
    """
    H, K, T = attention.heads, attention.kv_heads, x.size(1)
    heads = attention.qkv(x).unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)  # (B, H + 2K, T, D)
    q, k = heads[:, :H], heads[:, H : H + K]
    if attention.query_norm:
        q, k = attention.query_norm(q), attention.key_norm(k)
    if rotation:
        q, k = rotate(q, rotation), rotate(k, rotation)
    scores = (q[:, :, queries] @ k.repeat_interleave(H // K, dim=1).mT).float() * attention.head_dim**-0.5
    seen = visible(queries, torch.arange(T, device=x.device), attention.window)
    return scores.masked_fill(~seen, -math.inf).softmax(-1)
