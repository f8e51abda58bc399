"""python -m slm.compare on run folders with known numbers, on real runs, and on what cannot be compared."""

import csv
import io
import json
import re
import shutil

import numpy as np
import pytest
from conftest import exit_code, refused, small_run, trained
from scipy import stats

from slm import compare
from slm.analysis.comparison import compare as compare_groups
from slm.analysis.groups import read_groups
from slm.files import sweep_folder

COUNT = 40  # steps of a written run


def write_run(folder, value, *, seed=1, status="done", speed=1.0, facts=None, **settings):
    """A run folder as training leaves it: a validation every ten steps, falling in a straight line to `value`."""
    folder.mkdir(parents=True)
    data = {"validation_windows": 8, "layout": "documents"} | settings.pop("data", {})
    config = {"seed": seed, "name": folder.name, "run_dir": str(folder), "data": data, **settings}
    config["callbacks"] = {"samples": {"seed": seed}}
    info = {
        **{"run_id": folder.name, "created": "2026-01-01T00:00:00+0000", "status": status, "corpus": "c"},
        **{"tokenizer": "t", "config": config, "budget": {}, "attempts": 1, "steps": COUNT, "parameters": 1000},
        **{"flops_per_token": 6000, "commits": ["abc"], "device": "cpu", "threads": 1, "objective": value},
    }
    (folder / "run.json").write_text(json.dumps(info | (facts or {})))
    with open(folder / "metrics.jsonl", "w") as file:
        for step in range(10, COUNT + 1, 10):
            loss = 3.0 + (value - 3.0) * step / COUNT
            print(json.dumps({"step": step, "train/tokens": 64 * step, "seconds": step / speed}), file=file)
            print(json.dumps({"step": step, "val/loss": 2 * loss, "val/bits_per_byte": loss}), file=file)
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "last.json").write_text(json.dumps({"file": f"step-{COUNT:06d}.ckpt"}))
    return folder


BASE = np.array([2.00, 2.10, 2.05, 1.95, 2.02])
GAIN = np.array([0.30, 0.28, 0.33, 0.31, 0.29])


@pytest.fixture
def sweep(tmp_path):
    """A sweep folder of mlp=gelu,swiglu with five seeds."""
    sweep = sweep_folder.Sweep(command=[], objective="val/loss")
    for mlp, values in (("gelu", BASE), ("swiglu", BASE - GAIN)):
        for seed, value in enumerate(values, 1):
            [job] = sweep.add({"model.mlp": mlp, "seed": str(seed)})
            write_run(tmp_path / "sweep" / job.folder, value, seed=seed, model={"mlp": mlp}, facts={})
            job.status = "done"
    with sweep_folder.changed(tmp_path / "sweep") as written:
        vars(written).update(vars(sweep))
    return tmp_path / "sweep"


def run_command(monkeypatch, capsys, *arguments):
    code = exit_code(monkeypatch, compare.main, *map(str, arguments))
    return code, capsys.readouterr()


def test_a_sweep_answers_in_one_sentence(sweep, monkeypatch, capsys):
    code, printed = run_command(monkeypatch, capsys, sweep)
    interval = stats.ttest_1samp(GAIN, 0).confidence_interval(0.95)
    assert code == 0
    assert printed.out.splitlines()[-1] == (
        f"swiglu is better than gelu by 0.302 bits per byte [{interval.low:.3f}, {interval.high:.3f}], 5 seeds, "
        "p = 0.062 at best with 5; about 24 % fewer steps"
    )
    assert "model.mlp      gelu  swiglu" in printed.out
    assert "val/loss" in printed.out
    assert "warning" not in printed.out


def test_savings_are_those_of_the_crossing(sweep):
    """Two lines from 3.0: one reaches the other's end where it has fallen as far; on a machine twice as fast."""
    for folder in sweep.glob("*swiglu*"):
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        halved = [{**line, "seconds": line["seconds"] / 2} if "seconds" in line else line for line in lines]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in halved))
    (versus,) = compare_groups(read_groups([str(sweep)])[0]).versus
    share = (3 - BASE.mean()) / (3 - (BASE - GAIN).mean())
    assert versus.steps_saved == pytest.approx(1 - share)
    assert versus.seconds_saved == pytest.approx(1 - share / 2)
    info = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(info | {"threads": 8}))
    (versus,) = compare_groups(read_groups([str(sweep)])[0]).versus
    assert (versus.steps_saved, versus.seconds_saved) == (pytest.approx(1 - share), None)  # of other machines


