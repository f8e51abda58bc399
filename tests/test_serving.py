"""A server without its network: texts cut at stop sequences, checked requests, requests of others refused."""

import asyncio
import json
from functools import partial

import pytest
from conftest import refused

from slm.chat_template import ChatTemplate
from slm.errors import UserError
from slm.generation.sampling import Sampler
from slm.generation.scores import Scored
from slm.serving.address import Address
from slm.serving.choice import Choice, joined
from slm.serving.models import MAX_WAITING, in_time
from slm.serving.request import Defaults, chat_request, completion_request
from slm.tokenizers.bytes import ByteTokenizer

DEFAULTS = Defaults(sampler=Sampler(temperature=0.8), max_new_tokens=200, stop_at_eos=True)
TOKENIZER = ByteTokenizer()


def grown(text: str, stops=(), end="length") -> list:
    """The pieces of a text that comes byte by byte."""
    choice, pieces = Choice(TOKENIZER, stops, 0), []
    for byte in text.encode():
        if not choice.finish_reason:
            pieces.append(choice.add(Scored(0, byte, -1.0, []), True))
    if not choice.finish_reason:
        last = Scored(0, TOKENIZER.eos, 0.0, [])
        pieces.append(choice.add(last, True) if end == "stop" else choice.end("length"))
    return pieces


@pytest.mark.parametrize(
    ("text", "stops", "expected"),
    [
        ("one two", [], "one two"),
        ("one two", ["tw"], "one "),
        ("one two", ["two", "e t"], "on"),
        ("aaab", ["aab"], "a"),
        ("abab", ["abc"], "abab"),
        ("schön\n\nund", ["\n\n"], "schön"),
    ],
)
def test_a_text_ends_before_its_first_stop_sequence(text, stops, expected):
    """And no piece holds a part of one, nor half a character; each token comes once, with its place."""
    pieces = grown(text, stops)
    whole = joined(pieces)
    assert whole.text == expected
    assert whole.finish_reason == ("length" if text == expected else "stop")
    sent = ""
    for piece in pieces:
        sent += piece.text
        assert expected.startswith(sent)
        assert not any(ord(character) == 0xFFFD for character in piece.text)
    tokens = bytes(scored.token for scored, _ in whole.tokens)
    assert tokens.decode() == expected
    assert [place for _, place in whole.tokens] == [len(tokens[:n].decode(errors="ignore")) for n in range(len(tokens))]


def test_the_end_of_a_document_is_no_token_of_the_text():
    whole = joined(grown("ab", end="stop"))
    assert (whole.text, whole.finish_reason, len(whole.tokens)) == ("ab", "stop", 2)


MISTAKES = {
    '{"prompt": "a", "promt": "b"}': "promt is not a key of this request",
    '{"max_tokens": 0}': "max_tokens=0 must be a whole number from 1 to 4096",
    '{"max_tokens": 1e9}': "max_tokens=1000000000.0 must be",
    '{"n": 99}': "n=99 must be a whole number from 1 to 16",
    '{"n": true}': "n=True must be",
    '{"temperature": NaN}': "temperature=nan must be a number",
    '{"temperature": "hot"}': "temperature='hot' must be",
    '{"top_p": 1.5}': "top_p=1.5 must be",
    '{"prompt": [[]]}': "prompt must be a text, a list of texts",
    '{"prompt": [1, "a"]}': "prompt must be a text, a list of texts",
    '{"prompt": {}}': "prompt must be",
    '{"stop": ["a", "b", "c", "d", "e"]}': "stop=",
    '{"stop": ""}': "stop=",
    '{"logit_bias": {"5": 100}}': "logit_bias is not offered",
    '{"prompt": ["a", "b", "c", "d", "e"], "n": 16}': "more than 64 texts",
    "[]": "the request must be a JSON object",
}


@pytest.mark.parametrize(("body", "message"), MISTAKES.items(), ids=MISTAKES)
def test_a_mistake_in_a_request_is_one_line(body, message):
    assert message in refused(lambda: completion_request(json.loads(body), DEFAULTS), message)


def test_a_request_without_settings_has_those_of_the_command():
    asked = completion_request({"prompt": "a", "temperature": None, "user": "me"}, DEFAULTS)
    assert (asked.sampler, asked.max_new_tokens, asked.choices) == (DEFAULTS.sampler, 200, 1)
    assert completion_request({"temperature": 0}, DEFAULTS).sampler.greedy
    messages = [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]
    assert chat_request({"messages": messages}, DEFAULTS, lambda name: ChatTemplate()).prompts == [
        "User: ab\nAssistant: "
    ]
    refused(lambda: chat_request({"messages": messages}, DEFAULTS, lambda name: None), "not trained on conversations")
    messages = [{"role": "developer", "content": "Be short."}, {"role": "user", "content": "Hello"}]
    asked = chat_request({"messages": messages, "stop": "."}, DEFAULTS, lambda name: ChatTemplate())
    assert asked.prompts == ["User: Be short.\n\nHello\nAssistant: "]
    assert asked.stop == [".", "\nUser:"]
    refused(lambda: chat_request({"messages": messages[:1]}, DEFAULTS, lambda name: ChatTemplate()), "the roles")
    for wrong in (
        None,
        [],
        "a",
        [{"role": "user"}],
        [{"role": "x", "content": "a"}],
        [{"content": [1], "role": "user"}],
    ):
        refused(partial(chat_request, {"messages": wrong}, DEFAULTS, lambda name: None), "message")


