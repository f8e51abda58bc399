"""format=page: a model in one HTML file, whose texts, ids and verdicts are compared with slm in a real browser."""

import json
import re
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
import torch
from browser import browser
from conftest import exit_code, refused

from slm.corpora.storyworld.checker import judge
from slm.corpora.storyworld.corpus import Storyworld
from slm.export import __main__ as command
from slm.export import page as format_page
from slm.export.page import export, weights
from slm.generation.language_model import LanguageModel
from slm.model import GPT, GPTConfig
from slm.tokenizers import Tokenizer
from slm.tokenizers.bpe import BPETokenizer
from slm.tokenizers.bytes import ByteTokenizer
from slm.tokenizers.characters import CharacterTokenizer
from slm.tokenizers.sentencepiece import SentencePieceTokenizer

STORYWORLD = {"level": "tiny", "stories": 200, "validation_stories": 20, "seed": 0}
NODE = {"_target_": "slm.corpora.storyworld.corpus.Storyworld", **STORYWORLD}
PLAIN = {"depth": 2, "width": 32, "head_dim": 8, "context": 40, "init_std": 0.3, "positions": "rope", "norm": "rmsnorm"}
PLAIN |= {"mlp": "swiglu", "tied": False, "bias": False}
AXES = [
    {"norm": "layernorm", "bias": True, "mlp": "gelu", "positions": "learned", "tied": True},
    {"norm": "layernorm", "mlp": "gelu_tanh", "qk_norm": True, "head_bias": True, "depth": 3},
    {"mlp": "relu2", "window": [8, None], "kv_heads": 2, "logit_softcap": 8.0, "rope_base": 500.0},
    {"mlp": "geglu", "kv_heads": 1, "value_embeddings": True, "residual_scalars": True, "bigram_embeddings": 300},
    {"bias": True, "mlp_width": 50, "width": 36, "head_dim": 18, "window": 5, "norm_eps": 1e-3, "context": 33},
]
REPEATED = ["aa aaa aaaa"] * 40  # in which the place of a merge matters
TEXTS = ["", " ", "a", "  two  spaces ", "Tom's dogs don't; 12345 \u00bd \u2167 I'LL", "tab\tline\r\nend\n\n"]
TEXTS += ["aaaaa aaa aaaaaaa", "\u2581 \u2581x", "Zo\u00eb\u0301 \ufb01 \U0001f98a\U0001f98a", "<s></s><0x41><unk>"]
TEXTS += ["\x00\x7f\x85\xa0\u3000", "\u4f60\u597d \u0645\u0631"]


def made(tokenizer: Tokenizer, axes: dict | None = None, **run) -> LanguageModel:
    """A model with random weights, whose texts vary."""
    torch.manual_seed(1)
    model = GPT(GPTConfig(vocab_size=tokenizer.vocab_size, **PLAIN | (axes or {}))).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
    corpus = run.get("data", {}).get("corpus")
    known = (
        Storyworld(**{key: value for key, value in corpus.items() if key != "_target_"}).fingerprint() if corpus else ""
    )
    return LanguageModel(model, tokenizer, Path("run"), 7, {"name": "random", **run}, corpus=known)


def stories(count: int) -> list[str]:
    corpus = Storyworld(**STORYWORLD)
    return [corpus.story("train", index).text for index in range(count)]


def bpe() -> BPETokenizer:
    return BPETokenizer.build(stories(40), vocab_size=330, pattern="gpt2", sample_documents=40, seed=0)


def written(model: LanguageModel, folder: Path, **options) -> Path:
    folder.mkdir()
    export(model, folder, **options)
    [page] = folder.iterdir()
    return page


def data_of(page: Path) -> dict:
    return json.loads(re.search(r'id="data">(.*?)</script>', page.read_text("utf-8"), re.DOTALL)[1])


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    with browser(tmp_path_factory.mktemp("chromium") / "profile") as driver:
        yield driver


def checked(chromium, page: Path, count: int = 50):
    """Greedy texts in the page against those of slm with the same rounded weights."""
    chromium.open(f"{page.as_uri()}#check")
    found = chromium.until("find('checked').dataset.count && {...find('checked').dataset}")
    assert found["equal"] == found["count"] == str(count), chromium.evaluate("find('checked').textContent")
    assert chromium.problems == []


