"""Keep messages off stderr: of native code, which Python cannot redirect, and of TensorFlow."""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import TextIO

_LONGEST_WAIT = 2  # seconds
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
            own reads the lines, so that an error that ends this process is still shown. What
            Python writes on sys.stderr does not pass through it: a terminal stays one.
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
            target = filtering.stdin
            assert target is not None
            stack.callback(_end, filtering)
            stack.enter_context(_python_stderr_on(stderr))
        os.dup2(target.fileno(), 2)
        try:
            yield
        finally:
            _flush()
            os.dup2(stderr, 2)
            os.close(stderr)


@contextlib.contextmanager
def _python_stderr_on(descriptor: int) -> Iterator[None]:
    """Let sys.stderr write on a copy of another descriptor, if it writes on 2."""
    python_stderr = sys.stderr
    if not _is_on_descriptor_2(python_stderr):
        yield
        return
    # It is not closed, because a logger that is made in this context may keep it.
    sys.stderr = open(  # noqa: SIM115
        os.dup(descriptor),
        "w",
        buffering=1,
        encoding=python_stderr.encoding,
        errors=python_stderr.errors,
    )
    try:
        yield
    finally:
        sys.stderr.flush()
        sys.stderr = python_stderr


def _is_on_descriptor_2(stream: TextIO | None) -> bool:
    """Return False for a caller's own stream, and for None, in a program without a console."""
    try:
        return stream is not None and stream.fileno() == 2
    except (OSError, ValueError):
        return False


def _end(filtering: subprocess.Popen) -> None:
    """Close the filter's input, and wait until it has written what it has read.

    A process that outlives the context may still write into it; then it goes on by itself.
    """
    assert filtering.stdin is not None
    filtering.stdin.close()
    with contextlib.suppress(subprocess.TimeoutExpired):
        filtering.wait(timeout=_LONGEST_WAIT)


def _flush() -> None:
    if sys.stderr is not None:  # None: a program without a console on Windows
        sys.stderr.flush()


@contextlib.contextmanager
def without_tensorflow_message(message: str) -> Iterator[None]:
    """Drop records of TensorFlow's logger that contain a message."""
    logger = logging.getLogger("tensorflow")

    def is_other(record: logging.LogRecord) -> bool:
        return message not in record.getMessage()

    logger.addFilter(is_other)
    try:
        yield
    finally:
        logger.removeFilter(is_other)
