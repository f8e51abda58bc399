"""python -m slm.report: the page of a run and of a sweep, its numbers, foreign folders, and the page in a browser."""

import html
import json
import re
import shutil
import subprocess
import zipfile
from pathlib import Path

import numpy as np
import pytest
from conftest import exit_code, mistake, small_run, trained

from slm import report
from slm.analysis import curves, sweep, sweep_charts, sweep_page
from slm.analysis.optimum import optimum
from slm.analysis.statistics import pooled_deviation
from slm.files import run_folder
from slm.files.sweep_folder import SweepJob

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
HOSTILE = "</script><script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\">\x1b[31m"


def charts(folder: Path) -> list[dict]:
    """The charts in the report of a folder."""
    page = (folder / "report.html").read_text(encoding="utf-8")
    return json.loads(re.search(r'<script type="application/json" id="charts">(.*?)</script>', page, re.S)[1])


def text_of(folder: Path) -> str:
    """What a reader without JavaScript sees."""
    page = (folder / "report.html").read_text(encoding="utf-8")
    page = re.sub(r"<(script|style|noscript)\b.*?</\1>", " ", page, flags=re.S)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", page)).split())


def write_run(folder: Path, *, lr: float, width: int, seed: int, loss: float, steps: int = 8, **info) -> Path:
    """A small run folder by hand, whose val/loss ends at `loss`."""
    folder.mkdir(parents=True)
    config = {"seed": seed, "optimizer": {"lr": lr}, "model": {"width": width}, "optimized_metric": "val/loss"}
    info = {
        **{"run_id": folder.name, "created": "2026-01-01T00:00:00+0000", "status": "done", "corpus": "c"},
        **{"tokenizer": "t", "config": config, "budget": {}, "attempts": 1, "objective": loss, "steps": steps},
        **{"flops_per_token": 1e4, **info},
    }
    run_folder.write_run_json(folder, info)
    lines = [
        {"step": s, "train/loss": loss + 8 / s, "val/loss": loss + 8 / s - 1, "train/tokens": 64 * s, "seconds": s / 4}
        for s in range(1, steps + 1)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def write_sweep(folder: Path, rates=(0.001, 0.002, 0.004, 0.008, 0.016), widths=(32, 64), seeds=(1, 2, 3)) -> Path:
    """A sweep by hand: lowest at lr 0.004 for width 32, at the edge of the grid for width 64; one job has failed."""
    rng, jobs = np.random.default_rng(0), []
    for width in widths:
        for lr in rates:
            for seed in seeds:
                best = np.log(0.004 if width == 32 else 1.0)
                loss = 2 + 0.1 * (np.log(lr) - best) ** 2 + rng.normal(0, 0.005)
                name = f"lr-{lr}_width-{width}_seed-{seed}"
                failed = (lr, width, seed) == (0.001, 32, 1)
                failure = "Diverged: loss nan at step 3" if failed else None
                job = {
                    "folder": name,
                    "values": {"optimizer.lr": str(lr), "model.width": str(width), "seed": str(seed)},
                }
                jobs.append({**job, "status": "failed" if failed else "done", "objective": None, "failure": failure})
                if not failed:
                    write_run(folder / name, lr=lr, width=width, seed=seed, loss=loss)
                    jobs[-1]["objective"] = loss
    content = {"created": "2026-01-01", "command": ["-m"], "objective": "val/loss", "jobs": jobs}
    content["swept"] = ["optimizer.lr", "model.width", "seed"]
    (folder / "sweep.json").write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="module")
def run(finished, tmp_path_factory) -> Path:
    """A real run with its report."""
    folder = tmp_path_factory.mktemp("report") / "run"
    shutil.copytree(finished, folder)
    assert report.create(folder) == folder / "report.html"
    return folder


@pytest.fixture(scope="module")
def swept(tmp_path_factory) -> Path:
    """A sweep with its report."""
    folder = write_sweep(tmp_path_factory.mktemp("report") / "sweep")
    report.create(folder)
    return folder


# The optimum ---------------------------------------------------------------------------------------------------------


