"""What generate.py does with a checked request: load, tell, print."""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch

from slm import checkpoint
from slm.errors import UserError
from slm.files import atomic, run_folder
from slm.generation.chat import chat
from slm.generation.quantize import Dtype, check_dtype, for_decoding
from slm.generation.sampling import Sampler
from slm.generation.stream import Completion, TextStream, check_count, completions, encode_prompt, generate


@dataclass(frozen=True, kw_only=True)
class Request:
    """conf/generate.yaml, where each is explained."""

    ckpt: str
    runs_dir: str
    prompt: str
    prompts_file: str | None
    num_samples: int
    max_new_tokens: int
    temperature: float
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repetition_penalty: float
    greedy: bool
    stop_at_eos: bool
    seed: int
    stream: bool | None
    format: Literal["text", "jsonl"]
    interactive: bool
    device: Literal["auto", "cpu", "cuda", "mps"]
    dtype: Dtype

    def __post_init__(self):
        if self.prompt and (self.prompts_file or self.interactive):
            other = "prompts_file" if self.prompts_file else "interactive"
            raise UserError(f"prompt= and {other}= exclude one another; give one of them")
        if self.interactive and self.format == "jsonl":
            raise UserError("interactive=true and format=jsonl exclude one another; give one of them")
        if any("\ud800" <= char <= "\udfff" for char in self.prompt):  # how Python shows bytes that are no text
            raise UserError("prompt= is not UTF-8 text; give it in the encoding of the terminal, or a prompts_file")

    @property
    def sampler(self) -> Sampler:
        return Sampler(
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            greedy=self.greedy,
        )

    def prompts(self) -> list[str]:
        if self.prompts_file is None:
            return [self.prompt]
        try:
            path = atomic.expanded(self.prompts_file)
            if path.exists() and not path.is_file():  # a pipe might never end
                raise UserError(f"prompts_file={self.prompts_file} is not a file; save the prompts in one")
            lines = path.read_text(encoding="utf-8").splitlines()
        except OSError as error:
            raise UserError(f"prompts_file={self.prompts_file} cannot be read: {error.strerror}") from None
        except UnicodeDecodeError:
            raise UserError(f"prompts_file={self.prompts_file} is not UTF-8 text; save it as UTF-8") from None
        if not (prompts := [line for line in lines if line.strip()]):
            raise UserError(f"prompts_file={self.prompts_file} is empty; it takes one prompt per line")
        return prompts


def generate_command(request: Request):
    """Prints stories. Raises UserError for a bad value or checkpoint before anything is loaded."""
    sampler, prompts = request.sampler, request.prompts()
    check_count("max_new_tokens", request.max_new_tokens)
    check_count("num_samples", request.num_samples)
    single = len(prompts) * request.num_samples == 1 and request.format == "text"
    if request.stream and not single:
        raise UserError("stream=true tells one story as text; leave out prompts_file, num_samples and format")
    device = device_of(request.device)
    check_dtype(request.dtype, device)
    path = run_folder.find_checkpoint(request.ckpt, atomic.expanded(request.runs_dir))
    loaded = checkpoint.load(path, device)
    for_decoding(loaded.model, request.dtype)
    settings = {"sampler": sampler, "max_new_tokens": request.max_new_tokens, "seed": request.seed}
    if request.interactive:
        chat(
            loaded.model,
            loaded.tokenizer,
            stop_at_eos=request.stop_at_eos,
            loaded=f"{path} (step {loaded.step})",
            **settings,
        )
        return
    if request.stream or (request.stream is None and single):
        eos = loaded.tokenizer.eos if request.stop_at_eos else None
        print(prompts[0], end="")
        for piece in pieces(loaded, prompts[0], eos=eos, **settings):
            print(piece, end="", flush=True)
        print()
        return
    stories = completions(
        loaded.model,
        loaded.tokenizer,
        prompts,
        num_samples=request.num_samples,
        stop_at_eos=request.stop_at_eos,
        **settings,
    )
    for number, story in enumerate(stories):
        write(story, number % request.num_samples, request.format)


def pieces(loaded: checkpoint.Loaded, prompt: str, **settings) -> Iterator[str]:
    """The story piece by piece, as soon as each is whole characters."""
    text = TextStream(loaded.tokenizer)
    for step in generate(loaded.model, [encode_prompt(loaded.tokenizer, prompt)], **settings):
        for _, token in step:
            yield text.add(token)
    yield text.flush()


def write(story: Completion, number: int, form: str):
    if form == "text":
        print(f"{story.prompt}{story.text}\n{'-' * 3}")
        return
    line = {
        "prompt": story.prompt,
        "text": story.text,
        "sample": number,
        "tokens": story.tokens,
        "finished": story.finished,
    }
    sys.stdout.write(json.dumps(line, ensure_ascii=False) + "\n")


def device_of(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("device=cuda, but torch sees no CUDA GPU here; use device=cpu")
    if name == "mps" and not torch.backends.mps.is_available():
        raise UserError("device=mps, but torch sees no MPS here; use device=cpu")
    return torch.device(name)
