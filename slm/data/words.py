"""The words of windows of ids, counted without their text: what ASCII white space separates, as `wc -w` counts.

A word counts in the window that has its first byte, from the second id on, so the windows of a pass have each word of
the text once, in any layout. Shapes: B windows, T + 1 ids of a window, V vocabulary.
"""

import numpy as np
import torch
from torch import Tensor

from slm.loss import IGNORE, ids_of
from slm.tokenizers import Tokenizer, pieces


class Words:
    """Counts the words that begin in windows, exactly for each tokenizer that loses no text.

    A character that a tokenizer divides into bytes is part of a word; a control id ends one.
    """

    def __init__(self, tokenizer: Tokenizer, device: torch.device):
        table = pieces(tokenizer)
        begun = np.array([len(piece.split()) for piece in table], dtype=np.int64)  # after white space
        goes_on = np.array([piece[:1].split() != [] for piece in table])  # begins with a part of a word
        open_ = np.array([piece[-1:].split() != [] for piece in table])  # ends with one
        self.begun, self.goes_on, self.open = (torch.from_numpy(part).to(device) for part in (begun, goes_on, open_))

    def count(self, windows: Tensor) -> Tensor:
        """Windows (B, T + 1), filled with IGNORE, to the number of words, a scalar."""
        ids = ids_of(windows)  # also of prompts, which are read and no targets
        before, after = ids[:, :-1], ids[:, 1:]
        words = self.begun[after] - (self.open[before] & self.goes_on[after]).long()
        return (words * (windows[:, 1:] != IGNORE)).sum()
