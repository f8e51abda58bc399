"""Phase 4: the training loop. Batches, a learning-rate schedule, AdamW, validation, checkpoints and a plot of the loss.

A model is any module from token ids (B, T) to logits (B, T, V): your GPT of phase 3, or slm.model.GPT.
The loss is the mean cross-entropy in nats per token; of a model that knows nothing it is ln(V).
"""

import math

import torch
import torch.nn.functional as F


def split(ids, share=0.1):
    """The ids (N,) in two parts: the first to train on, and the last `share` of them, for validation only."""
    # your code
    border = len(ids) - round(share * len(ids))
    return ids[:border], ids[border:]


def batch(ids, step, size, context):
    """Inputs and targets (size, context) of a step: the targets are the inputs one position later.

    The `size` windows begin at random places of ids (N,). The generator is seeded with the step, so a run that resumes
    at step 500 sees the batches that it would have seen.
    """
    generator = torch.Generator().manual_seed(step)
    starts = torch.randint(len(ids) - context, (size,), generator=generator).tolist()
    # your code
    inputs = torch.stack([ids[start : start + context] for start in starts])
    targets = torch.stack([ids[start + 1 : start + 1 + context] for start in starts])
    return inputs, targets


def learning_rate(step, steps, peak, warmup, lowest):
    """The rate of an update; `step` counts from 0, so the first is 0 and the last is steps - 1.

    The first `warmup` updates rise on a line: peak / warmup, 2 * peak / warmup, ..., peak. The others fall along half a
    cosine to `lowest` at the last: with p = (step + 1 - warmup) / (steps - warmup), from 0 to 1, the rate is
    lowest + (peak - lowest) * (1 + cos(pi * p)) / 2.
    """
    # your code
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step + 1 - warmup) / (steps - warmup)
    return lowest + (peak - lowest) * (1 + math.cos(math.pi * progress)) / 2


def loss_of(model, inputs, targets):
    """The mean cross-entropy of the logits (B, T, V) and the targets (B, T), for which F.cross_entropy wants rows."""
    # your code
    return F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())


def evaluate(model, ids, context):
    """The mean loss per token over all whole windows of ids, one after the other, as a float.

    Without gradients and in `eval` mode (dropout off); afterwards the model is in `train` mode again. Window i has the
    inputs ids[i * context : (i + 1) * context]; its targets begin one later, so the last one must end within ids.
    """
    # your code
    model.eval()
    losses = []
    with torch.no_grad():
        for start in range(0, len(ids) - context, context):
            inputs, targets = ids[start : start + context], ids[start + 1 : start + 1 + context]
            losses.append(loss_of(model, inputs[None], targets[None]).item())
    model.train()
    return sum(losses) / len(losses)


def adamw(model):
    """AdamW with the settings of GPT-3; its learning rate is set before every update."""
    return torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95), weight_decay=0.1)


def train(model, optimizer, ids, steps, *, first=0, stop=None, size=16, context=64, peak=3e-3, every=50):
    """Updates number `first` to `stop` (unless given: all) of a run of `steps` updates; returns the history.

    The history has a row (step, train loss, validation loss) after every `every` updates and after the last one, where
    `step` is the number of updates done. The warmup takes a tenth of the steps, the lowest rate is a tenth of the peak.

    An update: a batch of the training part; the rate in every group of `optimizer.param_groups`; the loss; gradients to
    zero; `backward`; gradients clipped to a norm of at most 1 (torch.nn.utils.clip_grad_norm_); `optimizer.step()`.
    """
    # your code
    train_ids, validation_ids = split(ids)
    history = []
    for step in range(first, steps if stop is None else stop):
        inputs, targets = batch(train_ids, step, size, context)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, peak, max(1, steps // 10), peak / 10)
        loss = loss_of(model, inputs, targets)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % every == 0 or step + 1 == steps:
            history.append((step + 1, loss.item(), evaluate(model, validation_ids, context)))
    return history


def save(path, model, optimizer, step):
    """Writes weights, optimizer state and the number of updates done to one file, with torch.save."""
    # your code
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}, path)


def load(path, model, optimizer):
    """The inverse: fills the model and the optimizer, and returns the step. `weights_only=True` runs no code of a file.

    AdamW has two means per weight; without them a resumed run is another run.
    """
    # your code
    state = torch.load(path, weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return state["step"]


def plot(history, path):
    """Both losses over the steps, as a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(layout="constrained")
    axes = figure.add_subplot(xlabel="step", ylabel="loss (nats per token)")
    steps, training, validation = zip(*history)
    axes.plot(steps, training, label="train")
    axes.plot(steps, validation, label="validation")
    axes.legend()
    figure.savefig(path)
