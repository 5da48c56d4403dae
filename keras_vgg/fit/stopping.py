"""A stop by a scheduler (SIGTERM) or a person (Ctrl-C), after a checkpoint."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Self

from keras_vgg.fit import hosts

TERMINATED = 128 + signal.SIGTERM
"""The exit status after SIGTERM, as shells report it."""

_DEFAULTS: dict[int, signal.Handlers | Callable[[int, FrameType | None], object]] = {
    signal.SIGTERM: signal.SIG_DFL,
    signal.SIGINT: signal.default_int_handler,
}


class StopRequest:
    """A context in which the first SIGTERM or Ctrl-C waits for a checkpoint; a second does not.

    If a program has handlers of its own, they stay. Outside the main thread, Python handles no
    signals, so they stay too. With several hosts, JAX handles SIGTERM and informs all hosts, and
    Ctrl-C ends one host at once.
    """

    def __init__(self) -> None:
        self._signal: int | None = None
        self._installed: list[int] = []

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number, default in _DEFAULTS.items():
                if hosts.count() == 1 and signal.getsignal(number) is default:
                    signal.signal(number, self._handle)
                    self._installed.append(number)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number in self._installed:
            signal.signal(number, _DEFAULTS[number])
        self._installed.clear()

    @property
    def made(self) -> bool:
        """Return whether a signal asked training to stop."""
        return self._signal is not None

    def made_at(self, step: int) -> bool:
        """Return `made`; with several hosts the same answer on all, if all ask after each step."""
        if hosts.count() > 1 and not self.made and hosts.must_stop(step):
            self._signal = signal.SIGTERM
        return self.made

    def obey(self, kept: str) -> None:
        """End training.

        Args:
            kept: What was saved, for the message.

        Raises:
            KeyboardInterrupt: the signal was Ctrl-C.
            SystemExit: the signal was SIGTERM; the status is `TERMINATED`.
        """
        if self._signal == signal.SIGINT:
            raise KeyboardInterrupt(kept)
        print(f"SIGTERM: {kept}; repeat the command to resume", file=sys.stderr, flush=True)
        raise SystemExit(TERMINATED)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._signal is not None:
            signal.signal(number, _DEFAULTS[number])
            signal.raise_signal(number)
        self._signal = number
