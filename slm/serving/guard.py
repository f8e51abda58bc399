"""Who may ask a server, and how much: checks before an application of ASGI."""

import asyncio
import contextlib
import hmac
from urllib.parse import quote, urlsplit

from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from slm.serving.address import Address, is_local

MAX_BODY = 2**20  # bytes of a request
CLOSED = "upload", "file=", "proxy=", "stream/", "component_server", "run-history"  # of Gradio
COOKIE = "slm_token"


class Guard:
    """An application behind checks on host, origin, token and size of each request.

    Without a token the name of the host must be a local one, so that no page of the web reaches the server through a
    name that resolves to this machine; and a page of another origin may not send anything.
    """

    def __init__(self, app: ASGIApp, address: Address):
        self.app, self.address = app, address

    async def __call__(self, scope: Scope, receive: Receive, send: Send):
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] != "http":  # neither application uses web sockets
            return await send({"type": "websocket.close", "code": 1008})
        request = Request(scope)
        if answer := self.login(request) or self.refusal(request):
            return await answer(scope, receive, send)
        with contextlib.suppress(asyncio.CancelledError):  # at the end of the server, of an answer that still goes on
            await self.app(scope, receive, send)

    def login(self, request: Request) -> Response | None:
        """The answer to an address with ?token=...: a cookie, and the address without it."""
        if not self.is_token(token := request.query_params.get("token", "")):
            return None
        rest = request.url.remove_query_params("token").query
        place = quote("/" + request.scope["path"].lstrip("/\\")) + (f"?{rest}" if rest else "")
        answer = RedirectResponse(place, 303, {"cache-control": "no-store"})
        answer.set_cookie(COOKIE, token, httponly=True, samesite="lax")
        return answer

    def refusal(self, request: Request) -> Response | None:
        host, length = request.headers.get("host", ""), request.headers.get("content-length", "")
        if any(f"/{name}" in request.scope["path"] for name in CLOSED):
            return refused(404, "this server offers no files")
        if not self.address.token and not is_local(urlsplit(f"//{host}").hostname or ""):
            return refused(403, "this server answers requests to 127.0.0.1 or localhost only")
        if self.address.token and not self.is_allowed(request):
            return refused(401, "give the token of the server: ?token=... in a browser, or as the API key")
        if request.method in ("GET", "HEAD", "OPTIONS"):
            return None
        if urlsplit(request.headers.get("origin", f"//{host}")).netloc != host:
            return refused(403, "a page of another origin may not use this server")
        if not length.isdecimal():
            return refused(411, "a request must state its Content-Length")
        if int(length) > MAX_BODY:
            return refused(413, f"a request must have at most {MAX_BODY} bytes")
        return None

    def is_allowed(self, request: Request) -> bool:
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        return (scheme.lower() == "bearer" and self.is_token(key)) or self.is_token(request.cookies.get(COOKIE, ""))

    def is_token(self, given: str) -> bool:
        token = self.address.token
        return token is not None and hmac.compare_digest(given.encode("utf-8", "replace"), token.encode())


def refused(status: int, message: str) -> Response:
    return JSONResponse({"error": {"message": message, "type": "invalid_request_error"}}, status)
