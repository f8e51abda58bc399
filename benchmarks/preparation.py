"""Speed of writing a token store, and its peak memory, which must not grow with the corpus.

    python benchmarks/preparation.py --folder FOLDER [--times 1 4 16] [--vocab-size 16000]

FOLDER has the layout of the TinyStories repository. A new process for each of --times tokenizes its stories so many
times over, with a tokenizer trained before. Prints stories/s, MB/s and the peak memory of the process.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from slm import tokenizers  # noqa: E402
from slm.corpora.tinystories import TinyStories  # noqa: E402
from slm.tokenizers.sentencepiece import SentencePieceTokenizer  # noqa: E402


class Repeated:
    """A corpus whose documents are repeated."""

    def __init__(self, corpus, times: int):
        self.corpus, self.times = corpus, times

    def documents(self, split):
        for _ in range(self.times):
            yield from self.corpus.documents(split)

    def fingerprint(self) -> str:
        return f"{self.corpus.fingerprint()} x {self.times}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", required=True)
    parser.add_argument("--times", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--vocab-size", type=int, default=16_000)
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    corpus = TinyStories(path=arguments.folder, streaming=False, repository="", revision="", cache="")
    if arguments.child:
        return measure(corpus, *arguments.child)
    with tempfile.TemporaryDirectory() as folder:
        settings = {"vocab_size": arguments.vocab_size, "algorithm": "bpe", "sample_documents": 100_000, "seed": 0}
        (Path(folder) / "tokenizer").mkdir()
        SentencePieceTokenizer.build(corpus.documents("train"), **settings).save(Path(folder) / "tokenizer")
        for times in arguments.times:
            child = ["--child", str(times), folder, "tokenizer"]
            command = [sys.executable, __file__, "--folder", arguments.folder, *child]
            print(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout, end="", flush=True)


def measure(corpus, times: str, folder: str, tokenizer: str):
    from slm.data.store import prepare

    loaded = tokenizers.load(Path(folder) / tokenizer)
    start = time.perf_counter()
    store = prepare(Repeated(corpus, int(times)), loaded, "", Path(folder))
    seconds = time.perf_counter() - start
    counts = store.manifest["splits"]["train"]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"{times:>3} x: {counts['documents']:9,} stories, {counts['bytes'] / 1e6:8.1f} MB in {seconds:6.1f} s: "
        f"{counts['documents'] / seconds:8,.0f} stories/s, {counts['bytes'] / 1e6 / seconds:5.1f} MB/s, "
        f"peak memory {peak:,.0f} MiB"
    )


if __name__ == "__main__":
    main()