def test_the_optimum_of_a_known_parabola():
    x = 2.0 ** np.arange(-3, 4)
    found = optimum(x, 1 + 0.3 * (np.log(x) - np.log(1.2)) ** 2)
    assert (found.x, found.y) == (pytest.approx(1.2), pytest.approx(1))
    assert found.low is None
    assert found.problem == "no interval: one seed"
    found = optimum([1, 2, 3], [2.0, 1.0, 1.5], log=False)
    assert found.x == pytest.approx(2 - np.polyfit([-1, 0, 1], [2, 1, 1.5], 2)[1] / (2 * 0.75))
    edge = optimum(x, -np.log(x))
    assert (edge.x, edge.low, edge.problem) == (8, None, "at the edge of the grid")
    assert optimum([1, 2, 4, 8], [3, 1, 2, np.nan]).x < 2.5  # what has failed is left out
    with pytest.raises(ValueError, match="finite"):
        optimum([1, 2, 4], [np.inf] * 3)


def test_an_offset_of_a_seed_does_not_widen_the_interval():
    x, seeds = np.tile([1.0, 2, 4], 3), np.repeat([1, 2, 3], 3)
    y = (np.log(x) - np.log(2.2)) ** 2 + np.tile([0.001, -0.001, 0.0005], 3) * np.repeat([1, -1, 2], 3)
    alone, shifted = optimum(x, y, seeds), optimum(x, y + seeds, seeds)
    assert (shifted.low, shifted.high) == (pytest.approx(alone.low), pytest.approx(alone.high))
    assert optimum(x, y + seeds).problem.startswith("no interval")


@pytest.mark.parametrize(("noise", "seeds"), [(0.02, 3), (0.005, 2), (0.05, 5)])
def test_the_interval_covers(noise, seeds):
    rng, covered, bounded = np.random.default_rng(1), 0, 0
    x, repetition = np.repeat(2.0 ** np.arange(-3, 4), seeds), np.tile(np.arange(seeds), 7)
    for _ in range(300):
        best, offset = rng.uniform(-0.5, 0.5), rng.normal(0, 0.1, seeds)
        y = 0.1 * (np.log2(x) - best) ** 2 + offset[repetition] + rng.normal(0, noise, len(x))
        found = optimum(x, y, repetition)
        if found.low is not None:
            bounded += 1
            covered += found.low <= 2**best <= found.high
            assert found.low <= found.x <= found.high
    assert bounded > 250
    assert 0.9 <= covered / bounded < 1


# A run ---------------------------------------------------------------------------------------------------------------


def test_a_run_writes_its_report(text_file, tmp_path, monkeypatch, capsys):
    arguments = small_run(text_file, tmp_path)
    assert trained(monkeypatch, *arguments, "report=true", f"run_dir={tmp_path / 'run'}", "model.width=32") == 0
    assert f"{tmp_path / 'run' / 'report.html'}" in capsys.readouterr().out
    info = run_folder.read_run_json(tmp_path / "run")
    assert info["choices"]["debug"] == "default"
    assert info["changed"]["model.width"] == [64, 32]
    assert "optimizer.lr" not in info["changed"]
    page = text_of(tmp_path / "run")
    for part in ("done", "model.width 64 32", "optimizer=adamw", info["run_id"], "One attempt", "all", "Samples"):
        assert part in page, part
    assert '<noscript><figure><img alt="curves of the run" src="data:image/png;base64,' in (
        tmp_path / "run" / "report.html"
    ).read_text(encoding="utf-8")
    (loss, *_), picture = charts(tmp_path / "run"), (tmp_path / "run" / "report" / "curves.png").read_bytes()
    assert list(loss["axes"]) == ["steps", "tokens", "flops", "seconds"]
    assert loss["series"][0]["x"]["steps"][-1] == 10
    assert picture.startswith(b"\x89PNG")
    (tmp_path / "run" / "report.html").unlink()  # as if killed before its last file
    (tmp_path / "run" / "report" / "curves.png.1.partial").touch()
    assert trained(monkeypatch, *arguments, "report=true", f"run_dir={tmp_path / 'run'}", "model.width=32") == 0
    assert (tmp_path / "run" / "report.html").exists()
    assert not (tmp_path / "run" / "report" / "curves.png.1.partial").exists()


