"""The sources of data=mixture: each is an option of conf/data with keys of its own, composed like data itself."""

from collections.abc import Callable
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from slm.classes import did_you_mean
from slm.errors import UserError
from slm.run.names import hint_for

MIXED = ("weight", "epochs", "layout")  # keys of a source beside those of its option
SOURCE = "slm.corpora.mixture.Source"


def with_sources(cfg: DictConfig, as_plain: Callable[[DictConfig], dict[str, Any]]) -> dict[str, Any]:
    """The configuration as plain types, with a node for each source of a mixture. Raises UserError.

    The mixture's `sources` is what was given; the nodes are in its corpus.
    """
    config = as_plain(cfg)
    data = config.get("data")
    if not (isinstance(data, dict) and isinstance(data.get("corpus"), dict) and data.get("sources")):
        return config
    if not isinstance(data["sources"], dict):
        raise UserError(
            f"data.sources={data['sources']!r} must hold sources by name, as data.sources.stories=tinystories"
        )
    raw = OmegaConf.to_container(cfg)
    data["sources"] = {str(name): checked(str(name), source) for name, source in data["sources"].items()}
    nodes = {}
    for name, source in data["sources"].items():
        option = option_of(f"data.sources.{name}", source.get("data"))
        given = raw["data"]["sources"][name]
        given = given if isinstance(given, dict) else {}
        own = {key: value for key, value in given.items() if key not in ("data", *MIXED)}
        check_keys(name, own, option)
        corpus = as_plain(OmegaConf.create({**raw, "data": OmegaConf.merge(option, own)}))["data"].get("corpus")
        mixed = {key: source[key] for key in ("data", *MIXED) if key in source}
        nodes[name] = {"_target_": SOURCE, **mixed, "corpus": corpus}
    data["corpus"] = {**data["corpus"], "sources": nodes}
    return config


def checked(name: str, source: Any) -> dict[str, Any]:
    """A source as keys and values; the keys of its weights are text, as in a file of JSON. Raises UserError."""
    if isinstance(source, str):
        return {"data": source}
    if not isinstance(source, dict) or not (source.get("data") or "corpus" in source):
        where = f"data.sources.{name}"
        raise UserError(f"{where}.data is missing: give {where}=OPTION, an option of data such as tinystories")
    if isinstance(source.get("weight"), dict):
        return {**source, "weight": {str(share): weight for share, weight in source["weight"].items()}}
    return source


def option_of(where: str, name: str | None) -> dict[str, Any]:
    """The section data of an option, with interpolations; empty without a name. Raises UserError if there is none."""
    if name is None:
        return {}
    found = GlobalHydra.instance().config_loader().get_group_options("data")
    options = [option for option in found if option != "mixture"]
    if name not in options:
        hint = did_you_mean(str(name), options, cutoff=0.7)
        raise UserError(f"{where}={name} is not one of {', '.join(options)}{hint}")
    return OmegaConf.to_container(hydra.compose(f"data/{name}").data)


def check_keys(name: str, own: dict[str, Any], option: dict[str, Any]):
    """Raises UserError for a key of a source that its option does not have."""
    known = [key for key in option if f"data.{key}" in str(option)] + ["corpus"]
    for key in own if option else ():
        if key not in known:
            where = f"data.sources.{name}."
            hint = hint_for(where + key, [where + other for other in (*known, *MIXED)])
            raise UserError(f"there is no key {where}{key}{hint}")
