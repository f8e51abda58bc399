"""Does a model learn at the same speed at every size? The change of its activations in a few steps, by width and depth.

python -m slm.coordinate_check [widths=[32,64,128,256]] [depths=[2,4,8]] [steps=4] [folder=NAME] [key=value ...]

Models of several widths, and of several depths, take a few steps on one batch of stories, with the keys of train.py
(model.mlp=swiglu optimizer=muon). For each module the slope d ln(RMS of the change) / d ln(size) is fitted: 0 if all
sizes learn alike. Under parametrization=mup each slope over widths must be at most 0.25 in size, and under completep
each slope over depths (arXiv:2203.03466, appendix D.1); the last column has the slopes without.
"""

import math
import re
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from slm.analysis import figures
from slm.analysis.charts import Axis, Chart, Series, colors
from slm.corpora.storyworld.corpus import Storyworld
from slm.errors import UserError, printable
from slm.files import atomic, json_line
from slm.files.stdio import make_stdio_robust
from slm.loss import cross_entropy
from slm.model import GPT, GPTConfig
from slm.run import cli
from slm.run.config import RunConfig
from slm.run.overrides import key_of
from slm.run.words import values_of
from slm.tables import columns

MOST = 0.25  # of a slope
VOCABULARY, WINDOWS = 256, 8  # bytes; rows of the batch
SMALL = ("model=tiny", "model.depth=2", "model.context=64", "data=storyworld", "tokenizer=bytes", "optimizer.lr=0.004")
Change = dict[str, float]  # module -> RMS


@dataclass(frozen=True, kw_only=True)
class Request:
    """Raises: UserError: for sizes through which no line can be laid."""

    widths: list[int] = field(default_factory=lambda: [32, 64, 128, 256])
    depths: list[int] = field(default_factory=lambda: [2, 4, 8])
    steps: int = 4
    seeds: int = 2
    folder: str = "coordinate_check"

    def __post_init__(self):
        for name in ("widths", "depths"):
            if len(sizes := getattr(self, name)) < 2 or sorted({*sizes}) != [*sizes] or sizes[0] < 1:
                raise UserError(f"{name}={sizes} must be at least two sizes, the smallest first")
        for name in ("steps", "seeds"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)} must be at least 1")


@dataclass(frozen=True)
class Sweep:
    """The changes of models of several sizes under one parametrization."""

    axis: Literal["width", "depth"]
    parametrization: str
    changes: dict[int, Change]  # by size

    @property
    def slopes(self) -> dict[str, float]:
        """d ln(change) / d ln(size) of each module, fitted by least squares; NaN for a module that does not change."""
        x = torch.tensor([math.log(size) for size in self.changes], dtype=torch.float64)
        found = {}
        for module in next(iter(self.changes.values())):
            y = torch.tensor([its[module] for its in self.changes.values()], dtype=torch.float64).log()
            found[module] = ((x - x.mean()) @ (y - y.mean()) / (x - x.mean()).square().sum()).item()
        return found

    @property
    def failed(self) -> list[str]:
        return [module for module, slope in self.slopes.items() if not abs(slope) <= MOST]


@json_line.command
def main() -> int:
    """Exit code: 0, 1 if a slope is too large, 2 or 4 for a mistake or a limit of the machine."""
    words = sys.argv[1:]
    if json_line.shows_help(words, __doc__):
        return 0
    own = [word for word in words if key_of(word) in Request.__annotations__]
    request = Request(**values_of(own, Request)[0])
    sizes = f"model.base_width={request.widths[0]}", f"model.base_depth={request.depths[0]}"
    others = [word for word in words if word not in own]
    config = cli.compose([*SMALL, "model.parametrization=completep", *sizes, *others])
    if not isinstance(config.model, GPTConfig):
        raise UserError("slm.coordinate_check is for slm's GPT, of which the width is known, not for a class of yours")
    folder = atomic.expanded(request.folder)
    atomic.check_folder(folder)  # before the work
    pairs = [
        tuple(sweep(config, request, axis, each) for each in compared)
        for axis, compared in (("width", ("standard", "mup")), ("depth", ("mup", "completep")))
    ]
    return report(pairs, type(config.optimizer).__name__, folder)


def report(pairs: list[tuple[Sweep, Sweep]], optimizer: str, folder: Path) -> int:
    """Prints the tables, draws the picture, and returns the exit code."""
    print("\n\n".join(table(*pair) for pair in pairs))
    failed = [f"{its.axis}/{module}" for _, its in pairs for module in its.failed]
    slopes = {f"{its.parametrization}/{its.axis}": its.slopes for pair in pairs for its in pair}
    folder.mkdir(parents=True, exist_ok=True)
    picture = folder / "coordinate_check.png"
    figures.save(picture, [chart for pair in pairs for chart in charts(pair)], f"Change of activations, {optimizer}")
    json_line.note(optimizer=optimizer, slopes=slopes, failed=failed, picture=str(picture))
    print(f"\n{'failed: ' + ', '.join(failed) if failed else 'passed'}, with {optimizer}\n{printable(str(picture))}")
    return int(bool(failed))


