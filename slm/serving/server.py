"""An application of ASGI on one port, until Ctrl-C."""

import contextlib
import logging
import socket

import uvicorn
from starlette.types import ASGIApp

from slm.files import json_line
from slm.serving.address import Address
from slm.serving.guard import Guard

AT_END = "graceful shutdown", "without completing response"  # messages on answers that Ctrl-C cuts off
CONNECTIONS = 100  # at a time


def run(app: ASGIApp, address: Address, what: str, path: str):
    """Serves until Ctrl-C; prints the address of a path. Raises: UserError: if the port cannot be used."""
    with address.open() as listening:
        host, port = listening.getsockname()[:2]
        name = socket.gethostname() if host in ("0.0.0.0", "::") else f"[{host}]" if ":" in host else host
        query = f"?token={address.token}" if address.token and path == "/" else ""
        print(f"{what}: http://{name}:{port}{path}{query} (Ctrl-C ends it)", flush=True)
        json_line.note(host=host, port=port)
        config = uvicorn.Config(
            Guard(app, address),
            log_level="warning",
            access_log=False,
            limit_concurrency=CONNECTIONS,
            timeout_graceful_shutdown=1,
            server_header=False,
            proxy_headers=False,
        )
        logging.getLogger("uvicorn.error").addFilter(lambda record: not any(end in record.msg for end in AT_END))
        with contextlib.suppress(KeyboardInterrupt):
            uvicorn.Server(config).run(sockets=[listening])