def status(guard, method="POST", path="/v1/completions", query="", **headers: str) -> tuple[int, dict[str, str]]:
    """Status and headers of the answer to a request."""
    sent = []

    async def send(message):
        sent.append(message)

    named = {"host": "127.0.0.1:8080", "content-length": "2", **{k.replace("_", "-"): v for k, v in headers.items()}}
    scope = {"type": "http", "method": method, "path": path, "query_string": query.encode()}
    scope["headers"] = [(name.encode(), value.encode()) for name, value in named.items()]
    asyncio.run(guard(scope, None, send))
    return sent[0]["status"], {name.decode(): value.decode() for name, value in sent[0]["headers"]}


async def ok(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})


def test_requests_of_others_are_refused():
    pytest.importorskip("starlette", reason='a server needs pip install "slm[serve]"')
    from slm.serving.guard import Guard

    local = Guard(ok, Address(host="127.0.0.1", port=8080, token=None))
    assert status(local)[0] == 200
    assert status(local, host="localhost:8080", origin="http://localhost:8080")[0] == 200
    assert status(local, host="[::1]:8080")[0] == 200
    assert status(local, host="evil.example:8080")[0] == 403  # a name of another's that resolves to this machine
    assert status(local, host="127.0.0.1.evil.example")[0] == 403
    assert status(local, origin="http://evil.example")[0] == 403
    assert status(local, origin="null")[0] == 403
    assert status(local, content_length="9999999")[0] == 413
    assert status(local, content_length="many")[0] == 411
    assert status(local, path="/gradio_api/upload")[0] == 404
    open_to_all = Guard(ok, Address(host="0.0.0.0", port=8080, token="a-long-word"))
    assert status(open_to_all, host="my.lab:8080")[0] == 401
    assert status(open_to_all, host="my.lab:8080", authorization="Bearer a-long-wore")[0] == 401
    assert status(open_to_all, host="my.lab:8080", cookie="slm_token=; x")[0] == 401
    assert status(open_to_all, host="my.lab:8080", authorization="Bearer a-long-word")[0] == 200
    code, headers = status(open_to_all, "GET", "//evil.example/", "token=a-long-word&view=1", host="my.lab:8080")
    assert (code, headers["location"]) == (303, "/evil.example/?view=1")
    assert status(open_to_all, host="my.lab:8080", cookie=headers["set-cookie"].partition(";")[0])[0] == 200


def test_another_machine_needs_a_token():
    assert "give token=" in refused(lambda: Address(host="0.0.0.0", port=8080, token=None), "host=0.0.0.0")
    for token in ("short", "with a space", "nön-ascii-word"):
        refused(partial(Address, host="127.0.0.1", port=8080, token=token), "token= must have 8 or more")
    with pytest.raises(UserError, match="port=70000 must be"):
        Address(host="localhost", port=70000, token=None)
    address = Address(host="127.0.0.1", port=0, token=None)
    with address.open() as taken:
        port = taken.getsockname()[1]
        busy = Address(host="127.0.0.1", port=port, token=None)
        assert f"port={port + 1}" in refused(busy.open, f"port={port} cannot be used")


def test_one_request_is_worked_on_and_a_bounded_number_waits():
    pytest.importorskip("starlette", reason='a server needs pip install "slm[serve]"')
    from anyio import CapacityLimiter

    from slm.serving.openai import Busy, turn

    async def ask(limiter: CapacityLimiter, at_once: list[int]):
        async with turn(limiter):
            at_once[0] += 1
            assert at_once[0] == 1
            await asyncio.sleep(0)
            at_once[0] -= 1

    async def ask_often(count: int) -> list:
        limiter, at_once = CapacityLimiter(1), [0]
        first = await asyncio.gather(*(ask(limiter, at_once) for _ in range(count)), return_exceptions=True)
        await ask(limiter, at_once)  # afterwards there is room again
        return first

    assert asyncio.run(ask_often(MAX_WAITING + 1)) == [None] * (MAX_WAITING + 1)
    *served, refused_one = asyncio.run(ask_often(MAX_WAITING + 2))
    assert served == [None] * (MAX_WAITING + 1)
    assert isinstance(refused_one, Busy)


def test_steps_end_when_their_time_is_over():
    assert list(in_time((step for step in range(5)), seconds=60)) == [0, 1, 2, 3, 4]
    assert list(in_time((step for step in range(5)), seconds=-1)) == [0]
