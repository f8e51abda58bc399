"""README.md of an exported model: where it comes from, from the files of its run. No value of the environment."""

import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from slm.chat_template import chat_template
from slm.errors import UserError, one_line
from slm.files import run_folder
from slm.generation.language_model import LanguageModel
from slm.results import Run
from slm.security import SECRET, corpus_nodes, for_others

LICENSE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
LOCAL = "run_dir=", "runs_dir=", "sweep_dir=", "cache_dir="  # where files are, and nothing else
NOT_DATA = "_target_", "cache", "streaming"  # keys of a corpus
USE = """\
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

place = "."  # this folder, or user/name of a repository of the Hub
tokenizer, model = AutoTokenizer.from_pretrained(place), AutoModelForCausalLM.from_pretrained(place)
"""
TEXT = """\
ids = tokenizer("Once upon a time", return_tensors="pt")
print(tokenizer.decode(model.generate(**ids, max_new_tokens=100)[0], skip_special_tokens=True))
"""
CHAT = """\
messages = [{"role": "user", "content": "Who are you?"}]
ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True, return_tensors="pt")
answer = model.generate(**ids, max_new_tokens=100)[0, ids["input_ids"].size(1) :]
print(tokenizer.decode(answer, skip_special_tokens=True))
"""


def readme(model: LanguageModel, license: str | None) -> str:
    """The Markdown. Raises: UserError: for a licence that is not a name such as mit."""
    if license is not None and not LICENSE.fullmatch(license):
        raise UserError(f"license={license} must be the name of a licence, such as mit or apache-2.0")
    head = ["library_name: transformers", "pipeline_tag: text-generation", "tags: [slm, small-language-model]"]
    head += [f"license: {license}"] if license else []
    config, run, chat = model.model.config, _run(model.path), chat_template(model.config)
    parameters = sum(value.numel() for value in model.model.parameters())
    rows = {
        "parameters": f"{parameters:,}: {config.depth} blocks of width {config.width}, {config.vocab_size:,} ids",
        "context": f"{config.context:,} tokens",
        "step": f"{model.step:,}",
        **(_facts(run, model.step) if run else {}),
        "licence": license or "not given",
    }
    first = "eos, which the tokenizer puts there" if model.eos_first else "its first token"
    command = _command(run.folder) if run else None
    parts = [
        "\n".join(["---", *head, "---"]),
        f"# {_plain(run.info.get('name') if run else model.path.stem)}",
        f"A language model for experiments. It {'answers' if chat else 'continues'} texts of the kind of its data, and "
        f"nothing was done to make them true or harmless. A text begins with {first}; eos (id {model.tokenizer.eos}) "
        "ends it.",
        "| | |\n|---|---|\n" + "\n".join(f"| {key} | {value} |" for key, value in rows.items() if value),
        f"## Use\n\n{USE}{CHAT if chat else TEXT}```",
        *([f"## Training\n\n```sh\n{command}\n```"] if command else []),
    ]
    return "\n\n".join(parts) + "\n"


def _run(checkpoint: Path) -> Run | None:
    """The run of a checkpoint, if it lies in its folder."""
    folder = run_folder.run_of(checkpoint.resolve())
    return Run(folder) if folder and (folder / "run.json").is_file() else None


def _facts(run: Run, step: int) -> dict[str, str]:
    """Data, tokens, loss up to the step, and versions, as far as they are known."""
    versions, init = (value if isinstance(value := run.info.get(key), dict) else {} for key in ("versions", "init"))
    tokens, loss, bits = (_at(run, name, step) for name in ("train/tokens", "val/loss", "val/bits_per_byte"))
    losses = [f"{loss:.4f} nats per token"] if loss is not None else []
    losses += [f"{bits:.4f} bits per byte, with the ends of documents"] if bits is not None else []
    return {
        "data": _plain("; ".join(map(_of_corpus, corpus_nodes(run.info["config"])))),
        "began from": _plain(f"{init.get('run_id') or init.get('from')}, step {init.get('step')}" if init else None),
        "training tokens": "" if tokens is None else f"{tokens:,.0f}",
        "validation": ", ".join(losses),
        "commit": _plain(run.info.get("git_commit")) + (", with changes" if run.info.get("git_dirty") else ""),
        "seed": _plain(run.info.get("seed")),
        "device": _plain(f"{run.info.get('device')}, {run.info.get('precision')}"),
        "begun": _plain(run.info.get("created")),
        "versions": _plain(", ".join(f"{key} {value}" for key, value in versions.items())),
    }


def _of_corpus(node: Mapping[str, Any]) -> str:
    """Its class and settings; of a path the name of the file."""
    words = [str(node.get("_target_", "")).rpartition(".")[2]]
    for key, value in node.items():
        if key not in NOT_DATA and isinstance(value, str | int | float) and not SECRET.search(key):
            words.append(f"{key}={Path(value).name if key == 'path' and '://' not in str(value) else value!r}")
    return " ".join(words)


def _at(run: Run, name: str, step: int) -> float | None:
    """The last value of a metric up to the step."""
    return next((value for at, value in reversed(run.series(name).items()) if at <= step), None)


def _plain(value: object) -> str:
    """A value of a run as one line without markup, home folders and secrets."""
    text = one_line(for_others("" if value is None else str(value)), 500)
    return re.sub(r"[|<>`\[\]\\*&]", lambda found: f"&#{ord(found[0])};", text)


def _command(folder: Path) -> str | None:
    """The command that trained the run, without the overrides that say where files are."""
    if (overrides := run_folder.overrides(folder)) is None:
        return None
    kept = [word for word in overrides if not word.lstrip("+").startswith(LOCAL)]
    kept = [word for word in kept if not SECRET.search(word.partition("=")[0])]
    kept = [re.sub(r"='([\w./~:-]*)'$", r"=\1", word) for word in kept]  # quotes that Hydra does not need
    words = (one_line(for_others(word), 500).replace("`", "") for word in kept)
    return shlex.join(["python", "train.py", *words])
