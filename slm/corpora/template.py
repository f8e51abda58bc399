"""From the row of a table or a JSON object to the text of a document: one column, or a template of several."""

from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from string import Formatter
from typing import Any

from slm.errors import UserError, printable

SHOWN = 200  # characters of a list of columns


class Template:
    """The string in `column`, unchanged; or `template` with each {column} replaced by its value, if it is given.

    In a template {{ and }} stand for braces, and \\n and \\t, as typed in a shell, for a line end and a tab.
    `key` is the setting of the column, for errors.
    Raises: UserError: for a template without a column or with unmatched braces; if both are missing.
    """

    def __init__(self, column: str | None, template: str | None, key: str = "data.column"):
        if not (column or template):
            raise UserError(f"{key} and data.template are null: give {key}=<the column with the text>")
        self.column, self.key = None if template else column, "data.template" if template else key
        self.parts = parsed(template.replace("\\n", "\n").replace("\\t", "\t")) if template else [("", column)]
        self.columns = tuple(dict.fromkeys(name for _, name in self.parts if name is not None))

    def check(self, columns: Iterable[Any], where: str):
        """Raises: UserError: if a needed column is not among these, which the message names."""
        names = [name for name in columns if isinstance(name, str)]
        for missing in self.columns:
            if names.count(missing) > 1:
                raise UserError(f"{where} has {names.count(missing)} columns {missing!r}: rename or remove all but one")
            if missing not in names:
                shown, nearest = printable(", ".join(names), SHOWN), get_close_matches(missing, names, n=1)
                remedy = f"give {self.key}={nearest[0] if nearest else '<one of them>'}"
                if self.column is None:
                    remedy = f"did you mean {{{nearest[0]}}}?" if nearest else f"name others in {self.key}"
                raise UserError(f"{where} has no column {missing!r}: its columns are {shown or 'none'}; {remedy}")

    def text(self, row: Mapping[str, Any], where: str) -> str | None:
        """The document of a row; None if a value that it needs is null. `where` names the row in errors.

        Raises: UserError: for a missing column, a nested value, a `column` that is not text, or half of a surrogate
            pair (possible in JSON).
        """
        if self.column and isinstance(text := row.get(self.column), str):
            return encodable(text, where)
        if not all(name in row for name in self.columns):
            self.check(row, where)
        if any(row[name] is None for name in self.columns):
            return None
        for name in self.columns:
            if nested(row[name]) or (self.column and not isinstance(row[name], str)):
                kind, supported = type(row[name]).__name__, "text" if self.column else "text and numbers"
                remedy = "write its parts as one text first" if nested(row[name]) else f"or data.template='{{{name}}}'"
                raise UserError(
                    f"{where} has a value of type {kind} in column {name!r}: {self.key} needs {supported}; {remedy}"
                )
        text = "".join(literal if name is None else f"{literal}{row[name]}" for literal, name in self.parts)
        return encodable(text, where)


def encodable(text: str, where: str) -> str:
    """The text. Raises: UserError: if it has half of a surrogate pair."""
    try:
        if not text.isascii():
            text.encode()
    except UnicodeEncodeError:
        raise UserError(f"{where} has half of a surrogate pair in its text: repair it, or leave it out") from None
    return text


def nested(value: Any) -> bool:
    """True for a list, a mapping or bytes."""
    return isinstance(value, Mapping | Sequence) and not isinstance(value, str)


def parsed(template: str) -> list[tuple[str, str | None]]:
    """Pairs of literal text and the column after it. Raises: UserError: for unmatched braces, formats or no column."""
    try:
        fields = list(Formatter().parse(template))
    except ValueError as error:
        raise UserError(f"data.template={template!r}: {error}; {{{{ and }}}} stand for braces") from None
    if any(name == "" or form or conversion for _, name, form, conversion in fields):
        raise UserError(f"data.template={template!r} must name columns as {{title}}, without formats")
    if not any(name for _, name, _, _ in fields):
        raise UserError(f"data.template={template!r} names no column: give, for example, {{title}}")
    return [(literal, name) for literal, name, _, _ in fields]
