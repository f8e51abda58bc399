"""The contract of all tokenizers, then tests of each kind.

They use the real SentencePiece and tiktoken, and GPT-2's original files if they exist beside the checkout.
"""

import base64
import dataclasses
import hashlib
import io
import json
import random
import re
import shutil
import time
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from conftest import mistake

from slm import tokenizers
from slm.errors import UserError
from slm.tokenizers import sentencepiece as sentencepiece_module
from slm.tokenizers import tiktoken as tiktoken_module
from slm.tokenizers import words
from slm.tokenizers.bpe import BPETokenizer
from slm.tokenizers.bytes import ByteTokenizer
from slm.tokenizers.characters import CharacterTokenizer
from slm.tokenizers.gpt2 import GPT2Tokenizer
from slm.tokenizers.sample import sample
from slm.tokenizers.sentencepiece import SentencePieceTokenizer
from slm.tokenizers.sentencepiece_model import SentencePieceModel
from slm.tokenizers.tiktoken import TiktokenTokenizer

GPT2_FILES = Path(__file__).parents[2] / "shared" / "data" / "gpt2"

WORDS = "once upon a time there was little girl who lived in the big red house and played with her dog"
ADVERSARIAL = [
    *("", " ", "   three before, two after  ", "tab\tnewline\nCRLF\r\nCR\r", "\n\n\n", "NUL \0 and \0\0", "x" * 5000),
    *("▁", "▁▁ a▁b ▁ c▁", "reserved by SentencePiece ▅▅", "<s></s><unk><pad> </s> <0x41> <|endoftext|> <PAD><UNK>"),
    *("😀 👩‍👩‍👧 e\u0301 é Z\u0351\u036b\u0343", "itâ€™s mojibake \ufffd \ufeff BOM"),
    *("漢字かな العربية \U0010ffff \x7f\x80", "no-break\u00a0 ideographic\u3000 zero\u200bwidth \u2028"),
]


def seeded_documents(number: int, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS.split(), k=rng.randrange(5, 40))).capitalize() + ".\n" for _ in range(number)]


def random_unicode(number: int, seed: int = 0) -> list[str]:
    """Strings of all Unicode characters except surrogates, with many spaces and U+2581."""
    rng = random.Random(seed)

    def character() -> str:
        code = rng.choice([rng.randrange(128), rng.randrange(0x3000), rng.randrange(0x110000), 0x20, 0x2581])
        return "?" if 0xD800 <= code < 0xE000 else chr(code)

    return ["".join(character() for _ in range(rng.randrange(40))) for _ in range(number)]


TEXTS = ADVERSARIAL + random_unicode(300) + seeded_documents(5, seed=9)


def sentencepiece_tokenizer(documents=None, **changes) -> SentencePieceTokenizer:
    settings = {"vocab_size": 320, "algorithm": "bpe", "sample_documents": 100, "seed": 0} | changes
    return SentencePieceTokenizer.build(seeded_documents(200) if documents is None else documents, **settings)


