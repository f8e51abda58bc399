"""The work of generate.py: load a checkpoint, generate, print."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from itertools import chain
from typing import Any, Literal, Self

from slm.chat_template import chat_template
from slm.errors import UserError, printable
from slm.files import atomic, json_line
from slm.generation.chat import chat, write
from slm.generation.completion import completions
from slm.generation.language_model import Device, load
from slm.generation.prompt import typed_text
from slm.generation.quantize import Dtype
from slm.generation.sampling import Sampler
from slm.generation.stream import check_count


@dataclass(frozen=True, kw_only=True)
class Request:
    """The settings of conf/generate.yaml. Raises: UserError: if two of them exclude each other."""

    ckpt: str
    tokenizer_class: str | None
    model_class: str | None
    runs_dir: str
    prompt: str
    prompts_file: str | None
    num_samples: int
    sampler: Literal["own", "run"]
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
    ui: Literal["web"] | None
    serve: Literal["openai"] | None
    ckpt2: str | list[str] | None
    port: int
    host: str
    token: str | None
    device: Device
    dtype: Dtype | Literal["auto"]

    def __post_init__(self):
        if self.prompt and (self.prompts_file or self.interactive):
            other = "prompts_file" if self.prompts_file else "interactive"
            raise UserError(f"prompt= and {other}= exclude one another; give one of them")
        if self.interactive and self.format == "jsonl":
            raise UserError("interactive=true and format=jsonl exclude one another; give one of them")
        if self.ui and self.serve:
            raise UserError("ui= and serve= exclude one another; start two commands, with another port= for one")
        if self.ui or self.serve:
            mode = f"ui={self.ui}" if self.ui else f"serve={self.serve}"
            unused = {"prompts_file": None, "interactive": False, "stream": None, "num_samples": 1, "format": "text"}
            unused |= {"prompt": ""} if self.serve else {}
            for name, value in unused.items():
                if getattr(self, name) != value:
                    raise UserError(f"{mode} and {name}= exclude one another; leave one of them out")
        elif self.ckpt2 or self.token:
            raise UserError(
                f"{'ckpt2' if self.ckpt2 else 'token'}= is only for ui=web and serve=openai; give one of them"
            )
        if json_line.asked() and (self.interactive or self.stream):
            raise UserError("print=json prints whole texts; leave out interactive and stream")

    def like_run(self, config: Mapping[str, Any]) -> tuple[Self, list[str]]:
        """With the settings of callbacks.samples in the configuration of a run, and its prompts, if it has any.

        Raises: UserError: if it has no valid ones.
        """
        callbacks = config.get("callbacks")
        its = callbacks.get("samples") if isinstance(callbacks, Mapping) else None
        if not (isinstance(its, Mapping) and isinstance(its.get("sampler"), Mapping)):
            raise UserError("sampler=run: the run has no callbacks.samples; give sampler=own, and the settings")
        names = {field.name for field in fields(Sampler)}
        given = {name: value for name, value in its["sampler"].items() if name in names}
        sampler = asdict(Sampler(**given)) | {"max_new_tokens": its.get("max_new_tokens")}
        check_count("callbacks.samples.max_new_tokens of the run", sampler["max_new_tokens"])
        prompts = its.get("prompts") if isinstance(its.get("prompts"), list) else []
        return replace(self, **sampler), [prompt for prompt in prompts if isinstance(prompt, str)]

    def prompts(self) -> list[str]:
        """`prompt`, or the lines of `prompts_file`. Raises: UserError: if that is unreadable, empty or not UTF-8."""
        if self.prompts_file is None:
            return [typed_text("prompt=", self.prompt)]
        try:
            path = atomic.expanded(self.prompts_file)
            if path.exists() and not path.is_file():  # a pipe may never end
                raise UserError(f"prompts_file={self.prompts_file} is not a file; save the prompts in one")
            lines = path.read_bytes().decode("utf-8-sig").split("\n")  # splitlines() knows seven more line ends
        except OSError as error:
            raise UserError(f"prompts_file={self.prompts_file} cannot be read: {error.strerror}") from None
        except UnicodeDecodeError:
            raise UserError(f"prompts_file={self.prompts_file} is not UTF-8 text; save it as UTF-8") from None
        if not (prompts := [line.removesuffix("\r") for line in lines if line.strip()]):
            raise UserError(f"prompts_file={self.prompts_file} is empty; it takes one prompt per line")
        return prompts


def sampler_of(request: Request) -> Sampler:
    return Sampler(**{field.name: getattr(request, field.name) for field in fields(Sampler)})


def generate_command(request: Request, classes: dict[str, Any]):
    """Prints texts. `classes` are those of tokenizer and model, for `load`, where they are given.

    Raises: UserError: for a wrong value before anything is loaded; for a wrong checkpoint.
    """
    sampler, prompts = sampler_of(request), request.prompts()
    check_count("max_new_tokens", request.max_new_tokens)
    check_count("num_samples", request.num_samples)
    single = len(prompts) * request.num_samples == 1 and request.format == "text"
    if request.stream and not single:
        raise UserError("stream=true prints one text; leave out prompts_file, num_samples and format")
    place = {"runs_dir": request.runs_dir, "device": request.device}
    texts = 1 if request.interactive else len(prompts) * request.num_samples
    loaded = load(request.ckpt, **place, dtype=request.dtype, texts=texts, **classes)
    if request.sampler == "run":
        request, its = request.like_run(loaded.config)
        sampler = sampler_of(request)
        if its and prompts == [""] and not (request.interactive or request.stream):
            prompts, single = its, len(its) * request.num_samples == 1 and request.format == "text"
    settings = {"max_new_tokens": request.max_new_tokens, "seed": request.seed, "stop_at_eos": request.stop_at_eos}
    both = {"model": loaded.model, "tokenizer": loaded.tokenizer, "sampler": sampler, "eos_first": loaded.eos_first}
    if request.interactive:
        template = chat_template(loaded.config)
        chat(loaded=f"{loaded.path} (step {loaded.step})", template=template, **both, **settings)
    elif request.stream or (request.stream is None and single and not json_line.asked()):
        write(chain(prompts, loaded.stream(prompts[0], **settings, **asdict(sampler))))
        print()
    else:
        stream, found = completions(prompts=prompts, num_samples=request.num_samples, **both, **settings), []
        for number, completion in enumerate(stream):
            found.append({**asdict(completion), "sample": number % request.num_samples})
            if request.format == "text":
                print(f"{printable(completion.prompt + completion.text)}\n---")
            else:  # `sample` counts the completions of a prompt; JSON escapes what a console cannot show
                print(json.dumps(found[-1]))
        json_line.note(checkpoint=str(loaded.path), step=loaded.step, completions=found)
