"""Exports for llama.cpp and llama2.c: equal ids and logits there, or in an independent reader of the files."""

import json
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from conftest import ROOT, exit_code, refused

from slm import checkpoint
from slm.export import __main__ as export_command
from slm.export import gguf, gguf_tokenizer, llama2c, llama_cpp, onnx
from slm.export.fitting import fitting
from slm.export.tokenizer_json import halves
from slm.generation.language_model import LanguageModel
from slm.model import GPT, GPTConfig
from slm.tokenizers import Tokenizer, pieces
from slm.tokenizers.bpe import BPETokenizer
from slm.tokenizers.bytes import ByteTokenizer
from slm.tokenizers.characters import CharacterTokenizer
from slm.tokenizers.sentencepiece import SentencePieceTokenizer

PLAIN = {"context": 48, "depth": 2, "width": 32, "head_dim": 8, "bias": False, "tied": True}
PLAIN |= {"positions": "rope", "norm": "rmsnorm", "mlp": "swiglu"}
OTHERS = {"kv_heads": 2, "tied": False}
TEXTS = [
    "Once upon a time, the cat's  friend had 1234 cats\n\n\tand  na\u00efve \u201cdogs\u201d. \U0001f600 It's 5 DON'T"
]
TEXTS += [
    "",
    " ",
    "   x",
    "a \n \n b",
    "tail   ",
    "</s><s>",
    "<|endoftext|>",
    "<0x0A>",
    "\u00e9e\u0301 \u4e2d\u6587\u00a0!",
]
DOCUMENTS = ["the old cat saw the girl and the girl saw 12 cats. It's the cat's\n\n", *TEXTS[:1]] * 9


@pytest.fixture(scope="module")
def subwords() -> SentencePieceTokenizer:
    settings = {"vocab_size": 330, "algorithm": "bpe", "sample_documents": 100, "seed": 0}
    return SentencePieceTokenizer.build(DOCUMENTS, **settings)


def bpe(pattern: str) -> BPETokenizer:
    return BPETokenizer.build(DOCUMENTS, vocab_size=300, pattern=pattern, sample_documents=100, seed=0)


def model_of(tokenizer: Tokenizer, **choices) -> LanguageModel:
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=tokenizer.vocab_size, **{**PLAIN, **choices})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn(parameter.shape)
    corpus = {"user": "\nUser: ", "assistant": "\nAssistant: "}
    return LanguageModel(model, tokenizer, Path("a.ckpt"), 0, {"name": "a", "data": {"corpus": corpus}})


def greedy(model: LanguageModel, ids: list[int], length: int) -> list[int]:
    while len(ids) < length:
        ids.append(int(model.model(torch.tensor([ids]))[0, -1].argmax()))
    return ids


@pytest.mark.parametrize("choices", [{}, OTHERS], ids=["tied", "shared_heads"])
@pytest.mark.parametrize("kind", ["sentencepiece", "bytes"])
def test_a_program_of_c_continues_as_the_model(choices, kind, subwords, tmp_path):
    if shutil.which("gcc") is None:
        pytest.skip("no gcc")
    tokenizer = subwords if kind == "sentencepiece" else ByteTokenizer()
    model, program = model_of(tokenizer, **choices), tmp_path / "llama2c"
    assert "1 ends a document" in llama2c.export(model, tmp_path)[0]
    subprocess.run(["gcc", "-O1", "-o", program, Path(__file__).with_name("llama2c.c"), "-lm"], check=True)
    for prompt in ("", "the cat \u00e9\U0001f600 saw"):
        files = [tmp_path / "model.bin", tmp_path / "tokenizer.bin"]
        output = subprocess.run([program, *files, "47", prompt], capture_output=True, text=True, check=True).stdout
        order = llama2c.renumbered(tokenizer)
        assert [order[int(line)] for line in output.split()] == greedy(
            model, [tokenizer.eos, *model.encode(prompt)], 48
        )[1:]


