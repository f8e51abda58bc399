"""A function of each item of a stream, computed by several processes, in order."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Self, TypeVar

from slm import system
from slm.errors import ResourceError

Item, Result = TypeVar("Item"), TypeVar("Result")

_function: Callable = None  # of a process that is a copy of this one


def cores() -> int:
    """The cores that processes of this one can use; 1 where they cannot be copies of it, as on macOS."""
    if not system.FORKS or multiprocessing.current_process().daemon:
        return 1
    return system.cores()


class Processes:
    """A function, computed by several copies of this process. They are forked when they are first needed, so the
    function and what it holds are not copied before they change; and they end at the end of the `with` block."""

    def __init__(self, function: Callable[[Item], Result], count: int):
        self.function, self.count, self.pool = function, count, None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_):
        if self.pool:
            self.pool.shutdown(cancel_futures=True)

    def map(self, items: Iterable[Item]) -> Iterator[Result]:
        """The function of each item, in order. At most 2 x `count` items are read ahead.

        Raises: ResourceError: if a process was killed; what the function and the items raise.
        """
        if not self.pool:
            context = multiprocessing.get_context("fork")
            self.pool = ProcessPoolExecutor(self.count, context, initializer=_begin, initargs=(self.function,))
        pending: deque[Future[Result]] = deque()
        try:
            for item in items:
                pending.append(self.pool.submit(_call, item))
                if len(pending) >= 2 * self.count:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        except BrokenProcessPool:
            raise ResourceError("a process that tokenizes was killed, most likely for want of memory") from None
        finally:
            for future in pending:
                future.cancel()


def _begin(function: Callable) -> None:
    """Ends with the process that it was forked from, which alone answers signals."""
    global _function
    _function = function
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


def _call(item: Item) -> Result:
    return _function(item)
