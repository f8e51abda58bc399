"""A corpus that is read with a setting of `data`, such as joined=true."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from slm.corpora import Corpus, Split, digest_of
from slm.corpora.mixture import Mixture
from slm.errors import UserError


class Wrapped:
    """The documents of `corpus` with a setting, which is part of the fingerprint. Other attributes are its own."""

    setting: str  # as it is typed behind "data."

    def __init__(self, corpus: Corpus):
        self.corpus = corpus

    def __getattr__(self, name: str) -> Any:
        if name == "corpus":  # of an object without its attributes, as of copy
            raise AttributeError(name)
        return getattr(self.corpus, name)

    def documents(self, split: Split) -> Iterator[str]:
        """Raises: UserError: from the corpus."""
        return self.corpus.documents(split)

    def fingerprint(self) -> str:
        """Of the corpus and the setting."""
        return digest_of([self.corpus.fingerprint(), self.setting])


def wrapped(corpus: Corpus, wrap: Callable[[Corpus], Corpus]) -> Corpus:
    """The wrapped corpus; of a mixture, each source for itself."""
    if isinstance(corpus, Mixture):
        sources = {name: replace(source, corpus=wrap(source.corpus)) for name, source in corpus.sources.items()}
        return Mixture(sources=sources, tokenizer_weights=corpus.tokenizer_weights)
    return wrap(corpus)


class Joined(Wrapped):
    """The documents of `corpus`, which the token store writes without eos. Raises: UserError: for a corpus of ids."""

    setting, has_ends = "joined=true", False

    def __init__(self, corpus: Corpus):
        super().__init__(corpus)
        if hasattr(corpus, "store"):
            raise UserError(
                "data.joined=true leaves out eos, and the ids of data=litdata are written already: give none"
            )


def joined(corpus: Corpus) -> Corpus:
    """The corpus without ends of documents; of a mixture, each source for itself."""
    return wrapped(corpus, Joined)