@pytest.fixture
def gpt2_cache(tmp_path, monkeypatch) -> Path:
    """An empty cache of tiktoken, without network."""
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "cache"))
    for name in ("https_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # the discard port, where no server listens
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "cache"


def fill(cache: Path) -> None:
    """Copies the original files to the file names of tiktoken."""
    if not GPT2_FILES.is_dir():
        pytest.skip(f"GPT-2's original files are not in {GPT2_FILES}")
    cache.mkdir()
    for file in ("vocab.bpe", "encoder.json"):
        url = f"https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/{file}"
        shutil.copyfile(GPT2_FILES / file, cache / hashlib.sha1(url.encode()).hexdigest())


def bpe_tokenizer(documents=None, **changes) -> BPETokenizer:
    settings = {"vocab_size": 320, "pattern": "gpt4", "sample_documents": 100, "seed": 0} | changes
    return BPETokenizer.build(seeded_documents(200) if documents is None else documents, **settings)


LOSSLESS = {  # the tokenizers that must restore every text
    "bpe": sentencepiece_tokenizer,
    "unigram": lambda: sentencepiece_tokenizer(algorithm="unigram"),
    "our bpe": bpe_tokenizer,
    "our bpe with GPT-2's words": lambda: bpe_tokenizer(pattern="gpt2"),
    "bytes": lambda: ByteTokenizer.build(()),
    "corpus characters": lambda: CharacterTokenizer.build(TEXTS, alphabet="corpus"),
    "gpt2": lambda: GPT2Tokenizer.build(()),
}
ALL = LOSSLESS | {"ascii characters": lambda: CharacterTokenizer.build((), alphabet="ascii")}


@pytest.fixture(params=ALL)
def tokenizer(request, gpt2_cache) -> tokenizers.Tokenizer:
    if request.param == "gpt2":
        fill(gpt2_cache)
    return ALL[request.param]()


# The contract of all tokenizers.


@pytest.mark.parametrize("tokenizer", LOSSLESS, indirect=True)
def test_decode_and_token_bytes_restore_every_text_and_no_text_has_control_ids(tokenizer):
    controls = {token for token in range(tokenizer.vocab_size) if tokenizer.token_bytes(token) == b""}
    assert tokenizer.eos in controls
    for text in TEXTS:
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert b"".join(map(tokenizer.token_bytes, ids)) == text.encode()
        assert controls.isdisjoint(ids)


def test_batches_are_arrays_of_ids_in_the_vocabulary(tokenizer):
    batch = tokenizer.encode_batch(TEXTS)
    assert [ids.tolist() for ids in batch] == [tokenizer.encode(text) for text in TEXTS]
    assert all(isinstance(ids, np.ndarray) and ids.dtype == np.int32 for ids in batch)
    assert tokenizer.encode_batch([]) == []
    assert all(isinstance(tokenizer.token_bytes(token), bytes) for token in range(tokenizer.vocab_size))
    with pytest.raises((IndexError, ValueError)):
        tokenizer.token_bytes(tokenizer.vocab_size)
    assert np.concatenate(batch).max() < tokenizer.vocab_size
    assert tokenizer.decode(tokenizer.encode_batch(["Once upon a time"])[0]) == "Once upon a time"
    assert tokenizer.decode([]) == tokenizer.decode([tokenizer.eos]) == ""


def test_load_is_the_inverse_of_save(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "one")
    loaded = tokenizers.load(tmp_path / "one")
    loaded.save(tmp_path / "two")
    assert type(loaded) is type(tokenizer)
    assert (loaded.vocab_size, loaded.eos) == (tokenizer.vocab_size, tokenizer.eos)
    assert [loaded.encode(text) for text in TEXTS] == [tokenizer.encode(text) for text in TEXTS]
    assert all(loaded.token_bytes(token) == tokenizer.token_bytes(token) for token in range(tokenizer.vocab_size))
    one, two = ({file.name: file.read_bytes() for file in (tmp_path / name).iterdir()} for name in ("one", "two"))
    assert one == two


def test_missing_damaged_and_unknown_tokenizers(tmp_path):
    for content, message, kind in (
        (None, "is missing or damaged", tokenizers.Damaged),
        *((content, "is missing or damaged", tokenizers.Damaged) for content in ("", "[]", "{", "[" * 100_000)),
        ("{}", "of kind None, not sentencepiece, .*; give its own class", tokenizers.UnknownKind),
        ('{"kind": "os:system"}', "of kind 'os:system', not sentencepiece", tokenizers.UnknownKind),
        ('{"kind": []}', r"of kind \[\], not sentencepiece", tokenizers.UnknownKind),
    ):
        if content is not None:
            (tmp_path / "tokenizer.json").write_text(content)
        with mistake(f"{re.escape(str(tmp_path))}.*{message}") as error:
            tokenizers.load(tmp_path)
        assert type(error.value) is kind


def foreign_model(**options) -> bytes:
    """A model of SentencePiece trained with other options than LOSSLESS."""
    model, settings = io.BytesIO(), sentencepiece_module.LOSSLESS | {"vocab_size": 320, "num_threads": 1} | options
    documents = iter(seeded_documents(200))
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=documents, model_writer=model, **settings)
    return model.getvalue()