def sweep(config: RunConfig, request: Request, axis: str, parametrization: str) -> Sweep:
    """The models of all sizes; the smallest one is the base."""
    base = {"base_width": request.widths[0], "base_depth": request.depths[0]}
    others = {"width": request.widths[0]} if axis == "depth" else {}
    changes = {}
    for size in request.widths if axis == "width" else request.depths:
        model = replace(
            config.model, **{**others, axis: size}, **base, parametrization=parametrization, vocab_size=VOCABULARY
        )
        found = [change(model, config.optimizer, request.steps, seed) for seed in range(request.seeds)]
        changes[size] = {name: sum(its[name] for its in found) / len(found) for name in found[0]}
        if axis == "depth":
            changes[size] = over_blocks(changes[size])
    return Sweep(axis, parametrization, changes)


def change(config: GPTConfig, make: Any, steps: int, seed: int) -> Change:
    """The RMS of the change of each module's result after some steps on one batch."""
    torch.manual_seed(seed)
    model = GPT(config)
    tokens = stories(config.context + 1)
    before, optimizer = activations(model, tokens[:, :-1]), make(model)
    for _ in range(steps):
        optimizer.zero_grad()
        cross_entropy(model.features(tokens[:, :-1]), targets=tokens[:, 1:], **model.readout).backward()
        optimizer.step()
    after = activations(model, tokens[:, :-1])
    return {name: (after[name] - value).square().mean().sqrt().item() for name, value in before.items()}


def stories(length: int) -> Tensor:
    """Bytes of the first stories of storyworld (WINDOWS, length). Random ids would have nothing in common, and their
    gradients no direction that grows with the width."""
    texts = Storyworld(level="tiny", stories=10**6, validation_stories=1, seed=0).documents("train")
    text = b""
    while len(text) < WINDOWS * length:
        text += next(texts).encode()
    return torch.tensor([*text[: WINDOWS * length]]).view(WINDOWS, length)


@torch.no_grad()
def activations(model: GPT, tokens: Tensor) -> dict[str, Tensor]:
    """The results of embeddings, norms, linear layers and blocks, and the logits."""
    found, hooks = {}, []
    for name, module in model.named_modules():
        leaf = not [*module.children()] and [*module.parameters()]
        if leaf or module in [*model.blocks]:
            hooks.append(module.register_forward_hook(lambda _, inputs, y, name=name: found.setdefault(name, y)))
    if model.positions:  # read without a call of the module
        found["positions"] = model.positions.weight[: tokens.size(1)].clone()
    found["logits"] = model.eval()(tokens)
    model.train()
    for hook in hooks:
        hook.remove()
    found.pop("head", None)  # are the logits
    return found


def over_blocks(its: Change) -> Change:
    """One number for the modules of one name in all blocks; of the stream that blocks return that of the last one."""
    squares: dict[str, list[float]] = {}
    for name, value in its.items():
        if re.fullmatch(r"blocks\.\d+", name):
            squares["last block"] = [value**2]
        else:
            squares.setdefault(re.sub(r"^blocks\.\d+\.", "blocks.*.", name), []).append(value**2)
    return {name: math.sqrt(sum(values) / len(values)) for name, values in squares.items()}


def table(plain: Sweep, scaled: Sweep) -> str:
    """A line per module: the changes and the slope, and the slope without the parametrization."""
    head = [
        f"{scaled.parametrization}, by {scaled.axis}",
        *map(str, scaled.changes),
        "slope",
        "",
        plain.parametrization,
    ]
    lines = [head]
    for module, slope in scaled.slopes.items():
        values = [f"{its[module]:.3g}" for its in scaled.changes.values()]
        verdict = "failed" if module in scaled.failed else "passed"
        lines.append([module, *values, f"{slope:+.2f}", verdict, f"{plain.slopes[module]:+.2f}"])
    return columns(lines)


def charts(pair: tuple[Sweep, Sweep]) -> list[Chart]:
    """Of both parametrizations, on one scale, without norms and embeddings, whose results are of one size anyway."""
    drawn = []
    for its in pair:
        changes = {size: over_blocks(found) for size, found in its.changes.items()}
        names = [
            name for name in next(iter(changes.values())) if not re.search("norm$|tokens$|positions$|embedding$", name)
        ]
        x = {its.axis: np.array([*changes], float)}
        lines = [
            Series(name, x, np.array([found[name] for found in changes.values()]), color)
            for name, color in zip(names, colors(len(names)), strict=True)
        ]
        unit, axes = "RMS of the change", {its.axis: Axis(its.axis, log=True)}
        drawn.append(Chart(its.parametrization, unit, axes, lines, log=True, grid=True))
    values = np.concatenate([line.y for chart in drawn for line in chart.series])
    values = values[np.isfinite(values) & (values > 0)]  # a diverged model has none
    if not len(values):
        return drawn
    return [replace(chart, limits=(values.min() / 4, values.max() * 1.5)) for chart in drawn]


if __name__ == "__main__":
    make_stdio_robust()
    sys.exit(main())
