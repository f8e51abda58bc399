"""Standard streams of every kind: narrow encodings, closed descriptors, invalid input, a full disk, a closed pipe."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

PROGRAM = """
import sys
from slm.files.stdio import make_stdio_robust
make_stdio_robust(ignore_failed_writes={ignore})
print("\\xfc\\u6f22\\u2713\\udcff")
print(ascii(sys.stdin.read()), file=sys.stderr)
print("end")
sys.stdout.flush()
open({probe!r}, "w").write("written")
"""
C_LOCALE = {"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
CONSOLES = {  # environment -> what is printed
    ("PYTHONIOENCODING", "ascii"): rb"\xfc\u6f22\u2713\udcff",
    ("PYTHONIOENCODING", "latin-1:strict"): b"\xfc" + rb"\u6f22\u2713\udcff",
    ("PYTHONIOENCODING", "utf-8"): "ü漢✓".encode() + rb"\udcff",
    ("LC_ALL", "C"): rb"\xfc\u6f22\u2713\udcff",
}


def started(program, **options):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **options.pop("env", {})}
    streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.run([sys.executable, "-c", program], env=environment, **{**streams, **options})


@pytest.mark.parametrize("ignore", [True, False])
@pytest.mark.parametrize("variable", CONSOLES)
def test_what_an_encoding_lacks_is_escaped(variable, ignore, tmp_path):
    env = C_LOCALE if variable[0] in C_LOCALE else dict([variable])
    done = started(PROGRAM.format(ignore=ignore, probe=str(tmp_path / "probe")), env=env)
    assert (done.returncode, done.stdout) == (0, CONSOLES[variable] + b"\nend\n"), done.stderr


@pytest.mark.parametrize("typed", [b"\xff\xfe", "ü\r\n".encode("latin-1"), b"\x00\n", b""])
def test_invalid_input_is_no_error(typed, tmp_path):
    program = PROGRAM.format(ignore=False, probe=str(tmp_path / "probe"))
    done = started(program, stdin=None, input=typed, env={"PYTHONIOENCODING": "utf-8"})
    assert done.returncode == 0, done.stderr
    expected = typed.decode("utf-8", errors="surrogateescape").replace("\r\n", "\n")
    assert done.stderr.decode().strip() == ascii(expected)


@pytest.mark.parametrize("ignore", [True, False])
@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1, 2)])
def test_no_file_takes_the_descriptor_of_a_closed_stream(closed, ignore, tmp_path):
    program = PROGRAM.format(ignore=ignore, probe=str(tmp_path / "probe"))
    script = " ".join(
        ["exec", '"$0"', "-c", '"$1"', *(f"{descriptor}{'<' if descriptor == 0 else '>'}&-" for descriptor in closed)]
    )
    done = subprocess.run(
        ["sh", "-c", script, sys.executable, program],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "probe").read_text() == "written"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize("ignore", [True, False])
def test_a_failed_write_is_ignored_where_a_training_must_go_on(ignore, tmp_path):
    program = PROGRAM.format(ignore=ignore, probe=str(tmp_path / "probe"))
    with open("/dev/full", "wb") as full:
        done = started(program, stdout=full)
    assert (done.returncode == 0) == (tmp_path / "probe").exists() == ignore


THREE_COMMANDS = """
import sys
from slm.run import start
link, run, prompt, text = sys.argv[1:]
for words in (
    ["generate", f"ckpt={link}", prompt, "max_new_tokens=5"],
    ["evaluate", run, "--text", text],
    ["verify", run],
):
    sys.argv = ["slm", *words]
    try:
        start.main()
    except SystemExit as end:
        assert not end.code, end.code
    print("end")
"""


@pytest.mark.slow
def test_commands_print_in_a_c_locale(finished, tmp_path):
    """With a run folder whose name is not ASCII."""
    folder = tmp_path / "lüuf\x1b[31m漢"
    shutil.copytree(finished, folder)
    (folder / "ü.txt").write_text("the cat ü", encoding="utf-8")
    (tmp_path / "link").symlink_to(folder)
    words = [str(tmp_path / "link"), str(folder), "prompt=the ü", str(folder / "ü.txt")]
    words = [sys.executable, "-c", THREE_COMMANDS, *words]
    done = subprocess.run(words, cwd=ROOT, env={**os.environ, **C_LOCALE}, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
    generated, evaluated, verified = done.stdout.split(b"end\n")[:3]
    assert generated.startswith(rb"the \xfc")
    assert b"bits per byte" in evaluated
    assert b"finished, step 10 of 10" in verified
    assert b"\x1b" not in done.stdout
