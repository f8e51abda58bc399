"""Time and memory until a store of any size is read, and read again at a late position.

    python benchmarks/opening.py [--gigabytes 1 10 100] [--context 256]

The stores are sparse files of zeros with stamps of a verification, so they take no room on the disk; a real store is
read in full by the first command that opens it, at about 1.5 GB/s. Each line is of a new process: the time to open the
store, to divide it into windows, to the first microbatch of 8, and to one in the third pass, with their count of
targets; and the memory that all of it took. Documents have 200 ids; passes over a store of more than 2^24 windows need
no index of them.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
from measure import machine, one_line_errors, parsed, table

from slm.data import store
from slm.data.store import TokenStore
from slm.data.windows import split_windows
from slm.files import atomic

SHARD = 2**27  # ids, of 2 bytes
ORDERS = "shuffle", "strided", "replacement"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=int, nargs="+", default=[1, 10, 100])
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    arguments = parsed(parser)
    if arguments.child:
        print(json.dumps(measured(Path(arguments.child[0]), arguments.child[1], arguments.context)))
        return
    lines = []
    for size in arguments.gigabytes:
        with tempfile.TemporaryDirectory() as folder:
            make_sparse(Path(folder), size)
            for order in ORDERS:
                child = [sys.executable, __file__, "--context", str(arguments.context), "--child", folder, order]
                done = subprocess.run(child, check=True, stdout=subprocess.PIPE, text=True)
                lines.append([size, order, *json.loads(done.stdout)])
    print(machine("cpu"))
    columns = "open, ms", "windows, ms", "first microbatch, ms", "late microbatch, ms", "memory, MiB"
    print(table(["GB", "order", "number of windows", *columns], lines))


def make_sparse(folder: Path, gigabytes: float):
    """A store of so many gigabytes of train ids, and one shard of validation."""
    splits, stamps, length = {}, {}, min(SHARD, round(gigabytes * 10**9 / 2))
    for split, shards in (("validation", 1), ("train", max(round(gigabytes * 10**9 / (2 * length)), 1))):
        files = [{"file": f"{split}-{n:05d}.bin", "tokens": length, "sha256": "0" * 64} for n in range(shards)]
        counts = {"bytes": 1, "lost_bytes": 0, "documents": shards * 10**6, "tokens": length * shards}
        splits[split] = {**counts, "shards": files}
        for shard in files:
            with open(folder / shard["file"], "wb") as file:
                file.truncate(2 * length)
            stat = (folder / shard["file"]).stat()
            stamps[shard["file"]] = [2 * length, stat.st_ctime_ns, stat.st_ino, shard["sha256"], 257]
    if gigabytes < 10:
        with atomic.replacing(folder / "train-documents.i64", digest=True) as file:
            file.write(np.append(np.arange(0, length * shards, 200), length * shards).tobytes())
    manifest = {"dtype": "uint16", "repeated": 0, "vocab_size": 257, "corpus": "", "tokenizer": "", "splits": splits}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / store.VERIFIED).write_text(json.dumps(stamps))


def measured(folder: Path, order: str, context: int) -> list[str]:
    """The cells of a line."""
    before, times = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, [time.perf_counter()]
    opened = TokenStore.open(folder, {"vocab_size": 257})
    times.append(time.perf_counter())
    splits = split_windows(
        opened, 256, context=context, order=order, stride=context // 2 if order == "strided" else None
    )
    mean = splits.targets_per_window
    times.append(time.perf_counter())
    late = int(2.5 * len(splits.chosen))
    for position in (0, late):
        its = splits.order(seed=0)
        assert its.targets_before(position) == position * mean
        splits.chosen_windows.__getitems__([*islice(its.indices(position), 8)])
        times.append(time.perf_counter())
    memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    milliseconds = [f"{1e3 * (end - start):,.1f}" for start, end in pairwise(times)]
    return [f"{len(splits.chosen):,}", *milliseconds, f"{memory:,.0f}"]


if __name__ == "__main__":
    with one_line_errors():
        main()
