"""What a client of the API asks for: its JSON to a checked `TextRequest`, the rest of the command's settings in it."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from slm.chat_template import ChatTemplate, messages_of
from slm.errors import UserError
from slm.generation.sampling import Sampler
from slm.serving.models import MAX_PROMPT, MAX_TOKENS

MAX_PROMPTS, MAX_CHOICES, MAX_STOPS, MAX_STOP, MAX_TOP, MAX_MESSAGES = 64, 16, 4, 200, 20, 1000
IGNORED = "user", "metadata", "store", "safety_identifier", "service_tier", "parallel_tool_calls"
NEUTRAL = {  # what this server has not, and the values that ask for nothing
    "presence_penalty": (0, None),
    "frequency_penalty": (0, None),
    "logit_bias": ({}, None),
    "suffix": ("", None),
    "best_of": (1, None),
    "tools": ([], None),
    "tool_choice": ("none", "auto", None),
    "response_format": ({"type": "text"}, None),
    "modalities": (["text"], None),
}
Prompts = Sequence[str | Sequence[int]]


@dataclass(frozen=True, kw_only=True)
class Defaults:
    """The settings of the command, for what a request leaves out."""

    sampler: Sampler
    max_new_tokens: int
    stop_at_eos: bool


@dataclass(frozen=True, kw_only=True)
class TextRequest:
    model: str
    prompts: Prompts
    sampler: Sampler
    max_new_tokens: int  # 0: only the prompt, with echo
    seed: int
    choices: int  # texts per prompt
    stop: Sequence[str]
    top: int | None  # most likely rivals of each token; None: no log-probabilities
    echo: bool
    stream: bool
    usage: bool  # in a last piece of a stream
    stop_at_eos: bool


class Body:
    """A JSON object whose values are taken one by one. Raises: UserError: for one of the wrong type or range."""

    def __init__(self, values: Any):
        if not isinstance(values, dict):
            raise UserError("the request must be a JSON object")
        self.values = {key: value for key, value in values.items() if value is not None and key not in IGNORED}
        for key, neutral in NEUTRAL.items():
            if self.values.pop(key, None) not in neutral:
                raise UserError(f"{key} is not offered by this server; leave it out")

    def take(self, key: str, default: Any, holds: Callable[[Any], bool], rule: str) -> Any:
        value = self.values.pop(key, default)
        if value is not default and not holds(value):
            raise UserError(f"{key}={str(value)[:80]} must be {rule}")
        return value

    def whole(self, key: str, default: Any, low: int, high: int) -> Any:
        rule = f"a whole number from {low} to {high}"
        return self.take(key, default, lambda value: type(value) is int and low <= value <= high, rule)

    def flag(self, key: str) -> bool:
        return self.take(key, False, lambda value: type(value) is bool, "true or false")

    def end(self):
        """Raises: UserError: if a value was not taken."""
        if self.values:
            raise UserError(f"{str(next(iter(self.values)))[:80]} is not a key of this request")


def sampler_of(body: Body, default: Sampler) -> Sampler:
    """Temperature 0 is the most likely token; top_k -1 or 0, top_p 1 and min_p 0 are off."""
    given = {key: body.values.pop(key) for key in vars(default) if key in body.values}
    if given.get("temperature") == 0:
        given = {**given, "temperature": 1.0, "greedy": True}
    elif "temperature" in given:
        given = {"greedy": False, **given}
    if given.get("top_k") in (-1, 0):
        given["top_k"] = None
    return replace(default, **given)


def shared(body: Body, defaults: Defaults) -> dict[str, Any]:
    """The keys of both kinds of request."""
    stop = body.take("stop", [], is_stop, f"a text, or up to {MAX_STOPS}, of 1 to {MAX_STOP} characters")
    options = body.take("stream_options", {}, lambda value: isinstance(value, dict), "a JSON object")
    return {
        "model": body.take("model", "", lambda value: isinstance(value, str), "a text"),
        "sampler": sampler_of(body, defaults.sampler),
        "seed": body.whole("seed", random.SystemRandom().getrandbits(31), -(2**63), 2**63),
        "choices": body.whole("n", 1, 1, MAX_CHOICES),
        "stop": [stop] if isinstance(stop, str) else stop,
        "stream": body.flag("stream"),
        "usage": options.get("include_usage") is True,
        "stop_at_eos": not body.flag("ignore_eos") and defaults.stop_at_eos,
    }


def is_stop(value: Any) -> bool:
    texts = [value] if isinstance(value, str) else value
    is_text = lambda text: isinstance(text, str) and 1 <= len(text) <= MAX_STOP  # noqa: E731
    return isinstance(texts, list) and len(texts) <= MAX_STOPS and all(map(is_text, texts))


def completion_request(values: Any, defaults: Defaults) -> TextRequest:
    """The body of /v1/completions. Raises: UserError: for a mistake in it."""
    body = Body(values)
    echo = body.flag("echo")
    request = TextRequest(
        prompts=prompts_of(body.values.pop("prompt", "")),
        echo=echo,
        max_new_tokens=body.whole("max_tokens", min(defaults.max_new_tokens, MAX_TOKENS), 0 if echo else 1, MAX_TOKENS),
        top=body.whole("logprobs", None, 0, MAX_TOP),
        **shared(body, defaults),
    )
    body.end()
    if len(request.prompts) * request.choices > MAX_PROMPTS:
        raise UserError(f"prompt and n ask for more than {MAX_PROMPTS} texts; ask in several requests")
    return request


def prompts_of(value: Any) -> Prompts:
    """A text, texts, ids, or lists of ids. Raises: UserError: for something else."""
    is_ids = lambda ids: isinstance(ids, list) and ids != [] and all(type(token) is int for token in ids)  # noqa: E731
    prompts = [value] if isinstance(value, str) or is_ids(value) else value
    if not isinstance(prompts, list) or not (all(isinstance(p, str) for p in prompts) or all(map(is_ids, prompts))):
        raise UserError("prompt must be a text, a list of texts, a list of ids, or a list of lists of ids")
    if not 1 <= len(prompts) <= MAX_PROMPTS or any(len(prompt) > MAX_PROMPT for prompt in prompts):
        raise UserError(f"prompt must be 1 to {MAX_PROMPTS} texts of at most {MAX_PROMPT} characters")
    return prompts


def chat_request(values: Any, defaults: Defaults, template_of: Callable[[str], ChatTemplate | None]) -> TextRequest:
    """The body of /v1/chat/completions, for the template that a model was trained on, by its name. An answer ends
    before the next turn of the user. Raises: UserError: for a mistake in it, and for a model without a template.
    """
    body = Body(values)
    limits = body.whole("max_completion_tokens", None, 1, MAX_TOKENS), body.whole("max_tokens", None, 1, MAX_TOKENS)
    wanted, top = body.flag("logprobs"), body.whole("top_logprobs", 0, 0, MAX_TOP)
    messages, both = messages_of(body.values.pop("messages", None)), shared(body, defaults)
    body.end()
    if not 1 <= len(messages) <= MAX_MESSAGES or sum(len(its["content"]) for its in messages) > MAX_PROMPT:
        raise UserError(f"messages must be 1 to {MAX_MESSAGES}, with at most {MAX_PROMPT} characters")
    if not (template := template_of(both["model"])):
        raise UserError(
            "this model was not trained on conversations, so it has no chat template; send its prompt to "
            "/v1/completions, or train a model with data.layout=instructions"
        )
    both["stop"] = [*both["stop"], template.stop]
    return TextRequest(
        prompts=[template.text(messages, answers=False)],
        echo=False,
        max_new_tokens=limits[0] or limits[1] or min(defaults.max_new_tokens, MAX_TOKENS),
        top=top if wanted else None,
        **both,
    )