def test_axes_agree_with_the_metrics(run):
    found = curves.read(run, 100)
    steps, tokens = found.values["train/tokens"]
    assert np.array_equal(found.at(steps)["tokens"], tokens)
    assert np.array_equal(found.at(steps)["flops"], 100 * tokens)
    assert found.at(np.array([0.0]))["tokens"] == 0


def test_thinning_keeps_extremes():
    values = np.sin(np.arange(10**5)) + (np.arange(10**5) == 54321) * 9
    kept = curves.thinned(values, 200)
    assert len(kept) <= 200
    assert {0, 54321, 10**5 - 1} <= set(kept.tolist())
    assert values[kept].min() == values.min()


def test_a_run_that_was_killed(finished, tmp_path, monkeypatch, capsys):
    """Without plots, run.json as at the start, a torn last line, two attempts; with a plan, events and a fork."""
    folder = tmp_path / "killed"
    shutil.copytree(finished, folder)
    info = run_folder.read_run_json(folder)
    plan = {"seconds": 60, "tokens": 1000, "peak_memory_bytes": 2e9, "note": "none"}
    changes = {"status": "running", "objective": None, "attempts": 2, "plan": plan}
    run_folder.write_run_json(folder, {**info, **changes})
    (folder / "events.jsonl").write_text('{"step": 3, "event": "skipped", "facts": "loss nan"}\n')
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 12, "train/lo')
    fork = {"run": str(folder), "run_id": info["run_id"], "step": 5, "consumed": 20, "changed": {}}
    child = {"fork": fork, "config": {**info["config"], "seed": 1}}
    write_run(tmp_path / "child", lr=0.1, width=64, seed=1, loss=2.5, steps=9, **child)
    assert exit_code(monkeypatch, report.main, str(folder), str(tmp_path / "child")) == 0
    assert capsys.readouterr().out.split() == [
        str(place / name) for place in (folder, tmp_path / "child") for name in ("report.html", "loss.png")
    ]
    page = text_of(folder)
    parts = "running, or killed", "2 attempts, the later", "3 skipped loss nan", "peak memory, GB 2", "step 5 of killed"
    assert [part for part in parts if part not in page] == []
    assert re.search(r"seconds 60 [\d.]+ tokens 1000 [\d,]+ [+-][\d.]+%", page)  # no difference before the end
    assert "step 5 of killed seed: 42 → 1 2.5" in text_of(tmp_path / "child")  # the one key that differs


def test_mistakes_are_one_line(tmp_path, monkeypatch, capsys):
    with mistake("is not a folder"):
        report.create(tmp_path / "none")
    with mistake(r"neither a run nor a sweep: it has no run\.json"):
        report.create(tmp_path)
    assert exit_code(monkeypatch, report.main, str(tmp_path)) == 2
    assert report.write(tmp_path) is None
    assert "warning: report.html was not written (UserError: " in capsys.readouterr().err
    write_run(tmp_path / "run", lr=0.1, width=64, seed=1, loss=2.5, steps=9)
    assert exit_code(monkeypatch, report.main, str(tmp_path / "run"), str(tmp_path / "none")) == 2
    assert not (tmp_path / "run" / "report.html").exists()


def test_the_records_of_a_run_for_others(run, tmp_path, monkeypatch, capsys):
    file, home = tmp_path / "records.zip", Path(json.loads((run / "run.json").read_text())["config"]["run_dir"]).parent
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("HF_TOKEN", json.loads((run / "run.json").read_text())["run_id"])
    assert str(home) in (run / "config.yaml").read_text()
    assert exit_code(monkeypatch, report.main, str(run), "--zip", str(file)) == 0
    with zipfile.ZipFile(file) as archive:
        records = {name: archive.read(name).decode() for name in archive.namelist()}
    assert {"run.json", "config.yaml", "overrides.yaml", "metrics.jsonl"} <= set(records) <= set(report.RECORDS)
    assert records["metrics.jsonl"] == (run / "metrics.jsonl").read_text()
    assert json.loads(records["run.json"])["run_id"] == "${oc.env:HF_TOKEN}"
    assert not any(str(home) in text for text in records.values())
    assert exit_code(monkeypatch, report.main, str(run), "--zip", str(file)) == 2
    assert "exists already; give another name" in capsys.readouterr().err


