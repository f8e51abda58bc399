"""Instructions and answers, or conversations, in local files of JSON: each is one document."""

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from slm.chat_template import ChatTemplate, Message
from slm.corpora import digest_of
from slm.corpora.division import SplitMethod
from slm.corpora.files import Files
from slm.corpora.rows import json_rows
from slm.corpora.template import encodable
from slm.errors import UserError, printable

ROLES = ("system", "user", "assistant")


class Instructions(Files):
    """Rows with `prompt` and `completion`, or with `messages`, a list of objects with role and content.

    A document is the text of `ChatTemplate`, whose markers are `user` and `assistant`. See `Files`.
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
            messages = messages_of(row, where)
            try:
                yield messages and encodable(self.chat.text(messages), where)
            except UserError as error:
                raise UserError(f"{where}: {error}" if where not in str(error) else str(error)) from None

    def fingerprint(self) -> str:
        return digest_of([super().fingerprint(), self.chat.user, self.chat.assistant])


def messages_of(row: Mapping[str, Any], where: str) -> list[Message] | None:
    """The turns of a row; None if one of them is null. Raises: UserError: for a row of another form."""
    if "messages" in row:
        messages = row["messages"]
    elif "prompt" in row and "completion" in row:
        pair = zip(ROLES[1:], (row["prompt"], row["completion"]))
        messages = [{"role": role, "content": content} for role, content in pair]
    else:
        keys = printable(", ".join(map(str, row)), 200)
        raise UserError(f"{where} must have prompt and completion, or messages; its keys are {keys or 'none'}")
    if not isinstance(messages, list) or not all(
        isinstance(its, dict) and its.get("role") in ROLES for its in messages
    ):
        raise UserError(f"{where}: messages must be a list of objects with role (system, user, assistant) and content")
    contents = [its.get("content") for its in messages]
    if any(content is None or (isinstance(content, str) and not content.strip()) for content in contents):
        return None
    if not all(isinstance(content, str) for content in contents):
        raise UserError(f"{where}: a turn is no text; write its parts as one text first")
    return messages