def test_files_for_papers_and_programs(sweep, tmp_path, monkeypatch, capsys):
    files = [word for kind in ("csv", "latex") for word in (f"--{kind}", tmp_path / kind)]
    code, printed = run_command(monkeypatch, capsys, sweep, *files, "--json", "-")
    assert code == 0
    content = json.loads(printed.out)
    rows = list(csv.DictReader(io.StringIO((tmp_path / "csv").read_text())))
    for row in (content["groups"][1], rows[1]):
        assert float(row["difference"]) == pytest.approx(-GAIN.mean())
        assert float(row["p_signs"]) == 0.0625
    assert content["answers"][0].startswith("swiglu is better than gelu by 0.302")
    assert r"val/bits\_per\_byte" in (tmp_path / "latex").read_text()
    assert (tmp_path / "latex").read_text().count(r"\\") == 3


def test_base_metric_and_best(sweep, monkeypatch, capsys):
    _, printed = run_command(monkeypatch, capsys, f"ckpt={sweep}", "--base", "swiglu", "--metric", "val/loss", "--best")
    assert "gelu is worse than swiglu by 0.604 nats per token" in printed.out
    assert "fewer steps for swiglu" in printed.out
    assert "val/loss, best validation" in printed.out
    code, printed = run_command(monkeypatch, capsys, sweep, "--base", "silu")
    assert (code, printed.err) == (2, "error: --base silu is not one of gelu, swiglu\n")


def test_no_difference_names_what_would_have_been_seen(tmp_path):
    rng = np.random.default_rng(3)
    for seed in range(1, 6):
        for name in "ab":
            write_run(tmp_path / name / str(seed), 2 + 0.1 * rng.standard_normal(), seed=seed, model={"mlp": name})
    text = sentence_of(tmp_path / "a", tmp_path / "b")
    assert "no difference from a seen" in text
    assert "5 seeds would have shown 0." in text


def sentence_of(*folders):
    from slm.analysis.comparison_page import answers

    return "\n".join(answers(compare_groups(read_groups(list(map(str, folders)))[0])))


def test_several_variants_are_corrected(tmp_path):
    """A difference that one test would show is not shown among four."""
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((5, 5)) * 0.01
    noise[1] = noise[0] + np.array([0.02, 0.01, 0.03, 0.006, 0.03])
    for arm in range(5):
        for seed in range(5):
            write_run(tmp_path / f"arm{arm}" / str(seed), 2 + noise[arm, seed], seed=seed, width=arm)
    comparison = compare_groups(read_groups([str(tmp_path / f"arm{arm}") for arm in range(5)])[0])
    first = comparison.versus[0]
    assert first.difference.p < 0.05 < first.p_holm == pytest.approx(4 * first.difference.p)
    assert "arm1 may be worse than arm0" in sentence_of(*(tmp_path / f"arm{arm}" for arm in range(5)))


def test_seeds_that_are_not_shared(tmp_path):
    for seed in range(1, 4):
        write_run(tmp_path / "a" / str(seed), 2 + 0.01 * seed, seed=seed, model={"mlp": "a"})
        write_run(tmp_path / "b" / str(seed), 1.5 + 0.03 * seed, seed=10 + seed, model={"mlp": "b"})
    assert "b is better than a by 0.460 bits per byte" in sentence_of(tmp_path / "a", tmp_path / "b")
    assert "3 or more seeds each, unpaired, p < 0.001 by Welch's test" in sentence_of(tmp_path / "a", tmp_path / "b")
    write_run(tmp_path / "b" / "4", 1.5, seed=1, model={"mlp": "b"})
    comparison = compare_groups(read_groups([str(tmp_path / "a"), str(tmp_path / "b")])[0])
    assert comparison.versus[0].seeds == [1]
    assert any("do not share seed 2, 3, 11, 12, 13" in warning for warning in comparison.warnings)


