"""Cases on models of others in folders of transformers, on conversations to learn from, and on what clients ask a
server: each with a right result or a UserError."""

import asyncio
import json
import random
import shutil
import string
from collections.abc import Callable
from pathlib import Path

import mutations
import torch

from slm import chat_template, checkpoint
from slm.corpora.instructions import Instructions
from slm.data.instructions import Answers
from slm.errors import UserError
from slm.files import run_folder
from slm.generation.completion import complete
from slm.generation.language_model import LanguageModel
from slm.generation.sampling import Sampler
from slm.huggingface.layouts import settings_of
from slm.huggingface.tensors import to_theirs
from slm.model import GPT, GPTConfig
from slm.serving import request
from slm.tokenizers import pieces
from slm.tokenizers.bytes import ByteTokenizer

SIZES = {"context": 16, "width": 16, "depth": 2, "head_dim": 8, "tied": False, "bias": False}
SHAPES = {  # by model_type
    "llama": {"positions": "rope", "norm": "rmsnorm", "mlp": "swiglu", "kv_heads": 1},
    "qwen3": {"positions": "rope", "norm": "rmsnorm", "mlp": "relu2", "qk_norm": True, "window": [4, None]},
    "gpt2": {"positions": "learned", "norm": "layernorm", "mlp": "gelu_tanh", "bias": True},
    "gpt_neox": {"positions": "rope", "norm": "layernorm", "mlp": "gelu", "bias": True},
}
HUGE = (2**31, 10**9, 10**12, 2**63, -1, 0, 1, 1e9, 10**30)
TEMPLATES = ("{{ messages[0].__class__.__mro__ }}", "{% for m in range(10**9) %}a{% endfor %}", "{%", "\0" * 99)


def shards(rng: random.Random, folder: Path) -> Callable[[int], None]:
    """A sharded checkpoint in which bytes, a header, the starts of rows or the shapes have changed."""
    from safetensors import safe_open
    from safetensors.torch import save_file
    from test_foreign_files import content
    from test_shards import NAME, signed, written

    whole, path = written(folder / "whole.ckpt", content()), folder / "a.ckpt"
    plain = torch.load(whole / run_folder.PLAIN_PART, weights_only=True)
    with safe_open(whole / NAME.format(2), framework="pt") as file:
        rows = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        starts = json.loads(file.metadata()["DCP_SHARDING_INFO"])
    written_bytes = (whole / NAME.format(2)).read_bytes()
    end = 8 + int.from_bytes(written_bytes[:8], "little")

    def case(number: int):
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(whole, path)
        shard = path / NAME.format(rng.choice((1, 2, 3)))
        match number % 4:
            case 0:
                shard.write_bytes(mutations.damaged(written_bytes, rng))
            case 1:
                header = mutations.changed(json.loads(written_bytes[8:end]), rng, plain=True)
                header = json.dumps(header, default=str).encode()
                shard.write_bytes(len(header).to_bytes(8, "little") + header + written_bytes[end:])
            case 2:
                changed = json.dumps(mutations.changed(starts, rng, plain=True), default=str)
                save_file(rows, path / NAME.format(2), {"DCP_SHARDING_INFO": changed})
            case 3:
                raw = {**plain, "shards": mutations.changed(plain["shards"], rng)}
                torch.save(raw, path / run_folder.PLAIN_PART)
        loaded = checkpoint.load(signed(path))
        assert loaded.model.config.vocab_size == 257

    return case


