"""Checkpoints by words: how many a run has read, and which step each number names."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from conftest import exit_code, mistake
from test_fork import steps_in
from test_resume import assert_same, final_state, set_status

from slm import checkpoint
from slm.data.words import Words
from slm.export import __main__ as export_command
from slm.files import jsonl, run_folder
from slm.files.kept import BABYLM, checkpoint_files, kept_steps, kept_words, revision, revisions
from slm.loss import IGNORE, PROMPT
from slm.tokenizers.bpe import BPETokenizer
from slm.tokenizers.bytes import ByteTokenizer
from slm.tokenizers.sentencepiece import SentencePieceTokenizer

TEXTS = ["Once upon a time\nthere was  a fox.", " \tTwo words ", "naïve – yes!\r\n", "a", "   ", "x\u00a0y z" * 9]
KEEP = "callbacks.checkpoints.keep_at=['words:50','words:2e2',2]"


def words_in(text: bytes, first: int = 1) -> int:
    """Those that begin at byte `first` or later."""
    return sum(found.start() >= first for found in re.finditer(rb"(?<!\S)\S", text))


TOKENIZERS = [
    (ByteTokenizer, {}),
    (BPETokenizer, {"vocab_size": 270, "pattern": "gpt4", "sample_documents": 100, "seed": 0}),
    (SentencePieceTokenizer, {"vocab_size": 320, "algorithm": "bpe", "sample_documents": 100, "seed": 0}),
]


@pytest.mark.parametrize(("kind", "settings"), TOKENIZERS)
def test_words_are_counted_exactly_wherever_windows_are_cut(kind, settings):
    tokenizer = kind.build(iter(TEXTS * 20), **settings)
    documents = [tokenizer.encode(text) for text in TEXTS]
    stream = [tokenizer.eos, *(token for ids in documents for token in [*ids, tokenizer.eos])]
    words = Words(tokenizer, torch.device("cpu"))
    expected = sum(len(text.encode().split()) for text in TEXTS)
    assert expected == sum(words_in(b" " + text.encode()) for text in TEXTS)
    for length in (1, 3, 7, len(stream) - 1):
        cut = [torch.tensor(stream[start : start + length + 1]) for start in range(0, len(stream) - 1, length)]
        windows = torch.nn.utils.rnn.pad_sequence(cut, batch_first=True, padding_value=IGNORE)
        assert words.count(windows) == expected
        assert words.count(torch.where(windows == IGNORE, IGNORE, PROMPT - windows)) == expected  # prompts are read


def test_a_run_keeps_the_first_step_after_each_number_of_words(run, tmp_path):
    small = KEEP, "log_windows=true", "data.batch_windows=4", "budget.steps=9", "callbacks.checkpoints.every_n_steps=4"
    folder = run(*small)
    ids = np.fromfile(next((tmp_path / "cache" / "tokens").glob("*/train-00000.bin")), np.uint16)
    text = bytes(min(token, 256) % 256 or 10 for token in ids.tolist())  # eos as a line end
    read, total = {}, 0
    for line in jsonl.lines(folder / "windows.jsonl"):
        total += sum(words_in(text[64 * window : 64 * window + 65]) for window in line["windows"])
        read[line["step"]] = total
    named = {
        f"chck_{n}M": min(s for s, w in read.items() if w >= words) for words, n in ((50, "0.00005"), (200, "0.0002"))
    }
    found = {name: (run_folder.step_of(path), words) for name, (path, words) in revisions(folder).items()}
    assert found == {name: (step, read[step]) for name, step in named.items()}
    assert set(named.values()) | {2, 9} <= set(steps_in(folder))
    state = checkpoint.read(run_folder.checkpoints(folder)[0])["callbacks"]
    assert next(its["words"] for its in state.values() if "words" in its) == read[9]
    resumed = tmp_path / "resumed"
    shutil.copytree(folder, resumed)
    for path in run_folder.checkpoints(resumed):
        if run_folder.step_of(path) > 4:
            path.unlink()
    set_status(resumed, "running")
    (resumed / "checkpoints" / "revisions.json").unlink()
    run(*small, folder="resumed")
    assert_same(final_state(folder), final_state(resumed))
    assert revisions(resumed).keys() == revisions(folder).keys()


def test_words_are_counted_from_the_first_step_on_or_not_at_all(run):
    folder = run("budget.steps=2")
    with mistake(r"checkpoint of step 2 has no count; begin a new run"):
        run(KEEP, "budget.steps=3")
    with mistake("has no checkpoints by words"):
        revisions(folder)
    (folder / "checkpoints" / "revisions.json").write_text(json.dumps({"chck_1M": {"file": "../x", "words": 1}}))
    with mistake("is damaged: 'chck_1M'"):
        revisions(folder)


def test_numbers_and_names_of_words():
    assert [revision(words) for words in BABYLM][8:12] == ["chck_9M", "chck_10M", "chck_20M", "chck_30M"]
    assert (len(BABYLM), BABYLM[-1]) == (28, 10**9)
    assert kept_words(["words:1.5e6", "log2", 5, "words:20"]) == [20, 1_500_000]
    assert checkpoint_files({"keep_at": ["babylm", 3]}, 10**6) == 2 + 2 + 28 + 1
    assert checkpoint_files({"keep_at": ["babylm"]}, 5) == 2 + 2 + 5
    for entry in ("words:", "words:-1", "words:0", "words:1e99", "babylm2"):
        with mistake("keep_at"):
            kept_steps([entry], 10)


def test_checkpoints_by_words_are_exported_as_revisions(run, tmp_path, monkeypatch, capsys):
    folder, pushed = run(KEEP, "budget.steps=4"), []
    steps = {name: str(run_folder.step_of(path)) for name, (path, _) in revisions(folder).items()}

    def export(model, folder):
        (folder / "step").write_text(str(model.step))
        return []

    def push(folder, repository, *, public, revision):
        pushed.append((folder.name, repository, revision))
        return "address"

    monkeypatch.setattr(export_command, "export_of", lambda name: export)
    monkeypatch.setattr(export_command.hub, "check", lambda repository, revision: None)
    monkeypatch.setattr(export_command.hub, "push", push)
    words = [str(folder), str(tmp_path / "baby"), "revisions=true", "push=me/baby", "print=json"]
    assert exit_code(monkeypatch, export_command.main, *words) == 0
    written = {path.parent.name: path.read_text() for path in (tmp_path / "baby").glob("*/step")}
    best = json.loads((folder / "checkpoints" / "best.json").read_text())["step"]
    assert written == {"main": str(best), **steps}
    assert pushed == [("main", "me/baby", None), *((name, "me/baby", name) for name in steps)]
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [its["step"] for its in line["revisions"]] == [best, *map(int, steps.values())]
