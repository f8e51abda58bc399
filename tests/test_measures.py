"""Measures mean what their names say: lost and unread text gives a warning, counts are exact, sums are wide."""

import math
import re

import numpy as np
import pytest
import torch
from conftest import mistake
from test_data import Stories
from test_model import model_of
from test_tokenizers import of_another_project

from slm.data.store import prepare
from slm.data.windows import split_windows
from slm.files import jsonl
from slm.generation.text_loss import text_loss
from slm.loss import IGNORE, text_sizes
from slm.model import GPT, GPTConfig
from slm.run.plan import plan_of
from slm.run.prepare import Job, prepare_job
from slm.run.train import choose_hardware
from slm.tokenizers import lost_bytes, pieces, text_lengths
from slm.tokenizers.bytes import ByteTokenizer
from slm.tokenizers.characters import CharacterTokenizer
from slm.training.module import LanguageModelMetrics, Pretraining

GERMAN = "Süße Bären über größeren Flößen"  # 31 characters, of which 8 have two bytes
CHINESE = "从前有一只小猫，它很快乐。"  # 13 characters of three bytes
QUIET = ("callbacks.samples=null",)


class Lowercase(ByteTokenizer):
    """A user's tokenizer that changes the text."""

    def encode(self, text):
        return super().encode(text.lower())

    def encode_batch(self, texts):
        return super().encode_batch([text.lower() for text in texts])


class Words(ByteTokenizer):
    """A user's tokenizer that drops spaces at the ends and keeps one between words."""

    def encode_batch(self, texts):
        return super().encode_batch([" ".join(text.split()) for text in texts])


class Prefixed(ByteTokenizer):
    """A user's tokenizer that adds a space, and so loses no character."""

    def encode_batch(self, texts):
        return super().encode_batch([" " + text for text in texts])


@pytest.mark.parametrize(
    ("tokenizer", "texts", "lost"),
    [
        (CharacterTokenizer.build((), alphabet="ascii"), [GERMAN, "plain"], 16),
        (CharacterTokenizer.build((), alphabet="ascii"), [CHINESE, CHINESE], 2 * 39),
        (CharacterTokenizer.build([CHINESE], alphabet="corpus"), [CHINESE, CHINESE + "猫狗"], 3),
        (CharacterTokenizer.build((), alphabet="ascii"), ["NUL \0, \r\n and \x1b", ""], 3),
        (ByteTokenizer(), [GERMAN, CHINESE, "\0\r\n\ufffd", ""], 0),
        (Lowercase(), ["One Two", "three"], 2),
        (Words(), ["  one  two \n", "three four"], 5),
        (Prefixed(), ["one", "two"], 0),  # adds a space, loses nothing
    ],
)
def test_lost_bytes_are_those_of_the_characters_that_ids_do_not_restore(tokenizer, texts, lost):
    assert lost_bytes(pieces(tokenizer), texts, tokenizer.encode_batch(texts)) == lost


def write(path, documents) -> str:
    path.write_text("\n<|endoftext|>\n".join(documents), encoding="utf-8")
    return f"data.path={path}"


def prepared(config, folder) -> Job:
    return prepare_job(config, folder, *choose_hardware(config))


@pytest.mark.parametrize(
    ("text", "tokenizer", "expected"),
    [
        (GERMAN, ["tokenizer=characters"], "=characters loses 41 % of the train text and 41 % of the validation"),
        (CHINESE, ["tokenizer=characters"], "=characters loses 100 % of the train text and 100 %"),
        ("Once A B", ["tokenizer._target_=test_measures.Lowercase.build"], "=test_measures loses 37.5 % of the train"),
    ],
)
def test_a_run_on_lost_text_says_so_at_every_start_and_has_no_bits_per_byte(
    composed, run, tmp_path, capsys, text, tokenizer, expected
):
    settings = [write(tmp_path / "text.txt", [text] * 100), *tokenizer, *QUIET, "model.context=8", "budget.steps=1"]
    stop = "+callbacks.stop._target_=lightning.pytorch.callbacks.EarlyStopping"
    for asked in (["optimized_metric=val/bits_per_byte"], [stop, "+callbacks.stop.monitor=val/text_bits_per_byte"]):
        with mistake(f"bits_per_byte has no meaning: tokenizer{expected}"):
            prepared(composed(*settings, *asked), tmp_path)
    prepared(composed(*settings), tmp_path)
    lines = list(jsonl.lines(run(*settings) / "metrics.jsonl"))  # its store is in the cache
    assert any("val/loss" in line for line in lines)
    assert not any("per_byte" in key for line in lines for key in line)
    output = capsys.readouterr()
    assert output.err.count(f"warning: tokenizer{expected}") == output.err.count("tokenizer=bytes") == 2
    assert "bits per byte" not in output.out


