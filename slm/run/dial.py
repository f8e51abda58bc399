"""model=dial: shape, batch, rates, weight decay, schedule and tokens of a run from its size, each by a rule of RULES.

Each rule is a power law through one measured run, experiment=quickstart, whose numbers it gives at depth 2. Where each
comes from, and what was checked: docs/dial.md. slm/run/replaced.py leaves null what is not given; `fill` computes it.
"""

import bisect
import math
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from slm.errors import UserError
from slm.files import atomic, run_folder
from slm.run.overrides import LENGTHS, flattened, key_of

TOKENS_PER_PARAMETER = 10.6
LARGEST_DEPTH = 100
FACTORS = {"": 1, "K": 1e3, "M": 1e6, "B": 1e9}
LEAST_PARAMETERS = 10_000
LARGEST_WHOLE, LARGEST = 10**8, 1e30  # of other numbers, such as FLOPs


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Holds what the rules after the shape are computed from; the defaults are those of the reference run."""

    depth: int = 2
    width: int = 128  # that the learning rate is for
    parameters: int = 528_000  # without embeddings; a head of its own counts
    tokens: float = 5.6e6  # targets of the whole run
    windows: int = 32  # per step
    window: int = 146  # targets of one

    @property
    def batch(self) -> int:
        """Targets per step."""
        return self.windows * self.window


REFERENCE = Facts()
POWER = 0.383  # of the tokens, in the batch
FILLED_SHARE = 0.76  # share of a window that a document fills, as in the reference
WHOLE_NUMBERS = (
    *("model.depth", "model.width", "model.head_dim", "model.context"),
    *("data.batch_windows", "budget.steps", "tokenizer.vocab_size"),
)


def digits(value: float) -> float:
    """The first two, since no rule is more exact."""
    return float(f"{value:.2g}")


def tokens(facts: Facts) -> int:
    return int(digits(TOKENS_PER_PARAMETER * facts.parameters))


def batch_windows(facts: Facts) -> int:
    best = REFERENCE.batch * (facts.tokens / REFERENCE.tokens) ** POWER
    return 2 ** max(0, round(math.log2(best / facts.window)))


def batch_of_steps(steps: int) -> float:
    """Targets per step of a run of so many steps: B = c (steps * B) ^ p solved for B."""
    return REFERENCE.batch * (steps * REFERENCE.batch / REFERENCE.tokens) ** (POWER / (1 - POWER))


def rate(reference: float, power: float) -> Callable[[Facts], float]:
    """A learning rate that falls with a power of the width, and grows with the batch within a factor of two."""

    def rule(facts: Facts) -> float:
        larger = min(max(math.sqrt(facts.batch / REFERENCE.batch), 0.5), 2.0)
        return digits(reference * larger * (REFERENCE.width / facts.width) ** power)

    return rule


def decay(reference: float, its_rate: Callable[[Facts], float]) -> Callable[[Facts], float]:
    """A weight decay whose product with the rate of the rule and the steps is that of the reference, within tenfold."""

    def rule(facts: Facts) -> float:
        share, reference_share = (its_rate(run) * run.tokens / run.batch for run in (facts, REFERENCE))
        return digits(reference * min(reference_share / share, 10.0))

    return rule


def constant(value: float) -> Callable[[Facts], float]:
    return lambda facts: value


BY_BATCH, BY_STEPS = "sqrt(batch), within a factor of two", "1 / (rate of the rule * steps)"
MUON_RATE, MUON_ADAMW_RATE, ADAMW_RATE = rate(0.02, 0.0), rate(0.01, 0.5), rate(0.004, 1.0)
MUON, ADAMW = "slm.optim.muon.Muon", "slm.optim.adamw.AdamW"
SHAPE = {  # key -> its rule in a few words
    "model.depth": "nearest to the size",
    "model.head_dim": "32; 64 from width 256, 128 from 768",
    "model.width": "64 * depth, a multiple of head_dim",
    "model.base_width": "of the reference",
    "model.base_depth": "of the reference",
}
RULES: dict[str, dict[str, tuple[str, Callable[[Facts], float]]]] = {  # target, or "" for all -> key -> words, rule
    "": {
        "budget.tokens": (f"{TOKENS_PER_PARAMETER} * parameters without embeddings", tokens),
        "data.batch_windows": ("tokens ^ 0.383, to a power of two", batch_windows),
    },
    MUON: {
        "optimizer.lr": (BY_BATCH, MUON_RATE),
        "optimizer.weight_decay": (BY_STEPS, decay(0.01, MUON_RATE)),
        "optimizer.adamw_lr": (f"{BY_BATCH}, / sqrt(width)", MUON_ADAMW_RATE),
        "optimizer.adamw_weight_decay": (BY_STEPS, decay(0.01, MUON_ADAMW_RATE)),
    },
    ADAMW: {
        "optimizer.lr": (f"{BY_BATCH}, / width", ADAMW_RATE),
        "optimizer.weight_decay": (BY_STEPS, decay(0.1, ADAMW_RATE)),
    },
    "slm.optim.schedule.warmup_stable_decay": {
        "schedule.warmup_fraction": ("the same at every size", constant(0.02)),
        "schedule.decay_fraction": ("the same at every size", constant(0.5)),
        "schedule.min_lr_ratio": ("the same at every size", constant(0.0)),
    },
}


def explained(config: Mapping[str, Any]) -> list[tuple[str, Any, str]]:
    """Each key that the dial chooses, or that was given instead: its value, and the rule in a few words or `given`."""
    words = SHAPE | {key: rule for key, (rule, _) in rules(config).items()}
    words |= {f"budget.{name}": "given" for name in LENGTHS if name != "tokens"}
    values = {key: value_of(config, key) for key in words}
    chosen = config["dial"]["chosen"]
    return [(k, v, words[k] if k in chosen else "given") for k, v in values.items() if v is not None]


def rules(config: Mapping[str, Any]) -> dict[str, tuple[str, Callable[[Facts], float]]]:
    """Those of RULES that hold with its optimizer and schedule."""
    targets = "", *(str(config[group].get("_target_")) for group in ("optimizer", "schedule"))
    return {key: rule for target in targets for key, rule in RULES.get(target, {}).items()}


def value_of(config: Mapping[str, Any], key: str) -> Any:
    section, name = key.split(".")
    return config[section].get(name)


def fill(config: dict[str, Any], written: dict[str, Any], overrides: Sequence[str]):
    """Fills what is open in a composed configuration of model=dial, and in the same as it is written, which get a
    section `dial`: how it was set, and the keys that it chose. A run that goes on or forks keeps what it had.

    Raises: UserError: for a mistake in what decides the size.
    """
    setting, size = read_size(config, overrides)
    chosen, earlier = computed(config, size), recorded(config)
    kept = earlier.get("dial.chosen")
    if earlier.get("dial.set") == setting and isinstance(kept, list):
        chosen |= {key: earlier[key] for key in chosen if key in earlier and key in kept}
    for values in (config, written):
        values["dial"] = {"set": setting, "chosen": list(chosen)}
        for name in ("dial", "size"):
            values["model"].pop(name, None)
        for key, value in chosen.items():
            section, name = key.split(".")
            values[section][name] = value


def read_size(config: Mapping[str, Any], overrides: Sequence[str]) -> tuple[str, float | None]:
    """The override that sets the dial, and the parameters that it asks for. Raises UserError."""
    from slm.run.read_config import mapping

    for section in ("model", "data", "tokenizer", "optimizer", "schedule", "budget"):
        mapping(config.get(section), section)
    size, depth = (config["model"].get(name) for name in ("size", "depth"))
    for key in WHOLE_NUMBERS:
        value = value_of(config, key)
        if value is not None and not (type(value) is int and 1 <= value <= LARGEST_WHOLE):
            raise UserError(f"{key}={value} must be a whole number of at least 1 and at most {LARGEST_WHOLE:,}")
    for name in ("tokens", "flops"):
        given = config["budget"].get(name)
        if given is not None and not (type(given) in (int, float) and 0 < given <= LARGEST):
            raise UserError(f"budget.{name}={given} must be above 0 and at most {LARGEST:g}")
    if depth is not None and depth > LARGEST_DEPTH:
        raise UserError(f"model.depth={depth} must be at most {LARGEST_DEPTH} blocks; model.size= takes parameters")
    if None not in (size, depth) and {"model.size", "model.depth"} <= {*map(key_of, overrides)}:
        raise UserError(f"model.size={size} and model.depth={depth} exclude one another; give one of them")
    if depth is not None:
        return f"model.depth={depth}", None
    if size is None:
        raise UserError("model=dial needs a size; give model.size=20M, of all parameters, or model.depth=6")
    found = re.fullmatch(r"(\d{1,12}(?:\.\d+)?)([kKmMbB]?)", str(size))
    parameters = float(found[1]) * FACTORS[found[2].upper()] if found else 0
    if parameters < LEAST_PARAMETERS:
        raise UserError(f"model.size={size} must be a number of parameters from 10k on, such as 800k, 20M or 1B")
    return f"model.size={size}", parameters


def recorded(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The values of the run that goes on in run_dir, of the trunk of a fork, or of the checkpoint of resume=, by dotted
    key; empty for a new run. Raises UserError."""
    from slm import checkpoint  # imports torch

    run_dir, fork, resume = (str(config.get(key) or "") for key in ("run_dir", "fork", "resume"))
    for folder in filter(None, (run_dir, fork.rpartition("@")[0])):
        if info := run_folder.read_run_json(atomic.expanded(folder)):
            return flattened(info["config"])
    if resume in ("", "auto", "never"):
        return {}
    start = run_folder.find_resume_checkpoint(resume, Path(str(config["runs_dir"])))
    return flattened(checkpoint.read(start, outline=True)["slm"]["config"])


