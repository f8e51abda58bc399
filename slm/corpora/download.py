"""HTTP GET with a limit on the total time."""

from concurrent.futures import Future
from http.client import HTTPException
from threading import Thread
from urllib.error import HTTPError, URLError
from urllib.request import urlopen


def fetch(url: str, *, seconds: float) -> bytes:
    """The body of a GET, in at most `seconds` in total. Raises: OSError: with the reason, for every failure."""
    body: Future[bytes] = Future()

    def get() -> None:
        try:
            with urlopen(url, timeout=seconds) as response:
                body.set_result(response.read())
        except HTTPError as error:
            error.close()
            body.set_exception(OSError(f"HTTP {error.code} {error.reason}"))
        except URLError as error:
            body.set_exception(OSError(str(error.reason)))
        except (OSError, HTTPException, ValueError) as error:  # ValueError: not a URL
            body.set_exception(OSError(f"{type(error).__name__}: {error}"))

    # In a thread: a socket's timeout limits neither the name lookup nor a body that arrives slowly.
    Thread(target=get, daemon=True).start()
    try:
        return body.result(timeout=seconds)
    except TimeoutError:
        raise OSError(f"no answer within {seconds:g} s") from None