BAD_PIECE = "a piece that is not UTF-8"
MALFORMED_MODELS = {
    "ids of the library": lambda: foreign_model(pad_id=-1, unk_id=0, bos_id=1, eos_id=2),
    "no eos": lambda: foreign_model(eos_id=-1),
    "no bytes": lambda: foreign_model(byte_fallback=False, vocab_size=60),
    "a normalization": lambda: foreign_model(normalization_rule_name="nmt_nfkc_cf"),
    "spaces removed": lambda: foreign_model(remove_extra_whitespaces=True),
    "a space added": lambda: foreign_model(add_dummy_prefix=True),
    BAD_PIECE: lambda: foreign_model().replace(b"<0x41>", b"\xff\xfe\xed\xa0\x80."),
    "a piece under another's name": lambda: foreign_model().replace(b"<0x41>", b"<0x42>"),
    "nothing": lambda: b"",
    "no model": lambda: b"\x0a\xff\xff\xff\xff\x0f",
}


@pytest.mark.parametrize("name", MALFORMED_MODELS)
def test_a_foreign_model_that_is_not_one_of_build_is_damaged(name, tmp_path, capfd):
    model = MALFORMED_MODELS[name]()
    settings = {"kind": "sentencepiece", "algorithm": "bpe", "sha256": hashlib.sha256(model).hexdigest()}
    tokenizers.write_settings(tmp_path, settings)
    (tmp_path / "sentencepiece.model").write_bytes(model)
    with mistake("is missing or damaged") as error:
        tokenizers.load(tmp_path)
    assert type(error.value) is tokenizers.Damaged
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "content",
    [
        *(json.dumps({"kind": kind, "sha256": "0"}) for kind in ("sentencepiece", "gpt2", "characters")),
        *(json.dumps({"kind": "sentencepiece", "algorithm": value}) for value in (None, [], {}, "word", 1e300)),
        *(
            json.dumps({"kind": "characters", "characters": value})
            for value in (0, {}, True, "", ["a", "b"], "a\udcffb")
        ),
        *('{"kind": "characters", "characters": ' + text for text in ("1" * 5000 + "}", "NaN}", "[" * 10**5, '"\\ud8')),
        *('{"kind": "bytes"}'.encode(encoding) for encoding in ("utf-32-be", "utf-16-le", "cp037")),
        b'{"kind": "bytes", "\xff": 1}',
        '{"kind": "' + "x" * 10**6 + '"}',
    ],
)
def test_malformed_settings_are_damaged(content, tmp_path):
    """Or read as JSON allows it: UTF-16 and UTF-32 are JSON, too."""
    sentencepiece_tokenizer().save(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    if isinstance(content, bytes) and content.replace(b"\0", b"") == b'{"kind": "bytes"}':
        assert tokenizers.load(tmp_path).encode("a") == [97]
        return
    with mistake() as error:
        tokenizers.load(tmp_path)
    assert isinstance(error.value, tokenizers.Damaged)
    assert len(str(error.value)) < 500


# SentencePiece.


@pytest.mark.parametrize("algorithm", ["bpe", "unigram"])
def test_sentencepiece_is_a_function_of_the_seed(algorithm):
    first, again, other = (sentencepiece_tokenizer(algorithm=algorithm, sample_documents=50, seed=s) for s in (0, 0, 1))
    assert first.model == again.model != other.model


def test_documents_are_read_lazily():
    read = []
    stream = (read.append(number) or f"document {number}" for number in range(1000))
    sentencepiece_tokenizer(stream, vocab_size=280, sample_documents=10)
    assert read == list(range(40))


def test_a_sample_is_uniform():
    hits = np.zeros(20)
    for seed in range(4000):
        hits[sample(range(20), 5, seed)] += 1
    assert np.abs(hits / 4000 - 5 / 20).max() < 0.03  # 4.4 standard deviations
    assert sample("abc", 5, seed=0) == ["a", "b", "c"]


def test_no_document_is_dropped():
    """The defaults of SentencePiece skip long documents and those with U+2585."""
    long = "word " * 3000
    tokenizer = sentencepiece_tokenizer([long + "ж", "щ ▅"], vocab_size=270)
    assert len(tokenizer.encode("ж")) == len(tokenizer.encode("щ")) == 1


@pytest.mark.parametrize("text", ["a" * 3000 + " b", "xy\n" * 3000, "\u8a9e\u6587" * 3000 + "\u2585" + "c" * 700])
def test_words_that_are_too_long_for_the_library_are_cut_for_training(text, monkeypatch):
    seen, train = [], sentencepiece_module.train
    monkeypatch.setattr(sentencepiece_module, "train", lambda parts, *rest: seen.extend(parts) or train(parts, *rest))
    tokenizer = sentencepiece_tokenizer([text, "d"], vocab_size=265, algorithm="unigram")
    assert max(len(word) for part in seen for word in part.split(" ")) == 512
    assert "".join(seen) == text.replace("\u2585", " ") + "d"
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("algorithm", ["bpe", "unigram"])
@pytest.mark.parametrize(
    ("text", "vocab_size"), [("\u5c0f\u732b\uff0c\u5b83\u5f88\u5feb\u4e50\u3002\n", 270), ("a\tb\n", 265), ("aab", 263)]
)
def test_a_corpus_without_a_space_does_not_lose_those_of_other_texts(text, vocab_size, algorithm, tmp_path):
    sentencepiece_tokenizer([text * 9], vocab_size=vocab_size, algorithm=algorithm).save(tmp_path)
    tokenizer = tokenizers.load(tmp_path)
    for other in (text, " ", "a  b \u2581 "):
        assert tokenizer.decode(tokenizer.encode(other)) == other


@pytest.mark.slow
def test_unigram_on_a_long_document_without_spaces():
    """Uncut, the library fails: its sums over so long a word are not finite."""
    text = "".join(random.Random(0).choices("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdef0123456789+/", k=550_000))
    tokenizer = sentencepiece_tokenizer([text], vocab_size=400, algorithm="unigram")
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("algorithm", ["bpe", "unigram"])
def test_what_the_library_cannot_train_on_is_a_mistake_of_one_line(algorithm, capfd):
    for documents, vocab_size, problem in (
        (["\n" * 99], 262, "contain no text"),
        (["\0\0"], 262, "contain no text"),
        (["a" * 99], 300, "too large for these documents"),
        (["a b c"], 2**31, f"cannot learn tokenizer.algorithm={algorithm} tokenizer.vocab_size=2147483648"),
        (["a\ud800b"], 262, "cannot learn .*; try another of these two, or tokenizer=bytes"),
    ):
        with mistake(problem):
            sentencepiece_tokenizer(documents, vocab_size=vocab_size, algorithm=algorithm)
    assert capfd.readouterr() == ("", "")


def test_word_by_word_encoding_equals_the_library(monkeypatch):
    """Also when the cache is emptied between batches."""
    tokenizer = sentencepiece_tokenizer()
    texts = [*TEXTS, *seeded_documents(50, seed=4), "word", " word", "  word", "word ", "a\n b\n\n  c", ""]
    texts = [text for text in texts if sentencepiece_module.SPACE not in text]  # a space for the library
    expected = tokenizer._processor.encode(texts)
    for limit in (2**17, 3):
        monkeypatch.setattr(words, "MAX_WORDS", limit)
        for size in (1, 7, len(texts)):
            batches = [tokenizer.encode_batch(texts[start : start + size]) for start in range(0, len(texts), size)]
            assert [ids.tolist() for batch in batches for ids in batch] == expected
    tokenizer.encode_batch(["one two three four five"])
    assert len(tokenizer._words.cache) == 5


@pytest.mark.parametrize("algorithm", ["bpe", "unigram"])
def test_chunks_do_not_change_the_ids(algorithm, monkeypatch):
    tokenizer = sentencepiece_tokenizer(algorithm=algorithm)
    texts = [" ".join(seeded_documents(20, seed=3)), "a  b ▁ \n c " * 50, "", " "]
    expected = [tokenizer.encode(text) for text in texts]
    monkeypatch.setattr(sentencepiece_module, "CHUNK_CHARACTERS", 16)
    assert max(map(len, sentencepiece_module.chunks(texts[0]))) <= 32
    assert [tokenizer.encode(text) for text in texts] == expected
    assert [ids.tolist() for ids in tokenizer.encode_batch(texts)] == expected
    solid = "abcdefgh" * 100  # without space
    assert [len(chunk) for chunk in sentencepiece_module.chunks(solid)] == [32] * 25
    assert tokenizer.decode(tokenizer.encode(solid)) == solid


@pytest.mark.parametrize("algorithm", ["bpe", "unigram"])
def test_control_tokens_in_the_corpus_stay_text(algorithm):
    text = "<0x41> </s> <s> <unk> <pad>"
    tokenizer = sentencepiece_tokenizer([text * 50 + " ".join(text)], vocab_size=275, algorithm=algorithm)
    ids = tokenizer.encode(text)
    assert min(ids) > 3
    assert 4 + 0x41 not in ids
    assert tokenizer.decode(ids) == text


@pytest.mark.parametrize("algorithm", ["bpe", "unigram"])
def test_a_vocabulary_that_is_too_large_names_the_largest(algorithm):
    with mistake(r"vocab_size=9999 .* use tokenizer\.vocab_size=(\d+) or less") as error:
        sentencepiece_tokenizer(vocab_size=9999, algorithm=algorithm)
    largest = int(re.search(r"use tokenizer\.vocab_size=(\d+)", str(error.value))[1])
    assert sentencepiece_tokenizer(vocab_size=largest, algorithm=algorithm).vocab_size == largest
    with mistake("too large for these documents"):
        sentencepiece_tokenizer(vocab_size=largest + 1, algorithm=algorithm)


def test_a_vocabulary_that_is_too_small_names_the_smallest():
    for vocab_size in (-1, 3, 260, 265):
        with mistake(f"vocab_size={vocab_size} is too small") as error:
            sentencepiece_tokenizer(vocab_size=vocab_size)
    smallest = int(re.search(r"use tokenizer\.vocab_size=(\d+) or more", str(error.value))[1])
    assert sentencepiece_tokenizer(vocab_size=smallest).vocab_size == smallest


def test_wrong_settings_and_documents_without_text():
    for documents in ([], [""], ["\0"]):
        with pytest.raises(UserError, match="contain no text"):
            sentencepiece_tokenizer(documents)
    for name, value in {"algorithm": "word", "sample_documents": 0}.items():
        with pytest.raises(UserError, match=f"tokenizer.{name}={value}: must be"):
            sentencepiece_tokenizer(**{name: value})
    for alphabet, problem in {"corpus": " found no character", "latin": ": must be"}.items():
        with pytest.raises(UserError, match=f"tokenizer.alphabet={alphabet}{problem}"):
            CharacterTokenizer.build([""], alphabet=alphabet)


def test_sentencepiece_prints_nothing_and_leaves_no_file(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    sentencepiece_tokenizer()
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")


def test_saved_settings_and_damaged_models(tmp_path, capfd):
    sentencepiece_tokenizer(seed=5).save(tmp_path)
    path = tmp_path / "sentencepiece.model"
    model = path.read_bytes()
    settings = {"vocab_size": 320, "algorithm": "bpe", "sample_documents": 100, "seed": 5}
    expected = {"kind": "sentencepiece", **settings, "sha256": hashlib.sha256(model).hexdigest()}
    assert tokenizers.read_settings(tmp_path) == expected
    flipped = model[:1000] + bytes([model[1000] ^ 1]) + model[1001:]
    for damage in (lambda: path.write_bytes(flipped), lambda: path.write_bytes(model[:1000]), path.unlink):
        damage()
        with mistake(r"sentencepiece\.model is missing or damaged"):
            tokenizers.load(tmp_path)
    assert capfd.readouterr() == ("", "")


def of_another_project(tmp_path, **options) -> SentencePieceModel:
    """The tokenizer of a model file that was trained with other options than LOSSLESS."""
    (tmp_path / "other.model").write_bytes(foreign_model(**options))
    return sentencepiece_tokenizer((), path=str(tmp_path / "other.model"))


LIBRARY = {"pad_id": -1, "unk_id": 0, "bos_id": 1, "eos_id": 2, "byte_fallback": False, "add_dummy_prefix": True}
FOREIGN = {
    "as llama": (
        {**LIBRARY, "byte_fallback": True},
        2,
        "puts a space before each text; other characters are written as",
    ),
    "defaults of the library": (
        {**LIBRARY, "vocab_size": 60, "normalization_rule_name": "nmt_nfkc", "remove_extra_whitespaces": True},
        *(2, r"replaces compatibility characters \(NFKC\), joins .*, puts a space .*; other characters are lost"),
    ),
    "lower case": ({"normalization_rule_name": "nmt_nfkc_cf"}, 3, "lower-cases"),
    "no eos": ({"eos_id": -1}, 320, "normalization changes nothing"),
    "unigram": ({"model_type": "unigram"}, 3, "changes nothing"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_model_of_another_project_has_its_own_ids(name, tmp_path, capsys):
    options, eos, printed = FOREIGN[name]
    tokenizer = of_another_project(tmp_path, **options)
    line = capsys.readouterr().out
    assert re.search(rf"other\.model: {tokenizer.vocab_size} ids, eos {eos}; .*{printed}", line), line
    model = (tmp_path / "other.model").read_bytes()
    library = sentencepiece.SentencePieceProcessor(model_proto=model)
    assert [tokenizer.encode(text) for text in TEXTS] == library.encode(TEXTS)
    assert [ids.tolist() for ids in tokenizer.encode_batch(TEXTS)] == library.encode(TEXTS)
    controls = {token for token in range(tokenizer.vocab_size) if tokenizer.token_bytes(token) == b""}
    assert tokenizer.eos == eos
    assert eos in controls
    assert all(controls.isdisjoint(tokenizer.encode(text)) for text in TEXTS)
    known = "once upon a time"
    arrays = tokenizer.encode_batch([known])
    assert tokenizer.decode(arrays[0]) == known
    assert tokenizers.lost_bytes(tokenizers.pieces(tokenizer), [known], arrays) == 0
    tokenizer.save(tmp_path / "saved")
    loaded = tokenizers.load(tmp_path / "saved")
    assert (loaded.encode(known), loaded.eos, loaded.vocab_size) == (tokenizer.encode(known), eos, tokenizer.vocab_size)


def test_what_a_model_of_another_project_loses_is_counted(tmp_path):
    tokenizer = of_another_project(tmp_path, **FOREIGN["defaults of the library"][0])
    pieces = tokenizers.pieces(tokenizer)
    for text, lost in (("a  dog", 1), ("a dog \u6f22", 3), ("a dog", 0)):
        assert tokenizers.lost_bytes(pieces, [text], tokenizer.encode_batch([text])) == lost


def test_other_files_are_no_models(tmp_path, capfd):
    path = tmp_path / "a.model"
    for content in (b"", b"\x0a\xff\xff\xff\xff\x0f", b"text", foreign_model()[:-100], MALFORMED_MODELS[BAD_PIECE]()):
        path.write_bytes(content)
        with mistake("is no model of SentencePiece; give a .model file"):
            sentencepiece_tokenizer((), path=str(path))
    for missing in (str(tmp_path), "nowhere.model"):
        with mistake("is not a file; give a .model file of SentencePiece"):
            sentencepiece_tokenizer((), path=missing)
    assert capfd.readouterr() == ("", "")


# Characters and bytes.


def test_ascii_ids_and_unknown_characters():
    tokenizer = CharacterTokenizer.build(count(), alphabet="ascii")  # an infinite iterator: not read
    text = "".join(map(chr, range(32, 127)))
    assert tokenizer.vocab_size == 99
    assert tokenizer.encode(text + "\n\t") == list(range(2, 99))
    assert tokenizer.encode("H\n\t") == [42, 97, 98]
    assert tokenizer.decode(range(2, 99)) == text + "\n\t"
    assert tokenizer.encode("aé\r😀\0b") == [67, 1, 1, 1, 1, 68]
    assert tokenizer.decode([67, 1, 0, 68]) == "a\ufffdb"


def test_ids_of_bytes_and_of_sorted_characters():
    tokenizer = CharacterTokenizer.build(iter(["dba", "", "éac"]), alphabet="corpus")
    assert (tokenizer.encode("abcdée"), tokenizer.vocab_size) == ([2, 3, 4, 5, 6, 1], 7)
    tokenizer = ByteTokenizer.build(count())
    assert (tokenizer.encode("aé"), tokenizer.vocab_size, tokenizer.eos) == ([97, 0xC3, 0xA9], 257, 256)


def test_damaged_alphabet(tmp_path):
    for characters in (None, "aa", ["a"], "a\ud800"):
        tokenizers.write_settings(tmp_path, {"kind": "characters", "characters": characters})
        with mistake("damaged"):
            tokenizers.load(tmp_path)


# GPT-2.


def test_gpt2_ids_are_those_of_the_original_files_also_when_loaded(gpt2_cache, tmp_path):
    fill(gpt2_cache)
    tokenizer = GPT2Tokenizer.build(count())
    vocabulary = json.loads((GPT2_FILES / "encoder.json").read_text(encoding="utf-8"))
    paragraph = 'Once upon a time, there was a little girl named Lily.\n\n"It\'s fun!" she said in 1999.'
    pieces = (
        'Once Ġupon Ġa Ġtime , Ġthere Ġwas Ġa Ġlittle Ġgirl Ġnamed ĠLily . Ċ Ċ " It \'s Ġfun !" Ġshe Ġsaid Ġin Ġ1999 .'
    )
    assert tokenizer.encode(paragraph) == [vocabulary[piece] for piece in pieces.split()]
    assert tokenizer.encode("hello world") == [31373, 995]
    assert (tokenizer.vocab_size, tokenizer.eos) == (50257, vocabulary["<|endoftext|>"])
    assert tokenizer.eos not in tokenizer.encode("a<|endoftext|>b")
    tokenizer.save(tmp_path / "saved")  # which needs no cache
    shutil.rmtree(gpt2_cache)
    assert tokenizers.load(tmp_path / "saved").encode("hello world") == [31373, 995]
    assert not gpt2_cache.exists()
    ranks = tmp_path / "saved" / "ranks.tiktoken"
    for damage in (lambda: ranks.write_bytes(ranks.read_bytes()[:-1]), ranks.unlink):
        damage()
        with mistake(r"ranks\.tiktoken is missing or damaged"):
            tokenizers.load(tmp_path / "saved")


def test_gpt2_without_network_needs_an_undamaged_cache(gpt2_cache):
    start = time.monotonic()
    with mistake(r"vocab\.bpe as .* and encoder\.json as ") as error:
        GPT2Tokenizer.build(())
    assert time.monotonic() - start < 5
    places = re.findall(r" as (\S+/cache/[0-9a-f]{40})", str(error.value))
    fill(gpt2_cache)  # the message names exactly the required files
    assert sorted(map(Path, places)) == sorted(gpt2_cache.iterdir())
    assert GPT2Tokenizer.build(()).encode("hello world") == [31373, 995]
    next(gpt2_cache.iterdir()).write_text("damaged")
    with mistake("cannot get the files of gpt2"):
        GPT2Tokenizer.build(())


def test_gpt2_by_the_name_of_its_encoding(gpt2_cache, tmp_path):
    fill(gpt2_cache)
    named, other = TiktokenTokenizer.build((), encoding="gpt2"), GPT2Tokenizer.build(())
    assert [named.encode(text) for text in TEXTS] == [other.encode(text) for text in TEXTS]
    named.save(tmp_path)
    assert tokenizers.load(tmp_path).encode("hello world") == [31373, 995]
    with mistake("tokenizer.encoding=gpt5: must be gpt2, cl100k_base, o200k_base"):
        TiktokenTokenizer.build((), encoding="gpt5")


@pytest.mark.parametrize("name", ["cl100k_base", "o200k_base"])
def test_an_encoding_is_cut_as_published_and_kept_whole(name, gpt2_cache, tmp_path, monkeypatch):
    """With few other ranks, since the files cannot be part of a checkout."""
    known = tiktoken_module.ENCODINGS[name]
    with mistake(rf"tiktoken cannot get the files of {name} .*, or save OpenAI's {name}\.tiktoken as "):
        TiktokenTokenizer.build((), encoding=name)
    pieces = [bytes([byte]) for byte in range(256)] + [b" t", b"he", b" the", b"12", b"123", b"ll", b"'ll"]
    content = b"".join(base64.b64encode(piece) + b" %d\n" % rank for rank, piece in enumerate(pieces))
    gpt2_cache.mkdir()
    url = f"{tiktoken_module.OPENAI}{known.files[0]}"
    (gpt2_cache / hashlib.sha1(url.encode()).hexdigest()).write_bytes(content)
    with mistake("cannot get the files"):  # these are not OpenAI's
        TiktokenTokenizer.build((), encoding=name)
    sha256 = hashlib.sha256(content).hexdigest()
    known = dataclasses.replace(known, sha256=sha256, ranks=len(pieces), eos=len(pieces) + 1)
    monkeypatch.setitem(tiktoken_module.ENCODINGS, name, known)
    (gpt2_cache / hashlib.sha1(url.encode()).hexdigest()).write_bytes(content)
    tokenizer = TiktokenTokenizer.build((), encoding=name)
    assert [tokenizer.token_bytes(token) for token in tokenizer.encode("the the'll")] == [
        *(b"t", b"he", b" the"),
        b"'ll",
    ]
    assert (tokenizer.vocab_size, tokenizer.eos) == (known.eos + 1, known.eos)
    assert [tokenizer.decode(tokenizer.encode(text)) for text in TEXTS] == TEXTS
    assert tokenizer.eos not in tokenizer.encode("<|endoftext|>")
    tokenizer.save(tmp_path)
    assert (tmp_path / "ranks.tiktoken").read_bytes() == content
    assert tokenizers.load(tmp_path).encode("the 123") == tokenizer.encode("the 123")
    for lines in (content[:-1], b"", content.replace(b" 7\n", b" 8\n"), b"x"):
        (tmp_path / "ranks.tiktoken").write_bytes(lines)
        settings = tokenizers.read_settings(tmp_path) | {"sha256": hashlib.sha256(lines).hexdigest()}
        tokenizers.write_settings(tmp_path, settings)
        if lines != content[:-1]:  # the last line end is no part of the ranks
            with mistake("is missing or damaged"):
                tokenizers.load(tmp_path)


def test_gpt2_without_tiktoken(monkeypatch, tmp_path):
    monkeypatch.setattr(tiktoken_module, "library", None)  # its value without the extra
    tokenizers.write_settings(tmp_path, {"kind": "gpt2"})
    for make in (lambda: GPT2Tokenizer.build(()), lambda: tokenizers.load(tmp_path)):
        with mistake(r'pip install -e "\.\[gpt2\]"'):
            make()
