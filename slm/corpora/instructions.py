"""Instructions and answers, or conversations, in local files of JSON: each is one document."""

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from slm.chat_template import ChatTemplate, Message, messages_of
from slm.corpora import digest_of
from slm.corpora.division import SplitMethod
from slm.corpora.files import Files
from slm.corpora.rows import json_rows
from slm.corpora.template import encodable
from slm.errors import UserError, printable

PAIRS = ("prompt", "completion"), ("instruction", "output")


class Instructions(Files):
    """Rows with `prompt` and `completion`, or with `messages`, a list of objects with role and content; or as Alpaca
    (`instruction`, `input`, `output`) or ShareGPT (`conversations` with from and value). Those with a blank turn are
    skipped. A document is the text of `ChatTemplate`, whose markers are `user` and `assistant`. See `Files`.
    """

    suffixes, format, column_key = (".jsonl", ".ndjson", ".json"), "json", "data.path"

    def __init__(
        self,
        *,
        path: str | None,
        user: str,
        assistant: str,
        split: SplitMethod,
        train_ratio: float,
        seed: int,
        cache: str | None = None,
    ):
        super().__init__(path=path, split=split, train_ratio=train_ratio, seed=seed, cache=cache)
        self.chat = ChatTemplate(user=user, assistant=assistant)

    def _texts(self, path: Path, tally: Counter[str]) -> Iterator[str | None]:
        for where, row in json_rows(path, self.encoding):
            try:
                messages = conversation(row)
                text = self.chat.text(messages) if all(message["content"].strip() for message in messages) else None
            except UserError as error:
                raise UserError(f"{where}: {error}") from None
            yield text and encodable(text, where)

    def _check(self, counts: list[int]):
        if sum(counts) == 1:  # which the method contiguous would cut
            raise UserError(f"data.path={self.path} is one conversation; give another one, for the validation split")
        super()._check(counts)

    def fingerprint(self) -> str:
        return digest_of([super().fingerprint(), self.chat.user, self.chat.assistant])


def conversation(row: Mapping[str, Any]) -> list[Message]:
    """The turns of a row, "" for null. Raises: UserError: for a row of another form."""
    if "messages" in row or "conversations" in row:
        return messages_of(row.get("messages", row.get("conversations")))
    for question, answer in PAIRS:
        if question in row and answer in row:
            further = [row["input"]] if question == "instruction" and row.get("input") else []
            for key in (question, answer, *["input"] * len(further)):
                if not isinstance(row[key], str | None):
                    raise UserError(f"{key} is {type(row[key]).__name__}, and must be a text")
            asked = "\n\n".join([row[question] or "", *further])
            return [{"role": "user", "content": asked}, {"role": "assistant", "content": row[answer] or ""}]
    keys = printable(", ".join(map(str, row)), 200)
    raise UserError(f"the keys must be prompt and completion, or messages, and are {keys or 'none'}")
