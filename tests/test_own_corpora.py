"""data=files: every format, encoding and split of one's own texts, and each mistake in one line."""

import pytest

from slm.corpora.template import Template
from slm.errors import UserError


def test_a_template_joins_columns_and_a_row_with_a_null_has_no_text():
    template = Template("ignored", "{title}\\n\\n{a.b} {{{score}}}")
    assert template.columns == ("title", "a.b", "score")
    row = {"title": "Ü", "a.b": "x", "score": 7, "other": [1]}
    assert template.text(row, "a line 1") == "Ü\n\nx {7}"
    assert template.text({**row, "score": None}, "a line 1") is None
    assert Template("title", None).text({"title": " as it is\n"}, "a line 1") == " as it is\n"
    assert Template("title", None).text({"title": None}, "a line 1") is None


@pytest.mark.parametrize(
    ("column", "template", "row", "message"),
    [
        (None, None, {}, "data.column and data.template are null"),
        ("txt", None, {"text": "a", "id": 1}, "a row 3 has no 'txt': its columns are text, id; give data.column=text"),
        ("x", None, {}, "its columns are none"),
        ("text", None, {"text": ["a"]}, "a row 3 has a list as 'text': only text and numbers"),
        ("text", None, {"text": {"de": "a"}}, "a row 3 has a dict as 'text'"),
        ("id", None, {"text": "a", "id": 1}, "a row 3 has a int as 'id', not text: its columns are text, id"),
        ("text", None, {"text": "\ud800"}, "a row 3 has half of a surrogate pair"),
        (None, "{text", {}, "expected '}'"),
        (None, "text", {}, "names no column"),
        (None, "{}", {}, "must name columns"),
        (None, "{a!r}", {}, "without formats"),
        (None, "{a} {b}", {"a": "x", "c": {}}, "a row 3 has no 'b'"),
    ],
)
def test_a_wrong_column_or_template_is_named(column, template, row, message):
    with pytest.raises(UserError) as error:
        Template(column, template).text(row, "a row 3")
    assert message in str(error.value)
