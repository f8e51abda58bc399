"""Tokens per second of generation, sampling included, beside others' in turn; and what fewer bits cost in quality.

    pip install transformers litgpt; git clone https://github.com/karpathy/nanoGPT
    python benchmarks/generate.py --nanogpt nanoGPT      # model=small, vocabulary 16,000, batches 1 and 32
    python benchmarks/generate.py --device cuda --nanogpt nanoGPT
    python benchmarks/generate.py --ckpt RUN       # a trained run's bits per byte in float32, bfloat16 and int8 instead

Weights are random and nothing stops a text, so that every row has its length. nanoGPT generates without a cache and
litgpt one text at a time. The limit is reading all weights once per token, at the memory's bandwidth in the same run.
"""

import argparse
import copy
import statistics
from collections.abc import Callable
from pathlib import Path

import hydra
import peers
import torch
import torch.nn.functional as F
from measure import ROOT, in_turn, machine, one_line_errors, parsed, ratio, read_bandwidth, seconds, table
from omegaconf import OmegaConf

from slm import checkpoint
from slm.data.windows import Windows, evenly_spaced
from slm.errors import UserError
from slm.estimate import parameters
from slm.files import run_folder
from slm.generation.quantize import for_decoding
from slm.generation.sampling import Sampler
from slm.generation.stream import generate
from slm.model import GPT, GPTConfig
from slm.run import cli
from slm.run.config import make_plan
from slm.run.prepare import prepare_data
from slm.training.module import LanguageModelMetrics, split

PROMPT = [1, 2, 3, 4]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="small")
    parser.add_argument("--vocab-size", type=int, default=16_000)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--tokens", type=int, default=200, help="per text; a quarter of them where texts are many")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--nanogpt", help="a clone of nanoGPT")
    parser.add_argument("--ckpt", help="a run folder or checkpoint whose quality to measure instead")
    arguments = parsed(parser)
    if arguments.ckpt:
        return quality(arguments)
    cli.check_overrides([f"model={arguments.model}"], sweep=False)
    with hydra.initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        choices = OmegaConf.to_container(hydra.compose("train", [f"model={arguments.model}"]).model)
    config = GPTConfig(**choices, vocab_size=arguments.vocab_size)
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
        add(f"slm {dtype}", lambda model=model: ours(model, batch, tokens))
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


def ours(model: GPT, batch: int, tokens: int):
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
    """Bits per byte on the run's own validation windows."""
    loaded = checkpoint.load(run_folder.find_checkpoint(arguments.ckpt, Path("runs")), arguments.device)
    if loaded.config["data"]["layout"] != "packed":
        raise UserError(f"--ckpt {arguments.ckpt} has data.layout={loaded.config['data']['layout']}; give a packed run")
    prepared = prepare_data(make_plan(loaded.config))
    windows = Windows(prepared.store, "validation", loaded.model.config.context)
    chosen = evenly_spaced(len(windows), loaded.config["data"]["validation_windows"])
    lengths = torch.tensor([len(loaded.tokenizer.token_bytes(token)) for token in range(loaded.tokenizer.vocab_size)])
    lines, first = [], None
    for dtype in ("float32", "bfloat16", *(["int8"] if arguments.device == "cpu" else [])):
        model = for_decoding(copy.deepcopy(loaded.model), dtype)
        metrics = LanguageModelMetrics()
        for start in range(0, len(chosen), 8):
            inputs, targets = split(windows.__getitems__(chosen[start : start + 8]).to(arguments.device))
            logits = model(inputs).float()  # by the head itself, which may have 8 bits
            nats = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
            metrics.update(nats.double().sum().cpu(), targets.cpu(), lengths)
        bits = metrics.compute()["bits_per_byte"].item()
        first = first or bits
        lines.append([dtype, f"{bits:.5f}", f"{bits - first:+.5f}"])
    print(machine(arguments.device))
    print(
        f"step {loaded.step}, {len(chosen)} windows\n" + table(["weights", "bits per byte", "against float32"], lines)
    )


if __name__ == "__main__":
    with one_line_errors():
        main()
