"""Interactive generation with a fake keyboard, and once in a real pseudo-terminal."""

import os
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from test_model import model_of

from slm.errors import UserError, printable
from slm.generation import chat as module
from slm.generation.chat import COMMANDS, Settings, chat
from slm.generation.completion import complete
from slm.generation.sampling import Sampler
from slm.tokenizers.bytes import ByteTokenizer

SAMPLER, TOKENIZER = Sampler(temperature=0.9, top_k=40), ByteTokenizer()


def tiny():
    with torch.random.fork_rng():
        return model_of(vocab_size=257, context=32, depth=1, head_dim=8)


@pytest.fixture(scope="module")
def model():
    return tiny()


@pytest.fixture
def talk(model, monkeypatch, capsys):
    """A function that types lines (an exception stands for its key) and returns the printed lines."""

    def talk(*lines, **settings):
        keys = iter([*lines, EOFError])

        def type_line(_):
            key = next(keys)
            if isinstance(key, str):
                return key
            raise key

        monkeypatch.setattr("builtins.input", type_line)
        chat(model, TOKENIZER, **{"sampler": SAMPLER, "max_new_tokens": 12, "seed": 5, **settings})
        return capsys.readouterr().out.split("\n")

    return talk


def completion(model, prompt, seed, sampler=SAMPLER, max_new_tokens=12):
    [[found]] = complete(model, TOKENIZER, [prompt], sampler=sampler, max_new_tokens=max_new_tokens, seed=seed)
    return found


def printed(model, prompt, seed, **settings):
    """The expected output for one text."""
    return prompt + printable(completion(model, prompt, seed, **settings).text) + "\n"


STATISTICS = re.compile(r"^(\d+) tokens, [\d,]+ tokens/s, seed (-?\d+)$", re.MULTILINE)


def seeds(lines):
    return [int(seed) for _, seed in STATISTICS.findall("\n".join(lines))]


def test_a_text_is_the_completion_of_its_seed_which_increases_by_one(talk, model):
    lines = talk("Once", "Once", "")
    out = "\n".join(lines)
    for prompt, seed in (("Once", 5), ("Once", 6), ("", 7)):
        assert printed(model, prompt, seed) in out
    assert seeds(lines) == [5, 6, 7]
    assert [int(tokens) for tokens, _ in STATISTICS.findall(out)] == [12, 12, 12]


def test_settings_change_the_text_and_reset_restores_them(talk, model):
    lines = talk("/greedy on", "/seed -8", "/max_new_tokens 3", "Once", "/reset", "Once")
    out = "\n".join(lines)
    greedy = Sampler(temperature=0.9, top_k=40, greedy=True)
    assert printed(model, "Once", -8, sampler=greedy, max_new_tokens=3) in out
    assert printed(model, "Once", 5) in out
    assert seeds(lines) == [-8, 5]


def test_a_command_changes_one_setting_and_prints_all(talk):
    for line, shown in (
        *(("/temperature 0.5", "temperature=0.5"), ("/top_k 7", "top_k=7"), ("/top_k off", "top_k=off")),
        *(("/top_p 0.9", "top_p=0.9"), ("/min_p  0.05 ", "min_p=0.05"), ("/greedy on", "greedy=on")),
        *(("/repetition_penalty 1.25", "repetition_penalty=1.25"), ("/max_new_tokens 9", "max_new_tokens=9")),
        ("/seed 123", "seed=123"),
    ):
        before, _, after, *_ = (set(printed.split()) for printed in talk(line))
        assert after - before == {shown}


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        ("/temperature 0", "error: temperature=0.0 must be .*greedy"),
        ("/temperature", "error: /temperature : expected a value like 0.8"),
        ("/top_k 1.5", "error: /top_k 1.5: expected a value like 50, or off"),
        ("/greedy maybe", "error: /greedy maybe: expected a value like on, or off"),
        ("/max_new_tokens 0", "error: max_new_tokens=0 must be"),
        ("/sing", "error: /sing is not a command; /help lists them"),
        ("/", "error: / is not a command"),
        ("an invalid byte \udc80", "error: the line is not UTF-8 text"),
    ],
)
def test_a_mistake_prints_one_line_and_changes_nothing(talk, model, line, answer):
    _, _, error, *rest = talk(line, "Once")
    assert re.match(answer, error)
    assert "\n".join(rest).startswith(printed(model, "Once", 5))


def test_every_setting_has_a_command_and_help_names_all(talk):
    settings = Settings(sampler=SAMPLER, max_new_tokens=3, seed=1)
    assert [word.split("=")[0] for word in str(settings).split()] == list(COMMANDS)
    out = "\n".join(talk("/help"))
    assert all(f"/{name}" in out for name in [*COMMANDS, "reset", "help", "quit"])


