"""data.layout=instructions: conversations, of which the answers are targets."""

import json

import pytest
import torch
from conftest import mistake, refused

from slm import checkpoint, tokenizers
from slm.chat_template import ChatTemplate, chat_template
from slm.classes import name_of
from slm.corpora.instructions import Instructions
from slm.corpora.storyworld.instructions import StoryworldInstructions, obedience
from slm.data.instructions import Answers, Conversations
from slm.data.store import prepare
from slm.evaluation import requests
from slm.files import run_folder
from slm.generation.conversation import Conversation, before
from slm.loss import IGNORE, cross_entropy, ids_of, text_sizes
from slm.run.train import train
from slm.tokenizers.bytes import ByteTokenizer
from slm.tokenizers.sentencepiece import SentencePieceTokenizer
from slm.training.module import split

COUNT = "one two three four five six seven eight nine ten eleven " * 4
ROWS = [
    {"prompt": "Say hi.", "completion": " Hi ö there! "},
    {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "What is red?"},
            {"role": "assistant", "content": "A rose."},
            {"role": "user", "content": "And blue?"},
            {"role": "assistant", "content": "The sky."},
        ]
    },
    {"prompt": "Why " * 60 + "?", "completion": "Because."},
    {"prompt": "Count", "completion": COUNT},
    {"prompt": "null", "completion": None},
    {"prompt": "last", "completion": "of all"},
]
ANSWERS = [" Hi ö there!", " A rose.\nUser: The sky.", " Because.", f" {COUNT.strip()}"]
ANSWERS = [f"{answer}<eos>" for answer in ANSWERS]
TEMPLATE = ChatTemplate()


def corpus(path, **settings) -> Instructions:
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    given = {"user": "\\nUser: ", "assistant": "\\nAssistant: ", "split": "contiguous", "train_ratio": 0.8, "seed": 0}
    return Instructions(path=str(path), **given | settings)


@pytest.mark.parametrize("kind", ["bytes", "sentencepiece"])
def test_the_targets_are_the_answers_and_their_ends(tmp_path, kind):
    """In the ids of each tokenizer: the answers as text, the start of the user's turn behind one, and eos."""
    source = corpus(tmp_path / "chat.jsonl")
    texts = list(source.documents("train"))
    build = {"bytes": ByteTokenizer.build, "sentencepiece": SentencePieceTokenizer.build}[kind]
    settings = {} if kind == "bytes" else {"vocab_size": 340, "algorithm": "bpe", "sample_documents": 10, "seed": 0}
    tokenizer = build(documents=texts, **settings)
    store = prepare(source, tokenizer, tmp_path)
    answers = Answers(tokenizers.pieces(tokenizer), source.chat)
    windows = Conversations(store, "train", 1024, tokenizer.eos, answers)
    rows = windows.__getitems__(list(range(len(windows))))
    _, targets = split(rows)
    assert torch.equal(windows[0], rows[0][rows[0] != IGNORE])
    for row, ids, kept, text, answer in zip(rows, ids_of(rows), targets, texts, ANSWERS, strict=True):
        assert tokenizer.decode(ids[1 : (row != IGNORE).sum() - 1].tolist()) == text
        found = [tokenizer.token_bytes(token) or b"<eos>" for token in kept[kept != IGNORE].tolist()]
        assert b"".join(found).decode() == answer
    assert windows.targets.tolist() == (targets != IGNORE).sum(1).tolist() == (rows[:, 1:] >= 0).sum(1).tolist()
    sizes, _ = text_sizes(rows, torch.from_numpy(tokenizers.text_lengths(tokenizer)))
    assert sizes[0].sum() == len(" Hi ö there!".encode())
    assert windows.prompt(1, tokenizer) in texts[1]
    assert windows.prompt(1, tokenizer).endswith("Assistant:")


