"""Storyworld: every text has one derivation with its probability, so the floor is exact, and errors are found."""

import itertools
import json
import math
import random
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from test_model import model_of

from slm import evaluate
from slm.analysis import curves
from slm.analysis.run_charts import loss_floor
from slm.corpora.storyworld.checker import estimate, judge, marked, summary
from slm.corpora.storyworld.corpus import Storyworld
from slm.corpora.storyworld.floor import PARTS, story_floor, story_skills, tally
from slm.corpora.storyworld.grammar import Choice, Template, generate, list_name, sample
from slm.corpora.storyworld.parser import parse
from slm.corpora.storyworld.world import LEVELS, load_texts, load_words
from slm.corpora.storyworld.world import PRONOUNS as FORMS
from slm.errors import UserError, printable
from slm.evaluation import stories
from slm.files import jsonl, run_folder
from slm.generation.text_loss import padded, window_nats
from slm.run.train import train
from slm.tokenizers.bytes import ByteTokenizer
from slm.tokenizers.characters import ASCII, CharacterTokenizer
from slm.tokenizers.sentencepiece import SentencePieceTokenizer

PRONOUNS = {word for forms in FORMS.values() for word in forms.values()}
BITS_PER_BYTE = {"tiny": (0.10, 0.12), "standard": (0.18, 0.22), "rich": (0.27, 0.33)}


def corpus_of(level="tiny", **changes) -> Storyworld:
    return Storyworld(**{"level": level, "stories": 100, "validation_stories": 20, "seed": 0, **changes})


@pytest.fixture(scope="module", params=LEVELS)
def corpus(request) -> Storyworld:
    return corpus_of(request.param)


@pytest.fixture(scope="module")
def tiny() -> Storyworld:
    return corpus_of()


# The stories


def test_a_story_is_a_function_of_seed_split_and_number(corpus):
    first, second = corpus_of(corpus.level), corpus_of(corpus.level)
    assert [first.story("train", i) for i in (7, 3)] == [second.story("train", i) for i in (7, 3)]
    assert list(first.documents("train")) == [second.story("train", i).text for i in range(100)]
    others = {corpus_of(corpus.level, seed=1).story("train", 3), first.story("train", 4), first.story("validation", 3)}
    assert first.story("train", 3) not in others
    assert len(others) == 3


def test_different_corpora_have_different_fingerprints(tiny):
    others = [corpus_of("rich"), *(corpus_of(**{key: 7}) for key in ("stories", "validation_stories", "seed"))]
    assert tiny.fingerprint() == corpus_of().fingerprint()
    assert len({tiny.fingerprint(), *(other.fingerprint() for other in others)}) == 5


def test_no_story_is_in_both_splits(monkeypatch):
    """In a world of fifty stories, where each split draws every one of its stories many times."""
    monkeypatch.setattr(Storyworld, "seen", Small([[f"Story {number}." for number in range(50)]]))
    corpus = corpus_of()
    splits = [{corpus.story(split, i).text for i in range(400)} for split in ("train", "validation")]
    assert not splits[0] & splits[1]
    assert len(splits[0]) > 25
    assert len(splits[1]) > 2


def test_the_floor_of_each_level(corpus):
    stories = [corpus.story("train", i) for i in range(400)]
    floor = sum(story.bits for story in stories) / sum(len(story.text) for story in stories)
    low, high = BITS_PER_BYTE[corpus.level]
    assert low < floor < high
    assert all(story.text.isascii() for story in stories)


def test_held_out_pairs_never_occur_in_training(corpus):
    def pairs(world, seed):
        calls, program = [], world.program
        world.program = lambda bindings: calls.append(bindings) or program(bindings)
        sample(world, random.Random(seed).random)
        del world.program
        return calls[0]["kind"][""], calls[0]["toy"][""]

    seen, unseen = ({pairs(world, seed) for seed in range(100)} for world in (corpus.seen, corpus.unseen))
    assert not seen & unseen
    assert {kind for kind, _ in seen} >= {"girl", "boy"} <= {kind for kind, _ in unseen}
    for index in range(5):
        for text, valid in (
            (corpus.held_out(index).text, {"all": True, "unseen": True, "seen": False}),
            (corpus.story("train", index).text, {"all": True, "unseen": False, "seen": True}),
        ):
            assert {name: judge(getattr(corpus, name), text, True).valid for name in valid} == valid