def test_text_lost_in_train_alone_leaves_the_measures(composed, tmp_path, capsys):
    path = write(tmp_path / "text.txt", ["größer"] * 10 + ["bigger"] * 90)
    prepared(composed(path, "tokenizer=characters", "optimized_metric=val/bits_per_byte", "model.context=8"), tmp_path)
    assert "loses 6.78 % of the train text (" in (error := capsys.readouterr().err)
    assert "no bits per byte" not in error


@pytest.mark.parametrize(
    ("documents", "settings", "expected"),
    [
        (["x" * 99] * 20, ["data.layout=documents"], "36 % of the train tokens are never read: 19 of 19 documents are"),
        (
            ["x"] * 18 + ["x" * 499, "x"],
            ["data.layout=documents"],
            r"81.* 1 of 19 .* \(model.context=512 would cut none\)",
        ),
        (["x" * 63] * 20, ["data.layout=documents"], None),
        (["x" * 99] * 20, ["data.train_windows=2"], "93.* data.train_windows=2 leaves out 27 of 29 windows"),
        (["x" * 9] * 12 + ["y" * 99], [], r"46\.7 % .* the last ones do not fill a window of model.context=64"),
        (["x" * 640] * 20, [], None),
    ],
)
def test_the_share_of_tokens_that_are_never_read_is_in_a_warning(
    composed, tmp_path, capsys, documents, settings, expected
):
    path = write(tmp_path / "text.txt", documents)
    job = prepared(composed(path, *settings), tmp_path)
    lines = [line for line in capsys.readouterr().err.splitlines() if "train tokens are never read" in line]
    if expected is None:
        assert lines == []
    else:
        assert len(lines) == 1
        assert re.search(expected, lines[0])
    assert job.splits.targets_per_window <= 64


@pytest.mark.parametrize(
    ("settings", "share"),
    [
        (["budget.steps=40"], "96.2 %"),
        (["budget.epochs=8"], "99.1 %"),
        (["budget.steps=40", "+callbacks.ema.update_every_n_steps=10"], "99.7 %"),
        (["budget.steps=1000", "+callbacks.ema.update_starting_at_step=990"], "99.1 %"),
        (["budget.steps=40", "callbacks.ema.decay=0.875"], None),
        (["budget.steps=4000"], None),
    ],
)
def test_an_average_that_is_mostly_the_first_weights_is_in_a_warning(composed, tmp_path, settings, share):
    data = [write(tmp_path / "text.txt", ["x" * 69] * 20), "data.batch_windows=16", "callbacks=ema"]
    plan = plan_of(prepared(composed(*data, *settings), tmp_path))
    warnings = [line for line in plan.warnings if line and "averaged weights" in line]
    assert [line.partition(" of the")[0] for line in warnings] == [share] * (share is not None)


def test_seeds_share_one_tokenizer_and_one_store(composed, tmp_path):
    settings = "tokenizer=sentencepiece", "tokenizer.vocab_size=300"
    jobs = [prepared(composed(*settings, f"seed={seed}"), tmp_path) for seed in (0, 1, 42)]
    assert len({job.store.folder for job in jobs}) == 1


def test_bits_per_byte_with_and_without_the_ends_of_documents():
    rng, metrics = np.random.default_rng(0), LanguageModelMetrics()
    lengths = torch.tensor([[0, 1, 2, 3]] * 2)  # id 0 ends documents
    batches = [(rng.random((3, 5)), rng.integers(-1, 4, (3, 5))) for _ in range(4)]
    for nats, ids in batches:
        windows = torch.tensor(np.where(ids < 0, IGNORE, ids)[:, [0, *range(5)]])  # inputs do not matter
        metrics.update(torch.tensor(np.where(ids < 0, 0, nats), dtype=torch.float32), windows, lengths)
    nats, ids = (np.concatenate([batch[i].ravel() for batch in batches]) for i in (0, 1))
    text_bytes = ids[ids >= 0].sum()  # the length of an id is the id
    values = {key: value.item() for key, value in metrics.compute().items()}
    assert values["loss"] == pytest.approx(nats[ids >= 0].mean())
    assert values["bits_per_byte"] == pytest.approx(nats[ids >= 0].sum() / math.log(2) / text_bytes)
    assert values["text_bits_per_byte"] == pytest.approx(nats[ids > 0].sum() / math.log(2) / text_bytes)


class SpaceAdder(Prefixed):
    """As the tokenizers of Llama 2 do."""

    adds_space = True

    def encode(self, text):
        return super().encode(" " + text)


