"""Evaluates a run.

python -m slm.evaluate RUN --text FILE   of any corpus: the loss on text files, in nats per token and bits per byte
python -m slm.evaluate RUN               of data=storyworld: the loss in bits per story above the exact entropy, by part
of the stories, on validation stories and on stories of held-out pairs; and the share of generated stories that are
valid. Writes evaluation.json into the run folder.
python -m slm.evaluate RUN tasks=[blimp,lambada]   standard tests: docs/standard_tests.md
"""

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from slm import checkpoint, classes
from slm.checkpoint import Loaded
from slm.corpora import notices
from slm.corpora.files import Files
from slm.corpora.storyworld.checker import estimate, judge, marked, summary
from slm.corpora.storyworld.corpus import Storyworld
from slm.corpora.storyworld.floor import PARTS, story_floor, tally
from slm.corpora.storyworld.grammar import Story
from slm.corpora.storyworld.world import StoryWorld
from slm.errors import UserError, printable
from slm.evaluation import standard_tests
from slm.files import atomic, json_line, run_folder
from slm.files.stdio import make_stdio_robust
from slm.generation.language_model import load
from slm.generation.quantize import for_decoding
from slm.generation.sampling import Sampler
from slm.generation.stories import generate_stories
from slm.generation.text_loss import padded, text_loss, window_nats
from slm.model import GPT
from slm.tokenizers import Tokenizer

TARGET = f"{Storyworld.__module__}.{Storyworld.__qualname__}"


@json_line.command
def main():
    if any(word.startswith("tasks=") for word in sys.argv[1:]):
        return standard_tests.command(sys.argv[1:])
    parser = argparse.ArgumentParser(prog="python -m slm.evaluate", description=__doc__.partition("\n\n")[2])
    parser.add_argument("run", type=run_folder.named, help="a run folder, a .ckpt file, latest, last or best")
    parser.add_argument("--text", nargs="+", metavar="FILE", help="text (UTF-8) or .jsonl files, folders or globs")
    parser.add_argument("--stories", type=int, default=500, help="validation stories, and as many generated ones")
    parser.add_argument("--temperature", type=float, nargs="+", default=[1.0, 0.8], help="of generation")
    parser.add_argument("--seed", type=int, default=0, help="of the generated stories and the intervals")
    parser.add_argument("--runs-dir", default="runs", help="the folder of runs for latest, last and best")
    classes.add_options(parser)
    arguments = parser.parse_args()
    if arguments.stories < 2:
        raise UserError(f"--stories={arguments.stories} must be at least 2")
    if arguments.seed < 0:
        raise UserError(f"--seed={arguments.seed} must be at least 0")
    path = run_folder.find_checkpoint(arguments.run, atomic.expanded(arguments.runs_dir))
    if arguments.text:
        print(printable(text_page(path, arguments.text, **classes.given(arguments))))
    else:
        evaluate_stories(path, arguments)


def text_page(path: Path, files: Sequence[str], **own: Callable) -> str:
    """The loss of a checkpoint on texts, read like the run's own data: separator or key, and layout.

    `own` are the classes of a tokenizer and a model from outside slm. Raises UserError for a checkpoint or text that
    cannot be read.
    """
    loaded = load(path, **own)
    data = loaded.config.get("data")
    data = data if isinstance(data, dict) else {}
    layout = "packed" if data.get("layout", "packed") == "packed" else "documents"
    documents = [document for file in files for document in read_documents(file, data) if document.strip()]
    loss = text_loss(loaded.model, loaded.tokenizer, documents, layout)
    known = loss.bits_per_byte is not None
    facts = {"checkpoint": str(path), "step": loaded.step, "layout": layout, "documents": len(documents)}
    json_line.note(**facts, **vars(loss))
    lines = [
        f"{path}, step {loaded.step}",
        f"{len(documents):,} document(s), {loss.tokens:,} tokens with their ends"
        + (f", {loss.bytes:,} bytes" if known else ""),
        f"loss {loss.nats:.4f} nats per token, data.layout={layout}",
        f"{loss.bits_per_byte:.4f} bits per byte, {loss.text_bits_per_byte:.4f} without the ends of documents"
        if known
        else f"no bits per byte: {'the tokenizer loses part of this text' if loss.bytes else 'no target has text'}",
    ]
    if layout == "documents":
        context = loaded.model.config.context
        cut = sum(len(loaded.encode(document)) >= context for document in documents)
        lines += [f"{cut:,} of the documents are cut to the context of {context:,} tokens"] if cut else []
    return "\n".join(lines)


