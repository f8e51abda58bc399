"""tokenizer.json of every kind of model, of a file, a folder and a Hub; the vocabulary that the library learns."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from conftest import mistake
from hub import Server
from test_tokenizers import TEXTS, bpe_tokenizer, seeded_documents

from slm import checkpoint, tokenizers
from slm.tokenizers import huggingface, huggingface_files
from slm.tokenizers.huggingface import HuggingFaceTokenizer

library = pytest.importorskip("tokenizers")
pre, decoders, models, normalizers, trainers = (
    library.pre_tokenizers, library.decoders, library.models, library.normalizers, library.trainers
)  # fmt: skip
NAMES = ["</s>", "dog <eos> </s> [SEP] <|endoftext|> </S>", "a</s>b", "<unk> [UNK]"]
LATIN = "once upon a time there was a dog"


def trained(model, trainer, before=None, decoder=None, normalizer=None, special=()):
    tokenizer = library.Tokenizer(model)
    if before:
        tokenizer.pre_tokenizer = before
    if decoder:
        tokenizer.decoder = decoder
    if normalizer:
        tokenizer.normalizer = normalizer
    settings = {"special_tokens": list(special), "show_progress": False}
    tokenizer.train_from_iterator(seeded_documents(100), trainer(**settings))
    return tokenizer


def byte_level(special=("<|endoftext|>",), prefix=False):
    def trainer(**settings):
        return trainers.BpeTrainer(vocab_size=300, initial_alphabet=pre.ByteLevel.alphabet(), **settings)

    before = pre.ByteLevel(add_prefix_space=prefix)
    return trained(models.BPE(), trainer, before, decoders.ByteLevel(), special=special)


def word_piece():
    model, special = models.WordPiece(unk_token="[UNK]"), ("[UNK]", "[CLS]", "[SEP]")
    lower = normalizers.BertNormalizer(lowercase=True)
    return trained(model, trainers.WordPieceTrainer, pre.BertPreTokenizer(), decoders.WordPiece(), lower, special)


def unigram():
    def trainer(**settings):
        return trainers.UnigramTrainer(vocab_size=100, unk_token="<unk>", **settings)

    return trained(models.Unigram(), trainer, pre.Metaspace(), decoders.Metaspace(), special=("<unk>", "</s>"))


def word_level():
    special = ("<unk>", "<eos>")
    return trained(
        models.WordLevel(unk_token="<unk>"), trainers.WordLevelTrainer, pre.WhitespaceSplit(), special=special
    )


def suffixes():
    def trainer(**settings):
        return trainers.BpeTrainer(vocab_size=120, end_of_word_suffix="</w>", **settings)

    special = ("<unk>", "</s>")
    return trained(models.BPE(unk_token="<unk>"), trainer, pre.Whitespace(), decoders.BPEDecoder(), special=special)


def llama():
    """As Llama 2: a space before each text, spaces as U+2581, other characters as bytes."""
    ids = {"<unk>": 0, "<s>": 1, "</s>": 2, **{f"<0x{byte:02X}>": 3 + byte for byte in range(256)}}
    ids |= {piece: token for token, piece in enumerate(["\u2581", *"abceghilnoprstuwd", "\u2581a"], 259)}
    tokenizer = library.Tokenizer(
        models.BPE(ids, [("\u2581", "a")], unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    steps = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return tokenizer


EOS = dict.fromkeys((unigram, suffixes, llama), "</s>")
EOS |= {byte_level: "<|endoftext|>", word_piece: "[SEP]", word_level: "<eos>"}


def written(tokenizer, folder: Path) -> str:
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    return str(folder / "tokenizer.json")


@pytest.mark.parametrize("make", EOS, ids=lambda make: make.__name__)
def test_ids_are_the_librarys_and_never_those_of_special_tokens(make, tmp_path):
    theirs = make()
    theirs.enable_truncation(5)
    theirs.enable_padding()
    ours = HuggingFaceTokenizer.build((), path=written(theirs, tmp_path))
    theirs.no_truncation()
    theirs.no_padding()
    theirs.encode_special_tokens = True
    assert ours.eos == theirs.token_to_id(EOS[make])
    controls = {token for token in range(ours.vocab_size) if ours.token_bytes(token) == b""}
    assert ours.eos in controls
    for text in [*TEXTS[:60], *seeded_documents(5, seed=3), *NAMES]:
        ids, expected = ours.encode(text), theirs.encode(text, add_special_tokens=False).ids
        assert controls.isdisjoint(ids)
        if controls.isdisjoint(expected):
            assert ids == expected
    ids = ours.encode(LATIN)
    assert ours.decode(ids).strip() == theirs.decode(ids) == LATIN
    assert tokenizers.lost_bytes(tokenizers.pieces(ours), [LATIN], [np.array(ids)]) == 0
    ours.save(tmp_path / "saved")
    loaded = tokenizers.load(tmp_path / "saved")
    assert [loaded.encode(text) for text in NAMES] == [ours.encode(text) for text in NAMES]
    assert tokenizers.files(loaded) == tokenizers.files(ours)


@pytest.mark.parametrize("make", [unigram, word_level], ids=["unigram", "words"])
def test_a_model_that_has_the_names_of_special_tokens_as_pieces(make, tmp_path):
    """Its library produces them from text: cut in two, the name is text."""
    theirs = make()
    theirs.encode_special_tokens = True
    assert theirs.token_to_id(EOS[make]) in theirs.encode(f"dog {EOS[make]} dog", add_special_tokens=False).ids
    ours = HuggingFaceTokenizer.build((), path=written(theirs, tmp_path))
    ids = ours.encode(f"dog {EOS[make]} dog")
    assert ours.eos not in ids
    assert ours.decode(ids).startswith("dog")


@pytest.mark.parametrize("make", [byte_level, llama], ids=["byte level", "llama"])
def test_every_text_is_restored(make, tmp_path):
    ours = HuggingFaceTokenizer.build((), path=written(make(), tmp_path))
    texts = [text for text in TEXTS if "\u2581" not in text]
    arrays = ours.encode_batch(texts)
    assert [ours.decode(ids) for ids in arrays] == texts
    assert tokenizers.lost_bytes(tokenizers.pieces(ours), texts, arrays) == 0


def test_what_is_lost_is_counted(tmp_path):
    ours = HuggingFaceTokenizer.build((), path=written(word_piece(), tmp_path))
    for text, lost in (("a dog", 0), ("A dog", 1), ("a \u6f22", 3)):
        assert tokenizers.lost_bytes(tokenizers.pieces(ours), [text], [np.array(ours.encode(text))]) == lost


def test_eos_is_given_or_found_or_named(tmp_path):
    path = written(byte_level(("<|a|>", "<|b|>")), tmp_path)
    with mistake(r"names no end of a document; give tokenizer\.eos, one of '<\|a\|>', '<\|b\|>'"):
        HuggingFaceTokenizer.build((), path=path)
    assert HuggingFaceTokenizer.build((), path=path, eos="<|b|>").eos == 1
    added = HuggingFaceTokenizer.build((), path=path, eos="<|end|>")
    assert added.eos == added.vocab_size - 1 == library.Tokenizer.from_file(path).get_vocab_size()
    for eos in ("<|b|>", {"content": "<|b|>", "special": True}):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": eos}))
        assert HuggingFaceTokenizer.build((), path=str(tmp_path)).eos == 1
    (tmp_path / "tokenizer_config.json").write_text("[" * 10**5)
    with mistake("names no end"):
        HuggingFaceTokenizer.build((), path=path)
    none = HuggingFaceTokenizer.build((), path=written(byte_level(()), tmp_path / "none"))
    assert (none.eos, none.eos_token) == (none.vocab_size - 1, "<|endoftext|>")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"{}", "holds no tokenizer"),
        (b"\xff\xfe", "no JSON in UTF-8"),
        (b"[" * 10**5, "holds no tokenizer"),
        (b'{"model": {"type": "BPE", "vocab": {"a": -1}, "merges": []}}', "holds no tokenizer"),
        (b'{"model": {"type": "BPE", "vocab": {"a": 4000000000}, "merges": []}}', "an id of 4,000,000,000"),
        (b'{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [["b", "c"]]}}', "holds no tokenizer"),
        (
            b'{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []},'
            b'"decoder": {"type": "Replace", "pattern": {"Regex": "a+"}, "content": "a"}}',
            "its decoder replaces by a regular expression",
        ),
    ],
    ids=["empty", "bytes", "brackets", "negative", "large", "merges", "regex"],
)
def test_other_files_are_one_line(content, problem, tmp_path, monkeypatch):
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    with mistake(problem):
        HuggingFaceTokenizer.build((), path=str(path))
    sha256 = hashlib.sha256(content).hexdigest()
    tokenizers.write_settings(tmp_path, {"kind": "huggingface", "eos": "a", "sha256": sha256})
    (tmp_path / "huggingface.json").write_bytes(content)
    with mistake("is missing or damaged"):
        tokenizers.load(tmp_path)
    monkeypatch.setattr(huggingface_files, "MAX_BYTES", 1)
    with mistake("more than the 1 that a tokenizer may have"):
        HuggingFaceTokenizer.build((), path=str(tmp_path / "huggingface.json"))


def test_a_model_without_an_id_for_unknown_text_is_one_line(tmp_path):
    theirs = library.Tokenizer(models.WordPiece({"a": 0, "</s>": 1}, unk_token="[UNK]"))
    ours = HuggingFaceTokenizer.build((), path=written(theirs, tmp_path))
    with mistake("the tokenizer cannot encode this text: WordPiece error"):
        ours.encode("b")


def test_missing_files_and_the_extra(tmp_path, monkeypatch):
    for path in ("no/such/file.json", str(tmp_path), "./nowhere"):
        with mistake("there is no file .*; give a tokenizer.json"):
            HuggingFaceTokenizer.build((), path=path)
    with mistake("tokenizer.revision=main is for the Hub"):
        HuggingFaceTokenizer.build((), path=str(tmp_path), revision="main")
    with mistake("give tokenizer.path"):
        HuggingFaceTokenizer.build((), path=None)
    monkeypatch.setattr(huggingface, "library", None)
    with mistake(r'pip install -e "\.\[hf\]"'):
        HuggingFaceTokenizer.build((), path=str(tmp_path))


@pytest.mark.parametrize("pattern", ["gpt2", "gpt4"])
def test_the_library_learns_the_vocabulary_of_our_bpe(pattern):
    documents = [*TEXTS[:100], *seeded_documents(100)]
    settings = {"vocab_size": 400, "pattern": pattern, "sample_documents": 150, "seed": 1}
    ours, theirs = bpe_tokenizer(documents, **settings), HuggingFaceTokenizer.train(documents, **settings)
    assert tokenizers.pieces(ours).tolist() == tokenizers.pieces(theirs).tolist()
    assert ours.eos == theirs.eos
    with mistake("vocab_size=9999 is too large"):
        HuggingFaceTokenizer.train(seeded_documents(20), **settings | {"vocab_size": 9999})


def test_a_changed_file_is_another_tokenizer(tmp_path):
    path = written(byte_level(), tmp_path)
    before = tokenizers.identity({"path": path})
    assert before == tokenizers.identity({"path": path})
    Path(path).write_text(Path(path).read_text() + "\n")
    assert tokenizers.identity({"path": path}) != before
    assert tokenizers.identity({"path": None, "a": None}) == {"a": None}


class Repository(Server):
    """A Hub with one repository, which has a tokenizer.json."""

    def __init__(self, files: dict[str, bytes]):
        super().__init__()
        self.files = files

    def answer(self, path: str, span: str):
        name = path.removeprefix("/lab/words/resolve/main/")
        if name == path:
            return 401, {"X-Error-Code": "RepoNotFound", "Content-Length": "0"}, []
        if name not in self.files:
            return 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": "1" * 40, "Content-Length": "0"}, []
        body = self.files[name]
        etag = hashlib.sha1(body).hexdigest()
        return 200, {"ETag": f'"{etag}"', "X-Repo-Commit": "1" * 40, "Content-Length": str(len(body))}, [body]


def test_a_repository_of_the_hub(tmp_path, monkeypatch):
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with Repository({"tokenizer.json": byte_level(("<|a|>", "<|b|>")).to_str().encode()}) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
        with mistake("tokenizer.path=lab/other is neither a local file nor a repository of the Hub"):
            HuggingFaceTokenizer.build((), path="lab/other")
        with mistake("names no end of a document"):
            HuggingFaceTokenizer.build((), path="lab/words")
        server.files["tokenizer_config.json"] = b'{"eos_token": "<|b|>"}'
        assert HuggingFaceTokenizer.build((), path="lab/words").eos == 1
        del server.files["tokenizer.json"]
    again = HuggingFaceTokenizer.build((), path="lab/words")  # from the library's cache
    assert again.decode(again.encode(LATIN)) == LATIN
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with mistake("tokenizer.path=lab/new is not in the cache of the Hub, and the Hub cannot be reached"):
        HuggingFaceTokenizer.build((), path="lab/new")


def test_a_checkpoint_needs_no_other_file(run, tmp_path, capsys):
    path = Path(written(byte_level(), tmp_path))
    folder = run("tokenizer=huggingface", f"tokenizer.path={path}")
    path.unlink()
    loaded = checkpoint.load(folder)
    assert loaded.tokenizer.decode(loaded.tokenizer.encode(LATIN)) == LATIN
    assert loaded.tokenizer.vocab_size == loaded.model.config.vocab_size
    assert f"building the tokenizer: huggingface ({path})" in capsys.readouterr().out
    with mistake("there is no file"):
        run("tokenizer=huggingface", f"tokenizer.path={path}", folder="other")
