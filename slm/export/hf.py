"""format=hf: a folder that transformers loads by AutoModelForCausalLM and AutoTokenizer.

The folder is loaded again and compared before it counts as done: ids, logits in float32, and greedy texts.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from slm.chat_template import chat_template
from slm.classes import optional
from slm.errors import UserError, printable
from slm.export.compared import REPORT, STRINGS, check_ids, check_logits, difficult_strings, start_of
from slm.export.fitting import TRANSFORMERS, fitting
from slm.export.readme import readme
from slm.export.tokenizer_json import converted
from slm.files import atomic, json_line
from slm.generation.completion import complete
from slm.generation.language_model import LanguageModel
from slm.generation.sampling import Sampler
from slm.huggingface.layouts import settings_of
from slm.huggingface.tensors import to_theirs

PROMPTS, NEW_TOKENS, WINDOWS = 8, 64, 4
SQUARED = (
    "gate_proj = up_proj and hidden_act=relu, since relu(x) * x = relu(x)^2: exact in transformers; a program with "
    "another fixed activation for Qwen3 computes something else; experiment=portable is for these"
)


def export(model: LanguageModel, folder: Path, *, license: str | None = None) -> list[str]:
    """config.json, model.safetensors, tokenizer.json, tokenizer_config.json, generation_config.json and README.md.

    `license` is the name of a licence for README.md, such as mit. Raises: UserError: for a model or a tokenizer
    that transformers cannot compute, or a library that computes something else.
    """
    transformers = optional("transformers", "hf", "format=hf")
    safetensors = optional("safetensors.torch", "hf", "format=hf")
    config, tokenizer = model.model.config, model.tokenizer
    name = fitting(model.model, "hf", TRANSFORMERS)
    about_model = readme(model, license)
    library, tokens = converted(tokenizer, model.eos_first)
    ids = {"eos_token_id": tokenizer.eos, "bos_token_id": tokenizer.eos}
    ids |= {"pad_token_id": library.token_to_id(tokens["pad_token"])}
    chat = chat_template(model.config)
    source = {"step": model.step} | ({"chat": vars(chat)} if chat else {})
    settings = settings_of(config, name) | ids | {"slm": source}
    _write_json(folder / "config.json", settings)
    _write_json(folder / "generation_config.json", {**ids, "do_sample": True, "temperature": 0.8})
    about = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    about |= {"split_special_tokens": chat is None, "model_max_length": config.context}
    _write_json(folder / "tokenizer_config.json", {**about, **tokens})
    if chat:
        first = "{{ bos_token }}" if model.eos_first else ""
        atomic.write_text(folder / "chat_template.jinja", first + chat.jinja())
    atomic.write_text(folder / "tokenizer.json", library.to_str())
    atomic.write_text(folder / "README.md", about_model)
    weights = to_theirs(config, name, model.model.state_dict())
    atomic.write(folder / "model.safetensors", safetensors.save(weights, metadata={"format": "pt"}))
    lines = [f"{name}: {settings['architectures'][0]}, {sum(map(Tensor.numel, weights.values())):,} numbers in float32"]
    lines += [SQUARED] * ((name, config.mlp) == ("qwen3", "relu2"))
    return [*lines, *compared(transformers, model, folder)]


def _write_json(path: Path, values: dict[str, Any]):
    atomic.write_text(path, json.dumps(values, indent=2, ensure_ascii=False) + "\n")


def compared(transformers: Any, model: LanguageModel, folder: Path) -> list[str]:
    """What was compared with the loaded folder. Raises: UserError: for a difference."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    theirs, loading = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True, attn_implementation="sdpa"
    )
    if any(loading.values()):
        raise UserError(f"transformers does not load all weights: {printable(str(loading), 300)}")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    difference, largest = compare_logits(model, theirs)
    ids = compare_ids(model, tokenizer)
    texts = compare_texts(model, theirs, tokenizer)
    chat = compare_conversation(model, tokenizer)
    json_line.note(logits=difference, ids=ids, texts=texts)
    return [
        ids,
        f"logits: largest difference {difference:.1e}, of values up to {largest:.1f}, on {WINDOWS} windows",
        f"greedy texts: {texts} of {texts} equal",
        *chat,
    ]


