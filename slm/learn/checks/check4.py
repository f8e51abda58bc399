"""Checks of phase 4: batches, schedule, loss, validation, a training that learns and resumes exactly, a plot."""

import math
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from slm.learn.exercises import place_beside
from slm.learn.phases import phase4_training as reference
from slm.learn.phases.phase3_gpt import GPT
from slm.learn.stories import story_ids
from slm.learn.verdict import close, require, same
from slm.optim.schedule import cosine

CONTEXT, STEPS = 32, 100
LEARNED = 0.7  # of the first loss, after STEPS


def checks(own) -> Iterator[str]:
    batches(own)
    yield "split and batch: the targets are the inputs one position later"
    yield f"learning_rate equals slm.optim.schedule.cosine at 100 steps, to {schedule(own):.1e}"
    loss(own)
    yield "loss_of and evaluate: dropout off, no gradients, train mode afterwards"
    tokenizer, ids = story_ids(150)
    first_updates(own, tokenizer.vocab_size, ids)
    yield "train: weights and losses of the first four updates are the reference's"
    resumed(own, tokenizer.vocab_size, ids)
    yield "save and load: 3 updates, a checkpoint and 3 more are 6 updates, bit for bit"
    model = fresh(tokenizer.vocab_size)
    history = own.train(model, reference.adamw(model), ids, STEPS, context=CONTEXT, peak=1e-2, every=10)
    first, last = math.log(tokenizer.vocab_size), history[-1][2]
    line = f"The validation loss after {STEPS} steps must be below {LEARNED * first:.2f}, and is {last:.2f}."
    require(last < LEARNED * first, line)
    yield f"train: the validation loss goes from {first:.2f}, the ln of {tokenizer.vocab_size} ids, to {last:.2f}"
    yield f"the plot of the loss is written: {picture(own, history)}"


def batches(own):
    ids = torch.arange(100)
    mine, theirs = own.split(ids, 0.1), reference.split(ids, 0.1)
    hint = "The validation part must be the end of the text, which no training window contains."
    require(mine is not None and len(mine) == 2, "split must return two tensors, to train on and for validation.")
    for name, given, expected in zip(("training", "validation"), mine, theirs):
        same(f"The {name} part of split(0..99, 0.1)", given.tolist(), expected.tolist(), {hint: ids[:10].tolist()})
    result = own.batch(ids, 7, 4, 8)
    require(result is not None and len(result) == 2, "batch must return two tensors, inputs and targets.")
    inputs, targets = reference.batch(ids, 7, 4, 8)
    close("The inputs of batch(0..99, step=7, size=4, context=8)", result[0], inputs)
    mistakes = {
        "The targets are the inputs themselves: the model would learn to copy.": inputs,
        "The targets are two positions later.": targets + 1,
        "The targets are one position before the inputs.": inputs - 1,
    }
    close("The targets of this batch", result[1], targets, mistakes)


def schedule(own) -> float:
    """Against slm's for all updates of a run."""
    settings = {"warmup_fraction": 0.0, "warmup_steps": 10, "min_lr_ratio": 0.1}
    rates, differences = [3e-3 * cosine(step, 100, **settings) for step in range(100)], []
    for step, (earlier, rate, following) in enumerate(zip([0.0, *rates], rates, [*rates[1:], rates[-1]])):
        mistakes = {
            "The first update has the rate 0: the warmup begins at peak / warmup.": earlier,
            "This is the rate of the next update.": following,
        }
        given = own.learning_rate(step, 100, peak=3e-3, warmup=10, lowest=3e-4)
        what = f"learning_rate({step}, 100, peak=3e-3, warmup=10, lowest=3e-4)"
        differences.append(close(what, given, rate, mistakes, tolerance=1e-12))
    return max(differences)


