"""Being told to stop, by a scheduler (SIGTERM) or a person (Ctrl-C), and keeping things first."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Self

from keras_vgg.fit import hosts

TERMINATED = 128 + signal.SIGTERM
"""The exit status after SIGTERM, as a shell would give it."""

_DEFAULTS: dict[int, signal.Handlers | Callable[[int, FrameType | None], object]] = {
    signal.SIGTERM: signal.SIG_DFL,
    signal.SIGINT: signal.default_int_handler,
}


class StopRequest:
    """Within it the first SIGTERM or Ctrl-C waits until training can be kept; a second does not.

    A program's own handlers are left alone, and so are signals outside the main thread, where
    Python takes none. Of several hosts SIGTERM is JAX's, which tells all, and Ctrl-C ends one.
    """

    def __init__(self) -> None:
        self._signal: int | None = None
        self._installed: list[int] = []

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number, default in _DEFAULTS.items():
                if hosts.count() == 1 and signal.getsignal(number) is default:
                    signal.signal(number, self._take)
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
        """Whether training was told to stop."""
        return self._signal is not None

    def made_at(self, step: int) -> bool:
        """The same; of several hosts one answer, if all ask after each step."""
        if hosts.count() > 1 and not self.made and hosts.told_to_stop(step):
            self._signal = signal.SIGTERM
        return self.made

    def obey(self, kept: str) -> None:
        """End training.

        Args:
            kept: What was kept, for the user.

        Raises:
            KeyboardInterrupt: it was Ctrl-C.
            SystemExit: it was SIGTERM; the status is `TERMINATED`.
        """
        if self._signal == signal.SIGINT:
            raise KeyboardInterrupt(kept)
        print(f"SIGTERM: {kept}; repeat the command to go on", file=sys.stderr, flush=True)
        raise SystemExit(TERMINATED)

    def _take(self, number: int, frame: FrameType | None) -> None:
        if self._signal is not None:
            signal.signal(number, _DEFAULTS[number])
            signal.raise_signal(number)
        self._signal = number