# The text files


def test_texts_are_well_formed():
    lists, slot = load_words(), re.compile(r"\{~?(\w+)(?:\.(\w+))?\}")
    for name, words in lists.items():
        assert len({word[""] for word in words}) == len(words), name
    for file in ("frame", "plots", "details"):
        for title, sentences in load_texts(file).items():
            for line in itertools.chain(*sentences):
                assert line.count('"') % 2 == 0, line
                assert line[-1] in '.!?"', line
                assert "  " not in line, line
                assert line.count("{") == line.count("}") == len(slot.findall(line)), line
                for variable, form in slot.findall(line):
                    if variable not in ("he", "He", "him", "his", "His"):
                        name = {"hero": "girl", "friend": "girl"}.get(variable, variable.rstrip("0123456789"))
                        assert all(form in word for word in lists[name]), f"{title}: {line}"


# Generating and parsing


class Incomplete(Exception):
    """The given choices end before the story ends."""


class Small:
    """A world of a few sentences and words whose stories can all be listed."""

    def __init__(self, sentences, **lists):
        self.sentences = [Choice([Template(line) for line in lines], range(1, len(lines) + 1)) for lines in sentences]
        self.lists = {name: [{"": word} for word in words.split()] for name, words in lists.items()}

    def program(self, bound):
        for sentence in self.sentences:  # noqa: UP028 (a list has no send)
            yield sentence

    def words(self, variable, bindings):
        words = [word for word in self.lists[list_name(variable)] if word not in bindings.values()]
        return Choice(words, range(2, len(words) + 2))

    def all_stories(self):
        """Every story, by exhaustive search: the reference for `parse` and the floor."""
        found, pending = [], [()]
        while pending:
            choices, options = pending.pop(), []
            indices = iter(choices)

            def choose(choice, indices=indices, options=options):
                for index in indices:
                    return index
                options.append(len(choice.items))
                raise Incomplete

            try:
                found.append(generate(self, choose))
            except Incomplete:
                pending += [(*choices, index) for index in range(options[0])]
        return found


SMALL = Small(
    [
        ["{who} saw {who2}.", "{who2} saw a cap.", "Here is {who}, who saw {who2}."],
        [" {who} ran.", " {who2} ran.", " {who} {~way}ran.", " Then {who} ran{~way} and{~way}."],
        [" Then {~way}."],
    ],
    who="Ann An Bob Bo",
    way="far fast",
)
AMBIGUOUS = Small([["One {thing}.", "One big cat."], [" End.", " The end."]], thing="cat dog")
AMBIGUOUS.lists["thing"].append({"": "big cat"})


@pytest.mark.parametrize("world", [SMALL, AMBIGUOUS], ids=["small", "ambiguous"])
def test_parsing_equals_exhaustive_search(world):
    stories = world.all_stories()
    assert math.fsum(2**-story.bits for story in stories) == pytest.approx(1, abs=1e-12)
    by_text = {}
    for story in stories:
        by_text.setdefault(story.text, []).append(story)
    assert (max(map(len, by_text.values())) > 1) == (world is AMBIGUOUS)
    for text, same in by_text.items():
        parsed = parse(world, text)
        found = {story.choices: story.bits for story in parsed.stories}
        assert found == pytest.approx({story.choices: story.bits for story in same}, abs=1e-9)
        if len(same) == 1 and world is SMALL:
            prefixes = (text[:length] for length in range(len(text) + 1))
            masses = [math.fsum(2**-s.bits for s in stories if s.text.startswith(prefix)) for prefix in prefixes]
            expected = [math.log2(before / after) for before, after in itertools.pairwise(masses)]
            assert parsed.character_bits == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("stories", [50, pytest.param(300, marks=pytest.mark.slow)])