def test_conversations_that_are_too_long_are_cut_or_left_out(tmp_path):
    tokenizer, source = ByteTokenizer.build(documents=[]), corpus(tmp_path / "chat.jsonl")
    answers = Answers(tokenizers.pieces(tokenizer), source.chat)
    store = prepare(source, tokenizer, tmp_path)
    windows = Conversations(store, "train", 128, tokenizer.eos, answers)
    assert len(windows) == 3
    assert windows.left_out == 1
    assert "of 4 conversations 1 are longer than model.context=128 and are cut, and 1 are left out" in windows.report
    row = windows[2]
    assert len(row) == 129
    assert row[-1] != tokenizer.eos
    assert [windows.place(2)[0]] == [3]
    with mistake("no conversation of the train split"):
        Conversations(store, "train", 8, tokenizer.eos, answers)


def test_a_template_and_what_it_refuses():
    turns = [{"role": "user", "content": " a "}, {"role": "assistant", "content": "b"}]
    assert TEMPLATE.text(turns) == "User: a\nAssistant: b"
    assert TEMPLATE.text(turns[:1], answers=False) == "User: a\nAssistant: "
    for wrong in (turns[:1], turns[1:], turns[:1] * 2, [], [{"role": "user", "content": "x\nUser: y"}, turns[1]]):
        refused(lambda wrong=wrong: TEMPLATE.text(wrong), "turn")
    for wrong in ({"user": "User: "}, {"user": "\n "}, {"user": "\nAssistant:"}, {"user": "\n" + "x" * 200}):
        refused(lambda wrong=wrong: ChatTemplate(**wrong), "data.user")
    corpus_of = {"_target_": "x", "user": "\nQ: ", "assistant": "\nA: "}
    found = ChatTemplate(user="\nQ: ", assistant="\nA: ")
    assert chat_template({"data": {"corpus": corpus_of}}) == found
    mixed = {"data": {"corpus": {"sources": {"books": {"corpus": {}}, "chat": {"corpus": corpus_of}}}}}
    assert chat_template(mixed) == chat_template(mixed, "chat") == found
    for foreign in ({}, {"data": 3}, {"data": {"corpus": {"user": 1}}}, {"data": {"corpus": {"sources": {"a": 1}}}}):
        assert chat_template(foreign) is None


def test_rows_as_people_know_them_are_read_and_others_refused_with_their_line(tmp_path):
    say = "User: a\n\nb\nAssistant: c"
    right = [
        {"prompt": "a\n\nb", "completion": "c"},
        {"instruction": "a", "input": "b", "output": "c"},
        {"instruction": "a\n\nb", "input": "", "output": "c"},
        {"conversations": [{"from": "human", "value": "a\n\nb"}, {"from": "gpt", "value": "c"}]},
        {
            "messages": [
                {"role": "developer", "content": "a"},
                {"role": "user", "content": [{"type": "text", "text": "b"}]},
                {"role": "assistant", "content": "c"},
            ]
        },
    ]
    source, lines = corpus(tmp_path / "chat.jsonl", train_ratio=0.5), tmp_path / "chat.jsonl"
    lines.write_text("".join(json.dumps(row) + "\n" for row in right))
    assert [*source.all_documents()] == [say] * len(right)
    deep, long = "[" * 100_000, json.dumps({"messages": [{"role": "user", "content": "a"}] * 9000})
    wrong = {
        '{"prompt": "x"}': "completion",
        "{}": "keys",
        "[1]": "object",
        deep: "depth",
        long: "in turn",
        '{"prompt": 1, "completion": "x"}': "prompt is int",
        '{"prompt": "a\\nUser:", "completion": "x"}': "divides",
        '{"prompt": "\\ud800", "completion": "x"}': "surrogate",
        '{"instruction": "a", "input": [1], "output": "x"}': "input is list",
        '{"messages": "hi"}': "messages must be a list",
        '{"messages": []}': "in turn",
        '{"messages": [null]}': "message 1",
        '{"messages": [{"role": "ro\\n\\u001b[2Jbot"}]}': "message 1",
        '{"messages": [{"role": ["user"], "content": "x"}]}': "message 1",
        '{"messages": [{"role": "user"}]}': "content",
        '{"messages": [{"role": "user", "content": [{"type": "image"}]}]}': "content",
        '{"conversations": [{"from": "bing", "value": "x"}]}': "bing",
        '{"chosen": "a", "rejected": "b"}': "chosen, rejected",
    }
    for line, message in wrong.items():
        lines.write_text('{"prompt": "a", "completion": "b"}\n' + line + "\n")
        answer = refused(lambda: [*source.all_documents()], message, "line 2")
        assert len(answer) < 400
        assert answer.isprintable()