def test_a_page_in_a_browser(chromium, tmp_path, monkeypatch):
    """Its check, a text by keyboard, another token in it, and the same text again from the same seed."""
    monkeypatch.setattr(format_page, "PROOFS", 12)
    page = written(made(bpe(), data={"corpus": NODE, "layout": "documents"}), tmp_path / "page", start="Once")
    checked(chromium, page, 12)
    chromium.open(page.as_uri(), width=390, dark=True)
    chromium.until("!running && tokens.length")
    chromium.evaluate("find('start').focus()")
    chromium.press("Enter", "\r")
    first = chromium.until("!running && textNow()")
    assert first.startswith("Once")
    assert chromium.evaluate("find('verdict').textContent").startswith(
        "✗ Not a story of its world: in sentence 1, at the mark,"
    )
    assert chromium.evaluate("article.textContent") == first
    assert chromium.evaluate("document.documentElement.scrollWidth <= innerWidth")
    chromium.evaluate(
        "alternatives.open(tokens[9].parts[1], true); alternatives.tip.querySelectorAll('button')[1].click()"
    )
    second = chromium.until("!running && textNow()")
    assert chromium.evaluate("tokens[9].rank") == 2
    assert first != second
    assert chromium.evaluate("tell()") is None
    assert chromium.until("!running && textNow()") == first
    assert chromium.problems == []


@pytest.mark.slow
def test_a_text_that_was_stopped_goes_on_as_it_would_have(chromium, tmp_path):
    """Also beyond the context, behind a prompt that is longer, and in a browser without workers for files."""
    model = made(ByteTokenizer(), {"head_bias": True})
    model.model.head.bias.data[model.tokenizer.eos] = -99.0  # no text ends by itself
    address = written(model, tmp_path / "page").as_uri()
    write = "find('tokens').value = 1000; find('start').value = 'a b '.repeat({}); tell()"
    for repeats in (1, 30):
        chromium.open(address)
        chromium.evaluate(write.format(repeats))
        whole = chromium.until("!running && textNow()")
        assert whole.startswith("a b " * repeats)
        assert chromium.evaluate("tokens.every((token, place) => token.place === place)")
        chromium.evaluate("tell(); find('stop').click()")
        count = chromium.until("!running && tokens.filter(token => !token.given).length")
        assert count < 1000, "not stopped"
        assert chromium.evaluate("!find('more').disabled && find('stop').hidden")
        chromium.evaluate(f"find('tokens').min = find('tokens').step = 1; find('tokens').value = {1000 - count}")
        chromium.evaluate("find('more').click()")
        assert chromium.until("!running && textNow()") == whole
    source = chromium.call("Page.addScriptToEvaluateOnNewDocument", source="delete window.Worker")
    try:
        chromium.open(address)
        assert chromium.evaluate("typeof Worker") == "undefined"
        chromium.evaluate(write.format(30))
        assert chromium.until("!running && textNow()") == whole
    finally:
        chromium.call("Page.removeScriptToEvaluateOnNewDocument", identifier=source["identifier"])
    assert chromium.problems == []


@pytest.mark.slow
def test_an_answer_ends_where_the_next_turn_begins(chromium, tmp_path, monkeypatch):
    """The page of a model of conversations asks with its template."""
    monkeypatch.setattr(format_page, "PROOFS", 6)
    model, corpus = made(ByteTokenizer(), {"head_bias": True}), {"user": "\na ", "assistant": "\nb "}
    with torch.no_grad():
        model.model.head.bias[[ord("a"), ord("\n")]] += 12.0
        model.model.head.bias[model.tokenizer.eos] = -99.0
    chromium.open(written(model, tmp_path / "plain").as_uri())
    prompt = "a Hello\nb "
    chromium.evaluate(f"find('tokens').value = 100; find('start').value = {json.dumps(prompt)}; tell()")
    whole = chromium.until("!running && textNow()")
    page = written(replace(model, config={"name": "x", "data": {"corpus": corpus}}), tmp_path / "page")
    chromium.open(page.as_uri())
    assert chromium.evaluate("!running && !tokens.length")
    chromium.evaluate("find('tokens').value = 100; find('start').value = ' Hello '; tell()")
    assert chromium.until("!running && textNow()") == whole[: whole.index("\na")]
    assert chromium.evaluate("article.textContent.length") == whole.index("\na")
    assert chromium.evaluate("find('more').disabled && find('form').textContent.includes('Ask the model')")
    assert chromium.problems == []


