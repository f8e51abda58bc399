"""Models in the folders of transformers, out and back: settings, weights, ids, logits, texts; foreign folders; push."""

import base64
import errno
import json
import os
import shutil
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from conftest import exit_code, mistake, refused, small_run, trained
from hub import Handler, Server

from slm import checkpoint, verify
from slm.chat_template import ChatTemplate, chat_template
from slm.evaluate import main as evaluate_main
from slm.export import __main__ as command
from slm.export import hub
from slm.export.compared import differing, difficult_strings
from slm.export.fitting import TRANSFORMERS, fitting
from slm.export.readme import readme
from slm.export.tokenizer_json import converted
from slm.files import run_folder
from slm.generation.conversation import Conversation
from slm.generation.language_model import load
from slm.huggingface import folder as huggingface
from slm.huggingface.layouts import config_of, settings_of
from slm.huggingface.tensors import to_ours, to_theirs
from slm.lora import LoRAConfig
from slm.model import GPT, GPTConfig
from slm.own_model import OwnConfig, OwnModel
from slm.run import cli
from slm.tokenizers.bpe import BPETokenizer
from slm.tokenizers.bytes import ByteTokenizer
from slm.tokenizers.characters import CharacterTokenizer
from slm.tokenizers.huggingface import HuggingFaceTokenizer
from slm.tokenizers.sentencepiece import SentencePieceTokenizer

LLAMA = {"norm": "rmsnorm", "mlp": "swiglu", "positions": "rope", "bias": False, "tied": False}
NEOX = {"norm": "layernorm", "mlp": "gelu", "positions": "rope", "bias": True, "tied": False}
CHOICES = {  # settings beside the sizes -> layout
    "llama": LLAMA | {"kv_heads": 2, "rope_base": 500.0},
    "llama with biases": LLAMA | {"bias": True, "tied": True, "mlp": "geglu"},
    "mistral": LLAMA | {"window": 5},
    "qwen3": LLAMA | {"qk_norm": True, "kv_heads": 1, "window": [None, 5]},
    "qwen3 with relu2": LLAMA | {"qk_norm": True, "mlp": "relu2"},
    "arcee": LLAMA | {"mlp": "relu2"},
    "gpt_neox": NEOX,
    "gpt_neox without biases": NEOX | {"bias": False, "mlp": "relu2", "tied": True},
    "starcoder2": NEOX | {"kv_heads": 2, "window": 7, "mlp": "gelu_tanh"},
    "gpt2": NEOX | {"positions": "learned", "mlp": "gelu_tanh", "tied": True},
    "gpt2 without biases": NEOX | {"positions": "learned", "bias": False, "mlp": "relu2"},
}


def model_of(name: str, vocab_size: int = 257) -> GPT:
    """A model with weights, gains and biases away from where they start."""
    torch.manual_seed(0)
    sizes = {"vocab_size": vocab_size, "context": 24, "depth": 3, "width": 32, "head_dim": 8, "mlp_width": 48}
    model = GPT(GPTConfig(**sizes, **CHOICES[name])).eval()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def saved_model(path: Path, config: GPTConfig | OwnConfig, weights: dict[str, torch.Tensor]) -> Path:
    state = {f"model.{key}": value for key, value in weights.items()}
    content = {"state_dict": state, "global_step": 20, "slm": checkpoint.describe(config, ByteTokenizer())}
    checkpoint.save(content, path)
    return path


@pytest.fixture
def saved(tmp_path):
    """A function from a choice to the path of a checkpoint."""

    def save(name: str = "llama") -> Path:
        model = model_of(name)
        return saved_model(tmp_path / "model.ckpt", model.config, model.state_dict())

    return save


