"""Who may ask a server, and how much: checks before an application, by the protocol ASGI alone."""

import asyncio
import contextlib
import hmac
from collections.abc import Awaitable, Callable, MutableMapping
from http.cookies import SimpleCookie
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

from slm.serving.address import Address, is_local

MAX_BODY = 2**20  # bytes of a request
CLOSED = (
    "/upload",
    "/upload_progress",
    "/file=",
    "/proxy=",
    "/stream/",
    "/component_server",
    "/run-history",
)  # of Gradio
COOKIE = "slm_token"
Scope = MutableMapping[str, Any]
App = Callable[[Scope, Callable[[], Awaitable], Callable[[Any], Awaitable]], Awaitable[None]]


class Guard:
    """An application behind checks on host, origin, token and size of each request.

    Without a token the name of the host must be a local one, so that no page of the web reaches the server through a
    name that resolves to this machine; and a page of another origin may not send anything.
    """

    def __init__(self, app: App, address: Address):
        self.app, self.address = app, address

    async def __call__(self, scope: Scope, receive, send):
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] != "http":  # neither application uses web sockets
            return await send({"type": "websocket.close", "code": 1008})
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        if any(part in scope["path"] for part in CLOSED):
            return await respond(send, 404, "this server offers no files")
        if answer := self.login(scope) or self.refusal(scope["method"], headers):
            return await respond(send, *answer)
        with contextlib.suppress(asyncio.CancelledError):  # at the end of the server, of an answer that still goes on
            await self.app(scope, receive, send)

    def login(self, scope: Scope) -> tuple | None:
        """The answer to an address with ?token=...: a cookie, and the address without it."""
        query = parse_qsl(scope["query_string"].decode("latin-1"))
        given = dict(query).get("token")
        if given is None or not self.is_token(given):
            return None
        rest = urlencode([pair for pair in query if pair[0] != "token"])
        place = quote("/" + scope["path"].lstrip("/\\")) + (f"?{rest}" if rest else "")
        cookie = f"{COOKIE}={given}; HttpOnly; SameSite=Lax; Path=/"
        return 303, "", (("location", place), ("set-cookie", cookie), ("cache-control", "no-store"))

    def refusal(self, method: str, headers: dict[str, str]) -> tuple[int, str] | None:
        host = headers.get("host", "")
        if not self.address.token and not is_local(urlsplit(f"//{host}").hostname or ""):
            return 403, "this server answers requests to 127.0.0.1 or localhost only"
        if self.address.token and not self.is_allowed(headers):
            return 401, "give the token of the server: ?token=... in a browser, or as the API key"
        if method in ("GET", "HEAD", "OPTIONS"):
            return None
        if "origin" in headers and urlsplit(headers["origin"]).netloc != host:
            return 403, "a page of another origin may not use this server"
        if not headers.get("content-length", "").isdecimal():
            return 411, "a request must state its Content-Length"
        if int(headers["content-length"]) > MAX_BODY:
            return 413, f"a request must have at most {MAX_BODY} bytes"
        return None

    def is_allowed(self, headers: dict[str, str]) -> bool:
        scheme, _, key = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and self.is_token(key):
            return True
        cookies = SimpleCookie()
        with contextlib.suppress(Exception):  # of a malformed header: no cookie
            cookies.load(headers.get("cookie", ""))
        return COOKIE in cookies and self.is_token(cookies[COOKIE].value)

    def is_token(self, given: str) -> bool:
        token = self.address.token
        return token is not None and hmac.compare_digest(given.encode("utf-8", "replace"), token.encode())


async def respond(send, status: int, text: str, headers: tuple[tuple[str, str], ...] = ()):
    body = f'{{"error": {{"message": "{text}", "type": "invalid_request_error"}}}}' if text else ""
    named = [("content-type", "application/json"), ("content-length", str(len(body))), *headers]
    encoded = [(name.encode(), value.encode("latin-1")) for name, value in named]
    await send({"type": "http.response.start", "status": status, "headers": encoded})
    await send({"type": "http.response.body", "body": body.encode()})
