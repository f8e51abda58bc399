"""The JSON of OpenAI's API: whole answers, the parts of a stream, and log-probabilities in their two forms."""

import time
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any

from slm.generation.completion import TextDecoder
from slm.generation.scores import Scored
from slm.serving.choice import Piece, joined, token_text
from slm.serving.request import TextRequest
from slm.serving.texts import Texts


class Answer:
    """An answer to one request. `seed` is an addition to the API: with it the request gives the same texts again."""

    KIND = PART = PREFIX = ""

    def __init__(self, *, id: str, model: str, asked: TextRequest, texts: Texts):
        self.asked, self.texts, self.tokenizer = asked, texts, texts.loaded.tokenizer
        self.head = {"id": id, "created": int(time.time()), "model": model, "seed": asked.seed}
        self.pieces: dict[int, list[Piece]] = {}

    def collected(self) -> Iterator[dict[str, Any] | None]:
        """None for each piece, and then the answer."""
        for number, piece in self.texts.pieces():
            self.pieces.setdefault(number, []).append(piece)
            yield None
        yield self.whole()

    def whole(self) -> dict[str, Any]:
        choices = [self.choice(number, joined(self.pieces[number])) for number in sorted(self.pieces)]
        return {**self.head, "object": self.KIND, "choices": choices, "usage": self.texts.usage()}

    def parts(self) -> Iterator[dict[str, Any]]:
        """The objects of a stream."""
        part = {**self.head, "object": self.PART}
        started: set[int] = set()
        for number, piece in self.texts.pieces():
            if piece.text or piece.tokens or piece.finish_reason or number not in started:
                yield {**part, "choices": [self.part(number, piece, number not in started)]}
                started.add(number)
        if self.asked.usage:
            yield {**part, "choices": [], "usage": self.texts.usage()}

    def choice(self, number: int, piece: Piece) -> dict[str, Any]:
        raise NotImplementedError

    def part(self, number: int, piece: Piece, first: bool) -> dict[str, Any]:
        raise NotImplementedError


class CompletionAnswer(Answer):
    KIND = PART = "text_completion"
    PREFIX = "cmpl"

    def choice(self, number: int, piece: Piece) -> dict[str, Any]:
        return self.part(number, piece, True)

    def part(self, number: int, piece: Piece, first: bool) -> dict[str, Any]:
        """With echo the first part of a text begins with its prompt."""
        prompt = self.prompt(number) if self.asked.echo else ""
        begun = prompt if first else ""
        logprobs = self.logprobs(number, piece, len(prompt), first) if self.asked.top is not None else None
        return {
            "index": number,
            "text": begun + piece.text,
            "logprobs": logprobs,
            "finish_reason": piece.finish_reason,
        }

    def prompt(self, number: int) -> str:
        prompt = self.asked.prompts[number // self.asked.choices]
        return prompt if isinstance(prompt, str) else self.tokenizer.decode(prompt)

    def logprobs(self, number: int, piece: Piece, shift: int, first: bool) -> dict[str, list]:
        tokens, offsets = [scored for scored, _ in piece.tokens], [shift + start for _, start in piece.tokens]
        found = self.listed(tokens, offsets)
        if not (self.asked.echo and first):
            return found
        before = self.of_prompt(number)
        return {name: before[name] + found[name] for name in found}

    def of_prompt(self, number: int) -> dict[str, list]:
        """Of the tokens of the prompt. The first one that nothing precedes has null."""
        ids, decoder = self.texts.prompts[number // self.asked.choices].ids, TextDecoder(self.tokenizer)
        scored = self.texts.prompt_scores(number)
        offsets = [*accumulate(len(decoder.text(token)) for token in ids[:-1])]
        found = self.listed(scored, offsets)
        if isinstance(self.asked.prompts[number // self.asked.choices], str) and self.texts.loaded.eos_first:
            return found  # the eos before it is not part of the prompt
        first = {"tokens": token_text(self.tokenizer, ids[0]), "text_offset": 0}
        return {name: [first.get(name), *values] for name, values in found.items()}

    def listed(self, tokens: Sequence[Scored], offsets: Sequence[int]) -> dict[str, list]:
        text = lambda token: token_text(self.tokenizer, token)  # noqa: E731
        return {
            "tokens": [text(scored.token) for scored in tokens],
            "token_logprobs": [scored.logprob for scored in tokens],
            "top_logprobs": [{text(token): value for token, value in scored.top} for scored in tokens],
            "text_offset": list(offsets),
        }


class ChatAnswer(Answer):
    KIND, PART, PREFIX = "chat.completion", "chat.completion.chunk", "chatcmpl"

    def choice(self, number: int, piece: Piece) -> dict[str, Any]:
        message = {"role": "assistant", "content": piece.text, "refusal": None}
        return {"index": number, "message": message, **self.rest(piece)}

    def part(self, number: int, piece: Piece, first: bool) -> dict[str, Any]:
        delta = {"role": "assistant"} if first else {}
        return {"index": number, "delta": {**delta, "content": piece.text}, **self.rest(piece)}

    def rest(self, piece: Piece) -> dict[str, Any]:
        content = [
            {**self.token(scored.token, scored.logprob), "top_logprobs": [self.token(*pair) for pair in scored.top]}
            for scored, _ in piece.tokens
        ]
        logprobs = None if self.asked.top is None else {"content": content, "refusal": None}
        return {"logprobs": logprobs, "finish_reason": piece.finish_reason}

    def token(self, token: int, logprob: float) -> dict[str, Any]:
        content = list(self.tokenizer.token_bytes(token))
        return {"token": token_text(self.tokenizer, token), "logprob": logprob, "bytes": content}
