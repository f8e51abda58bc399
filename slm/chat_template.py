"""A conversation as one text: what stands before a turn of the user, and before an answer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from slm.errors import UserError
from slm.security import corpus_nodes

MAX_MARKER = 100  # characters
Message = Mapping[str, str]  # role (system, user or assistant) and content


@dataclass(frozen=True, kw_only=True)
class ChatTemplate:
    """conf/data/instructions.yaml: `data.user` and `data.assistant`, in which \\n may be typed for a line end.

    At the start of a text the white space before `user` is left out. A system message stands before the first turn of
    the user, and an empty line between them. Raises: UserError: for a marker that could not be found again.
    """

    user: str = "\nUser: "
    assistant: str = "\nAssistant: "

    def __post_init__(self):
        for name in ("user", "assistant"):
            marker = getattr(self, name).replace("\\n", "\n").replace("\\t", "\t")
            object.__setattr__(self, name, marker)
            if not (marker.strip() and marker[0].isspace()) or len(marker) > MAX_MARKER:
                raise UserError(
                    f"data.{name}={marker!r} must begin with white space, hold a word and have at most {MAX_MARKER} "
                    "characters, such as '\\nUser: '"
                )
        if self.user.strip() in self.assistant or self.assistant.strip() in self.user:
            raise UserError(f"data.user={self.user!r} and data.assistant={self.assistant!r} must differ")

    @property
    def stop(self) -> str:
        """What ends an answer, if another turn of the user follows."""
        return self.user.rstrip()

    def text(self, messages: Sequence[Message], *, answers: bool = True) -> str:
        """The text of a conversation; without `answers` also the start of the next answer.

        Raises: UserError: unless turns of user and assistant alternate; for a marker within a turn.
        """
        if (roles := [message["role"] for message in messages])[:1] == ["system"]:
            messages, roles = self._without_system(messages), roles[1:]
        expected = ["user", "assistant"] * len(roles)
        if roles != expected[: len(roles)] or not roles or (roles[-1] == "assistant") != answers:
            last = "an answer" if answers else "a turn of the user"
            raise UserError(f"the roles {', '.join(roles)} must be user and assistant in turn, and end with {last}")
        parts = []
        for message in messages:
            content = message["content"].strip()
            markers = self.stop, self.assistant.rstrip()
            if found := next((marker for marker in markers if marker in f"\n{content}\n"), None):
                raise UserError(
                    f"a turn holds {found!r}, which divides turns; give another data.user or data.assistant"
                )
            parts += [self.user if message["role"] == "user" else self.assistant, content]
        return "".join([*parts, *([] if answers else [self.assistant])]).lstrip()

    def _without_system(self, messages: Sequence[Message]) -> list[Message]:
        contents = [message["content"].strip() for message in messages[:2]]
        return [{"role": "user", "content": "\n\n".join(contents)}, *messages[2:]]

    def jinja(self) -> str:
        """The same as a template of transformers, whose text its tokenizer encodes as any other. The start of an answer
        has no white space at its end: an id often holds a space and the word after it."""
        first, user, assistant = (_quoted(text) for text in (self.user.lstrip(), self.user, self.assistant))
        system = "{%- if messages[0].role == 'system' -%}{%- set lead = messages[0].content | trim + '\\n\\n' -%}"
        system += "{%- set messages = messages[1:] -%}{%- else -%}{%- set lead = '' -%}{%- endif -%}"
        content = "{%- if loop.first -%}{{ " + first + " + lead }}{%- else -%}{{ " + user + " }}{%- endif -%}"
        role = "{%- if m.role == 'user' -%}" + content + "{%- else -%}{{ " + assistant + " }}{%- endif -%}"
        loop = "{%- for m in messages -%}" + role + "{{ m.content | trim }}{%- endfor -%}"
        end = "{%- if add_generation_prompt -%}{{ " + _quoted(self.assistant.rstrip()) + " }}{%- endif -%}"
        return system + loop + end


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n") + "'"


def chat_template(config: Mapping[str, Any], source: str = "") -> ChatTemplate | None:
    """The template of the conversations that a run was trained on, from its configuration, which may be foreign; of a
    mixture that of `source`, "" for the first that has one. None if there is none."""
    for node in corpus_nodes(config, source):
        markers = [node.get(key) for key in ("user", "assistant")]
        if all(isinstance(marker, str) and len(marker) <= MAX_MARKER for marker in markers):
            return ChatTemplate(user=markers[0], assistant=markers[1])
    return None