def test_a_foreign_run(finished, tmp_path):
    """Every text of the folder is escaped, and the size of the page is bounded."""
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    info = run_folder.read_run_json(folder)
    texts = (
        "name",
        "device",
        "git_commit",
        "created",
        "corpus",
        "precision",
        "failure",
        "seed",
        "threads",
        "microbatch",
    )
    info |= {key: HOSTILE for key in texts if key not in ("microbatch",)} | {"status": "done"}
    info["config"] |= {HOSTILE: HOSTILE, "optimized_metric": HOSTILE}
    info |= {"choices": {HOSTILE: HOSTILE}, "changed": {HOSTILE: [HOSTILE, [HOSTILE]]}, "versions": {HOSTILE: HOSTILE}}
    info |= {
        "plan": {HOSTILE: 3},
        "fork": {"run": HOSTILE, "run_id": "x", "step": 3, "consumed": 9, "changed": {}},
        "commits": [HOSTILE, HOSTILE],
    }
    run_folder.write_run_json(folder, info)
    names = [HOSTILE, f"dynamics/{HOSTILE}/{HOSTILE}", *(f"dynamics/{i}/norm" for i in range(50))]
    with (folder / "metrics.jsonl").open("a") as file:
        for step in range(11, 400):
            file.write(
                json.dumps({"step": step, **dict.fromkeys(names, step * 1.23456789), "x": [1], "y": 1e308}) + "\n"
            )
    sample = json.dumps({"step": 1, "prompt": HOSTILE, "text": HOSTILE * 1000, "checked": HOSTILE})
    (folder / "samples.jsonl").write_text(f"{sample}\n" * 2000)
    event = json.dumps({"step": 1, "event": HOSTILE, "facts": HOSTILE})
    (folder / "events.jsonl").write_text(f"{event}\n" * 5000)
    report.create(folder)
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert page.count("<script") == page.count("</script>") == 2
    assert not re.search(r"<img(?! alt=\"[^\"<>]*\" src=\"data:)", page)
    assert "\x1b" not in page
    written = re.sub(r"base64,[\w+/=]+", "", page)  # any four letters stand in the bytes of a picture now and then
    assert "http" not in written.replace('"http://www.w3.org/2000/svg"', "").replace("http-equiv", "")
    assert len(page) < 3 * 10**6
    assert "5000 events, the first 200" in text_of(folder)


# A sweep -------------------------------------------------------------------------------------------------------------


def test_a_sweep(swept):
    page = text_of(swept)
    assert "1 failed, 29 done" in page
    assert re.search(r"best optimizer\.lr 0\.00\d+ \[0\.00\d+, 0\.00\d+\] at width 32, 0.016 \(at the edge of", page)
    assert "from 32 to 64 it moves by 2^+2.0 or more" in page
    assert "lr-0.001_width-32_seed-1 failed Diverged: loss nan at step 3" in page
    objective, *_ = charts(swept)
    assert objective["axes"] == {"optimizer.lr": ["optimizer.lr", True], "model.width": ["model.width", False]}
    line = next(s for s in objective["series"] if s["name"] == "width 32" and s["style"] == "line")
    cell = [job.objective for job in sweep.read(swept).jobs if job.values["optimizer.lr"] == 0.004][:3]
    at = line["x"]["optimizer.lr"].index(0.004)
    assert (line["y"][at], line["low"][at], line["high"][at]) == pytest.approx((np.mean(cell), min(cell), max(cell)))
    pictures = {path.name for path in (swept / "report").iterdir()}
    assert pictures == {"objective.png", "heatmap.png", "curves.png"}


