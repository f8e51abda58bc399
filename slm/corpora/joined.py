"""data.joined=true: a corpus whose documents follow one another without an end-of-document id."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from slm.corpora import Corpus, Split
from slm.corpora.mixture import Mixture
from slm.errors import UserError


class Joined:
    """The documents of `corpus`, which the token store writes without eos. Other attributes are those of the corpus."""

    has_ends = False

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
        """Of the corpus, and of the fact that its documents are joined."""
        return hashlib.sha256(json.dumps([self.corpus.fingerprint(), "joined=true"]).encode()).hexdigest()


def joined(corpus: Corpus) -> Corpus:
    """The corpus without ends of documents; of a mixture, each source for itself."""
    if isinstance(corpus, Mixture):
        sources = {name: replace(source, corpus=joined(source.corpus)) for name, source in corpus.sources.items()}
        return Mixture(sources=sources, tokenizer_weights=corpus.tokenizer_weights)
    if hasattr(corpus, "store"):
        raise UserError("data.joined=true leaves out eos, and the ids of data=litdata are written already: give none")
    return Joined(corpus)
