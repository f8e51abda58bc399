"""A trained model with its tokenizer in one object, for Python and for generate.py."""

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from slm import checkpoint
from slm.files import atomic, run_folder
from slm.generation.completion import complete, stream_text
from slm.generation.quantize import Dtype, check_dtype, fastest, for_decoding
from slm.generation.sampling import Sampler
from slm.generation.stream import check_count
from slm.generation.text_loss import TextLoss, slices, windows_loss
from slm.hardware import choose_device
from slm.model import GPT
from slm.tokenizers import Tokenizer

Device = Literal["auto", "cpu", "cuda", "mps"]


@dataclass(frozen=True)
class LanguageModel:
    """A GPT in eval mode and its tokenizer, from a checkpoint."""

    model: GPT = field(repr=False)
    tokenizer: Tokenizer = field(repr=False)
    path: Path  # of the checkpoint
    step: int
    config: dict[str, Any] = field(repr=False)  # the run's configuration
    eos_first: bool = True  # prompts begin with eos, as documents in training
    corpus: str = ""  # fingerprint of the training data, if it is known

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(ids)

    def generate(
        self,
        prompt: str | Sequence[str] = "",
        *,
        num_samples: int | None = None,
        max_new_tokens: int = 200,
        seed: int = 42,
        stop_at_eos: bool = True,
        **sampler,
    ) -> str | list:
        """The prompt and its continuation. Lists for several prompts, or if `num_samples` is given.

        `sampler` are settings of slm.generation.sampling.Sampler, temperature=0.8 unless given. Equal seeds give
        equal texts. Raises UserError for a setting out of range.
        """
        check_count("max_new_tokens", max_new_tokens)
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        settings = self._settings(sampler, max_new_tokens=max_new_tokens, seed=seed, stop_at_eos=stop_at_eos)
        count = 1 if num_samples is None else num_samples
        generated = complete(self.model, self.tokenizer, prompts, num_samples=count, **settings)
        texts = [[c.prompt + c.text for c in samples] for samples in generated]
        texts = [samples[0] for samples in texts] if num_samples is None else texts
        return texts[0] if isinstance(prompt, str) else texts

    def stream(
        self, prompt: str = "", *, max_new_tokens: int = 200, seed: int = 42, stop_at_eos: bool = True, **sampler
    ) -> Iterator[str]:
        """The continuation in pieces of complete characters. Settings and errors as in `generate`."""
        settings = self._settings(sampler, max_new_tokens=max_new_tokens, seed=seed, stop_at_eos=stop_at_eos)
        return stream_text(self.model, self.tokenizer, prompt, **settings)

    def _settings(self, sampler: dict[str, Any], **settings) -> dict[str, Any]:
        return {"sampler": Sampler(**{"temperature": 0.8, **sampler}), "eos_first": self.eos_first, **settings}

    def loss(self, text: str) -> TextLoss:
        """Loss of a text as a document from its first token on, in windows of the context as in validation.

        Raises UserError for an empty text.
        """
        ids = self.encode(text)
        windows = slices([self.tokenizer.eos, *ids], self.model.config.context)
        return windows_loss(self.model, self.tokenizer, windows, lossless=self.decode(ids) == text)


def load(
    ckpt: str | Path = "latest",
    *,
    runs_dir: str | Path = "runs",
    device: Device = "auto",
    dtype: Dtype | Literal["auto"] = "float32",
    texts: int = 1,
    tokenizer: type[Tokenizer] | None = None,
    model: Callable[..., torch.nn.Module] | None = None,
) -> LanguageModel:
    """The model of a .ckpt file, a run folder (its best, else its newest), or latest, last or best of `runs_dir`.

    dtype="auto" is the fastest for so many `texts` at a time, and prints which. `tokenizer` and `model` are the classes
    of those from outside slm. Raises UserError for a checkpoint that is missing, damaged or foreign, and for a device
    that is not there.
    """
    place = choose_device(device, "device")
    if dtype == "auto":
        dtype = fastest(place, texts)
        print(f"note: dtype=auto takes {dtype} for {texts} text(s) at a time", file=sys.stderr)
    check_dtype(dtype, place)
    path = run_folder.find_checkpoint(str(ckpt), atomic.expanded(runs_dir))
    loaded = checkpoint.load(path, place, tokenizer, model)
    fast = for_decoding(loaded.model, dtype)
    return LanguageModel(fast, loaded.tokenizer, path, loaded.step, loaded.config, loaded.eos_first, loaded.corpus)