def is_open(config: Mapping[str, Any], key: str) -> bool:
    """True if nobody gave a value. A budget of any kind is one."""
    section, name = key.split(".")
    names = LENGTHS if section == "budget" else (name,)
    return all(config[section].get(name) is None for name in names)


def computed(config: Mapping[str, Any], size: float | None) -> dict[str, Any]:
    """The values of all open keys by their rules. Raises UserError."""
    from slm.estimate import parameters, training_flops_per_token  # imports torch

    ids = vocabulary(config)
    chosen = shape(config, config["model"]["depth"] if size is None else nearest(config, size, ids))
    model, budget, data = model_of(config, chosen, ids), config["budget"], config["data"]
    window = round(model.context * (FILLED_SHARE if data.get("layout") in ("documents", "instructions") else 1))
    facts = Facts(width=model.tuned_width, parameters=parameters(model).non_embedding, window=window)
    by_flops = (budget.get("flops") or 0) / training_flops_per_token(model)
    facts = replace(facts, tokens=budget.get("tokens") or by_flops or tokens(facts))
    if steps := budget.get("steps"):
        batch = data["batch_windows"] * window if data.get("batch_windows") else batch_of_steps(steps)
        facts = replace(facts, tokens=steps * batch)
    facts = replace(facts, windows=data.get("batch_windows") or batch_windows(facts))
    return chosen | {key: rule(facts) for key, (_, rule) in rules(config).items() if is_open(config, key)}


