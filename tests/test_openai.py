"""serve=openai as a client of OpenAI sees it."""

import json

import pytest
from served import served

from slm.generation.language_model import load

openai = pytest.importorskip("openai", reason="the client of OpenAI is not installed")
pytest.importorskip("uvicorn", reason='the server needs pip install "slm[serve]"')
pytestmark = pytest.mark.slow
SETTINGS = {"temperature": 0.8, "seed": 7, "max_tokens": 24}


@pytest.fixture(scope="module")
def address(finished, chatting):
    with served(f"ckpt={finished}", f"ckpt2={chatting}", "serve=openai", "token=a-long-word") as found:
        yield found


@pytest.fixture(scope="module")
def client(address):
    with openai.OpenAI(base_url=address, api_key="a-long-word", max_retries=0) as found:
        yield found


@pytest.fixture(scope="module")
def local(finished):
    return load(finished, device="cpu")


@pytest.fixture(scope="module")
def name(client):
    return client.models.list().data[0].id


def test_a_text_is_that_of_generate_py_for_the_same_seed(client, local, name):
    """Whole and streamed, several texts of several prompts."""
    prompts = ["the cat", "a small dog "]
    expected = local.generate(prompts, num_samples=2, max_new_tokens=24, seed=7, temperature=0.8)
    expected = [text for prompt, texts in zip(prompts, expected) for text in texts]
    answer = client.completions.create(model=name, prompt=prompts, n=2, echo=True, **SETTINGS)
    assert [choice.text for choice in answer.choices] == expected
    streamed = {}
    for part in client.completions.create(model=name, prompt=prompts, n=2, echo=True, stream=True, **SETTINGS):
        for choice in part.choices:
            streamed[choice.index] = streamed.get(choice.index, "") + choice.text
    assert [streamed[index] for index in range(4)] == expected
    again = client.completions.create(model=name, prompt="the cat", max_tokens=24)  # each request has a seed of its own
    same = client.completions.create(model=name, prompt="the cat", max_tokens=24, seed=again.model_dump()["seed"])
    assert same.choices[0].text == again.choices[0].text


def test_the_scores_of_a_prompt_are_the_loss_of_the_text(client, local, name):
    """echo, logprobs and max_tokens=0: what evaluation programs ask for."""
    text = "the small cat saw the dog"
    answer = client.completions.create(model=name, prompt=text, echo=True, logprobs=3, max_tokens=0)
    scores = answer.choices[0].logprobs
    loss = local.loss(text)
    assert -sum(scores.token_logprobs) / len(scores.token_logprobs) == pytest.approx(loss.nats, abs=1e-5)
    assert "".join(scores.tokens) == text
    assert [text[start:][: len(token)] for start, token in zip(scores.text_offset, scores.tokens)] == scores.tokens
    assert all(len(top) == 3 for top in scores.top_logprobs)
    ids = local.encode(text)
    given = client.completions.create(model=name, prompt=ids, echo=True, logprobs=0, max_tokens=0).choices[0]
    assert given.text == text
    assert given.logprobs.token_logprobs[0] is None
    assert len(given.logprobs.tokens) == len(ids)


def test_log_probabilities_stops_and_usage(client, name):
    settings = {"model": name, "temperature": 0, "max_tokens": 24}
    whole = client.completions.create(prompt="the", logprobs=2, **settings)
    text, scores = whole.choices[0].text, whole.choices[0].logprobs
    assert "".join(scores.tokens) == text
    assert all(max(top.values()) == value for top, value in zip(scores.top_logprobs, scores.token_logprobs))
    assert whole.usage.completion_tokens == 24
    stop = text[5:9]
    cut = client.completions.create(prompt="the", stop=[stop, "no such text"], **settings).choices[0]
    assert (cut.text, cut.finish_reason) == (text[: text.index(stop)], "stop")
    options = {"include_usage": True}
    *_, last = client.completions.create(prompt="the", stream=True, stream_options=options, **settings)
    assert last.usage.completion_tokens == 24


def test_a_chat_is_a_text_in_the_template_of_the_model(client, chatting):
    """Whole and streamed; with its log-probabilities; and cut where the model begins the next turn."""
    model, local = client.models.list().data[1].id, load(chatting, device="cpu")
    talk = [("user", "Say cat."), ("assistant", "cat, cat!"), ("user", "Say dog.")]
    settings = {"model": model, "messages": [{"role": role, "content": content} for role, content in talk], **SETTINGS}
    prompt = "User: Say cat.\nAssistant: cat, cat!\nUser: Say dog.\nAssistant: "
    whole = client.chat.completions.create(logprobs=True, top_logprobs=2, **settings).choices[0]
    text = whole.message.content
    assert prompt + text == local.generate(prompt, max_new_tokens=24, seed=7)
    parts = [part.choices[0] for part in client.chat.completions.create(stream=True, **settings)]
    assert "".join(part.delta.content for part in parts) == text
    assert (parts[0].delta.role, parts[-1].finish_reason) == ("assistant", whole.finish_reason)
    bytes_of = [byte for token in whole.logprobs.content for byte in token.bytes]
    assert bytes(bytes_of).decode(errors="replace").endswith(text)
    cut = client.chat.completions.create(stop=text[5:8], **settings).choices[0]
    assert (cut.message.content, cut.finish_reason) == (text[: text.index(text[5:8])], "stop")


def test_mistakes_have_the_errors_of_the_api(client, address, name):
    with pytest.raises(openai.NotFoundError, match="is not served here"):
        client.completions.create(model="gpt-4", prompt="a")
    with pytest.raises(openai.BadRequestError, match="frequency_penalty is not offered"):
        client.completions.create(model=name, prompt="a", frequency_penalty=1)
    with pytest.raises(openai.BadRequestError, match="prompt must have ids from 0"):
        client.completions.create(model=name, prompt=[10**6])
    with pytest.raises(openai.BadRequestError, match="tokens, the model reads"):
        client.completions.create(model=name, prompt="the cat " * 500, echo=True, logprobs=1, max_tokens=0)
    with pytest.raises(openai.APIStatusError, match="at most 1048576 bytes"):
        client.completions.create(model=name, prompt="a" * 2**20)
    with pytest.raises(openai.BadRequestError, match=r"not trained on conversations.*/v1/completions"):
        client.chat.completions.create(model=name, messages=[{"role": "user", "content": "a"}])
    other = openai.OpenAI(base_url=address, api_key="a-guess-of-it", max_retries=0)
    with pytest.raises(openai.AuthenticationError):
        other.models.list()
    raw = client._client.post(
        f"{address}/completions", content=b"[" * 10**5, headers={"authorization": "Bearer a-long-word"}
    )
    assert (raw.status_code, json.loads(raw.text)["error"]["message"]) == (400, "the body of the request is not JSON")


def test_a_client_that_leaves_does_not_keep_the_model(client, name):
    stream = client.completions.create(
        model=name, prompt=["the"] * 64, max_tokens=4096, stream=True, extra_body={"ignore_eos": True}
    )
    next(iter(stream))
    stream.close()
    quick = client.with_options(timeout=10).completions.create(model=name, prompt="the", max_tokens=1)
    assert quick.choices[0].finish_reason == "length"
