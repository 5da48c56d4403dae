"""A file that is written in a thread of its own, while training goes on."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from types import TracebackType
from typing import Any, Self


class BackgroundWriter:
    """Run one function at a time in a thread, and raise its error in the thread that asks.

    As a context, it waits at the end for the function that runs. If the context ends with an error,
    an error of the function becomes a warning, which does not hide the first one.
    """

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="writer")
        self._running: Future[Any] | None = None

    def start(self, write: Callable[[], Any]) -> None:
        """Wait for the function before, and start this one."""
        self.wait()
        self._running = self._executor.submit(write)

    def wait(self) -> None:
        """Wait until no function runs. If the last one failed, raise its error."""
        if self._running is None:
            return
        wait([self._running])  # Ctrl-C may interrupt this; then the function still counts as begun
        ended, self._running = self._running, None
        ended.result()

    def require_success(self) -> None:
        """Raise the error of a function that has failed, without waiting for one that runs."""
        if self._running is not None and self._running.done():
            self.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self.wait()
        except Exception as writing_error:
            if error is None:
                raise
            warnings.warn(str(writing_error), stacklevel=2)
        finally:
            self._executor.shutdown()