@torch.no_grad()
def compare_logits(model: LanguageModel, theirs: Any) -> tuple[float, float]:
    """The largest difference and the largest absolute logit, on windows of random ids. Raises: UserError: for a
    difference above the tolerance."""
    config, eos = model.model.config, model.tokenizer.eos
    tokens = torch.randint(config.vocab_size, (WINDOWS, config.context), generator=torch.Generator().manual_seed(0))
    tokens[tokens == eos] = (eos + 1) % config.vocab_size  # one document
    tokens[:, 0] = eos
    return check_logits("transformers", model.model(tokens).numpy(), theirs(tokens).logits.numpy())


def compare_ids(model: LanguageModel, tokenizer: Any) -> str:
    """How many strings have equal ids. Raises: UserError: for a string with others, but for the ties of unigram, which
    are resolved by rounding errors: the same pieces in another order."""
    texts, unigram = difficult_strings(model.tokenizer, STRINGS), tokenizer.backend_tokenizer.model
    found = tokenizer(texts, split_special_tokens=True)["input_ids"]
    equal = check_ids("transformers", model, texts, found, ties=type(unigram).__name__ == "Unigram")
    line = f"ids: equal on {equal:,} of {len(texts):,} difficult strings"
    return line if equal == len(texts) else f"{line}; on the others the same pieces in another order, equally likely"


@torch.no_grad()
def compare_texts(model: LanguageModel, theirs: Any, tokenizer: Any) -> int:
    """The number of equal greedy continuations. Raises: UserError: for another one."""
    new = min(NEW_TOKENS, model.model.config.context // 2)
    prompts = prompts_of(model, new)
    settings = {"max_new_tokens": new, "seed": 0, "eos_first": model.eos_first}
    greedy = complete(model.model, model.tokenizer, prompts, sampler=Sampler(greedy=True), **settings)
    for prompt, [ours] in zip(prompts, greedy, strict=True):
        ids = tokenizer(prompt, return_tensors="pt")
        ended = theirs.generate(**ids, max_new_tokens=new, do_sample=False, temperature=None, use_cache=True)
        text = tokenizer.decode(ended[0][ids["input_ids"].size(1) :], skip_special_tokens=True)
        if text != model.decode(model.encode(ours.text)) and text != ours.text:
            raise UserError(
                f"transformers continues {printable(repr(prompt), 60)} with {printable(repr(text), 80)}, not with "
                f"{printable(repr(ours.text), 80)}, {REPORT}"
            )
    return len(prompts)


def prompts_of(model: LanguageModel, new: int) -> Sequence[str]:
    """The empty prompt, where eos stands before a text, and the first one, two, ... words of texts of the model."""
    texts = model.generate("", num_samples=PROMPTS, max_new_tokens=min(new, 24), seed=0, temperature=1.0)
    starts = [" ".join(text.split()[:count]) for count, text in enumerate(texts, 1)]
    quarter = model.model.config.context // 4
    starts = [start for start in starts if start and len(model.encode(start)) <= quarter]
    return list(dict.fromkeys([""] * model.eos_first + starts))


def compare_conversation(model: LanguageModel, tokenizer: Any) -> list[str]:
    """What was compared, if the model was trained on conversations. Raises: UserError: for other ids."""
    if not (chat := chat_template(model.config)):
        return []
    contents = "Who are you?", "A model.", "Tell me more."
    messages = [{"role": role, "content": text} for role, text in zip(("user", "assistant", "user"), contents)]
    ours = start_of(model) + model.encode(chat.text(messages, answers=False).rstrip())
    theirs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    if ours != theirs:
        raise UserError(f"the chat template of transformers gives other ids, {REPORT}")
    return [
        "chat template: equal ids; names of special tokens in a text become these tokens, unless "
        "split_special_tokens=True is given to the tokenizer"
    ]
