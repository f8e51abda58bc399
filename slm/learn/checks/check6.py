"""Checks of phase 6: the formulas, then runs of train.py with the learner's tokenizer and attention."""

import contextlib
import io
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path

from slm.learn.checks.check3 import config
from slm.learn.verdict import close, require, same
from slm.model import GPT
from slm.results import Run
from slm.run.cli import train

STEPS = 20
RATES = 3e-3, 1e-2  # beside 1e-3, the default
SMALL = [
    *("data=storyworld", "data.level=tiny", "data.stories=200", "data.validation_stories=10", "data.batch_windows=8"),
    *("callbacks.stories=null", "callbacks.samples=null", "logger=none", "trainer=cpu", "trainer.precision=32-true"),
    *(f"budget.steps={STEPS}", f"val_every_n_steps={STEPS}"),
]
TOKENIZER = ["tokenizer=bpe", "tokenizer.vocab_size=400"]
MODEL = ["model=tiny", "model.depth=1", "model.width=32", "model.head_dim=8", "model.context=64"]
SIZES = ["model.context=64", "+model.width=32", "+model.heads=4", "+model.depth=1"]


def checks(own) -> Iterator[str]:
    sizes(own)
    yield "parameters: 13,891,584 for the GPT of six blocks of 384, as slm counts them"
    close("perplexity(2.0)", own.perplexity(2.0), math.e**2, {"This is in bits: e, not 2.": 4.0})
    rates(own)
    yield "best_rate: the lowest loss, no diverged run, edges are known"
    with tempfile.TemporaryDirectory() as folder:
        original = trained(Path(folder), "original", *TOKENIZER, *MODEL, "model.positions=learned")
        units(own, original)
        yield "perplexity and bits_per_byte are those of a run"
        losses = {}
        for name, target in (("GPT", beside(own, "phase3_gpt.GPT")), ("attention", f"{own.__name__}.OwnGPT")):
            run = trained(Path(folder), name, *TOKENIZER, "model=own", f"model._target_={target}", *SIZES)
            losses[1e-3] = summary(run, "val/loss")
            yield f"train.py with your {name}: {comparison(name, run, original)}"
        target = beside(own, "phase2_bpe.BPE.build")
        names = f"tokenizer._target_={target}", "+tokenizer.vocab_size=400"
        run = trained(Path(folder), "tokenizer", *names, *MODEL, "model.positions=learned")
        yield f"train.py with your tokenizer: {comparison('tokenizer', run, original)}"
        for rate in RATES:
            changes = "model=own", f"model._target_={beside(own, 'phase3_gpt.GPT')}", *SIZES, f"optimizer.lr={rate}"
            losses[rate] = summary(trained(Path(folder), f"rate_{rate}", *TOKENIZER, *changes), "val/loss")
        best, at_edge = own.best_rate(losses)
        shown = ", ".join(f"{rate:g}: {loss:.3f}" for rate, loss in losses.items())
        edge = ", at the edge: the next experiment has higher rates" if at_edge else ""
        yield f"validation loss by learning rate {{{shown}}}; the best is {best:g}{edge}"


def trained(folder: Path, name: str, *overrides: str) -> Run:
    """A small run in silence."""
    places = f"run_dir={folder / name}", f"cache_dir={folder / 'cache'}"
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        return train([*SMALL, *places, *overrides])


def summary(run: Run, metric: str) -> float:
    return run.summary["metrics"][metric]["final"]


def sizes(own):
    for vocab_size, context, width, depth in ((8192, 256, 384, 6), (50, 64, 32, 3), (50257, 1024, 768, 12)):
        expected = (vocab_size + context) * width + depth * (12 * width**2 + 13 * width) + 2 * width
        if width < 100:
            changes = {"vocab_size": vocab_size, "context": context, "width": width, "depth": depth}
            assert expected == sum(parameter.numel() for parameter in GPT(config(**changes)).parameters())
        hints = {
            "The last norm's gain and bias are missing.": expected - 2 * width,
            "The head is the embedding of the tokens, and must not count twice.": expected + vocab_size * width,
            "The 13 C biases and norms of each block are missing.": expected - depth * 13 * width,
        }
        what = f"parameters({vocab_size}, {context}, {width}, {depth})"
        same(what, own.parameters(vocab_size, context, width, depth), expected, hints)


def rates(own):
    nan = math.nan
    for losses, expected in (
        ({1e-4: 3.0, 1e-3: 2.0, 1e-2: 2.5}, (1e-3, False)),
        ({1e-4: 3.0, 1e-3: 2.0}, (1e-3, True)),
        ({1e-1: nan, 1e-2: 2.0, 1e-3: 2.5, 1e-4: 2.4}, (1e-2, False)),
    ):
        same(f"best_rate({losses})", own.best_rate(losses), expected)


def units(own, run: Run):
    """The formulas against the metrics of a run, whose bytes per token follow from its tokens."""
    nats = summary(run, "val/loss")
    close("perplexity of the run", own.perplexity(nats), summary(run, "val/perplexity"), tolerance=1e-3)
    expected = summary(run, "val/bits_per_byte")
    size = nats * 1000 / math.log(2) / expected  # bytes of 1,000 of its tokens
    hints = {"The loss is in nats: divide by ln(2).": nats * 1000 / size}
    close("bits_per_byte of the run", own.bits_per_byte(nats, 1000, size), expected, hints)


def beside(own, path: str) -> str:
    """The dotted path of an object in another phase of the same folder."""
    return own.__name__.replace("phase6_scale_up", path)


def comparison(name: str, run: Run, original: Run) -> str:
    """Both losses, which must be equal: the code differs, the function and the first weights do not."""
    mine, theirs = (summary(run, "val/loss") for run in (run, original))
    hint = "Does OwnAttention.forward return MultiHead's result, and do phases 2 and 3 pass?"
    line = f"The validation loss with your {name} must be {theirs:.4f}, and is {mine:.4f}."
    require(abs(mine - theirs) < 1e-3, line, hint)
    return f"validation loss {mine:.4f} after {STEPS} steps, with slm's own {theirs:.4f}"
