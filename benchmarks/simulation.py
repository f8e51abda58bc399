"""The efficiency of DDP and FSDP2 on 8 to 512 H100, computed: nothing is measured here.

    python benchmarks/simulation.py

Known: the rate of one H100 with gpt2_124m (benchmarks/RESULTS.md: 242,000 tokens/s, 21 % of its peak), which larger
models are assumed to reach, too. Bandwidths and latencies: conf/devices.yaml; machines of 8 GPUs with NVLink 4 within,
and one network for all 8, or one for each, between them. What is sent in a step: slm/planning/distributed.py.

DDP sums gradients during the backward pass of the last microbatch; what takes longer, and the last bucket, is waited
for. FSDP2 gathers the next block while one is computed, and sums the gradients of the one before; a pass takes as long
as the longer of both, and one block's share at its ends. A block takes at least as long as the launches of its kernels.
Left out: the optimizer, validation, devices that lag, other traffic, slower arithmetic of small microbatches.
"""

from dataclasses import replace
from math import ceil

from measure import one_line_errors, table

from slm.estimate import device_table, training_flops_per_token, weights
from slm.model import GPTConfig
from slm.planning.distributed import BUCKET, Link, all_reduced, ddp_traffic, gathered, links, number_bytes, sent_bytes
from slm.run import cli

PRECISION, CONTEXT, VOCABULARY = "bf16-mixed", 1024, 50_257
MEASURED = 242_000  # tokens/s of gpt2_124m
MICROBATCH = {"124M": 32, "350M": 16, "1.3B": 8}  # windows, which fit into 80 GB by plan=true
GPUS, MACHINE = (8, 16, 32, 64, 128, 256, 512), 8
WINDOWS = 32  # of each GPU in a step
BATCH = 512  # windows in a step of all, 0.5M tokens


def main():
    small = replace(cli.compose(["experiment=gpt2_124m", "plan=true"]).model, vocab_size=VOCABULARY)
    configs = {
        "124M": small,
        "350M": replace(small, depth=24, width=1024),
        "1.3B": replace(small, depth=24, width=2048, head_dim=128),
    }
    flops = MEASURED * training_flops_per_token(small)  # per second
    known = {link.name: link for link in links()}
    one = known["400 Gb/s"]
    networks = [known["100 Gb/s"], one, replace(one, name="8 x 400 Gb/s", bandwidth=8 * one.bandwidth)]
    for title, each, chosen in (
        (f"{WINDOWS} windows per GPU", WINDOWS, networks),
        (f"{BATCH} windows", None, networks),
    ):
        rows = []
        for name, config in configs.items():
            for strategy in (ddp, fsdp):
                for network in chosen:
                    shares = [
                        efficiency(config, strategy, flops, gpus, known["NVLink 4"], network, MICROBATCH[name], each)
                        for gpus in GPUS
                    ]
                    rows.append([name, strategy.__name__, network.name, *(f"{share:.0%}" for share in shares)])
        print(f"{title} of {CONTEXT:,} tokens in a step, share of {GPUS[0]} to {GPUS[-1]} times one GPU's speed:\n")
        print(table(["model", "strategy", "between machines", *GPUS], rows), "\n")


def efficiency(
    config: GPTConfig, strategy, flops: float, gpus: int, within: Link, between: Link, most: int, each: int | None
) -> float:
    """The share of a GPU's own speed that it reaches among so many; `each`: its windows, None: its part of BATCH."""
    windows = each or BATCH / gpus
    microbatches = ceil(windows / most)
    alone = windows * CONTEXT * training_flops_per_token(config) / flops  # seconds
    computing = max(alone / microbatches, config.depth * device_table()["block_seconds"])
    link = within
    if gpus > MACHINE:  # a ring passes the 8 GPUs of a machine and leaves it once
        latency = ((MACHINE - 1) * within.latency + between.latency) / MACHINE
        link = Link(name="", bandwidth=min(within.bandwidth, between.bandwidth), latency=latency)
    return alone / strategy(config, gpus, link, computing, microbatches)


def ddp(config: GPTConfig, gpus: int, link: Link, computing: float, microbatches: int) -> float:
    """Seconds of a step; `computing`: of a microbatch, a third of it forward."""
    its = weights(config)
    sending = ddp_traffic(its, PRECISION, gpus).seconds(link)
    last = all_reduced(BUCKET, gpus) / link.bandwidth
    return microbatches * computing + max(sending - 2 / 3 * computing, last)


def fsdp(config: GPTConfig, gpus: int, link: Link, computing: float, microbatches: int) -> float:
    """As `ddp`."""
    its, hop = weights(config), (gpus - 1) * link.latency
    sent, number = sent_bytes(PRECISION), number_bytes(PRECISION)

    def seconds(size: float) -> float:
        return gathered(size, gpus) / link.bandwidth

    forward = seconds(sent * (its.blocks + its.outside)) + (its.depth + 1) * hop
    backward = seconds(sent * its.blocks + number * its.total) + (2 * its.depth + 1) * hop
    ends = (forward + backward) / its.depth
    return microbatches * (max(computing / 3, forward) + max(2 / 3 * computing, backward) + ends)


if __name__ == "__main__":
    with one_line_errors():
        main()
