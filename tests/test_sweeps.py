"""Sweeps: names, sweep.json, resuming, failures, launchers and sweepers."""

import json

from conftest import mistake

from slm.files import sweep_folder

KEYS = "optimizer.lr", "model.width", "data.width", "seed", "data.seed", "model"


def test_names_hold_the_swept_keys_only_are_short_and_differ(tmp_path):
    sweep = sweep_folder.Sweep()
    grid = [
        {"optimizer.lr": lr, "model.width": width, "seed": "1"} for lr in ("0.001", "1e-05") for width in ("8", "9")
    ]
    names = [sweep.add(values).folder for values in grid]
    assert names == ["lr-0.001_width-8_seed-1", "lr-0.001_width-9_seed-1", "lr-1e-05_width-8_seed-1", names[3]]
    assert sweep_folder.short_keys(KEYS) == {
        **{"optimizer.lr": "lr", "model.width": "model.width", "data.width": "data.width"},
        **{"seed": "seed", "data.seed": "data.seed", "model": "model"},
    }
    texts = ["a/b", "a,b", "a b", "A/B", "[1,2]", "[12]", "..", "", *("x" * 200 + end for end in "yz")]
    texts = [sweep.add({"data.path": text}).folder for text in texts]
    assert len({name.casefold() for name in texts}) == len(texts)
    assert all(len(name) < 100 and not name.startswith(".") for name in texts)
    assert sweep.add({"data.path": "a,b"}).folder == texts[1]  # as it was
    assert sweep.add({}).folder == "run"


def test_a_damaged_or_foreign_sweep_json_is_one_line(tmp_path):
    with sweep_folder.changed(tmp_path) as sweep:
        sweep.add({"seed": "1"}).objective = 0.5
    assert sweep_folder.require(tmp_path).job("seed-1").objective == 0.5
    written = (tmp_path / "sweep.json").read_text()
    for damage in ('{"folder": "../x"}', '{"folder": 3}', '{"status": "new"}', '{"values": [1]}', '{"objective": "x"}'):
        content = json.loads(written)
        content["jobs"][0] |= json.loads(damage)
        (tmp_path / "sweep.json").write_text(json.dumps(content))
        with mistake("sweep.json is damaged"):
            sweep_folder.read(tmp_path)
    (tmp_path / "sweep.json").write_text("[" * 10**5)
    with mistake("sweep.json is damaged"):
        sweep_folder.read(tmp_path)
    with mistake("is not a sweep folder"):
        sweep_folder.require(tmp_path / "other")
