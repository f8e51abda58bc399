"""serve=openai: the models behind the API of OpenAI: /v1/models, /v1/completions and /v1/chat/completions."""

import contextlib
import json
import time
import traceback
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from anyio import CapacityLimiter
from starlette.applications import Starlette
from starlette.concurrency import iterate_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from slm.chat_template import chat_template
from slm.errors import UserError
from slm.generation.language_model import LanguageModel
from slm.serving.answers import ChatAnswer, CompletionAnswer
from slm.serving.models import MAX_WAITING
from slm.serving.request import Defaults, TextRequest, chat_request, completion_request
from slm.serving.texts import Texts

Answer = CompletionAnswer | ChatAnswer
FAILED = {"error": {"message": "the server failed; its console has the reason", "type": "server_error"}}


class Unknown(UserError):
    """A model that is not served."""


class Busy(UserError):
    """Too many requests wait."""


@contextlib.asynccontextmanager
async def turn(limiter: CapacityLimiter) -> AsyncIterator[None]:
    """A request waits until it is its turn. Raises: Busy: if MAX_WAITING others wait."""
    if limiter.statistics().tasks_waiting >= MAX_WAITING:
        raise Busy(f"{MAX_WAITING} requests wait already; try again later")
    async with limiter:
        yield


class Api:
    """The endpoints on models by name; a request without a name means the first one."""

    def __init__(self, models: Mapping[str, LanguageModel], defaults: Defaults):
        self.models, self.defaults = models, defaults
        self.limiter, self.started = CapacityLimiter(1), int(time.time())

    def app(self) -> Starlette:
        routes = [
            Route("/v1/models", self.list_models),
            Route("/v1/models/{name}", self.show_model),
            Route("/v1/completions", self.completions, methods=["POST"]),
            Route("/v1/chat/completions", self.chat, methods=["POST"]),
        ]
        answers = {UserError: refusal, HTTPException: missing, Exception: failed}
        return Starlette(routes=routes, exception_handlers=answers)

    def described(self, name: str) -> dict[str, Any]:
        context = self.model(name).model.config.context
        return {"id": name, "object": "model", "created": self.started, "owned_by": "slm", "max_model_len": context}

    async def list_models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self.described(name) for name in self.models]})

    async def show_model(self, request: Request) -> Response:
        return JSONResponse(self.described(request.path_params["name"]))

    def model(self, name: str) -> LanguageModel:
        """Raises: Unknown: for a name that is not served."""
        if name and name not in self.models:
            raise Unknown(f"model={name[:80]} is not served here; it serves {', '.join(self.models)}")
        return self.models[name or next(iter(self.models))]

    async def completions(self, request: Request) -> Response:
        asked = completion_request(await json_of(request), self.defaults)
        return await self.answer(request, asked, CompletionAnswer)

    async def chat(self, request: Request) -> Response:
        asked = chat_request(await json_of(request), self.defaults, lambda name: chat_template(self.model(name).config))
        return await self.answer(request, asked, ChatAnswer)

    async def answer(self, request: Request, asked: TextRequest, kind: Callable[..., Answer]) -> Response:
        loaded = self.model(asked.model)
        texts = Texts(loaded, asked)  # raises before the answer begins
        name = asked.model or next(iter(self.models))
        answer = kind(id=f"{kind.PREFIX}-{uuid.uuid4().hex}", model=name, asked=asked, texts=texts)
        if asked.stream:
            return StreamingResponse(self.events(answer, texts), media_type="text/event-stream")
        async with turn(self.limiter):
            async for found in iterate_in_threadpool(answer.collected()):
                if found:
                    return JSONResponse(found)
                if await request.is_disconnected():
                    texts.close()
        raise AssertionError("an answer ends with its whole")

    async def events(self, answer: Answer, texts: Texts) -> AsyncIterator[str]:
        """Server-sent events. An error after the first one is an event, too."""
        try:
            async with turn(self.limiter):
                async for part in iterate_in_threadpool(answer.parts()):
                    yield event(part)
        except UserError as error:
            yield event(error_of(error))
        except Exception:
            traceback.print_exc()
            yield event(FAILED)
        finally:
            texts.close()
        yield "data: [DONE]\n\n"


async def json_of(request: Request) -> Any:
    """Raises: UserError: if the body is not JSON, or holds a half of a surrogate pair, which no answer could show."""
    try:
        found = json.loads(await request.body())
        json.dumps(found, ensure_ascii=False).encode()
        return found
    except (ValueError, RecursionError):
        raise UserError("the body of the request is not JSON") from None


def event(value: Any) -> str:
    return f"data: {json.dumps(value)}\n\n"


def error_of(error: Exception) -> dict[str, Any]:
    kind = "server_busy" if isinstance(error, Busy) else "invalid_request_error"
    code = "model_not_found" if isinstance(error, Unknown) else None
    return {"error": {"message": str(error), "type": kind, "param": None, "code": code}}


async def refusal(request: Request, error: Exception) -> Response:
    status = 404 if isinstance(error, Unknown) else 429 if isinstance(error, Busy) else 400
    return JSONResponse(error_of(error), status)


async def missing(request: Request, error: HTTPException) -> Response:
    message = f"{request.method} {request.url.path[:80]} is not offered by this server"
    return JSONResponse(error_of(UserError(message)), error.status_code)


async def failed(request: Request, error: Exception) -> Response:
    """A bug of this program; its traceback is printed."""
    return JSONResponse(FAILED, 500)
