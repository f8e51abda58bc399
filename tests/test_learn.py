"""Tests of slm.learn: the references pass their checks, exercises and typical mistakes do not, and are explained."""

import re
import subprocess
import sys

import pytest
from conftest import ROOT, exit_code

from slm.learn import __main__ as command
from slm.learn.exercises import MARK, PHASES, source, start
from slm.learn.trial import Failed, trial

MISTAKES = [  # phase, the line of the reference, the line with the mistake, what the check says
    (1, "parent.grad += local", "parent.grad = local", "was overwritten"),
    (
        1,
        "(self, other.data), (other, self.data)",
        "(self, self.data), (other, other.data)",
        r"derivative of a \* b by a",
    ),
    (1, "key=lambda value: value.number, reverse=True", "key=lambda value: value.number", "must be"),
    (2, "min(known, key=rank.get)", "known[0]", "the order from left to right"),
    (2, "min(known, key=rank.get)", "max(known, key=rank.get)", "the pair that was learned last"),
    (2, "(-counts[pair], pair)", "-counts[pair]", "the one with the smallest ids comes first"),
    (2, "counts[pair] += count", "counts[pair] += 1", "as often as its word occurs"),
    (3, ".tril()", ".tril(1)", "A position sees the one after it.*off by one"),
    (3, ".tril()", ".tril(-1)", "A position must see itself, too: off by one"),
    (3, " / math.sqrt(q.size(-1))", "", r"not divided by sqrt\(D\)"),
    (3, "F.softmax(scores, dim=-1)", "F.softmax(scores, dim=-2)", "The softmax is over the queries"),
    (
        3,
        "torch.arange(tokens.size(1), device=tokens.device)",
        "torch.arange(tokens.numel()).view_as(tokens)",
        "must restart",
    ),
    (
        3,
        "self.heads, -1).transpose(1, 2)",
        "self.heads, -1).reshape(B, self.heads, T, -1)",
        "mixes up positions and heads",
    ),
    (3, "((x - mean) ** 2).mean(dim=-1, keepdim=True)", "x.var(dim=-1, keepdim=True)", "divides by C - 1"),
    (3, "x = x + self.attention(", "x = self.attention(", "The residual stream x is not added"),
    (
        4,
        "ids[start + 1 : start + 1 + context] for start in starts",
        "ids[start : start + context] for start in starts",
        "learn to copy",
    ),
    (4, "peak * (step + 1) / warmup", "peak * step / warmup", "The first update has the rate 0"),
    (4, "    model.eval()\n", "", "dropout is on"),
    (5, "logits / value", "logits * value", "divide"),
    (5, "[:k]", "[: k + 1]", "top_k"),
    (5, "ids[-context:]", "ids", "5 positions"),
    pytest.param(4, "        optimizer.zero_grad()\n", "", "are the gradients set to 0", marks=pytest.mark.slow),
    pytest.param(4, 'load_state_dict(state["optimizer"])', "zero_grad()", "AdamW's means", marks=pytest.mark.slow),
    (5, "logits[0, -1]", "logits[0, 0]", "The logits of the first position"),
    (6, " + 2 * width", "", "The last norm's gain and bias are missing"),
]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The folder of a learner, in which modules of the same names in other folders are forgotten."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    for phase in PHASES:
        monkeypatch.delitem(sys.modules, phase.module, raising=False)
    return tmp_path / "mine"


def test_an_unchanged_start_fails_each_check_with_a_sentence(folder):
    paths = start(folder)
    for phase, path in zip(PHASES, paths):
        text, reference = path.read_text(), source(phase)
        assert text.count("raise NotImplementedError") == text.count(MARK) == reference.count(MARK) >= 4
        assert len(reference.splitlines()) < 150
        with pytest.raises(Failed, match=r"^[\w.]+ is not written yet: phase\d_\w+.py, line \d+\.\nIts docstring"):
            list(trial(phase, folder))


@pytest.mark.parametrize(("number", "right", "wrong", "said"), MISTAKES)
def test_typical_mistakes_are_named(number, right, wrong, said, folder):
    phase = PHASES[number - 1]
    assert right in source(phase)
    start(folder)
    for other in PHASES:  # phase 6 reads phase 3
        (folder / other.file).write_text(source(other).replace(right, wrong) if other == phase else source(other))
    with pytest.raises(Failed) as failed:
        list(trial(phase, folder))
    assert re.search(said, str(failed.value)), failed.value


def test_the_references_of_bpe_and_gpt_pass(monkeypatch, capsys):
    for phase in "23":
        assert exit_code(monkeypatch, command.main, "check", phase) == 0
    assert "MultiHead equals slm.attention.Attention with 4 heads" in capsys.readouterr().out


@pytest.mark.slow
def test_all_references_pass_in_less_than_two_gigabytes(tmp_path):
    pytest.importorskip("resource")  # not on Windows
    code = "import resource, sys; from slm.learn.__main__ import main; sys.argv[1:] = ['check']; code = main(); "
    code += "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1000, 'MB'); sys.exit(code)"
    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PATH": "", "HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("passed: ") == 6
    assert (tmp_path / "phase1_graph.png").stat().st_size > 10_000
    assert (tmp_path / "phase4_loss.png").stat().st_size > 10_000
    assert int(re.search(r"(\d+) MB", done.stdout)[1]) < 2000


def test_an_exception_of_the_learner_is_shown_with_the_learners_lines_only(folder):
    start(folder)
    text = source(PHASES[2]).replace("return torch.ones(T, T", "return torch.ons(T, T")
    (folder / "phase3_gpt.py").write_text(text)
    with pytest.raises(Failed, match="AttributeError: module 'torch' has no attribute 'ons'") as failed:
        list(trial(PHASES[2], folder))
    assert "in causal_mask: return torch.ons(T, T" in str(failed.value)
    assert "check3" not in str(failed.value)
    (folder / "phase3_gpt.py").write_text("def causal_mask(T)\n")
    with pytest.raises(Failed, match=r"phase3_gpt\.py, line 1: expected ':'"):
        list(trial(PHASES[2], folder))
    (folder / "phase3_gpt.py").write_text(source(PHASES[2]).replace("return F.softmax", "F.softmax"))
    with pytest.raises(Failed, match="returned None"):
        list(trial(PHASES[2], folder))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["begin"], "begin: give start FOLDER, check FOLDER PHASE"),
        (["check", "7"], "phase 7 must be from 1 to 6"),
        (["check", "nowhere", "3"], "nowhere is not a folder"),
        (["check", ".", "three"], "phase three must be a number from 1 to 6"),
        (["check", ".", "3"], "phase3_gpt.py does not exist"),
    ],
)
def test_mistakes_in_the_command_are_one_line(words, said, folder, monkeypatch, capsys):
    assert exit_code(monkeypatch, command.main, *words) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_start_overwrites_nothing(folder, monkeypatch, capsys):
    assert exit_code(monkeypatch, command.main, "start", "mine") == 0
    (folder / "phase1_autograd.py").write_text("my work")
    assert exit_code(monkeypatch, command.main, "start", "mine") == 2
    assert "may hold your work" in capsys.readouterr().err
    assert (folder / "phase1_autograd.py").read_text() == "my work"


def test_the_example_of_the_page_draws_its_graph(folder):
    page = (ROOT / "docs" / "learn.md").read_text(encoding="utf-8")
    names = {}
    exec(re.search(r"```python\n(.*?)```", page, re.S)[1], names)
    assert names["a"].grad == 7
    assert (folder.parent / "graph.png").stat().st_size > 5000
