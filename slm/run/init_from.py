"""init_from=RUN|CKPT|hf:FOLDER: a run that starts from the weights of a trained model, with new data.

The model's keys are those of the source, and so are the tokenizer and the markers of conversations (data=instructions),
unless the command line gives others. The run is a new one: steps, schedule and optimizer begin anew.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from slm import checkpoint
from slm.cache import cached
from slm.chat_template import chat_template
from slm.classes import locate
from slm.data.store import TOKENIZER_FORMAT, fingerprint
from slm.errors import UserError
from slm.files import atomic, run_folder
from slm.run.compose import composed
from slm.run.config import RunConfig
from slm.run.overrides import key_of, parsed, quoted
from slm.transfer import Source

HF = "hf:"
NOT_INHERITED = ("vocab_size", "document_start", "gradient_checkpointing", "lora")


def with_source(overrides: Sequence[str]) -> list[str]:
    """The keys of the source's model and its tokenizer, then the given overrides, with the source as a full path.
    Without init_from= the latter alone. Raises: UserError: if there is no such model, or the keys exclude one another.
    """
    given = {override.key_or_group: override for override in parsed(overrides)}
    if not (text := "init_from" in given and given["init_from"].value()):
        return list(overrides)
    for other in ("fork", "model", "parametrization"):
        if other in given and given[other].value() not in (None, "own"):
            raise UserError(
                f"init_from={text} and {other}={given[other].value()} exclude one another: "
                "the weights and the model are those of the source; give single keys such as model.dropout=0.1"
            )
    paths = composed("train", [word for word in overrides if key_of(word) in ("runs_dir", "cache_dir", "local")])[0]
    place, cache = find_source(text, Path(paths["runs_dir"])), Path(paths["cache_dir"])
    run_dir = "run_dir" in given and given["run_dir"].value()
    before = run_folder.read_run_json(atomic.expanded(run_dir)) if run_dir else None
    own = locate(given["model._target_"].value(), "model._target_") if "model._target_" in given else None
    new_tokenizer = any(key == "tokenizer" or key.startswith("tokenizer.") for key in given)
    if before and not Path(place.removeprefix(HF)).exists() and before["config"].get("init_from") == place:
        model, folder = before["config"]["model"], atomic.expanded(run_dir) / "tokenizer"  # the source was deleted
        chat = chat_template(before["config"])
    else:
        source = load_source(place, make=own)
        model, folder = asdict(source.model.config), new_tokenizer or kept_tokenizer(source, cache)
        chat = source.chat
    inherited = {} if own else {f"model.{key}": value for key, value in model.items() if key not in NOT_INHERITED}
    words = [f"{key}={json.dumps(value)}" for key, value in inherited.items() if key not in given]
    if chat and "data" in given and given["data"].value() == "instructions":
        markers = {f"data.{key}": text.replace("\n", "\\n") for key, text in vars(chat).items()}
        words += [quoted(f"{key}={text}", [key]) for key, text in markers.items() if key not in given]
    if not new_tokenizer:
        words += ["tokenizer=saved", quoted(f"tokenizer.path={folder}", ["tokenizer.path"])]
    rest = [word for word in overrides if key_of(word) != "init_from"]
    return [*words, *rest, quoted(f"init_from={place}")]


def find_source(text: str, runs_dir: Path) -> str:
    """What init_from= means, as a full path: a run folder, also one in runs_dir, a .ckpt file, or hf: and a folder."""
    if text.startswith(HF):
        return HF + str(atomic.expanded(text.removeprefix(HF)).absolute())
    if text in ("latest", "last", "best"):
        raise UserError(f"init_from={text} may be another model tomorrow; give the run folder or a .ckpt file")
    path = next((path for path in (atomic.expanded(text), runs_dir / text) if path.exists()), None)
    if path is None and "," in text:
        raise UserError(f"init_from={text}: a sweep starts from one model; give one command for each")
    return str((path or atomic.expanded(text)).absolute())


def load_source(place: str, file: Any = None, make: Callable | None = None) -> Source:
    """The model and tokenizer there; `file` is the checkpoint that an earlier attempt took from a run folder, and
    `make` the class of a model of one's own.

    Raises: UserError: for what is missing, damaged or foreign.
    """
    found = file if isinstance(file, str) and Path(file).exists() else place.removeprefix(HF)
    if not Path(found).exists():
        raise UserError(
            f"init_from={place} does not exist; it takes a run folder, a name in runs_dir, a .ckpt file, or hf: and a "
            "folder of transformers, such as that of: hf download openai-community/gpt2 --local-dir gpt2"
        )
    path = run_folder.find_checkpoint(found, Path(), key="init_from")
    if place.startswith(HF) != run_folder.is_of_transformers(path):
        raise UserError(f"init_from={place}: hf: stands before a folder of transformers, and before nothing else")
    try:
        loaded = checkpoint.load(path, model=make)
    except checkpoint.Outside as error:
        raise UserError(
            f"init_from={place}: {str(error).partition('; ')[0]}; a model of your own needs model=own "
            "model._target_=... with its settings, and a tokenizer of your own tokenizer=..."
        ) from None
    return Source(str(path), loaded.model, loaded.tokenizer, loaded.step, loaded.run_id, chat_template(loaded.config))


def source_of(config: RunConfig, before: Mapping[str, Any] | None, start: Path | None) -> Source | None:
    """Where the weights of an attempt come from, checked against its model; None if it starts from a checkpoint of its
    own or from nothing. `before` is run.json. Raises: UserError."""
    if start or not config.init_from:
        return None
    begun = (before or {}).get("init")
    file = begun.get("from") if isinstance(begun, dict) else None
    source = load_source(config.init_from, file, getattr(config.model, "make", None))
    source.check(config.model)
    return source


@dataclass(frozen=True)
class _Folder:
    """A saved tokenizer as what a folder of the cache is made from."""

    source: str
    digest: str

    def fingerprint(self) -> str:
        return self.digest


def kept_tokenizer(source: Source, cache: Path) -> Path:
    """A folder of the cache with the tokenizer of the source."""
    origin = _Folder(source.name, fingerprint(source.tokenizer))
    identity = {"format": TOKENIZER_FORMAT, "corpus": origin.digest, "settings": {"saved": True}}
    return cached(cache, "tokenizers", origin, identity, source.tokenizer.save)