def read_documents(file: str, data: dict[str, Any]) -> Iterator[str]:
    """The documents of a file, folder or glob, by the settings of the run's `data`. Raises UserError."""
    names = "template", "separator", "encoding"
    settings = {name: data[name] for name in names if isinstance(data.get(name), str)}
    column = data.get("column", data.get("key"))
    column = column if isinstance(column, str) else "text"
    corpus = Files(path=file, column=column, **settings, split="contiguous", train_ratio=0.5, seed=0)
    notices.mistaken(corpus.files(), corpus.encoding)
    yield from corpus.all_documents()


def evaluate_stories(path: Path, arguments: argparse.Namespace):
    """Prints the page and writes evaluation.json beside the checkpoint's run. Raises UserError."""
    own = classes.given(arguments)
    evaluation = evaluate(path, arguments.stories, arguments.temperature, arguments.seed, **own)
    print(printable(page(evaluation)))
    json_line.note(**evaluation)
    folder = path.parent.parent if path.parent.name == "checkpoints" else path.parent
    kept = {
        key: value for key, value in (atomic.read_object(folder / "evaluation.json") or {}).items() if key == "tasks"
    }
    atomic.write_text(folder / "evaluation.json", json.dumps(evaluation | kept, indent=1, ensure_ascii=False) + "\n")
    print(folder / "evaluation.json")
    if evaluation["seen"]["excess"]["high"] < 0:
        raise AssertionError("the loss is less than the entropy: the model sees its targets, or there is a bug")


def evaluate(path: Path, stories: int, temperatures: Sequence[float], seed: int, **own: Callable) -> dict[str, Any]:
    """All numbers of `page`, as plain types. `own` as in `text_page`.

    Raises UserError unless the checkpoint is of a storyworld.
    """
    loaded = checkpoint.load(path, "cuda" if torch.cuda.is_available() else "cpu", **own)
    model, tokenizer, corpus = for_decoding(loaded.model, "float32"), loaded.tokenizer, _corpus(path, loaded)
    samplers = {f"T={value:g}": Sampler(temperature=value) for value in temperatures}  # raises before the long work
    count = min(stories, corpus.counts["validation"])
    seen = [corpus.story("validation", index) for index in range(count)]
    held_out = [corpus.held_out(index) for index in range(count)]
    losses = {
        "seen": story_losses(model, tokenizer, corpus.seen, seen, seed),
        "held_out": story_losses(model, tokenizer, corpus.unseen, held_out, seed),
    }
    verdicts = {
        name: generate_stories(model, tokenizer, corpus.all, count=stories, sampler=sampler, seed=seed)
        for name, sampler in samplers.items()
    }
    verdicts["real"] = [judge(corpus.all, story.text, True) for story in seen]
    valid = {verdict.text for judged in verdicts.values() for verdict in judged if verdict.valid}
    known = {text for text in corpus.documents("train") if text in valid}
    return {
        "checkpoint": str(path),
        "step": loaded.step,
        "level": corpus.level,
        "seed": seed,
        **losses,
        "samples": {name: summary(judged, known, seed) for name, judged in verdicts.items()},
        "examples": [marked(verdict) for verdict in next(iter(verdicts.values()))[:3]],
    }