def test_a_story_has_one_derivation_with_its_probability(corpus, stories):
    for story in (corpus.story("train", index) for index in range(stories)):
        indices = iter(story.choices)
        assert generate(corpus.seen, lambda choice, indices=indices: next(indices)) == story
        parsed = parse(corpus.seen, story.text)
        assert [found.choices for found in parsed.stories] == [story.choices]
        assert abs(parsed.stories[0].bits - story.bits) < 1e-9
        assert abs(math.fsum(parsed.character_bits) - story.bits) < 1e-9
        assert len(parsed.character_bits) == len(story.text)
        assert min(parsed.character_bits) > -1e-12
        assert "".join(story.text[span.start : span.end] for span in itertools.chain(*parsed.spans)) == story.text


# The floor


def test_the_floor_of_the_tokens_is_the_floor_of_the_text(tiny):
    settings = {"vocab_size": 500, "algorithm": "bpe", "sample_documents": 100, "seed": 0}
    subwords = SentencePieceTokenizer.build(tiny.documents("train"), **settings)
    stories = [tiny.story("validation", index) for index in range(5)]
    for tokenizer, story in itertools.product((ByteTokenizer(), CharacterTokenizer(ASCII), subwords), stories):
        floor = story_floor(tiny.seen, story.text, tokenizer)
        assert len(floor.bits) == len(floor.parts) == len(tokenizer.encode(story.text)) + 1
        assert floor.bits.sum() == pytest.approx(story.bits, abs=1e-9)
        assert floor.bits.min() > -1e-9
        assert PARTS[floor.parts[-1]] == "end"
        recall = floor.bits[floor.parts == PARTS.index("recall")]
        assert len(recall) > 5
        assert abs(recall).max() < 1e-9
        assert floor.bits[floor.parts == PARTS.index("name")].sum() > 5


def test_other_texts_and_lossy_tokenizers_have_no_floor(tiny):
    with pytest.raises(ValueError, match="0 derivations"):
        story_floor(tiny.seen, "Once upon a time.", ByteTokenizer())
    with pytest.raises(UserError, match="needs a lossless tokenizer"):
        story_floor(tiny.seen, tiny.story("train", 0).text, CharacterTokenizer("abc"))


def test_the_excess_is_attributed_to_parts(tiny):
    floor = story_floor(tiny.seen, tiny.story("validation", 0).text, ByteTokenizer())
    at_name = floor.parts == PARTS.index("name")
    floors, paid, tokens = tally(floor.bits + 0.5 * at_name, floor)
    assert floors.sum() == pytest.approx(floor.bits.sum())
    assert tokens.sum() == len(floor.bits)
    excess = dict(zip(PARTS, paid - floors))
    assert excess.pop("name") == pytest.approx(at_name.sum() / 2)
    assert max(map(abs, excess.values())) < 1e-9


def test_who_holds_the_object_is_a_person_beside_it(tiny):
    """Not the same person in a sentence without an object, nor where another sentence may begin."""
    text = tiny.story("validation", 0).text
    skills = story_skills(tiny.seen, text, ByteTokenizer(), story_floor(tiny.seen, text, ByteTokenizer()))
    runs = [list(run) for _, run in itertools.groupby(range(len(text)), lambda place: skills[place])]
    holding = [text[run[0] : run[-1] + 1] for run in runs if skills[run[0]] == "who holds the object"]
    sentences = (
        "But then Tom could not find the ball.",
        '"Where is my ball?" asked Tom.',
        "At last Tim found the brown ball",
    )
    assert all(sentence in text for sentence in sentences)
    assert holding == ["Tom", "Tom", "Tim"]
    assert text.count("Tom") > 5


# The checker


def test_the_position_of_an_error_is_found(tiny):
    """An unknown word replaces each kind of word, where it is chosen and where it is repeated."""
    errors = {(tag, chosen): [] for tag in ("hero", "friend", "toy", "spot") for chosen in (True, False)}
    errors |= {("place", True): [], ("sad", True): []}
    for text in (tiny.story("train", index).text for index in range(25)):
        for span in itertools.chain(*parse(tiny.seen, text).spans):
            if (span.tag, span.chosen) in errors and text[span.start : span.end] not in PRONOUNS:
                verdict = judge(tiny.all, text[: span.start] + "Xylophone" + text[span.end :], True)
                assert (verdict.valid, verdict.prefix) == (False, span.start)
                assert marked(verdict).startswith(f"✗ {text[: span.start]}⟦{verdict.error}?⟧Xylo")
                errors[span.tag, span.chosen].append(verdict.error)
    for (tag, _), found in errors.items():
        assert found.count(tag) > 0.6 * len(found)  # at the start of a sentence, another template is as probable


