"""From the composed configuration to a RunConfig: each section and each node read and checked, before any work."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import fields
from functools import partial
from typing import Any

import torch

from slm import own_model
from slm.classes import name_of
from slm.corpora.deduplicated import deduplicated
from slm.corpora.wrapped import joined
from slm.errors import UserError
from slm.lora import LoRAConfig
from slm.model import GPT, GPTConfig
from slm.own_model import AnyConfig, OwnConfig
from slm.run.config import EARLY_FACTS, LATE_FACTS, RunConfig
from slm.run.instantiate import Node, check, is_node, required
from slm.run.names import OPTIONAL_NODES, REFUSED_TRAINER_KEYS, hint_for
from slm.run.sections import Budget, DataConfig, TrainerConfig
from slm.security import refuse_url

FACTS = {  # arguments that a constructor may name besides its settings
    "callbacks": (*EARLY_FACTS, *LATE_FACTS),
    "logger": ("save_dir", "name", "id", "path", "offline"),
}
PASSED_ON = (  # keywords of Lightning's Trainer that go to it unchanged
    *("deterministic", "benchmark", "detect_anomaly", "profiler", "limit_val_batches", "num_sanity_val_steps"),
    *("gradient_clip_algorithm", "enable_model_summary", "inference_mode", "sync_batchnorm", "model_registry"),
)


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
        values[group] = read_nodes(group, values.get(group), imported=plain.get("plan") not in (True, "parameters"))
    return typed(RunConfig, {**values, "plain": dict(written or plain)}, "")


def mapping(values: Any, where: str) -> Mapping[str, Any]:
    """The values. Raises UserError unless they are keys and values."""
    if not isinstance(values, Mapping):
        raise UserError(f"{where} must hold keys and values, not be {values!r}")
    return values


def typed(kind: type, values: Any, where: str) -> Any:
    """The dataclass from a mapping. Raises UserError for an unknown or missing key or a wrong type."""
    check(kind, mapping(values, where), where)
    if missing := [name for name in required(kind) if name not in values]:
        raise UserError(f"{where}{'.' if where else ''}{missing[0]} is missing; null stands for no value")
    return kind(**values)


def read_trainer(values: Any) -> TrainerConfig:
    for key, remedy in REFUSED_TRAINER_KEYS.items():
        if mapping(values, "trainer").get(key) is not None:
            raise UserError(f"trainer.{key} is not passed on to Lightning: {remedy}")
    if not isinstance(values.get("num_sanity_val_steps") or 0, int):
        raise UserError(f"trainer.num_sanity_val_steps={values['num_sanity_val_steps']} must be a whole number")
    passed_on = {key: value for key, value in values.items() if key in PASSED_ON and value is not None}
    own = {key: value for key, value in values.items() if key not in PASSED_ON and key not in REFUSED_TRAINER_KEYS}
    return typed(TrainerConfig, {**own, "lightning": passed_on}, "trainer")


def read_model(values: Any) -> AnyConfig:
    if "vocab_size" in mapping(values, "model"):
        raise UserError("model.vocab_size is decided by the tokenizer; give tokenizer.vocab_size")
    if "document_start" in values:
        raise UserError("model.document_start follows from the data; give data.attention_across_documents=false")
    if is_node(values):
        return read_own_model(values)
    lora = mapping(values.get("lora") or {"rank": None}, "model.lora")
    lora = None if lora.get("rank") is None else typed(LoRAConfig, lora, "model.lora")
    return typed(GPTConfig, {**values, "vocab_size": 1, "lora": lora}, "model")


def read_own_model(values: Mapping[str, Any]) -> OwnConfig:
    """The configuration of a model of one's own, of which a small one has been tried."""
    if values["_target_"] == "???":
        raise UserError("model=own needs a class of yours; give model._target_=my_models.MyModel (docs/own_model.md)")
    settings = {key: value for key, value in values.items() if key != "context"}
    node = Node.read("model", settings)
    node.check_complete(own_model.FACTS)
    facts = {"context": values.get("context"), "vocab_size": 64}
    config = OwnConfig(target=values["_target_"], make=node.target, settings=dict(node.settings), **facts)
    own_model.check(config)
    return config


def read_data(values: Any) -> DataConfig:
    try:
        corpus = Node.read("data.corpus", mapping(values, "data").get("corpus")).build()
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
    return lambda model: build([parameter for parameter in model.parameters() if parameter.requires_grad])


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
        raise UserError(f"schedule: {name_of(node.target)} must take (steps done, steps in all): {error}") from None
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
