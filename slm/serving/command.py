"""ui=web and serve=openai of generate.py: load the models, serve them until Ctrl-C."""

from typing import Any

from slm.classes import optional
from slm.errors import UserError
from slm.generation.command import Request, sampler_of
from slm.generation.language_model import load
from slm.generation.stream import check_count
from slm.serving.address import Address
from slm.serving.models import MAX_TOKENS, named
from slm.serving.request import Defaults


def serve_command(request: Request, classes: dict[str, Any]):
    """`classes` as in `generate_command`. Raises: UserError: for a wrong value before anything is loaded."""
    address = Address(host=request.host, port=request.port, token=request.token)
    check_count("max_new_tokens", request.max_new_tokens)
    if request.max_new_tokens > MAX_TOKENS:
        raise UserError(f"max_new_tokens={request.max_new_tokens} must be at most {MAX_TOKENS} for a server")
    sampler_of(request)
    purpose, packages = ("ui=web", ("gradio",)) if request.ui else ("serve=openai", ("starlette", "uvicorn"))
    for package in packages:
        optional(package, "web" if request.ui else "serve", purpose)
    from slm.serving.server import run

    address.open().close()  # a port in use is an error before anything is loaded
    others = [request.ckpt2] if isinstance(request.ckpt2, str) else request.ckpt2 or []
    place = {"runs_dir": request.runs_dir, "device": request.device, "dtype": request.dtype}
    models = named([load(ckpt, **place, **classes) for ckpt in (request.ckpt, *others)])
    if request.sampler == "run":
        request, _ = request.like_run(next(iter(models.values())).config)
    if request.ui:
        from slm.serving.page import Page

        run(Page(models, request).app(), address, f"the page of {', '.join(models)}", path="/")
    else:
        from slm.serving.openai import Api

        settings = {"max_new_tokens": request.max_new_tokens, "stop_at_eos": request.stop_at_eos}
        defaults = Defaults(sampler=sampler_of(request), **settings)
        run(Api(models, defaults).app(), address, f"the API of {', '.join(models)}", path="/v1")