@pytest.mark.parametrize("kind", ["plain", "a piece of its own", "joined"])
def test_bits_per_byte_divide_by_the_bytes_of_the_text_whatever_the_tokenizer(kind, tmp_path):
    """In each layout's windows, and by evaluate; also where the tokenizer adds a space before each text."""
    documents = ["One.", "Zwei größere Bären", "a", "  two spaces", "从前 end"]
    joined = of_another_project(tmp_path, add_dummy_prefix=True) if kind == "joined" else None
    tokenizer = joined or (SpaceAdder() if kind != "plain" else ByteTokenizer())
    size, tokens = len("".join(documents).encode()), tokenizer.encode_batch(documents)
    store = prepare(Stories(documents, documents), tokenizer, tmp_path)
    assert store.manifest["splits"]["validation"]["bytes"] == size
    assert not store.manifest["splits"]["validation"]["lost_bytes"]
    lengths = torch.from_numpy(text_lengths(tokenizer))
    for layout in ("documents", "aligned"):
        windows = split_windows(store, tokenizer.eos, context=100, layout=layout).validation
        sizes, is_text = text_sizes(windows.__getitems__([*range(len(windows))]), lengths)
        assert sizes.sum() == size
        assert is_text.sum() == sum(map(len, tokens))
    unread = tokens[0][0]  # of packed windows, which have no id before the first document
    context = store.tokens("validation") - 1
    sizes, is_text = text_sizes(split_windows(store, tokenizer.eos, context=context).validation[0][None], lengths)
    assert sizes.sum() == size - (1 if kind == "plain" else len(tokenizer.token_bytes(unread)) - 1)
    model = model_of(vocab_size=tokenizer.vocab_size, context=100, document_start=None)
    loss = text_loss(model, tokenizer, documents, "documents")
    assert loss.bytes == size
    assert loss.bits_per_byte == pytest.approx(loss.nats * loss.tokens / math.log(2) / size)


def test_train_tokens_count_the_targets_of_all_steps_also_over_a_resumption(run, text_file, capsys):
    """Documents of several lengths, some cut; several epochs; microbatches of another size after the resumption."""
    settings = [
        "data.layout=documents",
        "model.context=235",
        "log_windows=true",
        "log_every_n_steps=1",
        *QUIET,
        "data.train_windows=7",
    ]
    for steps, microbatch in ((4, 4), (9, 2)):
        folder = run(*settings, f"budget.steps={steps}", f"trainer.microbatch={microbatch}")
    lines = list(jsonl.lines(folder / "metrics.jsonl"))
    logged = {line["step"]: line["train/tokens"] for line in lines if "train/tokens" in line}
    documents = text_file.read_text().split("\n<|endoftext|>\n")
    documents = [documents[index * 190 // 7] for index in range(7)]
    total, expected = 0, {}
    for line in jsonl.lines(folder / "windows.jsonl"):
        total += sum(min(len(documents[index]) + 1, 235) for index in line["windows"])
        expected[line["step"]] = total
    assert len(expected) == 9
    assert logged == expected
    assert re.findall(r", (\S+) epochs", capsys.readouterr().out) == [f"{steps * 4 / 7:.2f}" for steps in (4, 9)]


def test_sums_are_as_wide_in_16_bits_as_in_32(run):
    """Odd counts above 256, which a 16-bit type would round, and thousands of summands."""
    small = ["data.layout=documents", "model.context=320", "data.batch_windows=15", "trainer.microbatch=5"]
    small += ["optimizer.lr=1e-9", "val_every_n_steps=2", "budget.steps=2", "data.validation_windows=null", *QUIET]
    narrow, wide = (
        {
            k: v
            for line in jsonl.lines(run(*small, f"trainer.precision={p}", folder=p) / "metrics.jsonl")
            for k, v in line.items()
        }
        for p in ("bf16-true", "32-true")
    )
    for key in ("train/loss", "val/loss", "val/bits_per_byte", "val/text_bits_per_byte"):
        assert narrow[key] == pytest.approx(wide[key], rel=3e-4), key
    assert narrow["train/tokens"] == wide["train/tokens"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sums_of_metrics_and_norms_in_a_16_bit_type(dtype):
    sizes = {"vocab_size": 8, "context": 8, "depth": 1, "width": 8, "head_dim": 8, "bias": False, "tied": True}
    config = GPTConfig(**sizes, positions="rope", norm="rmsnorm", mlp="gelu")
    module = Pretraining(GPT(config), optimizer=torch.optim.SGD).to(dtype)
    for parameter in module.parameters():
        parameter.grad = torch.full_like(parameter, 5e4)
    elements = sum(parameter.numel() for parameter in module.parameters())
    grad = torch.tensor(5e4, dtype=dtype).item()
    assert module.gradient_norm().item() == pytest.approx(grad * math.sqrt(elements), rel=1e-5)
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        for _ in range(1000):
            windows, lengths = torch.ones(2, 9, dtype=torch.long), torch.tensor([[0, 1]] * 2)
            module.validation.update(torch.full((2, 8), 5.5), windows, lengths)
        assert module.validation.compute()["loss"].item() == 5.5
    finally:
        torch.set_default_dtype(default)