@pytest.mark.parametrize(
    ("choices", "architecture", "type"),
    [
        ({}, "llama", "f32"),
        ({**OTHERS, "bias": True}, "llama", "f32"),
        ({**OTHERS, "qk_norm": True}, "qwen3", "q8_0"),
        ({"mlp": "relu2", "rope_base": 500.0}, "arcee", "f32"),
        ({"positions": "learned", "norm": "layernorm", "mlp": "gelu_tanh", "bias": True}, "gpt2", "f32"),
    ],
)
def test_gguf_holds_the_model_and_llama_cpp_computes_it(choices, architecture, type, subwords, tmp_path, monkeypatch):
    if type == "f32":  # for the others in a process of its own, as always
        monkeypatch.setattr(llama_cpp, "ProcessPoolExecutor", lambda *_, **__: ThreadPoolExecutor(1))
    package = pytest.importorskip("gguf", reason="the extra gguf is not installed")
    lines = gguf.export(model_of(subwords, **choices), tmp_path, type=type)
    reader = package.GGUFReader(tmp_path / "model.gguf")
    assert reader.get_field("general.architecture").contents() == architecture
    assert reader.get_field("tokenizer.ggml.tokens").contents()[:5] == ["<pad>", "<unk>", "<s>", "</s>", "<0x00>"]
    assert [reader.get_field(f"tokenizer.ggml.{key}_token_id").contents() for key in ("bos", "eos")] == [3, 3]
    assert reader.get_field("tokenizer.ggml.add_space_prefix").contents() is False
    assert "Assistant: " in reader.get_field("tokenizer.chat_template").contents()
    if "not run" in lines[-1]:
        pytest.skip("llama-cpp-python is not installed; the file is as it must be")
    count = lines[-1].split(" ids differ")[0].rsplit(" ", 1)[1]
    assert type != "f32" or f"same after {count} of them" in lines[-1]


@pytest.mark.parametrize("kind", ["sentencepiece", "bytes", "gpt2", "gpt4", "huggingface"])
def test_llama_cpp_cuts_texts_into_the_same_ids(kind, subwords, tmp_path, monkeypatch):
    library = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    tokenizer = {"sentencepiece": lambda: subwords, "bytes": ByteTokenizer, "huggingface": from_json}.get(
        kind, lambda: bpe(kind)
    )()
    monkeypatch.setattr(llama_cpp, "compare", lambda *_, **__: "")
    gguf.export(model_of(tokenizer), tmp_path)
    model = library.Llama(str(tmp_path / "model.gguf"), vocab_only=True, verbose=False)
    for text in TEXTS:
        ids = tokenizer.encode(text)
        assert model.tokenize(text.encode(), add_bos=True) == [tokenizer.eos, *ids], text
        assert model.detokenize(ids) == text.encode()
    model.close()


def from_json() -> Tokenizer:
    from slm.tokenizers.huggingface import HuggingFaceTokenizer

    settings = {"vocab_size": 300, "pattern": "gpt4", "sample_documents": 100, "seed": 0}
    return HuggingFaceTokenizer.train(DOCUMENTS, **settings)


@pytest.mark.parametrize("format", ["gguf", "llama2c", pytest.param("onnx", marks=pytest.mark.slow)])
def test_the_command_of_the_page(format, subwords, tmp_path, monkeypatch, capsys):
    if format != "llama2c":
        pytest.importorskip(format, reason=f"the extra {format} is not installed")
    monkeypatch.setattr(llama_cpp, "ProcessPoolExecutor", lambda *_, **__: ThreadPoolExecutor(1))
    monkeypatch.chdir(tmp_path)
    model, page = model_of(subwords), (ROOT / "docs/runtimes.md").read_text(encoding="utf-8")
    weights = {f"model.{name}": tensor for name, tensor in model.model.state_dict().items()}
    described = checkpoint.describe(model.model.config, subwords)
    checkpoint.save({"slm": described, "state_dict": weights, "global_step": 7}, tmp_path / "a.ckpt")
    command = re.search(rf"^python -m slm.export RUN (\w+) (format={format})$", page, re.M)
    assert exit_code(monkeypatch, export_command.main, "a.ckpt", *command.groups(), "print=json") == 0
    printed = json.loads(capsys.readouterr().out)
    sizes = {str(file.relative_to(command[1])): file.stat().st_size for file in Path(command[1]).rglob("*.*")}
    assert printed["files"] == sizes
    files = re.search(rf"^\| `{format}` \| (.*?) \|", page, re.M)[1].split(", ")
    assert {name.partition("/")[0] for name in sizes} == {file.rstrip("/") for file in files}