class Small(nn.Module):
    """A model with dropout whose gradients are easy to see."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(10, 10)
        self.dropout = nn.Dropout(0.5)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.dropout(self.table(tokens))


def loss(own):
    torch.manual_seed(0)
    model, ids = Small().eval(), torch.arange(35) * 7 % 10
    inputs, targets = ids[:16].view(2, 8), ids[1:17].view(2, 8)
    expected = reference.loss_of(model, inputs, targets)
    mistakes = {
        "This is the sum over the tokens: it must be their mean.": expected * 16,
        "This is in bits: nats use the natural logarithm.": expected / math.log(2),
        "This is the loss of the inputs, not of the targets.": reference.loss_of(model, inputs, inputs),
    }
    close("loss_of(model, inputs, targets)", own.loss_of(model, inputs, targets), expected, mistakes)
    exact = reference.evaluate(model, ids, 8)
    model.train()
    given = own.evaluate(model, ids, 8)
    require(isinstance(given, float), f"evaluate must return a float, and returns {type(given).__name__}.")
    first, last = reference.evaluate(model, ids[:-8], 8), reference.evaluate(model, ids[8:], 8)
    hints = {"A window is missing at the end.": first, "A window is missing at the beginning.": last}
    again = own.evaluate(model, ids, 8)
    require(
        given == again, f"evaluate gives {given:.4f}, and then {again:.4f}: dropout is on, call model.eval() first."
    )
    close("evaluate(model, 35 ids, context 8)", given, exact, hints)
    require(model.training, "After evaluate the model must be in train mode again: model.train().")


def fresh(vocab_size: int) -> nn.Module:
    torch.manual_seed(0)
    return GPT(vocab_size, CONTEXT, width=48, heads=3, depth=1)


def first_updates(own, vocab_size: int, ids: Tensor):
    """The weights after one and two updates, and a history of four, against the reference."""
    settings = {"size": 16, "context": CONTEXT, "peak": 1e-2, "every": 2}
    for count in (1, 2):
        mine, theirs = fresh(vocab_size), fresh(vocab_size)
        own.train(mine, reference.adamw(mine), ids, STEPS, stop=count, **settings)
        reference.train(theirs, reference.adamw(theirs), ids, STEPS, stop=count, **settings)
        line = f"After {count} update{'s' * (count > 1)} the weights are not those of the reference."
        equal = torch.allclose(mine.tokens.weight, theirs.tokens.weight, atol=1e-5)
        require(equal, line, unlike(mine, fresh(vocab_size), count))
    mine, theirs = fresh(vocab_size), fresh(vocab_size)
    history = own.train(mine, reference.adamw(mine), ids, STEPS, stop=4, **settings)
    expected = reference.train(theirs, reference.adamw(theirs), ids, STEPS, stop=4, **settings)
    require(bool(history), "train must return the history: a list of (step, train loss, validation loss).")
    same("The steps of the history after 4 updates, with every=2,", [row[0] for row in history], [2, 4])
    for given, row in zip(history, expected):
        close(f"The train loss at step {row[0]}", given[1], row[1], tolerance=1e-3)
        close(f"The validation loss at step {row[0]}", given[2], row[2], tolerance=1e-3)


def unlike(model: nn.Module, before: nn.Module, count: int) -> str:
    """The likely reason why the weights differ from the reference."""
    moved = (model.tokens.weight - before.tokens.weight).abs().max().item()
    if moved == 0:
        return "They have not moved at all: is optimizer.step() called, after backward, with a rate above 0?"
    if count == 2:
        return "After the first they are: are the gradients set to 0 in each update (optimizer.zero_grad)?"
    return "Compare the order: rate, loss, zero_grad, backward, clip to norm 1, step; only the training part is used."


def resumed(own, vocab_size: int, ids: Tensor):
    settings = {"size": 4, "context": CONTEXT}
    whole, part = fresh(vocab_size), fresh(vocab_size)
    own.train(whole, reference.adamw(whole), ids, 6, **settings)
    optimizer = reference.adamw(part)
    own.train(part, optimizer, ids, 6, stop=3, **settings)
    with tempfile.TemporaryDirectory() as folder:
        own.save(Path(folder) / "checkpoint.pt", part, optimizer, 3)
        again = fresh(vocab_size)
        optimizer = reference.adamw(again)
        step = own.load(Path(folder) / "checkpoint.pt", again, optimizer)
    same("The step that load returns", step, 3)
    require(bool(optimizer.state), "load has not filled the optimizer: AdamW's means belong to the checkpoint.")
    own.train(again, optimizer, ids, 6, first=step, **settings)
    equal = all(torch.equal(one, other) for one, other in zip(whole.parameters(), again.parameters()))
    hint = "A checkpoint needs the weights, the optimizer's state and the step; a batch depends on the step alone."
    require(equal, "The resumed run has other weights than the run that was not interrupted.", hint)


def picture(own, history: list) -> Path:
    path = place_beside(own) / "phase4_loss.png"
    own.plot(history, path)
    return path