def folders(rng: random.Random, folder: Path) -> Callable[[int], None]:
    """A folder with claims that its weights do not hold, or with damaged files."""
    from safetensors.torch import save
    from test_huggingface import EOS

    tokenizer = json.loads(next(iter(EOS))().to_str())
    vocabulary = len(tokenizer["model"]["vocab"])
    whole = []
    for name, shape in SHAPES.items():
        config = GPTConfig(**{**SIZES, **shape}, vocab_size=vocabulary)
        weights = to_theirs(config, name, GPT(config).state_dict())
        kind = rng.choice((torch.float32, torch.bfloat16))
        settings = settings_of(config, name) | {"slm": {"step": 3, "chat": conversations()["data"]["corpus"]}}
        whole.append((settings, save({key: value.to(kind) for key, value in weights.items()})))
    eos = tokenizer["added_tokens"][-1]["content"]
    names = "tokenizer_config.json", "model.safetensors.index.json"

    def case(number: int):
        place = folder / "model"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        settings, weights = rng.choice(whole)
        more = {"tokenizer_config.json": {"eos_token": eos, "bos_token": {"content": eos}, "chat_template": "{{ 1 }}"}}
        match number % 8:
            case 0 | 1:
                settings = mutations.changed(settings, rng, plain=True)
            case 2:
                numbers = [key for key, value in settings.items() if type(value) in (int, float)]
                settings = settings | {key: rng.choice(HUGE) for key in rng.sample(numbers, rng.choice((1, 2)))}
            case 3 | 4:
                weights = with_header(weights, rng)
            case 5:
                weights = mutations.damaged(weights, rng)
            case 6:
                index = {"metadata": {}, "weight_map": {"a": "model.safetensors", "b": "../model.safetensors"}}
                more[names[1]] = mutations.changed(index, rng, plain=True)
            case _:
                more[names[0]] = mutations.changed(more[names[0]], rng, plain=True)
                more[names[0]] |= {"chat_template": rng.choice(TEMPLATES)} if isinstance(more[names[0]], dict) else {}
        content = json.dumps(settings).encode("utf-8", "surrogatepass")
        (place / "config.json").write_bytes(mutations.damaged(content, rng) if number % 16 == 0 else content)
        (place / "model.safetensors").write_bytes(weights)
        (place / "tokenizer.json").write_text(json.dumps(tokenizer))
        for name, its in more.items():
            (place / name).write_bytes(json.dumps(its).encode("utf-8", "surrogatepass"))
        loaded = checkpoint.load(place)
        complete(loaded.model, loaded.tokenizer, ["ab"], sampler=Sampler(temperature=0.8), max_new_tokens=4, seed=0)
        assert loaded.step >= 0
        if template := chat_template.chat_template(loaded.config):
            template.text([{"role": "user", "content": "a"}], answers=False)

    return case


def with_header(weights: bytes, rng: random.Random) -> bytes:
    """Safetensors whose header lies: about a type, a shape or a place, or about its own length."""
    size = int.from_bytes(weights[:8], "little")
    header, rest = json.loads(weights[8 : 8 + size]), weights[8 + size :]
    if rng.random() < 0.1:
        return rng.choice((2**63, 2**40, size + 1, size - 1, 0)).to_bytes(8, "little") + weights[8:]
    its = header[rng.choice([name for name in header if name != "__metadata__"])]
    match rng.choice("tspxm"):
        case "t":
            its["dtype"] = rng.choice(("F32", "BF16", "F64", "I64", "BOOL", "F8_E4M3", "U8", "X", 3))
        case "s":
            its["shape"] = rng.choice(([*its["shape"], 1], its["shape"][::-1], [10**9, 0], [2**62, 2**62], [-1], [], 3))
        case "p":
            its["data_offsets"] = rng.choice(([0, len(rest)], [0, 2**63], [-1, 5], [5, 0], its["data_offsets"][::-1]))
        case "x":
            header = mutations.changed(header, rng, plain=True)
        case _:
            header["__metadata__"] = mutations.value(rng, plain=True)
    content = json.dumps(header).encode("utf-8", "surrogatepass")
    return len(content).to_bytes(8, "little") + content + rest


