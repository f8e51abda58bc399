"""Speed of tokenization in MB/s, into a token store and of encoding alone, compared with other tokenizers.

    pip install tokenizers tiktoken
    python benchmarks/tokenization.py --folder FOLDER [--megabytes 50] [--vocab-size 16000]

FOLDER has the layout of the TinyStories repository. Its stories are repeated, with a different number at the end of
each copy, up to --megabytes. Hugging Face's tokenizer is trained on the same stories with the same vocabulary size;
tiktoken has the vocabulary of GPT-2 and is skipped without its files. Our ids must equal those of SentencePiece.
"""

import argparse
import itertools
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from measure import in_turn, machine, one_line_errors, parsed, ratio, seconds, table

from slm.corpora.tinystories import TinyStories
from slm.data.encode import batches
from slm.data.store import prepare
from slm.tokenizers.sentencepiece import SentencePieceTokenizer


class Stories:
    """A corpus in memory, so that only tokenization and writing are timed."""

    def __init__(self, stories: list[str]):
        self.stories = stories

    def documents(self, split: str) -> list[str]:
        return self.stories if split == "train" else self.stories[:1]

    def fingerprint(self) -> str:
        return ""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", required=True)
    parser.add_argument("--megabytes", type=float, default=50)
    parser.add_argument("--vocab-size", type=int, default=16_000)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parsed(parser)
    corpus = TinyStories(path=arguments.folder, streaming=False, repository="", revision="", cache="")
    original = list(corpus.documents("train"))
    stories = repeated(original, arguments.megabytes * 1e6)
    megabytes = sum(len(story.encode()) for story in stories) / 1e6
    with tempfile.TemporaryDirectory() as folder:
        work = make_methods(original, stories, arguments.vocab_size, Path(folder))
        methods = {name: lambda function=function: megabytes / seconds(function) for name, function in work.items()}
        values = in_turn(methods, arguments.rounds)
    library = values["SentencePiece BPE itself, 2 threads"]
    lines = [
        [name, f"{statistics.median(rates):.1f}", f"{ratio(rates, library):.2f}"] for name, rates in values.items()
    ]
    print(machine("cpu"))
    print(f"{megabytes:.1f} MB, {len(stories):,} stories, vocabulary {arguments.vocab_size:,}, ids equal")
    print(table(["", "MB/s", "of SentencePiece BPE"], lines))


def repeated(stories: list[str], size: float) -> list[str]:
    """At least `size` characters of stories, repeated if necessary, with one new word in each copy.

    Repetition favours our BPE, which caches words: use as much original text as possible.
    """
    found, total = [], 0
    for number, story in enumerate(itertools.cycle(stories)):
        found.append(f"{story} {number}" if number >= len(stories) else story)
        total += len(found[-1])
        if total >= size:
            return found


def make_methods(original: list[str], stories: list[str], vocab_size: int, folder: Path) -> dict[str, Callable]:
    batched = list(batches(stories))
    methods, numbers = {}, itertools.count()
    for algorithm in ("bpe", "unigram"):
        size = vocab_size if algorithm == "bpe" else min(vocab_size, 8_000)
        settings = {"vocab_size": size, "algorithm": algorithm, "sample_documents": 10**6, "seed": 0}
        tokenizer = SentencePieceTokenizer.build(iter(original), **settings)
        tokenizer.save(folder / algorithm)
        library = tokenizer._processor

        def store(algorithm=algorithm):
            """As in train.py: an empty cache and a tokenizer without cached words."""
            fresh = SentencePieceTokenizer.load(folder / algorithm)
            prepare(Stories(stories), fresh, folder / f"cache{next(numbers)}")

        def encoding(algorithm=algorithm):
            fresh = SentencePieceTokenizer.load(folder / algorithm)
            return [fresh.encode_batch(batch) for batch in batched]

        name = algorithm.upper() if algorithm == "bpe" else algorithm
        methods[f"slm {name}, into a token store"] = store
        methods[f"slm {name}, encoding"] = encoding
        methods[f"SentencePiece {name} itself, 2 threads"] = lambda library=library: [
            library.encode(batch, num_threads=2) for batch in batched
        ]
        for ours, theirs in zip(tokenizer.encode_batch(batched[0]), library.encode(batched[0])):
            assert np.array_equal(ours, theirs), "ids differ from SentencePiece"
    try:
        from tokenizers import Tokenizer, models, pre_tokenizers, trainers

        byte_level = Tokenizer(models.BPE())
        byte_level.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        trainer = trainers.BpeTrainer(vocab_size=vocab_size, show_progress=False)
        byte_level.train_from_iterator(original, trainer)
        methods["Hugging Face tokenizers"] = lambda: [byte_level.encode_batch_fast(batch) for batch in batched]
    except ImportError:
        pass
    try:
        import tiktoken

        gpt2 = tiktoken.get_encoding("gpt2")
        methods["tiktoken"] = lambda: [gpt2.encode_ordinary_batch(batch, num_threads=2) for batch in batched]
    except Exception as error:  # of its download: no common base class
        print(f"without tiktoken: {type(error).__name__}")
    return methods


if __name__ == "__main__":
    with one_line_errors():
        main()
