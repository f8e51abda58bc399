"""A model as lm-evaluation-harness takes it (https://github.com/EleutherAI/lm-evaluation-harness), extra "eval".

Numbers equal those of its own adapter for Hugging Face models, lm_eval.models.huggingface.HFLM, on the same weights:
a text that is too long loses its start, a continuation is what the ids of both texts together have more than those of
the context, and an empty context is eos.
"""

import contextlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from lm_eval import utils
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import Collator, normalize_gen_kwargs, postprocess_generated_text
from tqdm import tqdm

from slm.errors import UserError
from slm.evaluation.continuations import Continuation, log_likelihoods
from slm.generation.completion import MAX_ROWS
from slm.generation.language_model import LanguageModel
from slm.generation.sampling import Sampler
from slm.generation.stream import generate

NEW_TOKENS = 256  # of a text, for a task that does not say: as HFLM


class Harness(TemplateLM):
    """`eos_first`: every text begins with eos, as documents in training (HFLM: add_bos_token=True).

    `ties` counts, by task, the documents of which two choices are equally likely and none is likelier: harness takes
    the first one, so a model that does not distinguish them is right where that is the answer. `cut` counts texts that
    lost their start.
    """

    def __init__(self, language_model: LanguageModel, *, eos_first: bool, seed: int = 0):
        super().__init__()
        self.language_model, self.eos_first, self.seed = language_model, eos_first, seed
        self.ties: Counter[str] = Counter()
        self.cut = 0

    @property
    def eot_token_id(self) -> int:
        return self.language_model.tokenizer.eos

    @property
    def max_length(self) -> int:
        return self.language_model.model.config.context

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs) -> list[int]:
        before = [self.eot_token_id] if self.eos_first and add_special_tokens is not False else []
        return [*before, *self.language_model.encode(string)]

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """As HFLM, but for a continuation that the last token of the context has swallowed: there the ids that both
        have are the context, and HFLM ends with an AssertionError."""
        before, after = super()._encode_pair(context, continuation)
        if after:
            return before, after
        whole = self.tok_encode(context + continuation)
        same = next((n for n, (a, b) in enumerate(zip(whole, before)) if a != b), len(whole) - 1)
        return whole[:same] or [self.eot_token_id], whole[same:]

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        scores = super().loglikelihood(requests, disable_tqdm=disable_tqdm)
        documents = defaultdict(set)
        for request, (score, _) in zip(requests, scores):
            documents[request.task_name, request.doc_id].add((score, *request.args))
        for (task, _), choices in documents.items():
            best, *others = sorted((choice[0] for choice in choices), reverse=True)
            self.ties[task] += bool(others) and others[0] == best
        return scores

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **kwargs
    ) -> list[tuple[float, bool]]:
        most = self.max_length
        longest = max((len(targets) for _, _, targets in requests), default=0)
        if longest > most:
            raise UserError(
                f"a continuation of {longest:,} tokens exceeds model.context={most}; leave its task out of tasks="
            )
        self.cut += sum(len(context) + len(targets) > most + 1 for _, context, targets in requests)
        rows = [Continuation.after(context, targets, most) for _, context, targets in requests]
        with tqdm(total=len(rows), desc="log-likelihoods", disable=disable_tqdm) as bar:
            return log_likelihoods(self.language_model.model, rows, bar.update)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Each text after eos, in windows of the context, in which every id is a target once."""
        windows = [
            [(None, *utils.make_disjoint_window(window)) for window in self._windows(*request.args)]
            for request in requests
        ]
        scores = iter(self._loglikelihood_tokens([w for own in windows for w in own], disable_tqdm=disable_tqdm))
        return [sum(next(scores)[0] for _ in own) for own in windows]

    def _windows(self, text: str):
        ids = self.tok_encode(text, add_special_tokens=False)
        return utils.get_rolling_token_windows(
            token_list=ids, prefix_token=self.prefix_token_id, max_seq_len=self.max_length, context_len=1
        )

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Texts until one of the task's strings or eos, the prompts cut as in HFLM to leave room for them."""
        order = Collator(
            [request.args for request in requests],
            sort_fn=lambda args: (-len(self.tok_encode(args[0])), args[0]),
            group_by="gen_kwargs",
            group_fn=lambda args: args[1],
        )
        texts = []
        with tqdm(total=len(requests), desc="texts", disable=disable_tqdm) as bar:
            for batch in order.get_batched(n=MAX_ROWS):
                texts += self._texts([context for context, _ in batch], batch[0][1])
                bar.update(len(batch))
        return order.get_original(texts)

    def _texts(self, contexts: Sequence[str], asked: Mapping[str, Any]) -> list[str]:
        settings = normalize_gen_kwargs(dict(asked), NEW_TOKENS)
        until = [text for text in settings["until"] if text]
        count = settings["max_gen_toks"]
        if count >= self.max_length:  # HFLM ends with an AssertionError
            count = self.max_length - self.max_length // 2
        most = self.max_length - count
        prompts = [self.tok_encode(context) or [self.eot_token_id] for context in contexts]
        self.cut += sum(len(prompt) > most for prompt in prompts)
        steps = generate(
            self.language_model.model,
            [prompt[-most:] for prompt in prompts],
            sampler=sampler(settings),
            max_new_tokens=count,
            eos=self.eot_token_id,
            seed=self.seed,
        )
        texts, open_rows = [b""] * len(prompts), set(range(len(prompts)))
        with contextlib.closing(steps):
            for step in steps:
                for row, token in step:
                    texts[row] += self.language_model.tokenizer.token_bytes(token)
                    if token == self.eot_token_id or any(text.encode() in texts[row] for text in until):
                        open_rows.discard(row)
                if not open_rows:
                    break
        decoded = (text.decode("utf-8", errors="replace") for text in texts)
        return [postprocess_generated_text(text, until, None) for text in decoded]


def sampler(settings: Mapping[str, Any]) -> Sampler:
    """The sampler of a task's settings for its texts. Raises: UserError: for a value out of range."""
    if not settings.get("do_sample") or settings.get("temperature") == 0:
        return Sampler(greedy=True)
    names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")  # 0 is off
    return Sampler(**{name: settings[name] for name in names if settings.get(name)})