@pytest.mark.slow
@pytest.mark.parametrize("axes", AXES, ids=str)
def test_every_axis(axes, chromium, tmp_path):
    checked(chromium, written(made(bpe(), axes), tmp_path / "page"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "tokenizer",
    [
        ByteTokenizer,
        lambda: CharacterTokenizer.build([], alphabet="ascii"),
        lambda: BPETokenizer.build(REPEATED + stories(40), vocab_size=330, pattern="gpt4", sample_documents=80, seed=0),
        *(
            lambda algorithm=algorithm: SentencePieceTokenizer.build(
                REPEATED + stories(200), vocab_size=420, algorithm=algorithm, sample_documents=240, seed=0
            )
            for algorithm in ("bpe", "unigram")
        ),
    ],
    ids=["bytes", "characters", "gpt4", "bpe", "unigram"],
)
def test_ids_of_every_tokenizer(tokenizer, chromium, tmp_path):
    model, random = made(tokenizer()), Random(0)
    checked(chromium, page := written(model, tmp_path / "page"))
    texts = [*TEXTS, *stories(20)]
    texts += ["".join(random.choice(random.choice(texts) or "x") for _ in range(20)) for _ in range(500)]
    chromium.open(page.as_uri())
    given = json.dumps(texts)
    found = chromium.evaluate(f"tokenizer = new Tokenizer(data.tokenizer); {given}.map(text => tokenizer.encode(text))")
    expected = [model.tokenizer.encode(text) for text in texts]
    assert [text for text, ids, others in zip(texts, expected, found) if ids != others] == []


@pytest.mark.slow
@pytest.mark.parametrize("level", ["tiny", "standard"])
def test_verdicts_of_the_checker(level, chromium, tmp_path):
    """Stories, and stories with one change, are judged as by slm."""
    corpus = Storyworld(**{**STORYWORLD, "level": level})
    chromium.open(written(made(ByteTokenizer(), data={"corpus": {**NODE, "level": level}}), tmp_path / "page").as_uri())
    random, cases = Random(0), []
    for index in range(60):
        words = corpus.story("train", index).text.split(" ")
        cases.append((" ".join(words), True))
        cases.append((" ".join(words[: random.randrange(len(words))]), index % 2 == 0))
        words[random.randrange(len(words))] = random.choice(words)
        cases.append((" ".join(words), True))
    found = chromium.evaluate(f"{json.dumps(cases)}.map(([text, finished]) => judge(world, text, finished))")
    for (text, finished), verdict in zip(cases, found):
        own = judge(corpus.all, text, finished)
        expected = {"valid": own.valid, "prefix": own.prefix, "sentences": own.sentences, "error": own.error}
        assert verdict == expected, text


@pytest.mark.slow
def test_shares_and_filters(chromium, tmp_path):
    """The probabilities of a text are those of the rounded model, and each filter keeps the ids that slm keeps."""
    from slm.generation import sampling

    model = made(ByteTokenizer())
    chromium.open(written(model, tmp_path / "page", start="Hello there").as_uri())
    chromium.until("!running && tokens.length")
    ids, shares = chromium.evaluate("[tokens.map(t => t.id), tokens.map(t => t.share ?? null)]")
    near, _, _ = weights.rounded(model.model)
    expected = near(torch.tensor([ids[:40]])).softmax(-1)[0, range(39), ids[1:40]]
    assert torch.allclose(torch.tensor(shares[1:40]), expected, atol=1e-5)
    logits = torch.randn(1, 257) * 3
    for name, keep, value in (
        ("topK", sampling.top_k, 9),
        ("topP", sampling.top_p, 0.7),
        ("minP", sampling.min_p, 0.05),
    ):
        kept = keep(logits, value)[0].isfinite().nonzero().flatten().tolist()
        call = f"kept({json.dumps(logits[0].tolist())}, {{temperature: 1, {name}: {value}}})[0]"
        assert sorted(chromium.evaluate(call)) == kept


def test_what_a_page_does_not_have_is_refused(tmp_path, monkeypatch):
    model = made(ByteTokenizer())
    refused(lambda: export(replace(model, model=torch.nn.Linear(1, 1)), tmp_path), "not a class of one's own")
    other = type("Other", (ByteTokenizer,), {})()
    refused(lambda: export(replace(model, tokenizer=other), tmp_path), "not Other; try format=hf")
    monkeypatch.setattr(weights, "READ", weights.READ - {"qk_norm"})
    refused(lambda: export(made(ByteTokenizer(), {"qk_norm": True}), tmp_path), "cannot compute model.qk_norm=True")
    assert not [*tmp_path.iterdir()]


def test_values_cannot_leave_their_place(tmp_path, monkeypatch):
    """Neither a name nor a text of the model ends the script that it stands in."""
    monkeypatch.setattr(format_page, "PROOFS", 6)
    title = "</title><script>alert(1)</script>"
    page = written(made(ByteTokenizer(), name="../a b<"), tmp_path / "page", title=title, start="</script><b>")
    text = page.read_text("utf-8")
    assert page.name == "a-b.html"
    assert text.count("<script") == 4
    assert "<b>" not in text
    assert "&lt;script&gt;alert(1)" in text
    assert data_of(page)["start"] == "</script><b>"


def test_the_command(finished, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(format_page, "PROOFS", 6)
    target = tmp_path / "page"
    words = str(finished), str(target), "format=page", "title=A talk"
    assert exit_code(monkeypatch, command.main, *words) == 0
    [page] = target.iterdir()
    assert "<h1>A talk</h1>" in page.read_text("utf-8")
    assert "parameters in 8 bits" in capsys.readouterr().out
