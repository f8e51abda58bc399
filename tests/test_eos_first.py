"""A prompt follows eos only where training windows often show eos before the start of a document."""

import pytest

import slm
from slm import checkpoint
from slm.files import run_folder
from slm.generation.prompt import encode_prompt
from slm.tokenizers.bytes import ByteTokenizer


def test_without_eos_first_only_an_empty_prompt_begins_with_eos():
    for text, ids in (("ab", [97, 98]), ("", [256]), (" ", [32])):
        assert encode_prompt(ByteTokenizer(), text, eos_first=False).ids == ids
    assert encode_prompt(ByteTokenizer(), "ab").ids == [256, 97, 98]


@pytest.mark.parametrize(
    ("data", "eos_first"), [(["data.separator=null"], False), ([], True), (["data.layout=documents"], True)]
)
def test_a_run_on_one_document_generates_without_eos(run, monkeypatch, data, eos_first):
    folder = run(*data, "budget.steps=1")
    path = run_folder.checkpoints(folder)[0]
    assert checkpoint.load(path).eos_first is eos_first
    prompts = []
    monkeypatch.setattr(
        "slm.generation.completion.encode_prompt", lambda *a: prompts.append(encode_prompt(*a)) or prompts[-1]
    )
    model = slm.load(path)
    model.generate("ab", max_new_tokens=1)
    list(model.stream("ab", max_new_tokens=1))
    assert [prompt.ids for prompt in prompts] == [[256] * eos_first + [97, 98]] * 2
