"""model=dial: its rules at the reference and over four decades of sizes, what is given, and what a run keeps."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
import yaml
from conftest import mistake, trained
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode

from slm.estimate import parameters, training_flops_per_token
from slm.model import GPT
from slm.run import cli, dial
from slm.run.compose import hydra_of_its_own
from slm.run.overrides import flattened
from slm.run.without_training import plan_run

BYTES = "model=dial", "tokenizer=bytes", "data=storyworld"
SMALL = (  # of a run of seconds; what is given is none of the dial's
    *("data=storyworld", "data.level=tiny", "data.stories=40", "data.validation_stories=4", "tokenizer=bytes"),
    *("trainer=cpu", "model.context=32", "data.layout=packed", "callbacks.stories=null", "callbacks.samples=null"),
    *("report=false", "val_every_n_steps=2", "data.validation_windows=4"),
)


def values(*overrides: str) -> dict:
    return flattened(cli.compose(overrides).plain)


def test_at_the_reference_it_gives_the_numbers_of_the_run_that_it_goes_through():
    """Also if its tokens are given as steps."""
    then = "optimizer.adamw_lr=0.01", "schedule.decay_fraction=0.5", "budget.steps=1200"
    measured = values("experiment=quickstart", "model.bigram_embeddings=null", *then)
    found = values("experiment=quickstart", "model=dial", "model.depth=2")
    different = {key for key in {*measured, *found} if measured.get(key) != found.get(key)}
    assert different == {"budget.steps", "budget.tokens", "trainer.microbatch", "dial.set", "dial.chosen"}
    config = cli.compose(["experiment=quickstart", "model=dial", "model.size=700k"])
    targets = 5_598_064 / (1200 * 32)  # of its windows, as docs/plan.md has it
    assert config.budget.total_steps(config.data.batch_windows, 56_000, targets, 1) == 1200
    assert config.model.depth == 2
    steps = values("experiment=quickstart", "model=dial", "model.depth=2", "budget.steps=1200")
    chosen = [key for key in found["dial.chosen"] if key != "budget.tokens"]
    assert {key: steps[key] for key in chosen} == {key: found[key] for key in chosen}


SIZES = [100_000, 400_000, 3_000_000, 20_000_000, 124_000_000, 1_000_000_000]


def test_rules_over_four_decades():
    """Sizes are those of the very model and the nearest; larger ones have no smaller batch, and rates stay in range."""
    rows = []
    for size in SIZES:
        config = cli.compose([*BYTES, f"model.size={size}"])
        model = replace(config.model, vocab_size=257)
        with torch.device("meta"):
            count = sum(parameter.numel() for parameter in GPT(model).parameters())
        assert 0.5 < count / size < 2
        for depth in (max(model.depth - 1, 1), model.depth + 1) if size == 3_000_000 else ():
            other = cli.compose([*BYTES, f"model.depth={depth}"]).model
            assert abs(count - size) <= abs(parameters(replace(other, vocab_size=257)).total - size)
        assert model.width % model.head_dim == 0
        assert 64 * model.depth <= model.width < 64 * model.depth + model.head_dim
        assert 8 < config.budget.tokens / count < 11
        rows.append((count, config.budget.tokens, config.data.batch_windows, config.plain["optimizer"]))
    for (count, tokens, windows, settings), (larger, more, wider, later) in pairwise(rows):
        assert larger >= count
        assert more >= tokens
        assert wider >= windows
        assert settings["weight_decay"] >= later["weight_decay"] > 0
    rates = [settings["lr"] for *_, settings in rows]
    assert rates == sorted(rates)
    assert 0.01 <= rates[0] < 0.02 < rates[-1] == 0.04  # within a factor of two of the reference
    assert rows[-1][3]["adamw_lr"] == pytest.approx(2 * 0.01 * (128 / model.width) ** 0.5, rel=0.05)
    adamw = values(*BYTES, "optimizer=adamw", f"model.depth={model.depth}")["optimizer.lr"]
    assert adamw == pytest.approx(2 * 0.004 * 128 / model.width, rel=0.05)
    batches = [windows * 512 * 0.76 for _, _, windows, _ in rows]
    growth = math.log(batches[-1] / batches[0]) / math.log(rows[-1][1] / rows[0][1])
    assert growth == pytest.approx(0.383, abs=0.08)  # a power of two is within sqrt(2) at both ends


@pytest.mark.parametrize("depth", [1, 4, 8, 20])
def test_a_decay_acts_over_the_same_share_of_every_run(depth):
    """Rate * decay * steps, also where the rate falls with the width or is limited."""
    keys = {"muon": ("lr", "weight_decay"), "adamw": ("lr", "weight_decay"), "": ("adamw_lr", "adamw_weight_decay")}
    for option, (rate, decay) in keys.items():
        config = cli.compose(
            [*BYTES, f"model.depth={depth}", f"optimizer={option or 'muon'}", "data.layout=packed"]
        ).plain
        steps = config["budget"]["tokens"] / (512 * config["data"]["batch_windows"])
        share = config["optimizer"][rate] * config["optimizer"][decay] * steps
        assert share == pytest.approx({"muon": 0.24, "adamw": 0.48, "": 0.12}[option], rel=0.08)


def test_each_job_of_a_sweep_over_models_has_an_optimizer_of_its_own():
    """The dial brings Muon in one job, also where another job has another model."""
    jobs = [[f"model={model}", "model.depth=2", *BYTES[1:]] for model in ("dial", "tiny")]
    with hydra_of_its_own():
        loader, master = GlobalHydra.instance().hydra.config_loader, ["model=dial,tiny", *jobs[0][1:]]
        whole = loader.load_configuration("train", master, run_mode=RunMode.MULTIRUN)
        found = [loader.load_sweep_config(whole, job) for job in jobs]
    names = [(cfg.optimizer._target_, cfg.schedule._target_) for cfg in found]
    assert [tuple(name.rpartition(".")[2] for name in pair) for pair in names] == [
        ("Muon", "warmup_stable_decay"),
        ("AdamW", "cosine"),
    ]


def test_a_depth_that_other_settings_exclude_is_not_taken():
    """Two key-value heads divide 8 heads, not the 7 of the depth that is nearest otherwise."""
    depths = [values(*BYTES, "model.size=20M", *words)["model.depth"] for words in ([], ["model.kv_heads=2"])]
    assert depths == [7, 8]


def test_what_is_given_wins():
    given = "model.width=96", "optimizer.lr=0.03", "data.batch_windows=7", "budget.epochs=2", "schedule=constant"
    found = values(*BYTES, "model.depth=4", *given)
    assert (found["model.width"], found["model.head_dim"], found["model.depth"]) == (96, 32, 4)
    assert (found["optimizer.lr"], found["data.batch_windows"]) == (0.03, 7)
    assert (found["budget.epochs"], found["budget.tokens"]) == (2, None)
    assert found["dial.chosen"] == [
        *("model.head_dim", "optimizer.weight_decay", "optimizer.adamw_lr", "optimizer.adamw_weight_decay")
    ]
    assert found["schedule._target_"].endswith("constant")
    assert values(*BYTES, "model.size=null", "model.depth=4")["model.depth"] == 4
    larger = values(*BYTES, "model.depth=4", "data.batch_windows=32")
    smaller = values(*BYTES, "model.depth=4", "data.batch_windows=8")
    assert larger["optimizer.adamw_lr"] == pytest.approx(2 * smaller["optimizer.adamw_lr"], rel=0.05)
    assert values(*BYTES, "model.depth=4", "optimizer=sgd")["optimizer.lr"] == 0.1  # for which there is no rule


def test_what_a_file_gives_wins_unless_it_is_for_another_model(tmp_path):
    """Settings of quickstart are for its model; a file that takes the dial means its own."""
    (tmp_path / "experiment").mkdir()
    header = "# @package _global_\ndefaults: [quickstart, {override /model: dial}]\n"
    text = "model: {size: 3M}\noptimizer: {lr: 0.013}\n"
    (tmp_path / "experiment" / "mine.yaml").write_text(header + text)
    found = values("experiment=mine", f"hydra.searchpath=['file://{tmp_path}']")
    assert found["optimizer.lr"] == 0.013
    assert (found["model.depth"], found["dial.set"]) == (4, "model.size=3M")
    assert "budget.tokens" in found["dial.chosen"]
    (tmp_path / "optimizer").mkdir()
    (tmp_path / "optimizer" / "own.yaml").write_text("defaults: [muon]\n_target_: slm.optim.muon.Muon\nlr: 0.05\n")
    own = values(*BYTES, "model.depth=4", "optimizer=own", f"hydra.searchpath=['file://{tmp_path}']")
    assert own["optimizer.lr"] == 0.05
    assert "optimizer.adamw_lr" in own["dial.chosen"]
    shrunk = values("experiment=quickstart", "model=dial", "model.size=3M", "debug=shrink")
    assert (shrunk["model.width"], shrunk["budget.steps"], shrunk["data.batch_windows"]) == (32, 10, 4)


def test_the_base_size_of_a_parametrization_is_that_of_the_reference():
    """With it the rates of settings are for the width of the reference."""
    standard, mup = (values(*BYTES, "model.depth=8", f"parametrization={kind}") for kind in ("standard", "completep"))
    assert (mup["model.base_width"], mup["model.base_depth"], standard["model.base_width"]) == (128, 2, None)
    assert mup["optimizer.adamw_lr"] == pytest.approx(2 * standard["optimizer.adamw_lr"], rel=0.05)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["model.size=20"], "model.size=20 must be a number of parameters from 10k on, such as 800k, 20M or 1B"),
        (["model.size=abc"], "model.size=abc must be a number of parameters from 10k on"),
        (["model.size=-5M"], "model.size=-5M must be"),
        (["model.size=5M", "model.depth=4"], "model.size=5M and model.depth=4 exclude one another; give one"),
        ([], "model=dial needs a size; give model.size=20M"),
        (["model.depth=0"], "model.depth=0 must be a whole number of at least 1"),
        (["model.size=10k"], r"the nearest model has 8\d,\d{3} parameters, of depth 1 with 257 ids"),
        (["model.size=1M", "budget.tokens=many"], "budget.tokens=many must be above 0"),
        (["model.size=1M", "data.batch_windows=1.5"], "data.batch_windows=1.5 must be a whole number"),
        (["model.size=1M", "model.width=100"], "100"),
        (
            ["model.size=1M", "tokenizer=sentencepiece", "tokenizer.vocab_size=null"],
            "tokenizer.vocab_size=null must be",
        ),
        (["model.depth=4", "~data.layout"], "data.layout is missing"),
        (["model.depth=4", "model.parametrization=[1]"], r"model.parametrization=\[1\] must be text"),
        (["model.depth=20000000"], "model.depth=20000000 must be at most 100 blocks; model.size= takes parameters"),
        *(
            (["model.depth=4", f"{key}={'9' * 320}"], f"{'9' * 320} must be .* and at most")
            for key in ("budget.steps", "budget.tokens", "budget.flops", "data.batch_windows")
        ),
        (["model.depth=4", "+dial.set=x"], "dial is what model=dial writes, so it cannot be given"),
        (["model=tiny", "+dial.set=x"], "dial is what model=dial writes, so it cannot be given"),
        (["model=small", "+model.size=20M"], "model.size is not a setting"),
    ],
)
def test_mistakes(words, line):
    with mistake(line):
        cli.compose([*BYTES, *words])


def test_size_is_a_key_of_the_dial_alone():
    with mistake("there is no key model.size"):
        cli.compose(["model.size=20M"])


def test_a_plan_shows_each_value_with_its_rule(capsys, tmp_path):
    words = "experiment=quickstart", "model=dial", "model.size=3M", "optimizer.lr=0.03", f"cache_dir={tmp_path}"
    plan_run(cli.compose([*words, "plan=true"]))
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert any(line.startswith("dial: model.size=3M") for line in lines)
    assert "model.depth 4 nearest to the size" in lines
    assert "model.width 256 64 * depth, a multiple of head_dim" in lines
    assert "optimizer.lr 0.03 given" in lines
    assert sum(line.endswith("the same at every size") for line in lines) == 3


def test_a_run_writes_plain_numbers_and_keeps_them(monkeypatch, tmp_path, capsys):
    """With more steps the rules would give another decay: a run that goes on, or a fork of it, keeps its own. Another
    size is refused."""
    words = [*SMALL, f"cache_dir={tmp_path / 'cache'}", f"runs_dir={tmp_path}", "callbacks.checkpoints.keep_at=[3]"]
    small = [*words, "model=dial", "model.depth=1", "model.width=32", "data.batch_windows=2"]
    monkeypatch.setattr(dial, "REFERENCE", dial.Facts(tokens=200, windows=2, window=32))
    run = f"run_dir={tmp_path / 'run'}"
    assert trained(monkeypatch, *small, "budget.steps=3", run) == 0
    written = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    decay = values(*small, "budget.steps=3")["optimizer.weight_decay"]
    assert written["optimizer"]["weight_decay"] == decay != values(*small, "budget.steps=6")["optimizer.weight_decay"]
    assert "size" not in written["model"]
    assert trained(monkeypatch, *small, "budget.steps=6", run) == 0
    assert trained(monkeypatch, f"fork={tmp_path / 'run'}@3", "budget.steps=5", f"run_dir={tmp_path / 'fork'}") == 0
    for folder in ("run", "fork"):
        config = yaml.safe_load((tmp_path / folder / "config.yaml").read_text())
        assert config["optimizer"] == written["optimizer"], folder
        assert config["dial"] == written["dial"]
    source, resumed = f"resume={tmp_path / 'run'}", tmp_path / "resumed"
    assert trained(monkeypatch, *small, "budget.steps=8", source, f"run_dir={resumed}") == 0
    assert yaml.safe_load((resumed / "config.yaml").read_text())["optimizer"] == written["optimizer"]
    capsys.readouterr()
    assert trained(monkeypatch, *words, "model=dial", "model.depth=2", "model.width=32", "budget.steps=6", run) == 2
    assert "model.depth: 1 -> 2" in capsys.readouterr().err


def test_each_job_of_a_sweep_has_numbers_of_its_own(monkeypatch, tmp_path):
    words = [*SMALL, f"cache_dir={tmp_path / 'cache'}", "budget.steps=2", f"sweep_dir={tmp_path / 'sweep'}"]
    sizes = "model=dial", "model.size=90k,500k", "data.batch_windows=2"
    assert trained(monkeypatch, "-m", *words, *sizes) == 0
    configs = [yaml.safe_load(path.read_text()) for path in tmp_path.glob("sweep/*/config.yaml")]
    depths = {config["dial"]["set"]: config["model"]["depth"] for config in configs}
    assert depths == {"model.size=90k": 1, "model.size=500k": 2}


def test_the_batch_of_given_steps_is_that_of_their_tokens():
    """B = c (steps B) ^ p: with the tokens of the solution the rule gives the batch again; FLOPs are tokens, too."""
    config = cli.compose([*BYTES, "model.depth=6", "budget.steps=20000"]).plain
    tokens = 20_000 * config["data"]["batch_windows"] * 0.76 * 512
    again = cli.compose([*BYTES, "model.depth=6", f"budget.tokens={tokens}"]).plain
    assert again["data"]["batch_windows"] == config["data"]["batch_windows"]
    model = replace(cli.compose([*BYTES, "model.depth=6"]).model, vocab_size=257)
    flops = cli.compose([*BYTES, "model.depth=6", f"budget.flops={tokens * training_flops_per_token(model)}"]).plain
    assert flops["data"] == again["data"]
    assert flops["optimizer"] == again["optimizer"]
