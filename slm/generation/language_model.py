"""A trained model with its tokenizer in one object, for Python and for generate.py."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F

from slm import checkpoint
from slm.errors import UserError
from slm.files import atomic, run_folder
from slm.generation.quantize import Dtype, check_dtype, for_decoding
from slm.generation.sampling import Sampler
from slm.generation.stream import check_count, complete, stream_text
from slm.loss import bits_per_byte
from slm.model import GPT
from slm.tokenizers import Tokenizer

Device = Literal["auto", "cpu", "cuda", "mps"]


@dataclass(frozen=True)
class TextLoss:
    """What a model pays for a text."""

    nats: float  # mean per token
    bits_per_byte: float | None  # None if the tokenizer loses part of the text
    tokens: int
    bytes: int


@dataclass(frozen=True)
class LanguageModel:
    """A GPT in eval mode and its tokenizer, from a checkpoint."""

    model: GPT = field(repr=False)
    tokenizer: Tokenizer = field(repr=False)
    path: Path  # of the checkpoint
    step: int
    config: dict[str, Any] = field(repr=False)  # the run's configuration

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
        generated = complete(
            self.model,
            self.tokenizer,
            prompts,
            sampler=Sampler(**{"temperature": 0.8, **sampler}),
            max_new_tokens=max_new_tokens,
            seed=seed,
            num_samples=1 if num_samples is None else num_samples,
            stop_at_eos=stop_at_eos,
        )
        texts = [[c.prompt + c.text for c in samples] for samples in generated]
        texts = [samples[0] for samples in texts] if num_samples is None else texts
        return texts[0] if isinstance(prompt, str) else texts

    def stream(
        self, prompt: str = "", *, max_new_tokens: int = 200, seed: int = 42, stop_at_eos: bool = True, **sampler
    ) -> Iterator[str]:
        """The continuation in pieces of complete characters. Settings and errors as in `generate`."""
        settings = {"max_new_tokens": max_new_tokens, "seed": seed, "stop_at_eos": stop_at_eos}
        settings["sampler"] = Sampler(**{"temperature": 0.8, **sampler})
        return stream_text(self.model, self.tokenizer, prompt, **settings)

    @torch.inference_mode()
    def loss(self, text: str) -> TextLoss:
        """Loss of a text as a document from its first token on, in windows of the context as in validation.

        Raises UserError for an empty text.
        """
        ids = [self.tokenizer.eos, *self.encode(text)]
        if len(ids) < 2:
            raise UserError("the text is empty; give at least one character")
        device, context, nats = self.model.tokens.weight.device, self.model.config.context, 0.0
        for start in range(0, len(ids) - 1, context):
            window = torch.tensor(ids[start : start + context + 1], device=device)
            logits = self.model(window[None, :-1])[0].float()
            nats += F.cross_entropy(logits, window[1:], reduction="sum").item()
        tokens, size = len(ids) - 1, len(text.encode())
        lossless = self.decode(ids[1:]) == text
        return TextLoss(nats / tokens, bits_per_byte(nats, size) if lossless else None, tokens, size)


def load(
    ckpt: str | Path = "latest",
    *,
    runs_dir: str | Path = "runs",
    device: Device = "auto",
    dtype: Dtype = "float32",
    tokenizer: type[Tokenizer] | None = None,
) -> LanguageModel:
    """The model of a .ckpt file, a run folder (its best, else its newest), or latest, last or best of `runs_dir`.

    `tokenizer` is the class of a tokenizer from outside slm. Raises UserError for a checkpoint that is missing,
    damaged or foreign, and for a device that is not there.
    """
    place = choose_device(device)
    check_dtype(dtype, place)
    path = run_folder.find_checkpoint(str(ckpt), atomic.expanded(runs_dir))
    loaded = checkpoint.load(path, place, tokenizer)
    return LanguageModel(for_decoding(loaded.model, dtype), loaded.tokenizer, path, loaded.step, loaded.config)


def choose_device(name: Device) -> torch.device:
    """ "auto" is CUDA, else MPS, else the CPU. Raises UserError if torch does not find the device."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("device=cuda, but torch finds no CUDA GPU; use device=cpu")
    if name == "mps" and not torch.backends.mps.is_available():
        raise UserError("device=mps, but torch finds no MPS; use device=cpu")
    return torch.device(name)
