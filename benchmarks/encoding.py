"""Speed of tokenizing a corpus into a store on two cores and on one, and its memory, by size of the corpus.

    python benchmarks/encoding.py --folder FOLDER                     # about 10 minutes
    python benchmarks/encoding.py --folder FOLDER --megabytes 10 --tokenizers bpe unigram --rounds 5

FOLDER has the layout of the TinyStories repository. Its stories are repeated, shuffled anew in each copy, up to the
size, in a file of JSON Lines. A process tokenizes it with `taskset -c 0`, and one with two cores, in turn. The ratio is
that of wall times, the median of rounds; processor time, as a ratio too, and the largest memory are those of the
process and its children.
"""

import argparse
import json
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from measure import machine, one_line_errors, parsed, ratio, table

from slm import tokenizers
from slm.data.encode import Encoder, write_split
from slm.data.preparation import Preparation
from slm.data.store import id_type
from slm.errors import UserError
from slm.tokenizers import Tokenizer

DEFAULT = {10: 3, 100: 1, 1000: 1}  # megabytes -> rounds
LONG = 500, ("bpe", "sentencepiece")  # from so many megabytes on, only these tokenizers unless others are named


class Lines:
    """The corpus of a file of JSON Lines."""

    def __init__(self, path: str):
        self.path = path

    def documents(self, split: str) -> Iterator[str]:
        with open(self.path, encoding="utf-8") as file:
            yield from (json.loads(line)["text"] for line in file)


def sentencepiece(stories: list[str], algorithm: str, vocab_size: int) -> Tokenizer:
    from slm.tokenizers.sentencepiece import SentencePieceTokenizer

    return SentencePieceTokenizer.build(
        stories, vocab_size=vocab_size, algorithm=algorithm, sample_documents=10**6, seed=0
    )


def bpe(stories: list[str], vocab_size: int, library: bool = False) -> Tokenizer:
    from slm.tokenizers.bpe import BPETokenizer
    from slm.tokenizers.huggingface import HuggingFaceTokenizer

    make = HuggingFaceTokenizer.train if library else BPETokenizer.build
    return make(stories, vocab_size=vocab_size, pattern="gpt2", sample_documents=10**6, seed=0)


def gpt2(_: list[str]) -> Tokenizer:
    from slm.tokenizers.gpt2 import GPT2Tokenizer

    return GPT2Tokenizer.build(())


TOKENIZERS = {
    "bpe": lambda stories: bpe(stories, 8_000),
    "sentencepiece": lambda stories: sentencepiece(stories, "bpe", 8_000),
    "unigram": lambda stories: sentencepiece(stories, "unigram", 8_000),
    "gpt2": gpt2,
    "huggingface": lambda stories: bpe(stories, 8_000, library=True),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder")
    parser.add_argument("--megabytes", type=int, nargs="+", default=list(DEFAULT))
    parser.add_argument("--tokenizers", nargs="+", choices=list(TOKENIZERS))
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    arguments = parsed(parser)
    if arguments.child:
        print(json.dumps(measured(*arguments.child)))
        return
    stories, lines = stories_of(Path(arguments.folder or parser.error("give --folder"))), []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        names = [each for each in arguments.tokenizers or TOKENIZERS if made(each, stories, folder)]
        for size in arguments.megabytes:
            write_lines(folder / "text.jsonl", stories, size * 10**6)
            rounds = arguments.rounds or DEFAULT.get(size, 1)
            chosen = names if arguments.tokenizers or size < LONG[0] else LONG[1]
            lines += [[tokenizer, size, *compared(folder, tokenizer, rounds)] for tokenizer in chosen]
    print(machine("cpu"))
    columns = "MB/s, one core", "MB/s, two", "ratio", "processor time, two / one", "MiB, one", "MiB, two"
    print(table(["", "MB", *columns], lines))


def made(tokenizer: str, stories: list[str], folder: Path) -> bool:
    """Saves a tokenizer that learns from the stories; False without its library or files."""
    try:
        TOKENIZERS[tokenizer](stories).save(folder / tokenizer)
    except UserError as error:
        print(f"without {tokenizer}: {error}")
        return False
    return True


def stories_of(folder: Path) -> list[str]:
    import pyarrow.parquet

    files = sorted(folder.glob("data/train-*.parquet"))
    return [story for file in files for story in pyarrow.parquet.read_table(file)["text"].to_pylist() if story.strip()]


def write_lines(path: Path, stories: list[str], size: int):
    """JSON Lines with so many bytes of text, or a little more."""
    rng, written, stories = random.Random(0), 0, list(stories)
    with open(path, "w", encoding="utf-8") as file:
        while written < size:
            rng.shuffle(stories)
            for story in stories:
                file.write(json.dumps({"text": story}) + "\n")
                if (written := written + len(story.encode())) >= size:
                    return


def compared(folder: Path, tokenizer: str, rounds: int) -> list[str]:
    """The cells of a line: speeds, the ratio of wall times, that of processor times, and memory."""
    found = {"0": [], "0,1": []}
    child = [sys.executable, __file__, "--child", str(folder), tokenizer]
    for number in range(rounds):
        for cores in sorted(found, reverse=number % 2 == 1):
            command = ["taskset", "-c", cores, *child]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
            found[cores].append(json.loads(done.stdout))
            print(f"  {tokenizer} on cores {cores}: {done.stdout}", end="", file=sys.stderr, flush=True)
    one, two = ({key: [line[key] for line in lines] for key in lines[0]} for lines in found.values())
    speeds = [f"{its['bytes'][0] / 1e6 / statistics.median(its['seconds']):.1f}" for its in (one, two)]
    ratios = [f"{ratio(one['seconds'], two['seconds']):.2f}", f"{ratio(two['processor'], one['processor']):.2f}"]
    return [*speeds, *ratios, *(f"{max(its['memory']):,.0f}" for its in (one, two))]


def measured(folder: str, tokenizer: str) -> dict[str, float]:
    """Seconds, processor time and the sum of the largest memories of this process and its children, in MiB."""
    loaded = tokenizers.load(Path(folder) / tokenizer)
    with tempfile.TemporaryDirectory(dir=folder) as store:
        preparation = Preparation(Path(store), id_type(loaded.vocab_size))
        encoder = Encoder(loaded, preparation.dtype)
        start, before = time.perf_counter(), time.process_time()
        with encoder.processes:
            counts = write_split(Lines(f"{folder}/text.jsonl"), encoder, preparation, "train")
        wall, own = time.perf_counter() - start, time.process_time() - before
        count = encoder.processes.count if encoder.processes.pool else 0
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss + count * children.ru_maxrss
    processor = own + children.ru_utime + children.ru_stime
    return {"seconds": wall, "bytes": counts["bytes"], "processor": processor, "memory": largest / 1024}


if __name__ == "__main__":
    with one_line_errors():
        main()
