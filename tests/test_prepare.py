"""prepare=true, and the overlays of conf/recipe."""

import pytest
from conftest import refused, small_run, trained

from slm.run import cli
from slm.run.compose import composed as values
from slm.run.overrides import flattened
from slm.security import differing

LOW_MEMORY = {
    "model.gradient_checkpointing": True,
    "trainer.precision": "bf16-mixed",
    "trainer.microbatch": 4,
}
STABLE = {
    "optimizer.lr": 1e-4,
    "schedule.warmup_fraction": 0.08,
    "trainer.precision": "bf16-mixed",
    "trainer.gradient_clip_val": 0.5,
}


@pytest.fixture
def small(text_file, tmp_path, monkeypatch) -> list[str]:
    monkeypatch.chdir(tmp_path)
    return [word for word in small_run(text_file, tmp_path) if word != "trainer=cpu"]


def test_prepare_fills_the_cache_and_makes_no_run(small, tmp_path, monkeypatch, capsys):
    """Also for a GPU that is elsewhere; a training then finds the tokens."""
    assert trained(monkeypatch, *small, "prepare=true", "trainer=rtx4090") == 0
    printed = capsys.readouterr()
    assert "tokens" in printed.out
    assert "tokenizing train" in printed.err
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]
    table = printed.out[printed.out.index("prepared ") :]
    for line in table.splitlines()[1:]:
        folder = line.split()[-1]
        assert len(list((tmp_path / "cache").rglob(folder.rpartition("/")[2]))) == 1
    assert trained(monkeypatch, *small, "prepare=true") == 0
    again = capsys.readouterr()
    assert again.out == table
    assert "tokenizing" not in again.err


def test_a_sweep_prepares_each_text_once(small, tmp_path, monkeypatch, capsys):
    sweep = "-m", "prepare=true", "model.width=64,128", "tokenizer=bytes,characters"
    assert trained(monkeypatch, *(word for word in small if word != "tokenizer=bytes"), *sweep) == 0
    printed = capsys.readouterr()
    assert printed.out.count("\ntokens ") == printed.err.count("tokenizing train") == 2
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]


def test_prepare_is_refused_beside_what_it_excludes(small):
    for other in ("plan=true", "verify_resume=true"):
        refused(lambda other=other: cli.compose([*small, "prepare=true", other]), "exclude one another")


@pytest.mark.parametrize(("recipe", "changed"), [("low_memory", LOW_MEMORY), ("stable", STABLE)])
def test_a_recipe_changes_exactly_these_keys(recipe, changed):
    before, after = (flattened(values("train", cli.expanded(extra))[0]) for extra in ([], [f"+recipe={recipe}"]))
    assert {key: new for key, (_, new) in differing(before, after).items()} == changed


@pytest.mark.parametrize("experiment", ["quickstart", "smalllm", "slm_notebook"])
def test_recipes_fit_experiments_and_yield_to_the_command(experiment):
    both = f"experiment={experiment}", "recipe=[low_memory,stable]"
    config = cli.compose([*both, "optimizer.lr=0.5"]).plain
    assert config["optimizer"]["lr"] == 0.5
    assert config["optimizer"]["_target_"].endswith("AdamW")
    given = flattened(config)
    assert {key: given[key] for key in (LOW_MEMORY | STABLE) if key != "optimizer.lr"} == {
        key: value for key, value in (LOW_MEMORY | STABLE).items() if key != "optimizer.lr"
    }


@pytest.mark.slow
def test_a_recipe_trains_also_in_a_sweep(small, tmp_path, monkeypatch):
    words = "-m", "recipe=low_memory,stable", f"sweep_dir={tmp_path / 'sweep'}", "report=false", "trainer=cpu"
    assert trained(monkeypatch, *small, *words, "callbacks.samples=null") == 0
    assert len(list((tmp_path / "sweep").glob("*/run.json"))) == 2