@pytest.mark.slow
@pytest.mark.parametrize(
    "choices",
    [
        {**OTHERS, "qk_norm": True, "document_start": 3, "value_embeddings": True, "logit_softcap": 5.0},
        {"positions": "learned", "norm": "layernorm", "mlp": "gelu", "bias": True, "head_bias": True},
    ],
)
def test_onnx_runtime_computes_the_model(choices, subwords, tmp_path):
    runtime = pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    model = model_of(subwords, **choices)
    assert "logits of 1 to 48 ids differ by at most" in onnx.export(model, tmp_path)[0]
    session = runtime.InferenceSession(tmp_path / "model.onnx")
    tokens = torch.tensor([[3, *model.encode(TEXTS[0])][:20]] * 5)
    (logits,) = session.run(["logits"], {"tokens": tokens.numpy()})
    torch.testing.assert_close(torch.from_numpy(logits), model.model(tokens).detach(), rtol=1e-4, atol=1e-4)


def test_merges_are_those_of_the_ranks():
    tokenizer = bpe("gpt2")
    ranks = {piece: rank for rank, piece in enumerate(pieces(tokenizer)[:-1])}
    assert [halves(ranks, piece) for piece in [*ranks][256:]] == tokenizer.merges


@pytest.mark.parametrize(
    ("format", "choices", "message"),
    [
        ("gguf", {"mlp": "gelu"}, "no counterpart of model.mlp=gelu; train with model.mlp=swiglu"),
        ("gguf", {"mlp": "relu2", "qk_norm": True}, "model.mlp=relu2; train with model.mlp=swiglu"),
        ("gguf", {"positions": "learned", "norm": "layernorm", "bias": True}, "train with model.mlp=gelu_tanh"),
        ("gguf", {"qk_norm": True, "bias": True}, "model.qk_norm=true; train with model.qk_norm=false"),
        ("gguf", {"window": 8}, "model.window=8; train with model.window=null"),
        ("llama2c", {"rope_base": 5e4}, "model.rope_base=50000.0; train with model.rope_base=10000.0"),
        ("llama2c", {"qk_norm": True, "tied": False}, "model.qk_norm=true; train with model.qk_norm=false"),
        ("llama2c", {"norm_eps": 1e-6}, "model.norm_eps=1e-06; train with model.norm_eps=1e-05"),
    ],
)
def test_a_model_without_a_counterpart_is_refused_by_its_choice(format, choices, message, subwords, tmp_path):
    model = model_of(subwords, **choices)
    layouts = lambda: fitting(model.model, "gguf", gguf.LAYOUTS)  # noqa: E731
    refused(layouts if format == "gguf" else lambda: llama2c.export(model, tmp_path), message)
    assert not [*tmp_path.iterdir()]


def test_a_tokenizer_without_a_counterpart_is_refused():
    unigram = {"vocab_size": 300, "algorithm": "unigram", "sample_documents": 100, "seed": 0}
    refused(lambda: gguf_tokenizer.vocabulary(SentencePieceTokenizer.build(DOCUMENTS, **unigram)), "algorithm=unigram")
    refused(lambda: gguf_tokenizer.vocabulary(CharacterTokenizer("ab")), "the tokenizer CharacterTokenizer")
    refused(lambda: llama2c.renumbered(bpe("gpt2")), "merges over the borders of words")
