"""A conversation as one text: what stands before a turn of the user, and before an answer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from slm.errors import UserError, printable
from slm.security import corpus_nodes

MAX_MARKER = 100  # characters
ROLES = {"system": "system", "developer": "system", "user": "user", "human": "user"}  # also those of ShareGPT
ROLES |= {"assistant": "assistant", "gpt": "assistant"}
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
        roles = [message["role"] for message in messages]
        if roles[:1] == ["system"]:
            roles = roles[1:]
            contents = [message["content"].strip() for message in messages[:2]]
            messages = [{"role": "user", "content": "\n\n".join(contents)}, *messages[2:]]
        expected = ["user", "assistant"] * len(roles)
        if roles != expected[: len(roles)] or not roles or (roles[-1] == "assistant") != answers:
            last = "an answer" if answers else "a turn of the user"
            shown = printable(", ".join(roles), 100) or "none"
            raise UserError(f"the roles ({shown}) must be user and assistant in turn, and end with {last}")
        parts = []
        for message in messages:
            content = message["content"].strip()
            for marker in (self.stop, self.assistant.rstrip()):
                if marker in f"\n{content}\n":
                    raise UserError(
                        f"a turn holds {marker!r}, which divides turns; give another data.user or data.assistant"
                    )
            parts += [self.user if message["role"] == "user" else self.assistant, content]
        return "".join([*parts, *([] if answers else [self.assistant])]).lstrip()

    def jinja(self) -> str:
        """The same as a template of transformers, whose text its tokenizer encodes as any other. The start of an answer
        has no white space at its end: an id often holds a space and the word after it."""
        system = "loop.index0 == 1 and messages[0].role == 'system'"
        before = f"{self.assistant!r} if m.role == 'assistant' else {self.user.lstrip()!r} if loop.first else "
        before += f"'\\n\\n' if {system} else {self.user!r}"
        turns = "{%- for m in messages -%}{{ " + before + " }}{{ m.content | trim }}{%- endfor -%}"
        return turns + f"{{%- if add_generation_prompt -%}}{{{{ {self.assistant.rstrip()!r} }}}}{{%- endif -%}}"


def messages_of(value: Any) -> list[Message]:
    """The turns of a list in the form of OpenAI (role and content, a text or parts with text) or ShareGPT (from and
    value); null is "". Raises: UserError: for another form, with the number of the turn."""
    if not isinstance(value, list):
        raise UserError("messages must be a list of objects with role (system, user or assistant) and content (text)")
    messages = []
    for number, turn in enumerate(value, 1):
        turn = turn if isinstance(turn, Mapping) else {}
        role, content = turn.get("role", turn.get("from")), turn.get("content", turn.get("value", {}))
        if not isinstance(role, str) or role not in ROLES:
            raise UserError(
                f"message {number} has the role {printable(repr(role), 40)}, which must be system, user or assistant"
            )
        parts = content if isinstance(content, list) else [{"text": "" if content is None else content}]
        texts = [part.get("text") if isinstance(part, Mapping) else None for part in parts]
        if not all(isinstance(text, str) for text in texts):
            raise UserError(f"message {number} needs a content that is text")
        messages.append({"role": ROLES[role], "content": "".join(texts)})
    return messages


def chat_template(config: Mapping[str, Any], source: str = "") -> ChatTemplate | None:
    """The template of the conversations that a run was trained on, from its configuration, which may be foreign; of a
    mixture that of `source`, "" for the first that has one. None if there is none."""
    for node in corpus_nodes(config, source):
        markers = [node.get(key) for key in ("user", "assistant")]
        if all(isinstance(marker, str) and len(marker) <= MAX_MARKER for marker in markers):
            return ChatTemplate(user=markers[0], assistant=markers[1])
    return None
