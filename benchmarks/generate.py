"""Tokens per second of generation with sampling, of slm and others, alternating; and bits per byte with fewer bits.

    pip install transformers litgpt; git clone https://github.com/karpathy/nanoGPT
    python benchmarks/generate.py --nanogpt nanoGPT      # model=small, vocabulary 16,000, batches 1 and 32
    python benchmarks/generate.py --device cuda --nanogpt nanoGPT
    python benchmarks/generate.py --ckpt RUN --set data=text data.path=FILE   # bits per byte of a trained run

Weights are random and no id ends a text, so all have the same length. nanoGPT generates without a cache and litgpt one
text at a time. The limit is reading all weights once per token, at the memory's bandwidth in the same run. With --ckpt:
the validation loss in float32, bfloat16 and int8; --set are the overrides of the run that choose its data.
"""

import copy
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import peers
import torch
import torch.nn.functional as F
from measure import argument_parser, in_turn, machine, one_line_errors, parsed, ratio, read_bandwidth, seconds, table

from slm import checkpoint
from slm.data.store import prepare
from slm.data.windows import Windows, evenly_spaced
from slm.errors import UserError
from slm.estimate import parameters
from slm.files import run_folder
from slm.generation.quantize import for_decoding
from slm.generation.sampling import Sampler
from slm.generation.stream import generate
from slm.model import GPT, GPTConfig
from slm.run import cli
from slm.training.module import LanguageModelMetrics, split

PROMPT = [1, 2, 3, 4]


def main():
    parser = argument_parser(__doc__)
    parser.add_argument("--model", default="small")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--tokens", type=int, default=200, help="per text; a quarter with several texts")
    parser.add_argument("--nanogpt", help="a clone of nanoGPT")
    parser.add_argument("--ckpt", help="a run folder or checkpoint: measures its bits per byte")
    parser.add_argument("--set", nargs="*", default=[], help="overrides of that run that choose its data")
    arguments = parsed(parser)
    if arguments.ckpt:
        return quality(arguments)
    config = replace(cli.compose([f"model={arguments.model}"]).model, vocab_size=arguments.vocab_size)
    print(f"{machine(arguments.device)}; {config.depth} x {config.width}, {parameters(config).total:,} parameters")
    bandwidth = read_bandwidth(arguments.device)
    limits = ", ".join(f"{bandwidth / parameters(config).total / bits * 8:,.0f} with {bits}" for bits in (32, 16, 8))
    print(f"weights read at {bandwidth / 1e9:.1f} GB/s allow tokens/s of one text: {limits} bits; a cache more")
    for batch in arguments.batch:
        tokens = arguments.tokens if batch == 1 else max(arguments.tokens // 4, 1)
        values = in_turn(make_ways(config, batch, tokens, arguments), arguments.rounds)
        first = next(iter(values))
        lines = [
            [way, f"{statistics.median(rates):,.0f}", f"{ratio(values[first], rates):.2f}"]
            for way, rates in values.items()
        ]
        print(f"\n{batch} x {tokens} tokens\n" + table(["", "tokens/s", f"{first} is faster by"], lines), flush=True)


def make_ways(config: GPTConfig, batch: int, tokens: int, arguments) -> dict[str, Callable[[], float]]:
    device, ways = arguments.device, {}

    def add(name: str, work: Callable[[], object]):
        ways[name] = lambda: batch * tokens / seconds(work, device)

    base = GPT(config).to(device).eval()
    for dtype in ("float32", "bfloat16", *(["int8"] if device == "cpu" else [])):
        model = for_decoding(copy.deepcopy(base), dtype)
        add(f"slm {dtype}", lambda model=model: slm(model, batch, tokens))
    prompt = torch.tensor([PROMPT] * batch, device=device)
    for name in peers.names(arguments.nanogpt):
        for dtype in (torch.float32, torch.bfloat16):
            model = copy.deepcopy(peers.peer(name, config, arguments.nanogpt, device)[0]).to(dtype).eval()
            label = f"{name} {str(dtype).removeprefix('torch.')}"
            if name == "litgpt" and batch == 1:
                add(label, lambda model=model: litgpt(model, prompt[0], tokens))
            elif name.startswith("HF"):
                length = {"min_new_tokens": tokens, "max_new_tokens": tokens}
                settings = {"do_sample": True, "top_k": 0, "pad_token_id": 0, **length}
                add(label, lambda model=model, settings=settings: model.generate(prompt, **settings))
            elif name == "nanoGPT":
                add(label, lambda model=model: model.generate(prompt, tokens))
    return ways


def slm(model: GPT, batch: int, tokens: int):
    settings = {"sampler": Sampler(), "max_new_tokens": tokens, "eos": None, "seed": 0}
    assert sum(len(step) for step in generate(model, [PROMPT] * batch, **settings)) == batch * tokens


def litgpt(model, prompt: torch.Tensor, tokens: int):
    from litgpt.generate.base import generate as generate_one

    model.clear_kv_cache()
    with torch.inference_mode():
        model.max_seq_length = len(prompt) + tokens
        model.set_kv_cache(batch_size=1, device=prompt.device)
        generate_one(model, prompt, len(prompt) + tokens, temperature=1.0, include_prompt=False)


@torch.no_grad()
def quality(arguments):
    """Prints bits per byte on the run's validation windows."""
    loaded = checkpoint.load(run_folder.find_checkpoint(arguments.ckpt, Path("runs")), arguments.device)
    config = cli.compose(arguments.set)
    if config.data.corpus.fingerprint() != loaded.corpus or config.data.layout != "packed":
        raise UserError("--set must choose the data of that run, in data.layout=packed; see its overrides.yaml")
    store = prepare(config.data.corpus, loaded.tokenizer, Path(config.cache_dir))
    windows = Windows(store, "validation", loaded.model.config.context)
    chosen = evenly_spaced(len(windows), config.data.validation_windows)
    lengths = torch.tensor([len(loaded.tokenizer.token_bytes(token)) for token in range(loaded.tokenizer.vocab_size)])
    lines, first = [], None
    for dtype in ("float32", "bfloat16", *(["int8"] if arguments.device == "cpu" else [])):
        model = for_decoding(copy.deepcopy(loaded.model), dtype)
        metrics = LanguageModelMetrics()
        for start in range(0, len(chosen), 8):
            inputs, targets = split(windows.__getitems__(chosen[start : start + 8]).to(arguments.device))
            logits = model(inputs).float()  # of the head itself, which may have 8 bits
            nats = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
            metrics.update(nats.double().sum().cpu(), targets.cpu(), lengths)
        bits = metrics.compute()["bits_per_byte"].item()
        first = first or bits
        lines.append([dtype, f"{bits:.5f}", f"{bits - first:+.5f}"])
    print(f"{machine(arguments.device)}; step {loaded.step}, {len(chosen)} windows")
    print(table(["weights", "bits per byte", "against float32"], lines))


if __name__ == "__main__":
    with one_line_errors():
        main()