def _corpus(path: Path, loaded: Loaded) -> Storyworld:
    data = loaded.config.get("data")
    node = data.get("corpus") if isinstance(data, dict) else None
    if not isinstance(node, dict) or node.get("_target_") != TARGET:
        raise UserError(f"{path} was not trained on data=storyworld, the only corpus whose entropy is known")
    try:
        corpus = Storyworld(**{key: value for key, value in node.items() if key != "_target_"})
    except TypeError:
        raise UserError(f"{path} is damaged: its data.corpus is not a storyworld; take another checkpoint") from None
    if loaded.corpus != corpus.fingerprint():
        raise UserError(f"{path} was trained on another storyworld; evaluate it with the version that trained it")
    return corpus


def story_losses(
    model: GPT, tokenizer: Tokenizer, world: StoryWorld, stories: Sequence[Story], seed: int
) -> dict[str, Any]:
    """Mean bits per story, over the stories that fit into the context: floor, model, excess, in all and by part.

    Raises UserError if less than half of them fit.
    """
    context = model.config.context
    texts = [story.text for story in stories if len(tokenizer.encode(story.text)) < context]
    if len(texts) < len(stories) / 2:
        raise UserError(f"only {len(texts)} of {len(stories)} stories fit into the model's context of {context} tokens")
    floors = [story_floor(world, text, tokenizer) for text in texts]
    nats = window_nats(model, padded([[tokenizer.eos, *tokenizer.encode(text), tokenizer.eos] for text in texts]))
    bits = nats.numpy() / math.log(2)
    tallies = np.stack([tally(row[: len(floor.bits)], floor) for row, floor in zip(bits, floors)])
    floor, bits, tokens = tallies.mean(0)
    differences = tallies[:, 1] - tallies[:, 0]
    return {
        "stories": len(texts),
        "bytes": sum(map(len, texts)) / len(texts),
        "floor": floor.sum(),
        "model": bits.sum(),
        "excess": estimate(differences.sum(1), seed),
        "parts": {
            part: {"tokens": tokens[i], "floor": floor[i], "excess": estimate(differences[:, i], seed)}
            for i, part in enumerate(PARTS)
        },
    }


def page(evaluation: dict[str, Any]) -> str:
    """The evaluation as text for a console."""
    seen, held_out = evaluation["seen"], evaluation["held_out"]
    lines = [
        f"{evaluation['checkpoint']}, step {evaluation['step']}, storyworld {evaluation['level']}",
        f"{seen['stories']} validation stories, {held_out['stories']} of held-out pairs, seed {evaluation['seed']}, "
        "95 % bootstrap intervals",
        "",
        f"bits per story, of {seen['bytes']:.0f} bytes: floor {seen['floor']:.2f}, model {seen['model']:.2f}, "
        f"excess {_interval(seen['excess'])}",
        f"bits per byte: floor {seen['floor'] / seen['bytes']:.4f}, model {seen['model'] / seen['bytes']:.4f}",
        "",
        f"{'bits per story':14}{'tokens':>8}{'floor':>8}  {'excess':24}{'on held-out pairs'}",
    ]
    for part, values in seen["parts"].items():
        excess, there = _interval(values["excess"]), _interval(held_out["parts"][part]["excess"])
        lines.append(f"{part:14}{values['tokens']:8.1f}{values['floor']:8.2f}  {excess:24}{there}")
    samples = evaluation["samples"]
    lines += ["", f"{'samples':14}" + "".join(f"{name + ', n = ' + str(s['n']):24}" for name, s in samples.items())]
    for measure, form in {"valid": ".1%", "novel": ".1%", "prefix": ".1%", "sentences": ".1f"}.items():
        lines.append(f"{measure:14}" + "".join(f"{_interval(found[measure], form):24}" for found in samples.values()))
    for name, found in samples.items():
        first = ", ".join(f"{error} {count}" for error, count in found["errors"].items())
        lines.append(f"first errors, {name}: {first or 'none'}")
    return "\n".join([*lines, "", *evaluation["examples"], ""])


def _interval(estimate: dict[str, float], form: str = ".2f") -> str:
    return f"{estimate['mean']:{form}} [{estimate['low']:{form}}, {estimate['high']:{form}}]"


if __name__ == "__main__":
    make_stdio_robust()
    main()
