"""Evaluates a model.

python -m slm.evaluate RUN                  on the validation split of the run: loss, texts, memorisation, probes, and
                                            for data=storyworld the bits above the exact entropy
python -m slm.evaluate RUN data=shakespeare on another text: data.path=FILE, or any data of train.py
python -m slm.evaluate RUN RUN              what the second model saves on the same text, and where
python -m slm.evaluate RUN RUN RUN ...      each model; those of one run folder in a table side by side
python -m slm.evaluate RUN --text FILE      the loss on whole text files alone
python -m slm.evaluate RUN tasks=[blimp]    standard tests: docs/standard_tests.md

RUN is a run folder or a .ckpt file. Further words: split=train, source=NAME of a mixture, tokens=200000 of held-out
text at most, samples=200, temperature=[1,0.8], measures=[loss,texts,memorisation,probes,stories], bleu=FILE with lines
of prompt and completion, seed=0, device=cpu, cache_dir=FOLDER. Writes evaluation.json into the run
folder, and its report.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from slm import classes
from slm.analysis import evaluation_tables
from slm.corpora import notices
from slm.corpora.files import Files
from slm.corpora.storyworld.corpus import Storyworld
from slm.errors import UserError, notice, printable
from slm.evaluation import ablation, requests, sources, standard_tests, stories
from slm.evaluation.held_out import HeldOut
from slm.evaluation.measures import Settings, measure
from slm.evaluation.record import of_one_text, record
from slm.evaluation.standard_tests import Tests
from slm.files import atomic, json_line, run_folder
from slm.files.stdio import make_stdio_robust
from slm.generation.language_model import LanguageModel, load
from slm.generation.text_loss import text_loss
from slm.run.words import divided, values_of


@json_line.command
def main():
    parser = json_line.Parser(
        prog="python -m slm.evaluate",
        description=__doc__.partition("\n\n")[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "words", nargs="+", metavar="RUN", help="a run folder, .ckpt file, latest, last, best; key=value"
    )
    parser.add_argument("--text", nargs="+", metavar="FILE", help="text (UTF-8) or .jsonl files, folders or globs")
    parser.add_argument("--runs-dir", default="runs", help="the folder of runs for latest, last and best")
    classes.add_options(parser)
    arguments = parser.parse_intermixed_args()
    runs, words = divided(arguments.words)
    if not runs:
        raise UserError(f"{words[0]} stands without a run; give one, such as latest")
    own, root = classes.given(arguments, "--{}-class"), atomic.expanded(arguments.runs_dir)
    paths = [run_folder.find_checkpoint(run, root) for run in runs]
    if twice := next((path for path in paths if paths.count(path) > 1), None):
        raise UserError(f"{twice} is given more than once")
    if arguments.text:
        if words or len(runs) > 1:
            raise UserError(f"{[*runs[1:], *words][0]} has no effect beside --text; leave out one of them")
        print(printable(text_page(paths[0], arguments.text, **own)))
        return
    data = [word for word in words if word.startswith(("data=", "data."))]
    values, tests = values_of([word for word in words if word not in data], Settings, Tests)
    used, other = (tests, [*values, *data]) if "tasks" in tests else (values, tests)
    if idle := [word for word in other if word not in used]:
        raise UserError(f"{idle[0]} has no effect {'beside' if used is tests else 'without'} tasks=")
    if used is tests:
        standard_tests.command(paths, Tests(**tests), **own)
    else:
        settings = Settings(**values)
        models = [load(path, device=settings.device, **own) for path in paths]
        if len(models) == 2:
            json_line.note(**compare(*models, settings, data))
        else:
            found = [evaluate(model, settings, data) for model in models]
            json_line.note(**found[0] if len(found) == 1 else {"evaluations": found})


def text_of(
    model: LanguageModel, settings: Settings, words: Sequence[str]
) -> tuple[Storyworld | None, sources.Own, HeldOut]:
    """The stories that a run was trained on, if it was, its own text, and the text to judge it on. Raises UserError."""
    world = stories.corpus_of(model.path, model.config, model.corpus)
    cache = sources.cache_of(model.config, settings.cache_dir)
    own = sources.Own(model, world, model.corpus, cache, None if words else settings.source)
    if words:
        return None, own, sources.other_text(words, settings.split, settings.source, model, settings.tokens)
    return world, own, own.held_out(settings.split, settings.tokens)


def compare(first: LanguageModel, second: LanguageModel, settings: Settings, words: Sequence[str]) -> dict[str, Any]:
    """Prints what the second model saves on the text of the first, and adds it to the evaluation.json of the second.

    Raises: UserError.
    """
    world, _, held_out = text_of(first, settings, words)
    if world:
        found = ablation.of_stories(first, second, world, settings.samples, settings.seed)
    else:
        found = ablation.of_text(first, second, held_out, settings.seed)
    found |= {"text": held_out.name, "sentence": ablation.sentence(found)}
    print(printable(ablation.page(found)))
    for path in record(run_folder.folder_of(second.path), found, "ablations"):
        print(path)
    return found


def evaluate(model: LanguageModel, settings: Settings, words: Sequence[str]) -> dict[str, Any]:
    """Measures a model on the text of these overrides, by default its own; prints and writes the result.

    Raises: UserError.
    """
    world, own, held_out = text_of(model, settings, words)
    train = own.found if words else own.prepared
    facts = {"checkpoint": str(model.path), "step": model.step, "seed": settings.seed}
    data = {"name": held_out.name, "split": settings.split, "documents": len(held_out.documents)}
    found = {**facts, "data": data, **measure(model, held_out, settings, train, world)}
    asked = None if words or "stories" not in settings.chosen else requests.corpus_of(model.config)
    if asked:
        found["requests"] = requests.measure(model, asked, settings.samplers, settings.samples, settings.seed)
    print(printable(evaluation_tables.text(found)))
    for reason in found["left_out"]:
        notice(f"left out: {reason}")
    paths = [*record(folder := run_folder.folder_of(model.path), found, "evaluations")]
    if len(several := of_one_text(folder, found)) > 1:
        labels = [f"step {its['step']:,}" for its in several]
        print(printable(f"\n{evaluation_tables.overview(several, labels)}\n"))
    print(*paths, sep="\n")
    if "stories" in found and found["stories"]["seen"]["excess"]["high"] < 0:
        raise AssertionError("the loss is less than the entropy: the model sees its targets, or there is a bug")
    return found


def text_page(path: Path, files: Sequence[str], **own: Callable) -> str:
    """The loss of a checkpoint on texts, read like the run's own data: separator or key, and layout.

    `own` are the classes of a tokenizer and a model from outside slm. Raises UserError for a checkpoint or text that
    cannot be read.
    """
    loaded = load(path, **own)
    data = loaded.config.get("data")
    data = data if isinstance(data, dict) else {}
    layout = "packed" if sources.layout_of(loaded.config) == "packed" else "documents"
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


if __name__ == "__main__":
    make_stdio_robust()
    main()
