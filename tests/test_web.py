"""ui=web: stories that stop, go on and branch; and the page in a real browser."""

from pathlib import Path

import pytest
import torch
from browser import browser
from served import served
from test_model import model_of

from slm.chat_template import ChatTemplate
from slm.errors import printable
from slm.generation.completion import complete
from slm.generation.language_model import LanguageModel, load
from slm.generation.sampling import Sampler
from slm.serving.models import named
from slm.serving.story import Session, Story
from slm.tokenizers.bytes import ByteTokenizer

SAMPLER = Sampler(temperature=0.9)


def story(prompt: str = "ab ", seed: int = 3, **settings) -> Story:
    with torch.random.fork_rng():
        model = model_of(vocab_size=257, context=32, depth=1, head_dim=8)
    loaded = LanguageModel(model, ByteTokenizer(), Path("runs/a/checkpoints/step-000010.ckpt"), 10, {})
    return Story(name="a", loaded=loaded, world=None, prompt=prompt, sampler=SAMPLER, seed=seed, **settings)


def whole(grown: Story, count: int) -> str:
    """The text of generate.py."""
    settings = {"sampler": SAMPLER, "max_new_tokens": count, "seed": grown.seed}
    [[found]] = complete(grown.loaded.model, grown.loaded.tokenizer, [grown.prompt], **settings)
    return found.text


def test_a_story_stops_and_goes_on_to_the_text_of_generate_py(monkeypatch):
    monkeypatch.setattr("slm.serving.story.REFRESH", -1)  # a view after each token
    session = Session()
    session.stories = [story(), story(seed=4)]
    for _ in session.grow(40):
        if len(session.stories[0].tokens) >= 7:
            session.stopping = True
    first, second = session.stories
    assert 7 <= len(first.tokens) < 40
    assert first.status == second.status == "stopped"
    rest = 40 - len(first.tokens)
    *_, views = session.grow(rest)
    for grown, view in zip(session.stories, views):
        ids = [scored.token for scored in grown.tokens]
        text = bytes(token for token in ids if token != 256)[len(grown.start.rest) :].decode(errors="replace")
        assert text == whole(grown, len(ids))
        assert [row[3] for row in view["tokens"]] == ids
        assert all(row[4][0][2] >= row[1] for row in view["tokens"])  # the most likely rival


def test_an_answer_ends_where_the_next_turn_begins():
    grown = story("Hello", chat=ChatTemplate(user="\na ", assistant="\nb "))
    grown.loaded.model.head.bias = torch.nn.Parameter(torch.zeros(257))
    with torch.no_grad():
        grown.loaded.model.head.bias[[ord("a"), ord("\n")]] = 20.0
    assert grown.prompt == "a Hello\nb "
    list(grown.grow(60))
    assert grown.text() == whole(grown, 60).partition("\na")[0]
    assert (grown.status, list(grown.grow(9))) == ("ended", [])
    assert grown.branch(0, grown.tokens[0].token)
    assert not grown.ended


def test_another_token_keeps_what_is_before_it_and_replaces_the_rest():
    session = Session()
    session.stories = [story()]
    list(session.grow(12))
    [grown] = session.stories
    before = [scored.token for scored in grown.tokens]
    rival = next(token for token, _ in grown.tokens[5].top if token not in (before[5], 256))
    assert not grown.branch(99, rival)
    assert not grown.branch(5, 10**6)
    assert grown.branch(5, rival)
    assert [scored.token for scored in grown.tokens] == [*before[:5], rival]
    list(session.grow(6, [grown]))
    assert len(grown.tokens) == 12 or grown.ended
    assert [row[2] for row in grown.view()["tokens"]][:7] == [False] * 5 + [True, False]


def test_names_of_models_are_short_and_different():
    paths = "runs/a/checkpoints/step-000010.ckpt", "runs/a/checkpoints/step-000020.ckpt", "runs/b/checkpoints/x.ckpt"
    models = [LanguageModel(None, None, Path(path), step, {}) for path, step in zip(paths, (10, 20, 5))]
    assert list(named(models)) == ["a-step-10", "a-step-20", "b"]
    assert len(named([models[0], models[0]])) == 2
    assert list(named([LanguageModel(None, None, Path("hf/llama-3.2"), 0, {})])) == ["llama-3.2"]


DONE = (
    "document.querySelector('.facts') && "
    "![...document.querySelectorAll('.facts')].some(facts => facts.textContent.includes('in progress'))"
)
TEXT = "[...document.querySelectorAll('.text')].map(text => text.textContent)"


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """Still open when the server ends."""
    with browser(tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture(scope="module")
def address(finished, page):
    pytest.importorskip("gradio", reason='the page needs pip install "slm[web]"')
    settings = "ui=web", "temperature=0.05", "max_new_tokens=60", "prompt=<b>the & cat"
    with served(f"ckpt={finished}", f"ckpt2={finished}", *settings) as found:  # too cold to end by itself
        yield found


@pytest.mark.slow
def test_a_text_is_written_stopped_continued_and_branched_in_a_browser(page, address, finished, tmp_path):
    page.open(address, 1400)
    page.type("#prompt textarea", prompt := "the <i>old</i> cat ")
    page.click("#write")
    page.until(DONE)
    text = load(finished, device="cpu").generate(prompt, temperature=0.05, max_new_tokens=60)
    expected = printable(text).rstrip("\ufffd")  # half a character at the end
    assert [text.rstrip("\ufffd") for text in page.evaluate(TEXT)] == [expected, expected]
    assert page.evaluate("document.querySelectorAll('.text i, .text b').length") == 0
    page.type("#length input[type=number]", "1000")
    page.press("Tab")
    page.click("#continue")
    page.until("document.querySelectorAll('.story:first-child .token').length > 80")
    page.click("#stop")
    page.until(DONE)
    assert "stopped" in page.evaluate("document.querySelector('.facts').textContent")
    assert page.evaluate(TEXT)[0].startswith(expected)
    page.type("#length input[type=number]", "5")
    page.press("Tab")
    page.click(".story:first-child .text .token:nth-of-type(9)")
    page.click(".alternatives button:not(.own)")
    page.until("document.querySelectorAll('.story:first-child .token').length < 20")
    page.until(DONE)
    first, second = page.evaluate(TEXT)
    assert first[: len(prompt)] == second[: len(prompt)]
    assert page.evaluate("document.querySelectorAll('.story:first-child .token.chosen').length") == 1
    assert not page.problems
    outside = [found for found in page.addresses if not found.startswith((address, "data:", "about:"))]
    assert not outside
    for width in (400, 1400):
        page.open(address, width)
        page.until("!!document.querySelector('#write')")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.picture(tmp_path / f"{width}.png")


@pytest.mark.slow
def test_mistakes_are_shown_on_the_page(page, address):
    page.open(address)
    page.click("#write")
    page.until(DONE)
    for value in ("0.3", "0.6", "1"):
        label = "[...document.querySelectorAll('label')].find(label => label.textContent.trim() === '{}')"
        page.evaluate(label.format(value) + ".querySelector('input').click()")
    page.click("#write")
    page.until("document.body.textContent.includes('choose 1 to 6 stories')")
