"""Keep messages of native code off stderr. Python's own redirection does not reach C++."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator

_FILTER = """
import re, sys
for line in sys.stdin.buffer:
    if not re.match(sys.argv[1].encode(), line):
        sys.stderr.buffer.write(line)
        sys.stderr.buffer.flush()
"""


@contextlib.contextmanager
def without_native_stderr(pattern: str | None = None) -> Iterator[None]:
    """Drop lines that are written on descriptor 2 within the context.

    Args:
        pattern: A regular expression. Lines that begin with a match are dropped. A process of its
            own reads the lines, so that an error that ends this process is still shown.
            None: every line is dropped.
    """
    _flush()
    try:
        stderr = os.dup(2)
    except OSError:  # This process has no stderr.
        yield
        return
    with contextlib.ExitStack() as stack:
        if pattern is None:
            target = stack.enter_context(open(os.devnull, "wb"))
        else:
            command = [sys.executable, "-I", "-S", "-c", _FILTER, pattern]
            # The filter has a session of its own: a Ctrl-C is for this process.
            filtering = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
            target = stack.enter_context(filtering).stdin
            assert target is not None
        os.dup2(target.fileno(), 2)
        try:
            yield
        finally:
            _flush()
            os.dup2(stderr, 2)
            os.close(stderr)


def _flush() -> None:
    if sys.stderr is not None:  # None: a program without a console on Windows
        sys.stderr.flush()