def test_the_end_of_a_story(tiny):
    text = next(t for i in range(99) if (t := tiny.story("train", i).text).endswith("the truth."))
    for changed, finished, error in (
        (text, True, ""),
        (text, False, "more"),
        (text[:-1], True, "template"),
        (text[:-1], False, "more"),
        (text + " The end.", True, "end"),
        ("", True, "template"),
        ("Zebra " + text, True, "template"),
    ):
        verdict = judge(tiny.all, changed, finished)
        assert (verdict.valid, verdict.error) == (not error, error)
        if error in ("", "end"):
            assert verdict.sentences == 5 + len(tiny.seen.plots["broke"])
    first = re.match(r".*? (named|called) \w+\. ", text)[0]
    assert judge(tiny.all, first + "Xylophone", True).sentences == 1
    assert judge(tiny.all, "Xylophone", True).sentences == 0


def test_bootstrap_intervals():
    values = np.random.default_rng(0).normal(3, 1, 400)
    found = estimate(values, seed=1)
    assert found["low"] < found["mean"] < found["high"]
    assert found["mean"] == pytest.approx(values.mean())
    assert found["high"] - found["low"] == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.1)
    assert estimate(values, seed=1) == found


def test_summary(tiny):
    text = tiny.story("train", 0).text
    known = tiny.story("train", 1).text
    verdicts = [judge(tiny.all, text, True), judge(tiny.all, known, True), judge(tiny.all, "Zebra", True)]
    found = summary(verdicts, {known}, seed=0)
    assert (found["n"], found["errors"]) == (3, {"template": 1})
    means = [found[measure]["mean"] for measure in ("valid", "novel", "prefix")]
    assert means == pytest.approx([2 / 3, 1 / 3, 2 / 3])


# In a run


STORIES = "data=storyworld", "data.level=tiny", "data.stories=60", "data.validation_stories=12"
FAST = "model.context=900", "data.batch_windows=4", "budget.steps=2", "val_every_n_steps=1", "callbacks.stories.count=2"


@pytest.fixture
def run(composed, tmp_path):
    """A function that trains with overrides and returns the run folder."""

    def run(*overrides, **data):
        train(composed(*overrides, **data), run_dir=tmp_path / "run", overrides=[])
        return tmp_path / "run"

    return run


