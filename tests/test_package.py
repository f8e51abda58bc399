"""An installed wheel, not a checkout: it trains from any folder, with conf/ inside the package."""

import os
import re
import subprocess
import sys
import tomllib

import pytest
from conftest import ROOT, small_run
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_the_constraints_lie_within_the_bounds_and_leave_no_package_of_dev_out():
    lines = (ROOT / "constraints.txt").read_text().splitlines()[1:]
    pins = dict(line.split("==") for line in lines)
    assert len(pins) == len(lines)
    assert not re.search("[/@:]", "".join(lines))  # no host
    extras, required = PROJECT["optional-dependencies"], [*map(Requirement, PROJECT["dependencies"])]
    asked = [*required, *map(Requirement, extras["dev"])]
    (own,) = (each for each in asked if each.name == PROJECT["name"])
    asked += [Requirement(line) for extra in own.extras for line in extras[extra]]
    for requirement in asked:
        if requirement is not own:
            assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), requirement
    others = [Requirement(line) for extra in extras.keys() - own.extras - {"dev"} for line in extras[extra]]
    assert all(each.specifier.contains(pins[each.name]) for each in others if each.name in pins)


@pytest.mark.slow
def test_a_wheel_trains_and_generates_from_any_folder(text_file, tmp_path):
    pytest.importorskip("hatchling", reason="the build backend is not installed")
    pip = [sys.executable, "-m", "pip", "-q"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("slm-*.whl")
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    subprocess.run([*pip, "install", "--no-deps", "--target", str(site), str(wheel)], check=True, capture_output=True)
    elsewhere.mkdir()

    def slm(*arguments: str) -> str:
        environment = {**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, str(site / "bin" / "slm"), *arguments]
        done = subprocess.run(command, cwd=elsewhere, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    printed = slm("train", *small_run(text_file, tmp_path), "run_dir=run", "callbacks.samples=null")
    assert "slm generate ckpt=run" in printed
    assert slm("generate", "ckpt=run", "prompt=the", "max_new_tokens=3").startswith("the")
    assert slm("verify", "run").startswith("run: finished, step 10 of 10")
    assert "optimizer: adafactor, adamw" in slm("train", "--help")
