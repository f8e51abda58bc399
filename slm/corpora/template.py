"""From the row of a table or a JSON object to the text of a document: one column, or a template of several."""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from string import Formatter
from typing import Any

from slm.errors import UserError, printable

SHOWN = 200  # characters of a list of columns


class Template:
    """The string in `column`, unchanged; or `template` with each {column} replaced by its value, if it is given.

    In a template {{ and }} stand for braces, and \\n and \\t, as typed in a shell, for a line end and a tab.
    Raises: UserError: for a template without a column or with unmatched braces; if both are missing.
    """

    def __init__(self, column: str | None, template: str | None):
        if not (column or template):
            raise UserError("data.column and data.template are null: give data.column=<the column with the text>")
        self.column = None if template else column
        self.parts: list[tuple[str, str | None]] = []  # literal text, and the column that follows it
        if template:
            self.parts = parsed(template.replace("\\n", "\n").replace("\\t", "\t"))
        names = [name for _, name in self.parts if name is not None] if template else [column]
        self.columns = tuple(dict.fromkeys(names))

    def text(self, row: Mapping[str, Any], where: str) -> str | None:
        """The document of a row; None if a value that it needs is null. `where` names the row in errors.

        Raises: UserError: for a missing column, a nested value, a `column` that is not text, or half of a surrogate
            pair (possible in JSON).
        """
        if missing := [name for name in self.columns if name not in row]:
            raise UserError(f"{where} has no {missing[0]!r}: {choice(missing[0], row)}")
        values = [row[name] for name in self.columns]
        if any(value is None for value in values):
            return None
        for name, value in zip(self.columns, values):
            if isinstance(value, Mapping | bytes) or (isinstance(value, Sequence) and not isinstance(value, str)):
                raise UserError(
                    f"{where} has a {type(value).__name__} as {name!r}: only text and numbers are supported"
                )
        if self.column is None:
            text = "".join(literal + ("" if name is None else str(row[name])) for literal, name in self.parts)
        elif isinstance(text := values[0], str):
            pass
        else:
            raise UserError(f"{where} has a {type(text).__name__} as {self.column!r}, not text: {choice(None, row)}")
        try:
            text.encode()
        except UnicodeEncodeError:
            raise UserError(f"{where} has half of a surrogate pair in its text: repair it, or leave it out") from None
        return text


def parsed(template: str) -> list[tuple[str, str | None]]:
    """Pairs of literal text and column. Raises: UserError: for a template that str.format would not read."""
    try:
        fields = list(Formatter().parse(template))
    except ValueError as error:
        raise UserError(f"data.template={template!r}: {error}; {{{{ and }}}} stand for braces") from None
    if any(name == "" or form or conversion for _, name, form, conversion in fields):
        raise UserError(f"data.template={template!r} must name columns as {{title}}, without formats")
    if not any(name for _, name, _, _ in fields):
        raise UserError(f"data.template={template!r} names no column: give, for example, {{title}}")
    return [(literal, name) for literal, name, _, _ in fields]


def choice(missing: str | None, columns: Mapping[str, Any]) -> str:
    """The columns that exist and the likely fix."""
    names = [name for name in columns if isinstance(name, str)]
    shown = printable(", ".join(names), SHOWN) or "none"
    nearest = get_close_matches(missing, names, n=1) if missing is not None else []
    return f"its columns are {shown}; give data.column={nearest[0] if nearest else '<one of them>'}"
