"""Where a server listens: on this machine alone, unless others must send a token."""

import contextlib
import ipaddress
import socket
from dataclasses import dataclass

from slm.errors import UserError
from slm.security import NAME

MIN_TOKEN = 8  # characters


@dataclass(frozen=True, kw_only=True)
class Address:
    """Where the server listens, and the word that it asks for. Raises: UserError: for another machine without one."""

    host: str
    port: int  # 0: any free one
    token: str | None

    def __post_init__(self):
        if not 0 <= self.port < 2**16:
            raise UserError(f"port={self.port} must be a whole number from 0 to 65535")
        if self.token is not None and (len(self.token) < MIN_TOKEN or not NAME.fullmatch(self.token)):
            raise UserError(f"token= must have {MIN_TOKEN} or more characters, only of A-Z a-z 0-9 . _ -")
        if not (self.token or is_local(self.host)):
            raise UserError(
                f"host={self.host} lets other machines use the model; give token=<a word of {MIN_TOKEN} or more "
                "characters> that they have to send, or leave out host"
            )

    def open(self) -> socket.socket:
        """Raises: UserError: if the port is in use or the host is not one of this machine."""
        try:
            found = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
            return socket.create_server(found[0][4][:2], family=found[0][0])
        except OSError as error:
            fix = f"; give another one, port={self.port + 1}" if self.port and is_local(self.host) else ""
            raise UserError(f"host={self.host} port={self.port} cannot be used: {error.strerror}{fix}") from None


def is_local(host: str) -> bool:
    """True if only this machine reaches the host."""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"