def shape(config: Mapping[str, Any], depth: int) -> dict[str, Any]:
    """Depth, width and head_dim, as far as they are open, and the base of a parametrization."""
    from slm.parametrization import PARAMETRIZATIONS

    model = config["model"]
    width = model.get("width") or 64 * depth
    usual = 128 if width >= 768 else 64 if width >= 256 else 32
    fitting = [size for size in (128, 64, 32) if size <= usual and width % size == 0]
    head_dim = model.get("head_dim") or (fitting[0] if model.get("width") and fitting else usual)
    found = {"model.depth": depth, "model.width": head_dim * math.ceil(width / head_dim), "model.head_dim": head_dim}
    needed = PARAMETRIZATIONS.get(str(model.get("parametrization")), ())
    found |= {f"model.{name}": getattr(REFERENCE, name.removeprefix("base_")) for name in needed}
    return {key: value for key, value in found.items() if is_open(config, key)}


def nearest(config: Mapping[str, Any], size: float, ids: int) -> int:
    """The possible depth whose parameters are nearest to `size`. Raises UserError if none is possible, or near."""
    from slm.estimate import parameters

    models = {}
    for depth in range(1, LARGEST_DEPTH + 1):
        with suppress(UserError):
            models[depth] = model_of(config, shape(config, depth), ids)
    models = models or {1: model_of(config, shape(config, 1), ids)}  # which raises

    @cache
    def count(depth: int) -> int:
        return parameters(models[depth]).total

    depths = list(models)
    above = bisect.bisect_left(depths[:-1], size, key=count)
    best = min(depths[max(above - 1, 0) : above + 1], key=lambda depth: abs(count(depth) - size))
    if not size / 2 <= count(best) <= 2 * size:
        raise UserError(
            f"model.size={config['model']['size']}: the nearest model has {count(best):,} parameters, of depth {best} "
            f"with {ids:,} ids; give another size, or another tokenizer.vocab_size"
        )
    return best


def model_of(config: Mapping[str, Any], chosen: Mapping[str, Any], ids: int):
    """The GPTConfig with these values. Raises UserError."""
    from slm.run.read_config import read_model

    values = {key: value for key, value in config["model"].items() if key not in ("dial", "size")}
    values |= {key.removeprefix("model."): value for key, value in chosen.items() if key.startswith("model.")}
    return replace(read_model(values), vocab_size=ids)


def vocabulary(config: Mapping[str, Any]) -> int:
    """The ids of the tokenizer, as they are stated if they are learned from the corpus. Raises UserError."""
    from slm.planning.data import FIXED
    from slm.run.instantiate import Node

    section = config["tokenizer"]
    if section.get("vocab_size") and not section.get("path"):
        return section["vocab_size"]
    known = (ids for name, (ids, _) in FIXED.items() if f".{name}." in str(section.get("_target_")))
    return next(known, None) or Node.read("tokenizer", section).build(documents=()).vocab_size