def test_one_seed_shows_no_noise(tmp_path):
    for name in ("gelu", "swiglu"):
        folder = write_run(tmp_path / name, 2.0, model={"mlp": name})
        (folder / "overrides.yaml").write_text(
            f"[experiment=quickstart, model.mlp={name}, run_dir=x, budget.epochs=null]"
        )
    text = sentence_of(tmp_path / "gelu", tmp_path / "swiglu")
    assert "one seed shows no noise" in text
    assert text.endswith("python train.py -m experiment=quickstart model.mlp=gelu,swiglu seed=1,2,3,4,5")


def test_single_runs_of_one_configuration_are_one_group(tmp_path):
    runs = [
        write_run(tmp_path / f"{mlp}{seed}", 2 + 0.1 * (mlp == "b") + 0.001 * seed**2, seed=seed, model={"mlp": mlp})
        for mlp in "ab"
        for seed in (1, 2, 3)
    ]
    groups, _ = read_groups(list(map(str, runs)))
    assert [(group.name, sorted(group.by_seed)) for group in groups] == [("a", [1, 2, 3]), ("b", [1, 2, 3])]
    refused(lambda: compare_groups(read_groups(list(map(str, runs[:3])))[0]), "one configuration only (seed 1, 2, 3)")


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"facts": {"corpus": "other"}}, "their corpora differ"),
        ({"data": {"validation_windows": 16}}, "data.validation_windows=8 and 16"),
        ({"data": {"layout": "packed"}}, "data.layout=documents and packed"),
    ],
)
def test_other_validation_text_is_refused(tmp_path, other, message):
    one, two = write_run(tmp_path / "one", 2.0), write_run(tmp_path / "two", 2.0, **other)
    refused(lambda: sentence_of(one, two), "one and two were validated on different text", message)


def test_many_groups_are_a_line_each(tmp_path, monkeypatch, capsys):
    """With the numbers of the comparison of two, but for Holm's correction."""
    groups = {f"g{index}": BASE - index * GAIN for index in range(8)}
    for name, values in groups.items():
        for seed, value in enumerate(values, 1):
            model = {"width": 8 * int(name[1:]), "window": None if name == "g7" else 4}
            write_run(tmp_path / name / str(seed), value, seed=seed, model=model)
    code, printed = run_command(monkeypatch, capsys, *(tmp_path / name for name in groups))
    heads, base, *rows = printed.out.splitlines()[2:11]
    assert code == 0
    assert heads.split("  ")[-1] == "changes"
    assert base.split() == ["g0", "5", *f"{np.mean(BASE):.3f} ± {np.std(BASE, ddof=1):.3f}".split()]
    for name, row in zip(list(groups)[1:], rows, strict=True):
        _, pair = run_command(monkeypatch, capsys, tmp_path / "g0", tmp_path / name)
        [difference] = re.findall(r" - g0: (.*) bits per byte, 95 % interval (.*), 5 pairs", pair.out)
        assert row.split("  ")[0] == name
        assert " ".join(difference) in row
        assert row.endswith(f"  model.width={8 * int(name[1:])}{', model.window=null' if name == 'g7' else ''}")


def test_losses_of_different_tokenizers_are_not_compared(tmp_path, monkeypatch, capsys):
    one, two = write_run(tmp_path / "one", 2.0), write_run(tmp_path / "two", 1.9, facts={"tokenizer": "other"})
    _, printed = run_command(monkeypatch, capsys, one, two)
    assert "val/loss" not in printed.out
    code, printed = run_command(monkeypatch, capsys, one, two, "--metric", "val/loss")
    assert (code, "depends on the tokenizer" in printed.err) == (2, True)


