"""README.md of an exported model: where it comes from, from the files of its run. No value of the environment."""

import re
import shlex
from pathlib import Path
from typing import Any

from slm.errors import UserError, one_line, without_secrets
from slm.files import run_folder
from slm.generation.language_model import LanguageModel
from slm.results import Run
from slm.security import SECRET, without_login

LICENSE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
LOCAL = "run_dir", "runs_dir", "sweep_dir", "cache_dir"  # overrides that say where files are, and nothing else
USE = """\
## Use

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer, model = AutoTokenizer.from_pretrained(FOLDER), AutoModelForCausalLM.from_pretrained(FOLDER)
ids = tokenizer("Once upon a time", return_tensors="pt")
print(tokenizer.decode(model.generate(**ids, max_new_tokens=100)[0], skip_special_tokens=True))
```

"""


def model_card(model: LanguageModel, license: str | None) -> str:
    """The Markdown. Raises: UserError: for a licence that is not a name such as mit."""
    if license is not None and not LICENSE.fullmatch(license):
        raise UserError(f"license={license} must be the name of a licence, such as mit or apache-2.0")
    head = ["library_name: transformers", "pipeline_tag: text-generation", "tags: [slm, small-language-model]"]
    head += [f"license: {license}"] if license else []
    config = model.model.config
    run = _run(model.path)
    name = _plain(run.info.get("name") if run else model.path.stem)
    rows = {
        "model": f"{sum(value.numel() for value in model.model.parameters()):,} parameters: {config.depth} blocks of "
        f"width {config.width}, context {config.context} tokens, vocabulary {config.vocab_size:,}",
        "step": f"{model.step:,}",
        **(_facts(run, model) if run else {}),
        "licence": license or "not given",
    }
    table = "".join(f"| {key} | {value} |\n" for key, value in rows.items())
    start = "begins with eos, which the tokenizer puts there" if model.eos_first else "begins with its first token"
    end = f"A text {start}; eos (id {model.tokenizer.eos}) ends a document.\n"
    command = _command(run.folder) if run else None
    made = f"\n## Training\n\n```sh\n{command}\n```\n" if command else ""
    return "---\n" + "\n".join(head) + f"\n---\n\n# {name}\n\n| | |\n|---|---|\n{table}\n{end}\n{USE.rstrip()}\n{made}"


def _run(checkpoint: Path) -> Run | None:
    """The run of a checkpoint, if it lies in its folder."""
    folder = checkpoint.parents[1] if len(checkpoint.parents) > 1 else checkpoint.parent
    return Run(folder) if checkpoint.parent.name == "checkpoints" and (folder / "run.json").is_file() else None


def _facts(run: Run, model: LanguageModel) -> dict[str, str]:
    """Data, tokens, loss and versions, as far as they are known."""
    data = run.info["config"].get("data")
    node = data.get("corpus") if isinstance(data, dict) else None
    corpus = (
        ", ".join(f"{key}={value}" for key, value in node.items() if not _is_hidden(key, value))
        if isinstance(node, dict)
        else ""
    )
    series = {name: run.series(name) for name in ("train/tokens", "val/loss", "val/bits_per_byte")}
    last = {
        name: next((value for step, value in reversed(found.items()) if step <= model.step), None)
        for name, found in series.items()
    }
    facts = {"data": _plain(without_login(corpus))}
    if last["train/tokens"] is not None:
        facts["tokens"] = f"{last['train/tokens']:,.0f} targets"
    if last["val/loss"] is not None:
        facts["validation"] = f"{last['val/loss']:.4f} nats per token"
    if last["val/bits_per_byte"] is not None:
        facts["validation"] += f", {last['val/bits_per_byte']:.4f} bits per byte"
    for key in ("git_commit", "seed", "precision", "device", "created"):
        facts[key.replace("git_", "")] = _plain(run.info.get(key))
    versions = run.info.get("versions")
    facts["versions"] = _plain(
        ", ".join(f"{key} {value}" for key, value in versions.items()) if isinstance(versions, dict) else ""
    )
    return {key: value for key, value in facts.items() if value}


def _is_hidden(key: str, value: Any) -> bool:
    return key == "_target_" or bool(SECRET.search(key)) or value is None


def _plain(value: Any) -> str:
    """A value of a run as text without markup."""
    text = one_line(without_secrets(_at_home("" if value is None else str(value))), 500)
    return re.sub(r"[|<>`\[\]\\*&]", lambda found: f"&#{ord(found[0])};", text)


def _at_home(text: str) -> str:
    """The text without the name of the user's home folder."""
    home = str(Path.home())
    return text.replace(home, "~") if len(home) > 1 else text


def _command(folder: Path) -> str | None:
    """The command that trained the run, in which no override says where files lie."""
    overrides = run_folder.overrides(folder)
    if overrides is None:
        return None
    kept = [word for word in overrides if not word.lstrip("+").startswith(tuple(f"{key}=" for key in LOCAL))]
    if secret := [word for word in kept if SECRET.search(word.partition("=")[0])]:
        kept = [word for word in kept if word not in secret]
    words = ["python", "train.py", *(one_line(without_secrets(without_login(_at_home(word))), 500) for word in kept)]
    return shlex.join(words).replace("`", "")