def test_seeds_that_failed_are_counted_and_bound_the_optimum(swept):
    """A mean without them looks better than it is, and beyond failed jobs there is nothing to find."""
    found = sweep.read(swept)
    assert [cell.count for cell in found.cells].count("2 of 3") == 1
    cells = dict(found.lines("optimizer.lr"))["width 64"]
    values = {"optimizer.lr": 0.032, "model.width": 64, "seed": 1}
    beyond = sweep.Cell(values, [SweepJob(folder="beyond", values=values, status="failed")])
    problems = [sweep.line_optimum("optimizer.lr", line, True).problem for line in (cells, [*cells, beyond])]
    assert problems == ["at the edge of the grid", "beside failed jobs"]
    assert "beside failed jobs: no interval; refine the grid" in sweep_page.describe(
        sweep_charts.Found("optimizer.lr", "width 64", sweep.line_optimum("optimizer.lr", [*cells, beyond], True))
    )


def test_a_seed_that_failed_early_does_not_cut_the_curve_of_the_others(tmp_path):
    folder = write_sweep(tmp_path / "sweep", rates=(0.001,), widths=(32,))  # its first seed has failed
    write_run(folder / "lr-0.001_width-32_seed-1", lr=0.001, width=32, seed=1, loss=9.0, steps=2)
    report.create(folder)
    assert [chart["series"][0]["x"]["steps"] for chart in charts(folder)[-2:]] == [list(range(1, 9))] * 2
    assert ", mean of 2 of 3 seeds." in text_of(folder)


def test_noise_is_the_pooled_deviation_of_seeds(swept):
    found = sweep.read(swept)
    assert found.noise == pooled_deviation([cell.objectives for cell in found.cells])
    assert 0.003 < found.noise < 0.008  # of 0.005


def test_a_folder_of_runs_is_a_sweep_over_what_differs(tmp_path):
    for lr in (0.1, 0.2):
        write_run(tmp_path / f"run-{lr}", lr=lr, width=64, seed=1, loss=lr)
    found = sweep.read(tmp_path)
    assert found.swept == ["optimizer.lr"]
    assert [cell.values for cell in found.cells] == [{"optimizer.lr": 0.1}, {"optimizer.lr": 0.2}]
    report.create(tmp_path)
    assert "Lowest val/loss: 0.1 at optimizer.lr=0.1" in text_of(tmp_path)


@pytest.fixture(scope="module")
def seeds_only(tmp_path_factory) -> Path:
    """The report of a sweep over seeds, whose runs have one validation."""
    folder = write_sweep(tmp_path_factory.mktemp("report") / "seeds", rates=(0.004,), widths=(32,))
    for path in folder.glob("*/metrics.jsonl"):
        path.write_text(path.read_text().splitlines()[-1] + "\n")
    content = json.loads((folder / "sweep.json").read_text())
    (folder / "sweep.json").write_text(json.dumps(content | {"swept": ["seed"]}))
    report.create(folder)
    return folder


def test_a_sweep_over_seeds_is_a_mean_without_a_place(seeds_only):
    page, objectives = text_of(seeds_only), [job.objective for job in sweep.read(seeds_only).jobs]
    assert f"val/loss: {np.mean(objectives):.4g}, mean of 3 seeds." in page
    assert "against what was swept" not in page
    assert {path.name for path in (seeds_only / "report").iterdir()} == {"curves.png"}


@pytest.mark.slow
def test_one_validation_is_a_visible_point(seeds_only, tmp_path):
    assert probed(seeds_only, tmp_path / "profile", 800)["points"] == len(charts(seeds_only)) == 2


def test_a_sweep_that_has_just_begun(tmp_path):
    """Jobs without folders; a value that is text."""
    values = [{"model": "tiny<b>", "seed": "1"}, {"model": "small", "seed": "1"}]
    jobs = [{"folder": f"job-{i}", "values": value, "status": "waiting"} for i, value in enumerate(values)]
    content = {"created": "", "command": [HOSTILE], "objective": None, "swept": ["model", "seed"], "jobs": jobs}
    (tmp_path / "sweep.json").write_text(json.dumps(content))
    report.create(tmp_path)
    assert "No job has an objective yet." in text_of(tmp_path)
    assert (tmp_path / "report.html").read_text().count("<script") == 2


# In a browser --------------------------------------------------------------------------------------------------------