def instructions(rng: random.Random, folder: Path) -> Callable[[int], None]:
    """Rows of conversations in each form; what is masked in a document is what its rows say."""
    asked, answered = "Say a word.\nSoon", " A kite, ä. "
    turns = [{"role": "system", "content": "Be short."}, {"role": "user", "content": asked}]
    turns += [{"role": "assistant", "content": answered}]
    rows = [
        {"prompt": asked, "completion": answered},
        {"instruction": "Say", "input": rng.choice(("", "a word")), "output": answered},
        {"messages": turns},
        {"messages": [*turns[1:], *turns[1:]]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": asked}]}, turns[2]]},
        {"conversations": [{"from": "human", "value": asked}, {"from": "gpt", "value": answered}]},
    ]
    tokenizer = ByteTokenizer()
    spelled = pieces(tokenizer)

    def case(number: int):
        chosen = rng.choices(rows, k=rng.choice((2, 5)))
        if number % 4:
            chosen = mutations.changed(chosen, rng, plain=True)
        lines = "\n".join(map(json.dumps, chosen if isinstance(chosen, list) else [chosen]))
        content = lines.encode("utf-8", "surrogatepass")
        path = folder / rng.choice(("a.jsonl", "a.json"))
        content = content if path.suffix == ".jsonl" else json.dumps(chosen).encode("utf-8", "surrogatepass")
        path.write_bytes(mutations.damaged(content, rng) if number % 8 == 1 else content)
        markers = rng.choice((("\nUser: ", "\nAssistant: "), ("\n<u>", "\n<a>"), ("\\nQ:", "\\nA:")))
        settings = {"split": rng.choice(("contiguous", "seeded")), "train_ratio": 0.5, "seed": rng.randrange(9)}
        try:
            corpus = Instructions(path=str(path), user=markers[0], assistant=markers[1], **settings)
            corpus.fingerprint()
            documents = [text for split in ("train", "validation") for text in corpus.documents(split)]
        finally:
            path.unlink()
        marked = Answers(spelled, corpus.chat)
        for text in documents:
            ids = torch.tensor([*tokenizer.encode(text), tokenizer.eos]).numpy()
            mask = marked.of(ids, torch.tensor([0, len(ids)]).numpy())
            assert mask[-1], f"the end of an answer is no target {text!r}"
            assert not mask[: len(corpus.chat.user.strip())].any(), "a marker is a target"
            if number % 4 == 0:
                assert answered.strip().encode() in bytes(ids[:-1][mask[:-1]].tolist())

    return case


def bodies(rng: random.Random, folder: Path) -> Callable[[int], None]:
    """Requests to the API of serve=openai: an answer in JSON, whose status is 400 or 404 for a mistake."""
    from slm.serving.address import Address
    from slm.serving.guard import Guard
    from slm.serving.openai import Api

    torch.manual_seed(0)
    model = GPT(GPTConfig(**SIZES, **SHAPES["llama"], vocab_size=ByteTokenizer.vocab_size)).eval()
    own, talks = (LanguageModel(model, ByteTokenizer(), Path("a.ckpt"), 1, config) for config in ({}, conversations()))
    request.MAX_TOKENS = 8
    defaults = request.Defaults(sampler=Sampler(temperature=0.8), max_new_tokens=4, stop_at_eos=True)
    app = Guard(Api({"own": own, "talks": talks}, defaults).app(), Address(host="127.0.0.1", port=0, token=None))
    shared = {"temperature": 0.5, "top_p": 0.9, "top_k": 5, "min_p": 0.1, "seed": 3, "n": 2, "stop": ["a"]}
    shared |= {"stream": False, "stream_options": {"include_usage": True}, "user": "me", "ignore_eos": True}
    shared |= {"repetition_penalty": 1.1, "greedy": False, "presence_penalty": 0, "response_format": {"type": "text"}}
    messages = [{"role": "system", "content": "b"}, {"role": "user", "content": [{"type": "text", "text": "ä\n"}]}]
    few = {"max_tokens": 3}
    asked = {
        "/v1/completions": few | {"model": "own", "prompt": ["a", "b"], "logprobs": 2, "echo": True},
        "/v1/chat/completions": few | {"model": "talks", "messages": messages, "logprobs": True, "top_logprobs": 2},
    }

    def case(number: int):
        path, body = rng.choice(list(asked.items()))
        body = body | dict(rng.sample(list(shared.items()), rng.choice((0, 2, 5))))
        if rng.random() < 0.3:
            body["prompt" if "prompt" in body else "stop"] = rng.choice(([1, 2], [[1], [256]], [300], [-1], "", ["b"]))
        body = mutations.changed(body, rng, plain=True) if number % 4 else body | {"stream": rng.random() < 0.5}
        content = json.dumps(body).encode("utf-8", "surrogatepass")
        content = mutations.damaged(content, rng) if number % 8 == 1 else content
        if number % 16 == 3:
            path = rng.choice(("/v1/models/", "/v1/", "/")) + "".join(rng.choices(string.printable, k=9))
        status, answer = asyncio.run(answered(app, path, content))
        if status == 307:  # of an address with a slash too many
            return
        assert status in (200, 400, 403, 404, 405, 413), f"status {status}: {answer[:200]!r}"
        for line in answer.split("\n\n") if answer.startswith("data: ") else [answer]:
            found = {} if line in ("", "data: [DONE]") else json.loads(line.removeprefix("data: "))
            if error := found.get("error"):
                assert error["type"] != "server_error", error
                raise UserError(error["message"])
        assert status == 200

    return case


def conversations() -> dict:
    """The configuration of a run with a chat template."""
    chat = chat_template.ChatTemplate()
    return {"data": {"corpus": {"user": chat.user, "assistant": chat.assistant}}}


async def answered(app, path: str, body: bytes) -> tuple[int, str]:
    """Status and content of the answer of an ASGI application to a request."""
    sent, received = [], iter([{"type": "http.request", "body": body, "more_body": False}])

    async def receive():
        message = next(received, None)
        return message or await asyncio.sleep(60, {"type": "http.disconnect"})

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "query_string": b""}
    scope |= {"root_path": "", "http_version": "1.1", "scheme": "http", "client": None, "server": ("127.0.0.1", 80)}
    scope["headers"] = [(b"host", b"127.0.0.1"), (b"content-length", str(len(body)).encode())]
    await app(scope, receive, send)
    content = b"".join(message.get("body", b"") for message in sent)
    return sent[0]["status"], content.decode()
