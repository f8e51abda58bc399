"""What is known of a corpus before it is prepared: sizes by its files or a sample, tokens by the vocabulary."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from slm.corpora import Corpus
from slm.corpora.mixture import by_source

# bytes per token of SentencePiece's BPE on English stories, by vocabulary size
BYTES_PER_TOKEN = {512: 2.07, 1024: 3.04, 2048: 3.68, 4096: 4.06, 8000: 4.24, 16000: 4.28}
GPT2_BYTES_PER_TOKEN = 4.1
FIXED = {"bytes": (257, 1.0), "characters": (99, 1.0), "gpt2": (50257, GPT2_BYTES_PER_TOKEN)}
PREPARATION = 5e6  # bytes of text per second, for tokenizer and encoding


@dataclass(frozen=True, kw_only=True)
class Text:
    """The train split as tokens. None: not known before the data is there."""

    vocab_size: int
    targets_per_window: float  # mean; the context if it is not known
    tokens: int | None = None
    windows: int | None = None
    validation_windows: int | None = None
    cached: bool = False  # exact, from the cache; else estimated
    bytes: int | None = None
    sources: Mapping[str, tuple[int, float]] = field(default_factory=dict)  # of a mixture: windows, targets per window


def estimated_text(corpus: Corpus, tokenizer: str, settings: Mapping[str, Any], layout: str, context: int) -> Text:
    """By the size of the corpus, if it can tell it without a download, and the usual bytes per token."""
    vocab_size, per_token = FIXED.get(tokenizer, (settings.get("vocab_size") or 16000, None))
    if per_token is None:
        per_token = float(np.interp(vocab_size, list(BYTES_PER_TOKEN), list(BYTES_PER_TOKEN.values())))
    if (size := getattr(corpus, "size", lambda: None)()) is None:
        return Text(vocab_size=vocab_size, targets_per_window=context)
    documents, text_bytes = size
    tokens = round(text_bytes / per_token) + documents
    windows, per_window = max((tokens - 1) // context, 1), float(context)
    if layout == "documents":
        windows, per_window = documents, min(tokens / documents, context)
    known = {"tokens": tokens, "windows": windows, "bytes": text_bytes}
    parts = {name: part for name, part in by_source(corpus).items() if name}
    texts = {name: estimated_text(part, tokenizer, settings, layout, context) for name, part in parts.items()}
    known["sources"] = {name: (text.windows, text.targets_per_window) for name, text in texts.items()}
    return Text(vocab_size=vocab_size, targets_per_window=per_window, **known)
