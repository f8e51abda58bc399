"""A small corpus for the checks: generated stories as ids, without file or network."""

import torch
from torch import Tensor

from slm.corpora.storyworld.corpus import Storyworld
from slm.tokenizers.bpe import BPETokenizer

VOCABULARY = 600


def stories(count: int) -> list[str]:
    return list(Storyworld(level="tiny", stories=count, validation_stories=1, seed=0).documents("train"))


def tokenizer_of(texts: list[str], vocab_size: int) -> BPETokenizer:
    """slm's, learned from all of the texts."""
    return BPETokenizer.build(texts, vocab_size=vocab_size, pattern="gpt2", sample_documents=len(texts), seed=0)


def story_ids(count: int) -> tuple[BPETokenizer, Tensor]:
    """A tokenizer of 600 ids, and the ids of so many stories in a row, each with eos at its end."""
    texts = stories(count)
    tokenizer = tokenizer_of(texts, VOCABULARY)
    return tokenizer, torch.tensor([token for text in texts for token in [*tokenizer.encode(text), tokenizer.eos]])
