"""Phase 2: byte pair encoding (Sennrich et al., 2016). Text as ids, with one id for each frequent piece of text.

A text is cut into words, a word into bytes. The most frequent pair of neighbours becomes one piece with a new id, and
so on, until the vocabulary is full. This version counts all pairs again for every merge: slow, and 60 lines.
"""

import json
from collections import Counter
from itertools import islice, pairwise
from pathlib import Path

from slm.tokenizers import Tokenizer
from slm.tokenizers.merges import BYTES  # the bytes of the ids 0 to 255, in GPT-2's order: BYTES[32] is b"A"[0]
from slm.tokenizers.split import splitter

split = splitter("gpt2")  # "a cat's" -> ["a", " cat", "'s"]; merges never cross the border of a word


def byte_ids(word):
    """The ids of the bytes of a word: their places in BYTES. "Aé" has three bytes in UTF-8, so three ids."""
    # your code
    return [BYTES.index(byte) for byte in word.encode()]


def count_pairs(words):
    """How often each pair of neighbours occurs: {(left id, right id): count}.

    `words` is {ids of a word (a tuple): how often the word occurs}. The pairs of a word that occurs 5 times count 5.
    """
    # your code
    counts = Counter()
    for ids, count in words.items():
        for pair in pairwise(ids):
            counts[pair] += count
    return counts


def merge(ids, pair, new):
    """The ids as a list, in which `new` replaces the pair wherever it occurs, from left to right.

    merge([1, 1, 1, 2], (1, 1), 9) is [9, 1, 2].
    """
    # your code
    merged, place = [], 0
    while place < len(ids):
        if tuple(ids[place : place + 2]) == pair:
            merged.append(new)
            place += 2
        else:
            merged.append(ids[place])
            place += 1
    return merged


def learn(texts, size):
    """The merges {pair: new id}, in the order in which they were learned, for a vocabulary of `size` pieces.

    Each time the most frequent pair; of several that with the smallest ids. Ends early if no pair occurs twice. If the
    merged bytes are a piece already ("ab" + "c" after "a" + "bc"), the pair gets the id of that piece.
    """
    # your code
    words = Counter(tuple(byte_ids(word)) for text in texts for word in split(text))
    pieces, merges = [bytes([byte]) for byte in BYTES], {}
    while len(pieces) < size:
        counts = count_pairs(words)
        best = min(counts, key=lambda pair: (-counts[pair], pair), default=None)
        if best is None or counts[best] < 2:
            break
        piece = pieces[best[0]] + pieces[best[1]]
        if piece not in pieces:
            pieces.append(piece)
        merges[best] = pieces.index(piece)
        merged = Counter()
        for ids, count in words.items():
            merged[tuple(merge(ids, best, merges[best]))] += count
        words = merged
    return merges


def encode_word(word, merges):
    """The ids of a word: of the pairs that occur in it, always merge the one that was learned first."""
    # your code
    ids, rank = byte_ids(word), {pair: rank for rank, pair in enumerate(merges)}
    while known := [pair for pair in pairwise(ids) if pair in merges]:
        first = min(known, key=rank.get)
        ids = merge(ids, first, merges[first])
    return ids


def pieces_of(merges):
    """The bytes of each id: first the 256 bytes in the order of BYTES, then what the merges make."""
    # your code
    pieces = dict(enumerate(bytes([byte]) for byte in BYTES))
    for (left, right), new in merges.items():
        pieces[new] = pieces[left] + pieces[right]
    return list(pieces.values())


class BPE(Tokenizer):
    """The functions above as a tokenizer that train.py can use: tokenizer._target_=phase2_bpe.BPE.build

    The last id is `eos`, the end of a document. No text is encoded as it, not even "<|endoftext|>".
    """

    def __init__(self, merges):
        self.merges, self.pieces, self.words = merges, pieces_of(merges), {}
        self.eos = len(self.pieces)
        self.vocab_size = self.eos + 1

    @classmethod
    def build(cls, documents, *, vocab_size: int, sample_documents: int = 2000):
        """Learns from the first `sample_documents` documents."""
        return cls(learn(islice(documents, sample_documents), vocab_size - 1))

    def encode(self, text):
        """The ids of all words, one after another; each word is encoded once and then remembered in `self.words`."""
        ids = []
        for word in split(text):
            if word not in self.words:
                self.words[word] = encode_word(word, self.merges)
            ids += self.words[word]
        return ids

    def token_bytes(self, token):
        """The bytes of an id, none of eos. `Tokenizer.decode` joins them."""
        return b"" if token == self.eos else self.pieces[token]

    def save(self, folder):
        """Writes the merges as JSON."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        merges = [[left, right, new] for (left, right), new in self.merges.items()]
        (Path(folder) / "tokenizer.json").write_text(json.dumps({"kind": "phase2_bpe.BPE", "merges": merges}))

    @classmethod
    def load(cls, folder):
        """The inverse of `save`."""
        merges = json.loads((Path(folder) / "tokenizer.json").read_text())["merges"]
        return cls({(left, right): new for left, right, new in merges})