def test_an_answer_ends_before_the_next_turn_and_old_turns_are_left_out():
    pieces = [" A ro", "se.", "\nUs", "ed.\n", "User", ": x"]
    assert "".join(before(iter(pieces), "\nUser:")) == " A rose.\nUsed."
    assert "".join(before(iter(pieces[:3]), "\nUser:")) == " A rose.\nUs"
    talk = Conversation(TEMPLATE, ByteTokenizer.build(documents=[]), 80)
    assert talk.prompt("one") == "User: one\nAssistant: "
    assert "".join(talk.answer(iter([" first", "\nUser:", " no"]))) == "first"
    assert talk.prompt("two") == "User: two\nAssistant: "  # 80 / 2 ids hold no more
    assert talk.prompt("three") == "User: three\nAssistant: "  # after an error: two had no answer


def test_stories_obey_their_own_request_and_no_other():
    source = StoryworldInstructions(
        user="\nUser: ", assistant="\nAssistant: ", level="tiny", stories=9, validation_stories=9, seed=0
    )
    pairs = [source.pair("validation", index) for index in range(6)]
    for (request, story), (other, _) in zip(pairs, [*pairs[1:], pairs[0]]):
        assert obedience(source.stories.all, request, f" {story}", True).obeys
        wrong = obedience(source.stories.all, other, story, True)
        assert wrong.valid
        assert wrong.obeys == (other == request)
        cut = obedience(source.stories.all, request, story[:-5], True)
        assert not (cut.valid)
        assert not (cut.obeys)
        assert not (cut.hero)
        assert not (cut.plot)
    assert len({request for request, _ in pairs}) == 6
    node = {
        "_target_": name_of(StoryworldInstructions),
        "user": "\nU: ",
        "assistant": "\nA: ",
        "level": "tiny",
        "stories": 9,
    }
    node |= {"validation_stories": 3, "seed": 0}
    assert requests.corpus_of({"data": {"corpus": node}}).fingerprint() != source.fingerprint()
    assert requests.corpus_of({"data": {"corpus": {"_target_": "os.system"}}}) is None


def test_a_run_learns_the_answers_alone(composed, tmp_path, monkeypatch):
    """The loss of the first step is that of the answers under the first weights, and the template is in the folder."""
    corpus(tmp_path / "chat.jsonl")
    data = ["data=instructions", f"data.path={tmp_path / 'chat.jsonl'}", "model.context=200"]
    small = "budget.steps=1", "data.batch_windows=2", "val_every_n_steps=1", "trainer.precision=32-true"
    config = composed(*data[2:], *small, data=data[:2])
    train(config, run_dir=tmp_path / "run", overrides=[])
    assert (tmp_path / "run" / "tokenizer" / "chat_template.jinja").read_text() == TEMPLATE.jinja()
    loaded = checkpoint.load(tmp_path / "run")
    assert chat_template(loaded.config) == TEMPLATE
    ids = torch.tensor([[256, *b"User: last\nAssistant: of all", 256]])
    first = len(b"User: last\nAssistant:")
    features = loaded.model.features(ids[:, :-1])[:, first:]
    expected = cross_entropy(features, targets=ids[:, 1 + first :], **loaded.model.readout)
    lines = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    (loss,) = [line["val/loss"] for line in lines if "val/loss" in line]
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    assert run_folder.read_run_json(tmp_path / "run")["windows"] == 3
    refused(lambda: composed("data.layout=instructions"), "data=instructions")
