"""HTTP GET with a limit on the total time, by the HTTP library of the Hugging Face Hub: its certificates and proxies
are those of the downloads that follow."""

from collections.abc import Mapping
from concurrent.futures import Future
from threading import Thread


def fetch(url: str, *, seconds: float, headers: Mapping[str, str] | None = None) -> bytes:
    """The body of a GET, in at most `seconds` in total. Raises: OSError: with the reason, for every failure."""
    from huggingface_hub.utils import get_session

    body: Future[bytes] = Future()

    def get() -> None:
        try:
            response = get_session().get(url, timeout=seconds, headers=headers)
            if response.status_code >= 400:
                raise OSError(f"HTTP {response.status_code}")
            body.set_result(response.content)
        except Exception as error:  # of httpx or requests: no common base class
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            body.set_exception(error if type(error) is OSError else OSError(reason))

    # In a thread: a socket's timeout limits neither the name lookup nor a body that arrives slowly.
    Thread(target=get, daemon=True).start()
    try:
        return body.result(timeout=seconds)
    except TimeoutError:
        raise OSError(f"no answer within {seconds:g} s") from None