def check_excess(folder: Path, corpus: Storyworld):
    """The logged excess is that over the floor of the ten validation stories."""
    lines = list(jsonl.lines(folder / "metrics.jsonl"))
    stories = [corpus.story("validation", i * 12 // 10) for i in range(10)]
    text_bytes = sum(len(story.text) for story in stories)
    value = {key: item for line in lines if line["step"] == 2 for key, item in line.items()}
    assert value["val/floor_bits_per_byte"] == pytest.approx(sum(s.bits for s in stories) / text_bytes, rel=1e-5)
    above = (value["val/bits_per_byte"] - value["val/floor_bits_per_byte"]) * text_bytes / 10
    assert value["val/excess_bits_per_story"] == pytest.approx(above, rel=1e-4)
    assert above > 0
    assert sum(value[f"val/excess/{part}"] for part in PARTS) == pytest.approx(above, rel=1e-4)
    assert value["sample/valid_share"] == 0
    nats = sum(story.bits for story in stories) * math.log(2) / sum(len(story.text) + 1 for story in stories)
    assert loss_floor(curves.read(folder)) == pytest.approx(nats, rel=1e-4)


def test_a_run_and_its_evaluation(run, monkeypatch, capsys):
    folder = run(*FAST, "data.validation_windows=10", data=STORIES)
    corpus = corpus_of(stories=60, validation_stories=12)
    check_excess(folder, corpus)
    monkeypatch.setattr("sys.argv", ["evaluate", str(folder), "samples=4", "temperature=1"])
    capsys.readouterr()
    evaluate.main()
    found = json.loads((folder / "evaluation.json").read_text())["evaluations"][0]["stories"]
    printed = capsys.readouterr().out
    assert found["seen"]["floor"] == pytest.approx(np.mean([corpus.story("validation", i).bits for i in range(4)]))
    assert found["held_out"]["floor"] == pytest.approx(np.mean([corpus.held_out(i).bits for i in range(4)]))
    assert found["seen"]["excess"]["low"] > 0
    assert found["samples"]["T=1"]["valid"] == pytest.approx({"mean": 0, "low": 0, "high": 0.4899}, abs=1e-4)  # Wilson
    assert found["samples"]["real"]["valid"]["mean"] == found["samples"]["real"]["novel"]["mean"] == 1
    for split in ("seen", "held_out"):
        skills = found[split]["skills"].values()
        assert sum(skill["mean"] for skill in skills) == pytest.approx(found[split]["excess"]["mean"])
    assert len(found["examples"]) == 3
    assert f"floor {found['seen']['floor']:.2f}, model {found['seen']['model']:.2f}" in printed
    assert printable(found["examples"][0]) in printed
    assert found["samples"]["T=1"]["n"] == 4

    first, last = map(str, sorted((folder / "checkpoints").glob("*.ckpt")))
    monkeypatch.setattr("sys.argv", ["evaluate", first, last, "samples=4"])
    evaluate.main()
    ablation = json.loads((folder / "evaluation.json").read_text())["ablations"][0]
    saved = {row["name"]: row["saved"]["mean"] for row in ablation["where"]}
    assert {"who holds the object", "recall of hero", "choice of toy"} < set(saved)
    assert sum(saved.values()) == pytest.approx(ablation["saved"]["mean"])
    monkeypatch.setattr("sys.argv", ["evaluate", str(folder), "samples=4"])

    found["seen"]["excess"]["high"] = -0.1  # a bug, such as a model that looks ahead
    with monkeypatch.context() as patch:
        patch.setattr(stories, "measure", lambda *_: found)
        with pytest.raises(AssertionError, match="less than the entropy"):
            evaluate.main()
    monkeypatch.setattr(Storyworld, "fingerprint", lambda self: "another")
    with pytest.raises(SystemExit):
        evaluate.main()
    assert "another storyworld" in capsys.readouterr().err


def test_other_corpora_have_no_excess(run):
    with pytest.raises(UserError, match="only measured on data=storyworld"):
        run("optimized_metric=val/excess_bits_per_story")


def test_a_context_shorter_than_a_story_is_named(run, tmp_path):
    """tests/test_mistakes.py has the impossible values."""
    with pytest.raises(UserError, match=r"have up to \d+ tokens, more than model.context=300; give model.context=\d+"):
        run(*FAST, "model.context=300", data=STORIES)
    assert not list(tmp_path.glob("run/checkpoints/*"))


def test_an_epoch_is_every_story_once_also_if_stories_are_truncated(run):
    settings = "model.context=300", "data.stories=24", "data.batch_windows=4", "budget.steps=null", "budget.epochs=2"
    found = run_folder.read_run_json(run(*settings, "callbacks.stories=null", data=STORIES))
    assert (found["status"], found["steps"]) == ("done", 2 * 24 / 4)


def test_nats_of_stories_equal_those_of_single_stories(tiny):
    """Without a batch, and so without padding."""
    model = model_of(vocab_size=257, context=900).eval()
    tokenizer = ByteTokenizer()
    texts = [tiny.story("train", i).text for i in range(3)]
    windows = [[tokenizer.eos, *tokenizer.encode(text), tokenizer.eos] for text in texts]
    for ids, nats in zip(map(torch.tensor, windows), window_nats(model, padded(windows))):
        with torch.no_grad():
            log = model(ids[None, :-1]).log_softmax(-1)[0].gather(1, ids[1:, None])
        assert nats[: len(ids) - 1].numpy() == pytest.approx(-log[:, 0].numpy(), abs=1e-4)
