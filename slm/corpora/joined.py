"""data.joined=true: a corpus whose documents follow one another without an end-of-document id."""

from slm.corpora import Corpus
from slm.corpora.wrapped import Wrapped, wrapped
from slm.errors import UserError


class Joined(Wrapped):
    """The documents of `corpus`, which the token store writes without eos."""

    setting, has_ends = "joined=true", False

    def __init__(self, corpus: Corpus):
        """Raises: UserError: for a corpus of ids."""
        super().__init__(corpus)
        if hasattr(corpus, "store"):
            raise UserError(
                "data.joined=true leaves out eos, and the ids of data=litdata are written already: give none"
            )


def joined(corpus: Corpus) -> Corpus:
    """The corpus without ends of documents; of a mixture, each source for itself."""
    return wrapped(corpus, Joined)
