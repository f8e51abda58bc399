"""A model in one HTML file: weights, tokenizer, sampler and, for storyworld, the checker, in plain JavaScript.

The scripts beside this file are the program; here they are put together with the data. The file needs no network: its
policy forbids every request.
"""

import base64
import hashlib
import html
import json
import re
import time
from collections.abc import Sequence
from contextlib import closing
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from slm.chat_template import chat_template
from slm.corpora.storyworld.corpus import Storyworld
from slm.errors import one_line, printable
from slm.evaluation import sources, stories
from slm.evaluation.held_out import HeldOut, from_corpus
from slm.export.page import vocabulary, weights
from slm.files import atomic
from slm.generation.completion import complete
from slm.generation.language_model import LanguageModel
from slm.generation.prompt import encode_prompt, opening
from slm.generation.sampling import Sampler
from slm.generation.stream import generate
from slm.generation.text_loss import windows_loss
from slm.loss import IGNORE
from slm.model import GPT
from slm.security import corpus_node

ENGINE = "tokenizer.js", "gpt.js", "sampler.js", "engine.js"  # also the program of the worker
SHARED = "slm.serving"  # tokens.js and tokens.css are also those of generate.py ui=web
SCRIPT = "storyworld.js", "page.js"
POLICY = (
    "default-src 'none'; script-src '{engine}' '{script}'; style-src '{style}'; worker-src blob:; base-uri 'none'; "
    "form-action 'none'"
)
BEGIN = "Begin a text, or leave this empty. The model writes on, one piece at a time."
ASK = "Ask the model. It answers, one piece at a time."
PROOFS, PROOF_TOKENS = 50, 60
DIFFICULT = "", "Once upon a time ", "The  two\nwere", "Zo\u00eb \U0001f98a\t", "\u2581 <s>"  # prompts beside the usual
TOKENS = 30_000  # at most, of the text on which the loss is stated


def export(
    model: LanguageModel,
    folder: Path,
    *,
    title: str | None = None,
    start: str = "",
    text: str | None = None,
) -> list[str]:
    """FOLDER/<name of the run>.html. Raises UserError for a model or a tokenizer that the page does not have.

    `title`: of the page; `start`: the text that is in its field at first; `text`: a file on which the loss is stated,
    in place of the run's validation split.
    """
    weights.check(model.model)
    words = vocabulary.plain(model.tokenizer)
    corpus = stories.corpus_of(model.path, model.config, model.corpus)
    near, table, numbers = weights.rounded(model.model)
    loss = losses(model, near, held_out(model, corpus, text))
    proofs = proven(near, model)
    chat = chat_template(model.config)
    name = str(model.config.get("name") or "model")
    title = title or name.replace("_", " ")
    data = {
        "model": weights.settings(model.model.config, table),
        "tokenizer": words,
        "eosFirst": model.eos_first,
        "start": start,
        "facts": facts(model, corpus, loss),
        "proofs": proofs,
        "chat": chat and {"user": chat.user, "assistant": chat.assistant, "stop": chat.stop},
        "world": corpus and vocabulary.world(corpus),
    }
    path = folder / (re.sub(r"[^\w-]+", "-", name).strip("-")[:60] + ".html")
    atomic.write_text(path, page(title, data, numbers, lead(model, corpus)))
    return [
        f"{sum(p.numel() for p in model.model.parameters()):,} parameters in 8 bits",
        loss_line(loss),
        f"{len(proofs)} greedy texts are in the page: its button Check, or #check after its address, compares them",
    ]


def losses(model: LanguageModel, near: GPT, held_out: HeldOut | None) -> tuple[str, float, float] | None:
    """The name of the text, and the bits per byte as trained and in 8 bits; None if they are unknown."""
    if held_out is None:
        return None
    windows, _ = held_out.windows(near.config.context, model.tokenizer.eos)
    rows = [row[row != IGNORE].tolist() for row in windows]
    found = [windows_loss(each, model.tokenizer, rows, held_out.lossless) for each in (model.model, near)]
    before, after = (loss.bits_per_byte for loss in found)
    return None if before is None or after is None else (held_out.name, before, after)


def held_out(model: LanguageModel, corpus: Storyworld | None, text: str | None) -> HeldOut | None:
    """The first tokens of a file, else of the run's own validation split, if they are at hand."""
    if text:
        return sources.other_text([f"data.path={text}"], "validation", None, model, TOKENS)
    own = sources.Own(model, corpus, model.corpus, sources.cache_of(model.config, None), None)
    if own.store is not None:
        return own.held_out("validation", TOKENS)
    if corpus is None:
        return None
    layout = sources.layout_of(model.config)
    return from_corpus("stories of the run, validation", corpus, "validation", model.tokenizer, TOKENS, layout)


