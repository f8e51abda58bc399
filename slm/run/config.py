"""The typed, validated configuration of a run.

`read_config` turns the composed configuration into one frozen RunConfig and finds every mistake that can be found
without data or a long computation. conf/train.yaml and the files of its groups explain each key.
"""

import inspect
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, Literal

import torch

from slm import own_model
from slm.corpora.deduplicated import deduplicated
from slm.corpora.joined import joined
from slm.errors import UserError
from slm.model import GPT, GPTConfig
from slm.own_model import AnyConfig, OwnConfig
from slm.run.instantiate import Node, check, describe_target, is_node, required
from slm.run.names import OPTIONAL_NODES, REFUSED_TRAINER_KEYS, hint_for
from slm.run.sections import Budget, DataConfig, TrainerConfig
from slm.security import NAME, refuse_url

VALIDATED = "loss", "perplexity", "bits_per_byte", "text_bits_per_byte", "excess_bits_per_story"
METRICS = (*(f"val/{name}" for name in VALIDATED), "train/loss")
ORDER = (  # prefixes of the keys that decide which windows a run reads
    *(
        "seed.",
        "data.batch_windows.",
        "data.train_windows.",
        "data.layout.",
        "data.order.",
        "data.stride.",
        "data.deduplicate.",
        "data.joined.",
        "data.corpus.",
        "data.sources.",
        "tokenizer.",
    ),
    "model.context.",
)
EARLY_FACTS = ("folder", "config", "corpus", "layout")
LATE_FACTS = ("tokenizer", "data", "store", "model_config", "steps")  # unknown before the data is prepared
FACTS = {  # arguments that a constructor may name besides its settings
    "callbacks": (*EARLY_FACTS, *LATE_FACTS),
    "logger": ("save_dir", "name", "id", "path", "offline"),
}
PASSED_ON = (  # keywords of Lightning's Trainer that go to it unchanged
    *("deterministic", "benchmark", "detect_anomaly", "profiler", "limit_val_batches", "num_sanity_val_steps"),
    *("gradient_clip_algorithm", "enable_model_summary", "inference_mode", "sync_batchnorm", "model_registry"),
)


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """All choices of a run, checked. Facts that data or hardware decide are not in it."""

    name: str | None
    tags: list[str]
    variant: str | None
    seed: int
    log_every_n_steps: int
    val_every_n_steps: int
    optimized_metric: str
    run_dir: str | None
    runs_dir: str
    cache_dir: str
    fork: str | None
    resume: str
    allow_changes: list[str]
    verify_resume: bool
    report: bool
    prepare: bool
    plan: bool | Literal["measure"]
    lint: bool
    price_per_hour: float | None
    log_windows: bool
    on_nonfinite: Literal["stop", "skip"]
    on_spike: Literal["warn", "skip"]
    budget: Budget
    model: AnyConfig  # vocab_size is 1 until the tokenizer is known
    data: DataConfig
    tokenizer: Node  # builds from documents
    optimizer: Callable[[GPT], torch.optim.Optimizer]
    schedule: Callable[[int, int], float]  # steps done, steps in all -> multiplier of the learning rate
    trainer: TrainerConfig
    callbacks: dict[str, Node]
    logger: dict[str, Node]
    plain: dict[str, Any]  # for config.yaml and checkpoints; values of the environment as interpolations

    def __post_init__(self):
        if fixed := [key for key in self.allow_changes if f"{key}.".startswith(ORDER) or key in ("data", "model")]:
            raise UserError(
                f"allow_changes={fixed[0]}: the order and content of windows depend on it; start another run"
            )
        if self.name is not None and not NAME.fullmatch(self.name):
            raise UserError(f"name={self.name} must consist of letters, digits, dots, hyphens and underscores")
        if (stride := self.data.stride) is not None and stride > self.model.context:
            raise UserError(
                f"data.stride={stride} must be at most model.context={self.model.context}: it would skip text"
            )
        for key in ("run_dir", "runs_dir", "cache_dir"):
            refuse_url(key, getattr(self, key))
        if not 0 <= self.seed < 2**32:
            raise UserError(f"seed={self.seed} must be at least 0 and below 2**32")
        sources = getattr(self.data.corpus, "sources", ())
        metrics = (*METRICS, *(f"val/{source}/{name}" for source in sources for name in VALIDATED[:4]))
        if self.optimized_metric not in metrics:
            known = ", ".join(metrics)
            raise UserError(f"optimized_metric={self.optimized_metric} is not one of {known}")
        for key in ("log_every_n_steps", "val_every_n_steps"):
            if getattr(self, key) < 1:
                raise UserError(f"{key}={getattr(self, key)} must be at least 1")
        if self.fork is not None:
            self._check_fork(self.fork)
        if self.verify_resume and self.trainer.fast_dev_run:
            raise UserError("verify_resume=true and trainer.fast_dev_run exclude one another: the latter keeps nothing")
        others = {f"plan={str(self.plan).lower()}": self.plan, "verify_resume=true": self.verify_resume}
        if self.prepare and (other := next((name for name, given in others.items() if given), None)):
            raise UserError(f"prepare=true and {other} exclude one another: prepare first, then give the other alone")
        if self.price_per_hour is not None and not 0 <= self.price_per_hour < math.inf:
            raise UserError(f"price_per_hour={self.price_per_hour} must be at least 0 and finite")
        self._check_callbacks()

    def _check_fork(self, fork: str):
        if not re.fullmatch(r"/.*@\d+", fork):  # as slm.run.fork writes it; a file of conf/ cannot begin with a run
            raise UserError(f"fork={fork} must stand on the command line, not in a file")
        others = {
            f"resume={self.resume}": self.resume not in ("auto", "never"),
            "verify_resume=true": self.verify_resume,
            "trainer.fast_dev_run": bool(self.trainer.fast_dev_run),
        }
        for other in (name for name, given in others.items() if given):
            raise UserError(f"fork={fork} and {other} exclude one another: a fork starts from that checkpoint")

    def _check_callbacks(self):
        if "checkpoints" not in self.callbacks:
            raise UserError("callbacks.checkpoints cannot be left out: it also ends runs; raise its every_n_steps")
        if "guard" not in self.callbacks and (self.on_nonfinite, self.on_spike) != ("stop", "warn"):
            raise UserError("on_nonfinite and on_spike need callbacks.guard; give it, or leave them at stop and warn")
        if self.optimized_metric == "val/excess_bits_per_story" and "stories" not in self.callbacks:
            raise UserError("optimized_metric=val/excess_bits_per_story is only measured on data=storyworld")