def test_the_first_lines_describe_model_and_settings_if_these_are_valid(talk):
    assert talk(loaded="runs/mine, step 300")[0] == "runs/mine, step 300"
    assert talk()[0].startswith("temperature=0.9 top_k=40 ")
    with pytest.raises(UserError, match="max_new_tokens=0 must"):
        talk(max_new_tokens=0)


@pytest.mark.parametrize("key", ["/quit", " /quit ", EOFError, KeyboardInterrupt])
def test_keys_that_leave(talk, key):
    assert seeds(talk("Once", key, "Once")) == [5]


@pytest.mark.parametrize("stop_at_eos", [True, False])
def test_eos_ends_the_text_only_with_stop_at_eos(talk, model, stop_at_eos):
    seed = next(seed for seed in range(200) if completion(model, "a", seed, Sampler(), 200).finished)
    lines = talk("a", sampler=Sampler(), max_new_tokens=200, seed=seed, stop_at_eos=stop_at_eos)
    [(tokens, _)] = STATISTICS.findall("\n".join(lines))
    assert (int(tokens) < 200) == stop_at_eos


def test_an_interrupt_ends_the_text_but_not_the_program(talk, model):
    calls = []

    def interrupt(*_):
        calls.append(1)
        if len(calls) == 4:
            signal.raise_signal(signal.SIGINT)

    model.train()
    hook = model.tokens.register_forward_hook(interrupt)
    lines = talk("Once", "Once")
    hook.remove()
    assert "[stopped]" in "\n".join(lines)
    assert [(int(tokens), int(seed)) for tokens, seed in STATISTICS.findall("\n".join(lines))] == [(4, 5), (12, 6)]
    assert model.training


@pytest.mark.parametrize(
    ("pieces", "shown"),
    [
        (["a\x1b", "[31m é\n\tb"], "a\\x1b[31m é\n\tb"),
        (["a\r", "\nb\r", "", "\n\r", "c"], "a\nb\n\\rc"),  # a line end in two tokens
        (["a\r", "\r\n\r"], "a\\r\n\\r"),
        (["\u202e", "\x9b\x07\x00"], "\\u202e\\x9b\\x07\\x00"),
        ([], ""),
    ],
)
def test_control_characters_of_streamed_pieces_are_escaped(pieces, shown, capsys):
    assert module.write(pieces) == len(pieces)
    assert capsys.readouterr().out == shown


def test_an_incomplete_character_ends_an_interrupted_text(talk, monkeypatch):
    def half_a_character(*_, **__):
        yield [(0, 0xC3)]
        signal.raise_signal(signal.SIGINT)
        yield [(0, 0x1B)]

    monkeypatch.setattr("slm.generation.completion.generate", half_a_character)
    assert "Once\\x9b�\\x1b [stopped]" in talk("Once\x9b")


PROGRAM = """
import fcntl, signal, sys, termios
signal.signal(signal.SIGINT, signal.default_int_handler)  # as in generate.py; a background job ignores SIGINT
fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # makes this the controlling terminal, which turns byte 3 into SIGINT
sys.path[:0] = [{tests!r}, {root!r}]
import torch
from test_chat import TOKENIZER, Sampler, chat, tiny
torch.set_num_threads(1)
chat(tiny(), TOKENIZER, Sampler(), max_new_tokens=10**6, seed=1, stop_at_eos=False)
print("normal end")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_control_c_in_a_real_terminal_ends_the_text_but_not_the_program():
    import pty

    tests = Path(__file__).parent
    keyboard, terminal = pty.openpty()
    program = PROGRAM.format(tests=str(tests), root=str(tests.parent))
    streams = {"stdin": terminal, "stdout": terminal, "stderr": terminal}
    process = subprocess.Popen([sys.executable, "-c", program], start_new_session=True, **streams)
    os.close(terminal)
    seen = b""

    def expect(text, key=b"", pause=8):
        """Presses the key again after a pause: CPython loses a Ctrl-C between the prompt and the wait for a key."""
        nonlocal seen
        deadline = time.monotonic() + 60
        while text not in seen:
            os.write(keyboard, key)
            while text not in seen and time.monotonic() < deadline and select.select([keyboard], [], [], pause)[0]:
                seen += os.read(keyboard, 1 << 16)  # OSError: the program has ended
            assert text in seen or time.monotonic() < deadline, f"no {text!r} in {seen[-500:]!r}"
        seen = seen[seen.index(text) + len(text) :]

    try:
        expect(b"> ")
        for seed in (1, 2):
            os.write(keyboard, b"Once\n")
            expect(b"Once")  # the echo
            expect(b"Once")  # the text
            time.sleep(0.3)
            expect(b"[stopped]", key=b"\x03")
            expect(f"tokens/s, seed {seed}".encode())
            expect(b"> ")
        expect(b"normal end", key=b"\x03", pause=1)
        assert process.wait(timeout=30) == 0
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        os.close(keyboard)