def test_warnings_of_budget_code_and_machine(tmp_path):
    one = write_run(tmp_path / "one", 2.0)
    two = write_run(tmp_path / "two", 1.9, facts={"commits": ["def"], "device": "cuda"})
    lines = [json.loads(line) for line in (two / "metrics.jsonl").read_text().splitlines()]
    more = [{**line, "train/tokens": 9000} if "train/tokens" in line else line for line in lines]
    (two / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in more))
    found = compare_groups(read_groups([str(one), str(two)])[0]).warnings
    assert found == [
        "the budgets differ, in tokens: one 2,560, two 9,000",
        "the runs are of different code: abc, def",
        "the runs differ in device (cpu, cuda), so seconds are not comparable",
    ]


def test_unfinished_and_damaged_runs_are_left_out_by_name(sweep, tmp_path, monkeypatch, capsys):
    dead, torn, broken, *_ = sorted(sweep.glob("*swiglu*"))
    info = json.loads((dead / "run.json").read_text())
    (dead / "run.json").write_text(json.dumps(info | {"status": "running"}))
    lines = (torn / "metrics.jsonl").read_text().splitlines()
    (torn / "metrics.jsonl").write_text("\n".join([*lines[:-1], lines[-1][:20]]))
    (broken / "run.json").write_text("{")
    code, printed = run_command(monkeypatch, capsys, sweep)
    assert code == 0
    assert f"{dead} is not finished: status running" in printed.err
    assert f"{torn}: metrics.jsonl is damaged: its last validation is that of step 30" in printed.err
    assert f"{broken / 'run.json'} is damaged" in printed.err
    assert "2 pairs (seed 4, 5)" in printed.out
    for folder in sweep.glob("*swiglu*"):
        shutil.rmtree(folder)
    for folder in sweep.glob("*gelu*"):
        (folder / "run.json").write_text("{}")
    refused(lambda: read_groups([str(sweep)]), "holds no finished run")
    refused(lambda: read_groups([str(tmp_path / "none")]), "is not a folder")


def test_a_run_that_ends_without_a_finite_loss_does_not_count_with_an_earlier_one(sweep, monkeypatch, capsys):
    one, two, *_ = sorted(sweep.glob("*swiglu*"))
    for folder, name in ((one, "val/loss"), (two, "val/bits_per_byte")):
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        lines[-1][name] = None  # as NaN is written
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    code, printed = run_command(monkeypatch, capsys, sweep, "--metric", "val/loss")
    assert f"left out: {one} has diverged: its last val/loss is not finite" in printed.err
    assert "4 pairs (seed 2, 3, 4, 5)" in printed.out
    code, printed = run_command(monkeypatch, capsys, sweep)
    assert (code, f"{two} ends with a val/bits_per_byte that is not finite" in printed.err) == (2, True)


def test_a_change_without_effect_has_no_power_to_speak_of(tmp_path):
    for seed in (1, 2, 3):
        for name in "ab":
            write_run(tmp_path / name / str(seed), BASE[seed], seed=seed, model={"mlp": name})
    assert sentence_of(tmp_path / "a", tmp_path / "b") == (
        "b: the same values as a, to the last digit, in all 3 seeds; the change has no effect"
    )


def test_a_foreign_folder_cannot_command_the_terminal(tmp_path, monkeypatch, capsys):
    one, two = write_run(tmp_path / "one", 2.0, model={"mlp": "\x1b[31m"}), write_run(tmp_path / "two", 1.9)
    _, printed = run_command(monkeypatch, capsys, one, two)
    assert "\x1b" not in printed.out
    assert r"\x1b[31m" in printed.out


def test_real_runs(text_file, tmp_path, monkeypatch, capsys):
    """Two widths of real training, of one seed each."""
    arguments = [*small_run(text_file, tmp_path), "callbacks.samples=null"]
    for width in (16, 32):
        words = [f"model.width={width}", "model.head_dim=16", f"run_dir={tmp_path}/w{width}"]
        assert trained(monkeypatch, *arguments, *words) == 0
    capsys.readouterr()
    code, printed = run_command(monkeypatch, capsys, tmp_path / "w16", tmp_path / "w32")
    assert code == 0
    assert "model.width    16   32" in printed.out
    assert "one seed, no interval" in printed.out
    assert "flops" in printed.out
    assert "model.width=16,32 model.head_dim=16 seed=1,2,3,4,5" in printed.out