def read_config(plain: Mapping[str, Any], written: Mapping[str, Any] | None = None) -> RunConfig:
    """The checked configuration, from the composed one as plain types. Raises UserError for any mistake.

    `written` is the same with interpolations in place of values of the environment, unless there are none.

    Lightning is imported last, for callbacks and loggers, so mistakes elsewhere are answered sooner; not for a plan,
    which only reads their settings.
    """
    values = dict(plain)
    known = [entry.name for entry in fields(RunConfig) if entry.name != "plain"]
    if unknown := [key for key in values if key not in known]:
        key, _, rest = str(unknown[0]).partition(".")
        hint = f"; in a file, write {key}: {{{rest}: ...}}" if rest else hint_for(key, known)
        raise UserError(f"there is no key {unknown[0]}{hint}")
    values["budget"] = typed(Budget, values.get("budget"), "budget")
    values["trainer"] = read_trainer(values.get("trainer"))
    if steps := int(values["trainer"].fast_dev_run):
        values |= {"budget": Budget(steps=steps, tokens=None, epochs=None, max_time=None), "val_every_n_steps": steps}
    values["model"] = read_model(values.get("model"))
    values["data"] = read_data(values.get("data"))
    values["tokenizer"] = Node.read("tokenizer", values.get("tokenizer"))
    values["optimizer"] = read_optimizer(values.get("optimizer"))
    values["schedule"] = read_schedule(values.get("schedule"), values["budget"].steps or 10**9)
    check(RunConfig, {key: value for key, value in values.items() if key not in ("callbacks", "logger")}, "")
    for group in ("callbacks", "logger"):
        values[group] = read_nodes(group, values.get(group), imported=plain.get("plan") is not True)
    return typed(RunConfig, {**values, "plain": dict(written or plain)}, "")


def typed(kind: type, values: Any, where: str) -> Any:
    """The dataclass from a mapping. Raises UserError for an unknown or missing key or a wrong type."""
    if not isinstance(values, Mapping):
        raise UserError(f"{where} must hold keys and values, not be {values!r}")
    check(kind, values, where)
    if missing := [name for name in required(kind) if name not in values]:
        raise UserError(f"{where}{'.' if where else ''}{missing[0]} is missing; null stands for no value")
    return kind(**values)


def read_trainer(values: Any) -> TrainerConfig:
    if not isinstance(values, Mapping):
        raise UserError(f"trainer must hold keys and values, not be {values!r}")
    for key, remedy in REFUSED_TRAINER_KEYS.items():
        if values.get(key) is not None:
            raise UserError(f"trainer.{key} is not passed on to Lightning: {remedy}")
    if not isinstance(values.get("num_sanity_val_steps") or 0, int):
        raise UserError(f"trainer.num_sanity_val_steps={values['num_sanity_val_steps']} must be a whole number")
    passed_on = {key: value for key, value in values.items() if key in PASSED_ON and value is not None}
    own = {key: value for key, value in values.items() if key not in PASSED_ON and key not in REFUSED_TRAINER_KEYS}
    return typed(TrainerConfig, {**own, "lightning": passed_on}, "trainer")