def loss_line(loss: tuple[str, float, float] | None) -> str:
    if loss is None:
        return "loss: unknown, since the tokens of the run are not in the cache; text=FILE measures it on a file"
    return f"loss: {loss[1]:.5f} bits per byte as trained, {loss[2]:.5f} in 8 bits, on {loss[0]}"


def proven(near: GPT, model: LanguageModel) -> list[tuple[str, list[int], list[int]]]:
    """Prompts, their ids, and the ids of their greedy continuations by the model in 8 bits."""
    count, tokenizer, own = PROOFS - len(DIFFICULT), model.tokenizer, {"eos_first": model.eos_first}
    sampler, length = Sampler(), min(PROOF_TOKENS, near.config.context)
    [drawn] = complete(near, tokenizer, [""], num_samples=count, sampler=sampler, max_new_tokens=length, seed=0, **own)
    prompts = [*(opening(sample.text) for sample in drawn), *DIFFICULT]
    starts = [encode_prompt(tokenizer, prompt, model.eos_first) for prompt in prompts]
    greedy = Sampler(greedy=True)
    found = [[] for _ in prompts]
    with closing(generate(near, starts, sampler=greedy, max_new_tokens=length, eos=tokenizer.eos, seed=0)) as steps:
        for step in steps:
            for row, token in step:
                found[row].append(token)
    return [(prompt, list(start.ids), ids) for prompt, start, ids in zip(prompts, starts, found)]


def facts(model: LanguageModel, corpus: Storyworld | None, loss: tuple | None) -> list[tuple[str, str]]:
    """Names and values for the page."""
    config = model.model.config
    return [
        ("Size", f"{config.depth} blocks of width {config.width}, {config.heads} heads"),
        ("Reads", f"up to {config.context:,} pieces back, of {config.vocab_size:,} different ones"),
        ("Trained on", _corpus(model, corpus)),
        ("Trained for", f"{model.step:,} steps"),
        ("Loss", loss_line(loss).removeprefix("loss: ") if loss else "not measured"),
        ("Numbers", "8 bits each, with a scale per row of a matrix"),
        ("Made", time.strftime("%Y-%m-%d")),
    ]


def _corpus(model: LanguageModel, corpus: Storyworld | None) -> str:
    if corpus:
        return f"made-up stories (storyworld, level {corpus.level})"
    target = corpus_node(model.config).get("_target_")
    return one_line(str(target or "unknown").rpartition(".")[2], 80)


def lead(model: LanguageModel, corpus: Storyworld | None) -> str:
    count = sum(parameter.numel() for parameter in model.model.parameters())
    learned = "children\u2019s stories" if corpus else "texts"
    return (
        f"{count:,} numbers that have learned from {learned} which word comes next. All of them are in this file. It "
        "writes on your own device: nothing is sent anywhere, and no network is needed."
    )


def page(title: str, data: dict[str, Any], numbers: bytes, lead: str) -> str:
    """The whole file. No script in it but these two can run, whatever a value might contain."""
    style, script = (read([f"tokens.{kind}"], SHARED) for kind in ("css", "js"))
    style, engine, script = style + read(["page.css"]), read(ENGINE), script + read(SCRIPT)
    parts = {"style": style, "engine": engine, "script": script}
    plain = json.dumps(data, allow_nan=False, separators=(",", ":"), ensure_ascii=False)
    values = {
        **parts,
        "policy": POLICY.format(**{name: digest(part) for name, part in parts.items()}),
        "title": html.escape(printable(title, 200)),
        "lead": html.escape(lead),
        "ask": ASK if data["chat"] else BEGIN,
        "about": "The probabilities are those of the model itself, before temperature and filters. Rounding its "
        "numbers to 8 bits makes the file small and changes the loss a little, as stated above.",
        "check": "compares this browser with the program that trained the model",
        "data": plain.replace("&", "\\u0026").replace("<", "\\u003c"),
        "weights": base64.b64encode(numbers).decode(),
    }
    return Template(read(["page.html"])).substitute(values)


def read(names: Sequence[str], package: str = __package__) -> str:
    return "\n".join(files(package).joinpath(name).read_text("utf-8") for name in names)


def digest(content: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
