"""Where the text of an evaluation comes from: the run's own split, or another corpus."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from slm.chat_template import chat_template
from slm.corpora import Corpus, Split
from slm.corpora.mixture import by_source
from slm.data.store import TokenStore, fingerprint, prepare
from slm.errors import UserError
from slm.evaluation.held_out import HeldOut, from_corpus, from_store
from slm.files import atomic, run_folder
from slm.generation.language_model import LanguageModel
from slm.lens import corpora_of
from slm.run.cli import compose
from slm.run.prepare import answers_of
from slm.run.replay import recorded_overrides, refuse_foreign
from slm.security import at, corpus_node
from slm.verify import require_facts

NOWHERE = "give the text: data=shakespeare, data.path=FILE, or any data of train.py"


class Own:
    """The text that a run was trained on, one source of it: its token store, or the corpus that makes it.

    Of a foreign run folder nothing is built that conf/ does not name. Raises: UserError: for an unknown source.
    """

    def __init__(self, model: LanguageModel, corpus: Corpus | None, trained_on: str, cache: Path, source: str | None):
        self.model, self.cache, self.corpus = model, cache, corpus
        self.folder, prints = run_folder.folder_of(model.path), {"": trained_on}
        if (info := run_folder.read_run_json(self.folder)) and "sources" in info:
            prints = corpora_of(require_facts(self.folder))
        self.sources = list(prints)
        self.name = next(iter(prints)) if source is None else source
        if self.name not in prints:
            raise UserError(
                f"source={source} is not one of this run's: {', '.join(filter(None, prints)) or 'it has one'}"
            )
        kind, size = type(model.tokenizer), model.tokenizer.vocab_size
        self.store = TokenStore.find(prints[self.name], fingerprint(model.tokenizer), kind, size, cache)

    def found(self) -> TokenStore:
        """The token store in the cache. Raises UserError without one."""
        if self.store is None:
            raise UserError(f"the tokens of the run's train split are not in the cache {self.cache}")
        return self.store

    def prepared(self) -> TokenStore:
        """The token store, made from the corpus unless the cache has it. Raises UserError."""
        if self.store is None:
            self.store = prepare(self.corpus or self._recorded(), self.model.tokenizer, self.cache)
        return self.store

    def _recorded(self) -> Corpus:
        """By the overrides of the run folder, which may be somebody else's."""
        if run_folder.overrides(self.folder) is None:
            raise UserError(f"the tokens of {self.model.path} are not in the cache {self.cache}; {NOWHERE}")
        words = recorded_overrides(self.folder)
        refuse_foreign(self.folder, words, {})
        return by_source(compose([*words, "plan=true"]).data.corpus)[self.name]

    def held_out(self, split: Split, tokens: int) -> HeldOut:
        """The first documents of a split, in the windows of the run."""
        store, config = self.prepared(), self.model.config
        layout = layout_of(config, self.name)
        chat = chat_template(config, self.name) if layout == "instructions" else None
        kind = str(corpus_node(config).get("_target_", "")).rpartition(".")[2].lower()
        source = self.name and f"source={self.name} of {', '.join(self.sources)}"
        name = f"{source or kind or 'data'} of the run, {split}"
        return from_store(name, store, split, self.model.tokenizer, tokens, layout, chat)


def cache_of(config: dict[str, Any], given: str | None) -> Path:
    """The cache folder that is given, else the run's own."""
    written = config.get("cache_dir")
    return atomic.expanded(given or (written if isinstance(written, str) and "${" not in written else "~/.cache/slm"))


def layout_of(config: Mapping[str, Any], source: str = "") -> str:
    """Of a run, or of this source of it: packed, instructions, or documents for any other layout."""
    layout = at(config, "data", "sources", source, "layout") or at(config, "data", "layout") or "packed"
    return layout if layout in ("packed", "instructions") else "documents"


def other_text(words: Sequence[str], split: Split, source: str | None, model: LanguageModel, tokens: int) -> HeldOut:
    """The first documents of another corpus: `words` are overrides of train.py. data=files goes without saying.

    Their windows are those of the model's run, but for conversations.
    """
    if not any(word.startswith("data=") for word in words):
        words = ["data=files", *words]
    data = compose([*words, "plan=true"]).data
    found = by_source(data.corpus)
    name = next(iter(found)) if source is None else source
    if name not in found:
        raise UserError(f"source={source} is not one of {', '.join(found)}")
    title = f"{' '.join(words)}, {f'source={name}, ' if name else ''}split={split}"
    if ((data.corpus.sources[name].layout if name else None) or data.layout) == "instructions":
        layout, chat = "instructions", answers_of(found[name], model.tokenizer).chat
    else:
        layout, chat = "packed" if layout_of(model.config) == "packed" else "documents", None
    return from_corpus(title, found[name], split, model.tokenizer, tokens, layout, chat)