def read_model(values: Any) -> GPTConfig:
    if isinstance(values, Mapping) and "vocab_size" in values:
        raise UserError("model.vocab_size is decided by the tokenizer; give tokenizer.vocab_size")
    if isinstance(values, Mapping) and "document_start" in values:
        raise UserError("model.document_start follows from the data; give data.attention_across_documents=false")
    if is_node(values):
        return read_own_model(values)
    return typed(GPTConfig, {**values, "vocab_size": 1} if isinstance(values, Mapping) else values, "model")


def read_own_model(values: Mapping[str, Any]) -> OwnConfig:
    """The configuration of a model of one's own, of which a small one has been tried."""
    settings = {key: value for key, value in values.items() if key != "context"}
    node = Node.read("model", settings)
    node.check_complete(own_model.FACTS)
    facts = {"context": values.get("context"), "vocab_size": 64}
    config = OwnConfig(target=values["_target_"], make=node.target, settings=dict(node.settings), **facts)
    own_model.check(config)
    return config


def read_data(values: Any) -> DataConfig:
    if not isinstance(values, Mapping):
        raise UserError(f"data must hold keys and values, not be {values!r}")
    try:
        corpus = Node.read("data.corpus", values.get("corpus")).build()
    except UserError as error:  # with the keys that a user has typed
        raise type(error)(str(error).replace("data.corpus.sources.", "data.sources.")) from None
    if not hasattr(corpus, "store"):  # of ids that may be elsewhere
        refuse_url("data.path", values.get("path"))
    names = {entry.name for entry in fields(DataConfig)}
    if values.get("joined") is True:
        corpus = joined(corpus)
    if values.get("deduplicate") == "exact":
        corpus = deduplicated(corpus)
    return typed(DataConfig, {k: v for k, v in values.items() if k in names} | {"corpus": corpus}, "data")


def read_optimizer(value: Any) -> Callable[[GPT], torch.optim.Optimizer]:
    """A function from the model to its optimizer.

    The target is a class whose instances are such functions (slm.optim), a torch optimizer, which receives all
    parameters, or a function that takes the model.
    """
    node = Node.read("optimizer", value)
    if not inspect.isclass(node.target):
        node.check_complete((), positional=1)
        return partial(node.target, **node.settings)
    if not issubclass(node.target, torch.optim.Optimizer):
        return node.build()

    def build(parameters) -> torch.optim.Optimizer:
        try:
            return node.build(parameters)
        except (ValueError, TypeError) as error:
            raise UserError(f"optimizer: {error}") from None

    build([torch.zeros(1, requires_grad=True)])  # torch's own check of the values, before any work
    return lambda model: build(list(model.parameters()))


def read_schedule(value: Any, steps: int) -> Callable[[int, int], float]:
    """The schedule. Raises UserError if its settings are wrong for a run of so many steps."""
    node = Node.read("schedule", value)
    if inspect.isclass(node.target):
        schedule = node.build()
    else:
        node.check_complete((), positional=2)
        schedule = partial(node.target, **node.settings)
    try:
        inspect.signature(schedule).bind(0, steps)
    except TypeError as error:
        raise UserError(
            f"schedule: {describe_target(node.target)} must take (steps done, steps in all): {error}"
        ) from None
    schedule(0, steps)
    return schedule


def read_nodes(group: str, values: Any, *, imported: bool) -> dict[str, Node]:
    """The nodes of a group by name. A null node is left out, and so is a null setting of a logger.

    If they are not `imported`, their settings are not checked and their target is the name.
    """
    if not isinstance(values := {} if values is None else values, Mapping):
        raise UserError(f"{group} must hold nodes by name, not be {values!r}; {{}} is none")
    nodes = {}
    for name, value in values.items():
        if name in OPTIONAL_NODES[group] and isinstance(value, Mapping) and not is_node(value):
            continue  # settings, from an experiment or debug option, of a node that the option of the group leaves out
        if group == "logger" and is_node(value):
            value = {key: item for key, item in value.items() if item is not None}
        if value is not None and not imported and is_node(value):
            nodes[name] = Node(f"{group}.{name}", value["_target_"], value)
        elif value is not None:
            nodes[name] = Node.read(f"{group}.{name}", value)
            nodes[name].check_complete(FACTS[group])
    return nodes
