"""tokenizer=saved: one that slm has saved, such as that of another run."""

from collections.abc import Iterable
from pathlib import Path

from slm import tokenizers
from slm.errors import UserError
from slm.files import atomic
from slm.tokenizers import Tokenizer


class SavedTokenizer:
    """Only its constructor: the tokenizer has the class that saved it."""

    @classmethod
    def build(cls, documents: Iterable[str], *, path: str | None) -> Tokenizer:
        """The tokenizer in the folder `path`; the documents are not read. Raises: UserError: if there is none."""
        if path is None:
            raise UserError("tokenizer.path is null: give the folder of a saved tokenizer, such as RUN/tokenizer")
        return tokenizers.load(Path(atomic.expanded(path)))
