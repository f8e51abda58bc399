"""All measures of one model on one text, in their order."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from slm.corpora import Split
from slm.corpora.storyworld.corpus import Storyworld
from slm.data.store import TokenStore
from slm.errors import UserError
from slm.evaluation import bleu, loss, memorisation, probes, stories, texts
from slm.evaluation.held_out import FEW, HeldOut
from slm.evaluation.intervals import Bootstrap
from slm.evaluation.scores import score
from slm.generation.language_model import Device, LanguageModel
from slm.generation.sampling import Sampler

MEASURES = "loss", "texts", "memorisation", "probes", "stories"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The words of the command that are not of the data. Raises: UserError: for a value out of range."""

    split: Split = "validation"
    source: str | None = None  # of a mixture; None: the first one
    tokens: int = 200_000  # of held-out text at most
    samples: int = 200  # generated texts by each temperature, and stories
    temperature: list | float = field(default_factory=lambda: [1.0, 0.8])
    measures: list | str = field(default_factory=lambda: list(MEASURES))
    bleu: str | None = None  # a .jsonl file with prompt and completion
    seed: int = 0
    device: Device = "auto"
    cache_dir: str | None = None

    def __post_init__(self):
        for name, least in (("tokens", 2), ("samples", 2), ("seed", 0)):
            if getattr(self, name) < least:
                raise UserError(f"{name}={getattr(self, name)} must be at least {least}")
        if unknown := [name for name in self.chosen if name not in MEASURES]:
            raise UserError(f"measures={unknown[0]} is not one of {', '.join(MEASURES)}")
        if not self.samplers:
            raise UserError("temperature=[] must have at least one value")

    @property
    def chosen(self) -> list[str]:
        return self.measures if isinstance(self.measures, list) else [self.measures]

    @property
    def samplers(self) -> dict[str, Sampler]:
        values = self.temperature if isinstance(self.temperature, list) else [self.temperature]
        return {
            f"T={value:g}" if isinstance(value, float | int) else "": Sampler(temperature=value) for value in values
        }


def measure(
    model: LanguageModel,
    held_out: HeldOut,
    settings: Settings,
    train: Callable[[], TokenStore],
    world: Storyworld | None,
) -> dict[str, Any]:
    """The chosen measures by name. `train`: the tokens of the run's own train split; it raises UserError without them.

    What needs them is left out then, and named under "left_out".
    """
    found: dict[str, Any] = {"left_out": []}
    pairs = bleu.check() and bleu.read(Path(settings.bleu)) if settings.bleu else None
    try:
        store = train() if {"loss", "memorisation"} & set(settings.chosen) else None
    except UserError as error:
        store = None
        found["left_out"].append(f"frequency, memorisation: {error}")
    if "loss" in settings.chosen:
        found |= losses(model, held_out, settings.seed, store)
    if {"texts", "memorisation", "stories"} & set(settings.chosen):
        found |= of_texts(model, held_out, settings, store, world)
    if "probes" in settings.chosen:
        found["probes"] = probes.measure(model, held_out, settings.seed)
    if pairs:
        found["bleu"] = bleu.measure(model, pairs, longest_text(model, None), settings.seed)
    return found


def losses(model: LanguageModel, held_out: HeldOut, seed: int, train: TokenStore | None) -> dict[str, Any]:
    """loss, positions, frequency and calibration, from one pass over the windows."""
    context, tokenizer = model.model.config.context, model.tokenizer
    windows, units = held_out.windows(context, tokenizer.eos)
    scores = score(model.model, windows)
    targets = loss.Targets(windows, units, scores, tokenizer, held_out.lossless)
    bootstrap = Bootstrap(targets.count, seed)
    facts = {
        "n": targets.count,
        "unit": "windows" if len(held_out.documents) < FEW else "documents",
        "whole": held_out.whole,
        "layout": held_out.layout,
        "cut": sum(len(ids) >= context for ids in held_out.documents) if held_out.cut else 0,
    }
    found = {
        "loss": facts | loss.overall(targets, bootstrap),
        "positions": loss.by_position(targets, bootstrap, context),
        "calibration": loss.calibration(targets, scores, units, bootstrap),
    }
    if train:
        found["frequency"] = loss.by_frequency(targets, bootstrap, train, tokenizer.vocab_size)
    return found


def of_texts(
    model: LanguageModel, held_out: HeldOut, settings: Settings, train: TokenStore | None, world: Storyworld | None
) -> dict[str, Any]:
    """texts, memorisation and stories: all of the same generated texts."""
    longest, seed, found = longest_text(model, world), settings.seed, {}
    generated = texts.generated(model, held_out, settings.samplers, settings.samples, longest, seed)
    rows = {name: [completion.text for completion in row] for name, row in generated.items()}
    rows["held-out"] = texts.references(model, held_out, settings.samples, longest)
    if "texts" in settings.chosen:
        found["texts"] = texts.measure(rows, seed)
    if train and "memorisation" in settings.chosen:
        found["memorisation"] = copied(model, rows, train, seed)
    if world and "stories" in settings.chosen:
        found["stories"] = stories.measure(model, world, generated, settings.samples, seed)
    return found


def copied(model: LanguageModel, rows: Mapping[str, list[str]], train: TokenStore, seed: int) -> dict[str, Any]:
    """Memorisation of texts, as the ids that training would read, with the longest copies as text."""
    ids = {name: [row.astype(np.int64) for row in model.tokenizer.encode_batch(text)] for name, text in rows.items()}
    found, copies = memorisation.measure(ids, train, model.tokenizer.eos, seed)
    for name, row in found["rows"].items():
        row["copy"] = model.decode(copies[name].tolist())
    return found


def longest_text(model: LanguageModel, world: Storyworld | None) -> int:
    """Tokens of a generated text: a story may fill the context."""
    return model.model.config.context if world else texts.LONGEST