PROBE = """<script>
const drawn = () => [...document.querySelectorAll("figure path.line")].map(p => p.getAttribute("d")).join();
const before = drawn(), buttons = document.querySelectorAll(".axes button");
const changed = [...buttons].some(button => { button.click(); return drawn() !== before; });
const after = drawn(), entry = document.querySelector("button.entry");
entry?.click();
document.body.dataset.probe = JSON.stringify({
  points: document.querySelectorAll("figure circle").length,
  lines: before.length, changed, hidden: drawn() !== after, title: document.title,
  overflow: document.documentElement.scrollWidth - window.innerWidth,
  dark: matchMedia("(prefers-color-scheme: dark)").matches, background: getComputedStyle(document.body).backgroundColor,
});
</script>"""


def probed(folder: Path, profile: Path, width: int, dark: bool = False) -> dict:
    """The report in headless Chromium, with a script at its end; fails for an error on its console."""
    if CHROMIUM is None:
        pytest.skip("chromium is not installed")
    page = (folder / "report.html").read_text(encoding="utf-8")
    page = re.sub(r"<meta http-equiv[^>]*>", "", page)  # which would keep the probe from running
    copy = profile.with_suffix(".html")
    copy.write_text(page.replace("</body>", PROBE + "</body>"), encoding="utf-8")
    return json.loads(html.unescape(re.search(r'data-probe="(.*?)"', dumped(copy, profile, width, dark))[1]))


def dumped(page: Path, profile: Path, width: int, dark: bool = False) -> str:
    """The document after scripts have run. Fails for an error on the console."""
    quiet = ("gpu", "quic", "background-networking", "component-update", "sync", "dev-shm-usage")
    arguments = [*(f"--disable-{name}" for name in quiet), "--no-sandbox", "--no-first-run", "--hide-scrollbars"]
    arguments += ["--force-dark-mode", "--blink-settings=preferredColorScheme=0"] if dark else []
    arguments += [f"--user-data-dir={profile}", f"--window-size={width},900", "--enable-logging=stderr", "--dump-dom"]
    command = [CHROMIUM, "--headless", *arguments, page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert not (errors := re.findall(r".*CONSOLE.*", done.stderr)), errors
    return done.stdout


@pytest.mark.parametrize(
    ("which", "width", "dark"),
    [
        ("run", 400, False),
        ("swept", 1400, True),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (("run", 1400, True), ("run", 800, False), ("swept", 400, False), ("swept", 800, False))
        ),
    ],
)
def test_the_page_in_a_browser(which, width, dark, request, tmp_path):
    found = probed(request.getfixturevalue(which), tmp_path / "profile", width, dark)
    assert found["lines"] > 500
    assert found["changed"], "another x axis must draw other paths"
    assert found["hidden"], "a click in the legend must hide a line"
    assert found["overflow"] <= 0, "the page must not scroll sideways"
    assert found["dark"] == dark
    assert (found["background"] == "rgb(20, 23, 27)") == dark


@pytest.mark.slow
def test_scripts_of_others_do_not_run(run, tmp_path):
    """The policy of the page blocks a script even if one got into it."""
    if CHROMIUM is None:
        pytest.skip("chromium is not installed")
    page = (run / "report.html").read_text(encoding="utf-8")
    copy = tmp_path / "copy.html"
    copy.write_text(page.replace("<main>", "<script>document.title = 'taken'</script><main>"), encoding="utf-8")
    with pytest.raises(AssertionError, match="violates the following"):
        dumped(copy, tmp_path / "profile", 800)


def test_curves_along_the_chosen_axis_of_a_run_that_was_killed(tmp_path, monkeypatch, capsys, drawn):
    folder = write_run(tmp_path / "run", lr=0.1, width=8, seed=1, loss=2.0, status="running")
    assert exit_code(monkeypatch, report.main, str(folder), "--x", "tokens") == 0
    assert capsys.readouterr().out.split() == [str(folder / "report.html"), str(folder / "loss.png")]
    assert all(next(iter(chart["axes"])) == "tokens" for chart in charts(folder))
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    (folder / "metrics.jsonl").write_text("".join(json.dumps({**line, "seconds": None}) + "\n" for line in lines))
    assert exit_code(monkeypatch, report.main, str(folder), "--x", "seconds") == 2
    assert "--x seconds was not recorded; the curves have steps, tokens, flops" in capsys.readouterr().err