@pytest.mark.parametrize("name", CHOICES)
def test_settings_and_weights_return(name):
    model, layout = model_of(name), name.split()[0]
    config = model.config
    assert fitting(model, "hf", TRANSFORMERS) == layout
    theirs = to_theirs(config, layout, model.state_dict())
    again = config_of(settings_of(config, layout), config.bias, config.mlp == "relu2")
    assert (again.windows, again.kv_width) == (config.windows, config.kv_width)
    same = {"window": None, "kv_heads": None}
    assert replace(again, **same) == replace(config, **same)
    ours = to_ours(config, layout, theirs)
    assert ours.keys() == model.state_dict().keys()
    assert all(torch.equal(ours[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", CHOICES)
def test_logits_of_transformers(name, tmp_path):
    transformers, safetensors = pytest.importorskip("transformers"), pytest.importorskip("safetensors.torch")
    model, layout = model_of(name), name.split()[0]
    settings = settings_of(model.config, layout) | {"bos_token_id": 0, "eos_token_id": 0}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    weights = to_theirs(model.config, layout, model.state_dict())
    safetensors.save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    theirs, found = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(found.values())
    tokens = torch.randint(model.config.vocab_size, (2, model.config.context))
    with torch.no_grad():
        assert (model(tokens) - theirs(tokens).logits).abs().max() < 1e-5


def test_models_without_a_layout():
    def message(**changes) -> str:
        model = GPT(replace(model_of("gpt_neox").config, **changes))
        return refused(lambda: fitting(model, "hf", TRANSFORMERS))

    assert "no counterpart of model.qk_norm=true; train with model.qk_norm=false, or with" in message(qk_norm=True)
    assert "train with model.logit_softcap=null" in message(logit_softcap=15.0)
    assert "model.window=null" in message(window=[3, None])
    assert "model.head_bias=false" in message(head_bias=True)


def documents() -> list[str]:
    words = ["the", "cat", "saw", "a", "dog;", "it's", "12", "o'clock", "<s>", "and", "don't", "ÄÖ", "'tis\n", "--"]
    return [" ".join(words[(i * j) % len(words)] for j in range(1, 30)) for i in range(1, 60)]


TOKENIZERS = {
    "bytes": ByteTokenizer.build,
    "characters": lambda texts: CharacterTokenizer.build(texts, alphabet="corpus"),
    "bpe": lambda texts: BPETokenizer.build(texts, vocab_size=290, pattern="gpt4", sample_documents=99, seed=0),
    "huggingface": lambda texts: HuggingFaceTokenizer.train(
        texts, vocab_size=290, pattern="gpt2", sample_documents=99, seed=0
    ),
    "sentencepiece": lambda texts: SentencePieceTokenizer.build(
        texts, vocab_size=330, algorithm="bpe", sample_documents=99, seed=0
    ),
    "unigram": lambda texts: SentencePieceTokenizer.build(
        texts, vocab_size=300, algorithm="unigram", sample_documents=99, seed=0
    ),
}


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_ids_of_the_library(kind):
    """Names of control ids in a text stay text."""
    pytest.importorskip("transformers" if kind in ("sentencepiece", "unigram") else "tokenizers")
    tokenizer = TOKENIZERS[kind](documents())
    library, names = converted(tokenizer, eos_first=True)
    assert library.token_to_id(names["eos_token"]) == tokenizer.eos
    assert library.get_vocab_size() == tokenizer.vocab_size
    assert library.encode("a").ids == [tokenizer.eos, *tokenizer.encode("a")]
    library.encode_special_tokens = True
    texts = [*difficult_strings(tokenizer, 600), *documents()]
    found = [encoding.ids for encoding in library.encode_batch(texts, add_special_tokens=False)]
    different = differing(tokenizer, texts, found)
    if kind == "unigram":  # ties
        assert all(different.values())
        assert len(different) < 10
    else:
        assert not different
    assert [library.decode(ids, skip_special_tokens=True) for ids in found] == [*map(tokenizer.decode, found)]


def test_a_folder_is_complete_or_absent(tmp_path):
    def fail(folder: Path):
        (folder / "half").write_text("")
        raise KeyError

    with pytest.raises(KeyError):
        command.written(tmp_path / "new" / "folder", fail)
    assert [*(tmp_path / "new").iterdir()] == []
    (tmp_path / "empty").mkdir()
    assert command.written(tmp_path / "empty", lambda folder: [str((folder / "a").write_text("b"))]) == ["1"]
    assert (tmp_path / "empty" / "a").read_text() == "b"
    with mistake("exists and is not empty"):
        command.new_folder(str(tmp_path / "empty"))


def test_mistakes(saved, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    for words, message in (
        (["format=hff"], "format=hff is not one of hf"),
        (["format=llama.cpp"], "did you mean gguf?"),
        (["licence=mit"], "licence is not a setting; did you mean license?"),
        (
            ["format=page", "start=Once, a fox", "title=[x", "text=no.txt", "license=mit"],
            "license is not a setting; these are: ",
        ),
        (["revisions=yes"], "revisions='yes' must be true or false"),
        (["license=a,b"], "license=a,b must be the name of a licence"),
        (["push=name"], "push=name must be user/name"),
        (["push=user/name"], "needs a token that may write: set HF_TOKEN"),
        (["public=true"], "public and revision belong to push=user/name"),
        (["more", "words"], "takes RUN FOLDER"),
    ):
        assert exit_code(monkeypatch, command.main, str(saved()), str(tmp_path / "out"), *words) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "gpt_neox", "gpt2"])
def test_the_command_and_the_way_back(name, saved, tmp_path, monkeypatch, capsys):
    pytest.importorskip("transformers")
    path, target = saved(name), tmp_path / "out"
    assert exit_code(monkeypatch, command.main, str(path), str(target), "license=mit", "print=json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["logits"] < 1e-5
    assert facts["lines"][1] == "ids: equal on 4,000 of 4,000 difficult strings"
    assert "license: mit" in (target / "README.md").read_text()
    ours, theirs = load(path, device="cpu"), load(target, device="cpu")
    tokens = torch.randint(257, (2, 24))
    assert torch.equal(ours.model(tokens), theirs.model(tokens))
    assert (theirs.step, theirs.eos_first) == (20, True)
    assert ours.generate("a", max_new_tokens=9) == theirs.generate("a", max_new_tokens=9)
    (tmp_path / "text.txt").write_text("a text")
    assert exit_code(monkeypatch, evaluate_main, str(target), "--text", str(tmp_path / "text.txt")) == 0


@pytest.fixture
def exported(tmp_path) -> Path:
    """A folder of transformers, without its library."""
    safetensors = pytest.importorskip("safetensors.torch")
    model, target = model_of("llama"), tmp_path / "exported"
    target.mkdir()
    library, names = converted(ByteTokenizer(), eos_first=True)
    safetensors.save_file(to_theirs(model.config, "llama", model.state_dict()), target / "model.safetensors")
    for file, content in (("config.json", settings_of(model.config, "llama")), ("tokenizer_config.json", names)):
        (target / file).write_text(json.dumps(content))
    (target / "tokenizer.json").write_text(library.to_str())
    return target


def test_foreign_folders(exported):
    """Each damage is one line, and no memory is allocated for what a file only claims to hold."""
    assert huggingface.read(exported).model.config == replace(model_of("llama").config, kv_heads=2)
    config = json.loads((exported / "config.json").read_text())
    for key, value, message in (
        ("vocab_size", 10**9, "its vocab_size is 1,000,000,000, and its embedding has 257 rows"),
        ("num_hidden_layers", 10**9, "too few for 1000000000 layers"),
        ("hidden_size", "32", "hidden_size must be a whole number from 1"),
        ("hidden_size", 64, "cannot be read as a GPT"),
        ("rms_norm_eps", "x", "cannot be read as a GPT"),
        ("model_type", ["llama"], "its model_type"),
        ("model_type", "bert\x1b[2J", r"bert\\x1b"),
        ("hidden_act", "tanh", "its activation 'tanh' has no counterpart"),
        ("rope_parameters", {"rope_type": "yarn", "rope_theta": 1e4}, "rotary positions are scaled"),
        ("max_position_embeddings", 2**40, "model.context="),
    ):
        (exported / "config.json").write_text(json.dumps(config | {key: value}))
        refused(lambda: huggingface.read(exported), message.replace("\\\\", "\\"))
    (exported / "config.json").write_text(json.dumps(config))
    (exported / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../model.safetensors"}}))
    refused(lambda: huggingface.read(exported), "it has no ../model.safetensors")
    (exported / "model.safetensors.index.json").unlink()
    content = (exported / "model.safetensors").read_bytes()
    (exported / "model.safetensors").write_bytes(content[:-100])
    refused(lambda: huggingface.read(exported), "model.safetensors is damaged")


def test_rows_without_a_token_are_cut(exported):
    safetensors = pytest.importorskip("safetensors.torch")
    weights, config = (
        safetensors.load_file(exported / "model.safetensors"),
        json.loads((exported / "config.json").read_text()),
    )
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        weights[name] = torch.cat([weights[name], torch.ones(7, 32)])
    safetensors.save_file(weights, exported / "model.safetensors")
    (exported / "config.json").write_text(json.dumps(config | {"vocab_size": 264}))
    tokens = torch.randint(257, (1, 20))
    assert torch.equal(huggingface.read(exported).model(tokens), model_of("llama")(tokens))


def test_the_readme_holds_no_secrets_and_no_markup(finished, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefghijkl")
    monkeypatch.setenv("HOME", str(tmp_path))
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    info = json.loads((run / "run.json").read_text())
    info |= {"name": "a|b <script> hf_abcdefghijkl", "device": f"{tmp_path}/x"}
    (run / "run.json").write_text(json.dumps(info))
    words = [
        "data.path=https://me:password@x.org/a",
        f"data.other={tmp_path}/novels",
        f"run_dir={run}",
        "budget.steps=10",
    ]
    (run / "overrides.yaml").write_text(json.dumps(words))
    text = readme(load(run, device="cpu"), "mit")
    assert "hf_abcdefghijkl" not in text
    assert "password" not in text
    assert "<script>" not in text
    assert str(tmp_path) not in text
    assert "python train.py data.path=https://...@x.org/a 'data.other=~/novels' budget.steps=10" in text
    assert "bits per byte" in text
    with mistake("license=a b must be"):
        readme(load(run, device="cpu"), "a b")


class Uploads(Server):
    """Takes the files of a repository, as the Hub does."""

    def __init__(self):
        super().__init__()
        self.RequestHandlerClass, self.files, self.bodies = Receiver, {}, []


class Receiver(Handler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.requests.append(f"POST {self.path} {self.headers['Authorization']}")
        answer = {"url": f"{self.server.endpoint}/user/name"}
        if "/preupload/" in self.path:
            names = [file["path"] for file in json.loads(body)["files"]]
            answer = {"files": [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]}
        elif "/commit/" in self.path:
            lines = [json.loads(line) for line in body.splitlines()]
            values = [line["value"] for line in lines if line["key"] == "file"]
            self.server.files |= {value["path"]: base64.b64decode(value["content"]) for value in values}
            answer = {"success": True, "commitOid": "0" * 40, "commitUrl": f"{self.server.endpoint}/user/name/commit/0"}
        else:
            self.server.bodies.append(json.loads(body))
        content = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


def test_push(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefghijkl")
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_text(name)
    with Uploads() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
        hub.check("user/name", "chck_1M")
        address = hub.push(tmp_path, "user/name", public=False, revision="chck_1M")
    assert address == f"{server.endpoint}/user/name/commit/0"
    assert server.files == {name: name.encode() for name in ("config.json", "model.safetensors")}
    assert server.bodies[0].get("visibility", server.bodies[0].get("private")) in ("private", True)  # by its version
    assert all(request.endswith("Bearer hf_abcdefghijkl") for request in server.requests if request.startswith("POST"))
    assert any("/commit/chck_1M" in request for request in server.requests)


def exported_weights(monkeypatch, path: Path, target: Path, *words: str) -> dict[str, torch.Tensor]:
    safetensors = pytest.importorskip("safetensors.torch")
    assert exit_code(monkeypatch, command.main, str(path), str(target), "format=weights", *words) == 0
    return safetensors.load_file(target / "model.safetensors")


def test_averaged_weights_are_exported(run, tmp_path, monkeypatch):
    folder = run("callbacks=ema", "callbacks.ema.decay=0.5", "callbacks.samples=null")
    path = run_folder.checkpoints(folder)[0]
    content, found = checkpoint.read(path), exported_weights(monkeypatch, path, folder / "exported")
    assert torch.equal(found["head.weight"], content["state_dict"]["model.head.weight"])
    assert not torch.equal(found["head.weight"], content["current_model_state"]["model.head.weight"])
    assert list(verify.find_problems(folder)) == []
    assert load(folder, device="cpu").step == 10  # the folder of an export within a run is none of its files


def test_lora_is_merged(tmp_path, monkeypatch):
    model = model_of("llama")
    adapted = GPT(replace(model.config, lora=LoRAConfig(rank=2))).eval()
    adapted.load_state_dict(model.state_dict(), strict=False)
    for name, parameter in adapted.named_parameters():
        if "lora_b" in name:
            parameter.data += 0.1 * torch.randn_like(parameter)
    tokens = torch.randint(257, (2, 24))
    assert not torch.allclose(adapted(tokens), model(tokens), atol=0.1)
    path = saved_model(tmp_path / "lora.ckpt", adapted.config, adapted.state_dict())
    model.load_state_dict(exported_weights(monkeypatch, path, tmp_path / "out"))
    torch.testing.assert_close(model(tokens), adapted(tokens), rtol=1e-5, atol=1e-5)


class Own(torch.nn.Module):
    def __init__(self, *, vocab_size: int):
        super().__init__()
        self.tokens, self.head = torch.nn.Embedding(vocab_size, 4), torch.nn.Linear(4, vocab_size)

    def forward(self, tokens):
        return self.head(self.tokens(tokens))


def test_a_model_of_ones_own_is_one_line_or_exported(tmp_path, monkeypatch, capsys):
    config = OwnConfig(target="mine.Own", make=Own, settings={}, vocab_size=257, context=24)
    path, given = (
        saved_model(tmp_path / "own.ckpt", config, OwnModel(config).state_dict()),
        f"model_class={__name__}.Own",
    )
    assert exported_weights(monkeypatch, path, tmp_path / "out", given)["net.head.weight"].shape == (257, 4)
    for format, package in (("hf", "transformers"), ("gguf", "gguf"), ("llama2c", None), ("page", None)):
        if package is None or find_spec(package):
            assert exit_code(monkeypatch, command.main, str(path), str(tmp_path / "no"), f"format={format}", given) == 2
            error = capsys.readouterr().err.strip()
            assert "try format=weights" in error
            assert "\n" not in error
    assert exit_code(monkeypatch, command.main, str(path), str(tmp_path / "no")) == 2
    assert "a class outside slm, mine.Own; give the class: model_class=" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()


def test_a_killed_export_and_a_full_disk(tmp_path, monkeypatch, capsys):
    model, half, target = (
        GPT(replace(model_of("llama").config, rope_base=1e4)),
        tmp_path / ".out.partial",
        tmp_path / "out",
    )
    path = saved_model(tmp_path / "model.ckpt", model.config, model.state_dict())
    half.mkdir()
    (half / "model.safetensors").write_text("half")  # as kill -9 leaves it
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device")))
        assert exit_code(patch, command.main, str(path), str(target), "format=llama2c") == 4
    error = capsys.readouterr().err.strip()
    assert error.endswith("model.bin: No space left on device")
    assert "\n" not in error
    assert not half.exists()
    assert exit_code(monkeypatch, command.main, str(path), str(target), "format=llama2c") == 0
    assert sorted(file.name for file in tmp_path.iterdir() if file.is_dir()) == ["out"]
    assert sorted(file.name for file in target.iterdir()) == ["model.bin", "tokenizer.bin"]


CHAT = ChatTemplate(user="\n<|it's you|> ", assistant='\n"Bot"\\: ')
TURNS = [
    ("user", " Who\nare you? "),
    ("assistant", "A 'model'.\\n"),
    ("user", "{{ tell }} \u00e9\U0001f600"),
    ("assistant", "-"),
]


@pytest.mark.parametrize("lead", [[], [("system", "Be brief.\n")]], ids=["plain", "system"])
@pytest.mark.parametrize("chat", [ChatTemplate(), CHAT], ids=["default", "quotes"])
def test_the_template_of_transformers(chat, lead):
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=converted(ByteTokenizer(), eos_first=True)[0])
    for count in range(1, 5):
        messages = [{"role": role, "content": content} for role, content in [*lead, *TURNS[:count]]]
        asks = count % 2 == 1
        settings = {"chat_template": chat.jinja(), "add_generation_prompt": asks, "tokenize": False}
        text = chat.text(messages, answers=not asks)
        assert tokenizer.apply_chat_template(messages, **settings) == (text.rstrip() if asks else text)


def test_a_folder_of_transformers_chats_and_trains_on(exported, text_file, tmp_path, monkeypatch, capsys):
    """Its markers are those of generate.py and of data=instructions; its weights are those of the first step."""
    config = json.loads((exported / "config.json").read_text())
    (exported / "config.json").write_text(json.dumps(config | {"slm": {"step": 7, "chat": vars(CHAT)}}))
    lines = iter(["Who are you?", "/quit"])
    monkeypatch.setattr("builtins.input", lambda _: next(lines))
    words = f"ckpt={exported}", "interactive=true", "max_new_tokens=3", "device=cpu"
    with monkeypatch.context() as patch:
        asked = []
        patch.setattr(Conversation, "prompt", lambda self, line: asked.append(self.template) or line)
        assert exit_code(patch, cli.generate_main, *words) == 0
    assert asked == [CHAT]
    rows = [{"prompt": f"Say {word}", "completion": word} for word in "abcdefghij"]
    (tmp_path / "chat.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = ["data=instructions", f"data.path={tmp_path / 'chat.jsonl'}", "data.batch_windows=2"]
    words = [word for word in small_run(text_file, tmp_path, data) if not word.startswith(("tokenizer", "model."))]
    words += [f"init_from=hf:{exported}", "budget.steps=1", "optimizer.lr=1e-9", "trainer.precision=32-true"]
    assert trained(monkeypatch, *words, "model.context=64", f"run_dir={tmp_path / 'run'}") == 0
    after = checkpoint.load(tmp_path / "run")
    assert chat_template(after.config) == CHAT
    torch.testing.assert_close(after.model.head.weight, model_of("llama").head.weight, rtol=0, atol=1e-6)
    assert chat_template(cli.compose([*words, "data.user='\\nMe: '"]).plain) == replace(CHAT, user="\nMe: ")
