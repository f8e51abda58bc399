"""Reports what a corpus holds: counts, lengths, characters, damage, repetitions, overlap of validation with train.

python -m slm.data [RUN] [key=value ...] [out=FOLDER]   the overrides of train.py, as data=files data.path=novels

RUN is a run folder: its corpus, with its overrides before those given. corpus.json and corpus.png are written into
FOLDER, by default a new one in reports/. The texts are read twice, and nothing is tokenized but a sample.
"""

import json
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from slm.analysis import corpus_page
from slm.analysis.corpus import measure
from slm.cache import described
from slm.corpora import Corpus
from slm.corpora.mixture import by_source, named
from slm.data.encode import progress
from slm.data.store import TokenStore
from slm.errors import UserError, one_line
from slm.files import atomic, json_line
from slm.files.run_folder import new_folder
from slm.files.stdio import make_stdio_robust
from slm.run.cli import compose
from slm.run.config import RunConfig
from slm.run.overrides import normalized, parsed, split_flags
from slm.run.prepare import TokenizerPlan, cached_tokenizer
from slm.run.replay import recorded_overrides, refuse_foreign
from slm.tokenizers import Tokenizer

UNTRAINED = ("bytes", "gpt2", "tiktoken", "huggingface")  # tokenizers that need no documents


@json_line.command
def main() -> int:
    """Exit code: 0, or 2 or 4 for a mistake or a limit of the machine."""
    words = sys.argv[1:]
    if json_line.shows_help(words, __doc__):
        return 0
    out = next((atomic.expanded(word[4:]) for word in reversed(words) if word.startswith("out=")), None)
    config = compose([*overrides_of([word for word in words if not word.startswith("out=")]), "plan=true"])
    tokenizer, plan = tokenizer_of(config)
    if out:  # before the work
        atomic.check_folder(out)
    found = {}
    for name, corpus in by_source(config.data.corpus).items():
        title = one_line(f"{name}: {described(corpus)}" if name else described(corpus), 200)
        print(f"corpus: {title}")
        with named(name):
            its = {"corpus": title, "fingerprint": corpus.fingerprint(), **measured(corpus, tokenizer, plan, config)}
        print(f"\n{corpus_page.text(its)}\n")
        found[name] = its
    out = out or new_folder(
        Path("reports"), type(config.data.corpus).__name__.lower(), time.strftime("%Y-%m-%d_%H%M%S")
    )
    files = list(write(out, found))
    json_line.note(sources=found, files=[str(path) for path in files])
    for path in files:
        print(f"written: {path}")
    return 0


def overrides_of(words: list[str]) -> list[str]:
    """The overrides of a run folder, if the first word is one, and the given ones. Raises UserError."""
    if not (words and "=" not in words[0] and atomic.expanded(words[0]).is_dir()):
        overrides, flags = split_flags(words)
        if flags:
            raise UserError(f"{flags[0]} is not known: give overrides of train.py, such as data=files data.path=novels")
        return overrides
    folder, given = atomic.expanded(words[0]), overrides_of(words[1:])
    recorded = recorded_overrides(folder)
    refuse_foreign(folder, recorded, {override.key_or_group: override for override in parsed(normalized(given))})
    return [*recorded, *given]


def tokenizer_of(config: RunConfig) -> tuple[Tokenizer | None, TokenizerPlan]:
    """The run's tokenizer, if it is in the cache or needs no documents."""
    plan, found = TokenizerPlan.of(config), cached_tokenizer(config)
    if found is None and plan.name in UNTRAINED:
        found = config.tokenizer.build(documents=())
    return found, plan


def measured(corpus: Corpus, tokenizer: Tokenizer | None, plan: TokenizerPlan, config: RunConfig) -> dict[str, Any]:
    """The measurements, with the tokens: exact if they are in the cache, else by the rate of a sample."""
    found, sample = measure(corpus, paced)
    if tokenizer is None:
        reason = f"tokenizer={plan.name} is not in the cache, where train.py puts it"
        return {**found, "tokenizer": {"name": plan.name, "reason": reason}}
    store = TokenStore.cached(corpus, tokenizer, config.cache_dir)
    rate = sum(map(len, tokenizer.encode_batch(sample))) / max(sum(len(text.encode()) for text in sample), 1)
    for split, its in found["splits"].items():
        its["tokens"] = store.tokens(split) if store else round(its["bytes"] * rate) + its["documents"]
    return {**found, "tokenizer": {"name": plan.name, "estimated": not store}}


def paced(documents: Iterable[str], action: str) -> Iterator[str]:
    """The same documents, with a line of progress on stderr."""
    begin = time.perf_counter()
    count = characters = 0

    def line() -> str:
        speed = characters / 1e6 / max(time.perf_counter() - begin, 1e-9)
        return f"{action}: {count:,} documents, {characters / 1e6:,.1f} million characters, {speed:.1f} per second"

    with progress(line) as show:
        for text in documents:
            yield text
            count, characters = count + 1, characters + len(text)
            show()


def write(folder: Path, found: dict[str, dict[str, Any]]) -> Iterator[Path]:
    """Writes the JSON, and a picture for each source. Yields their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    content = found.get("", {"sources": found})
    atomic.write_text(folder / "corpus.json", json.dumps(content, ensure_ascii=False, indent=1) + "\n")
    yield folder / "corpus.json"
    for name, its in found.items():
        path = folder / (f"corpus-{name}.png" if name else "corpus.png")
        corpus_page.draw(path, its)
        yield path


if __name__ == "__main__":
    make_stdio_robust()
    sys.exit(main())
