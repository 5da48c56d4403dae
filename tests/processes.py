"""Commands in processes of their own, for tests that start many and kill them.

A server imports what the commands need, once, and each process is a fork of it: an import of
TensorFlow and Keras takes five seconds of processor time. A fork is a process like any other, and
begins before TensorFlow has made threads.
"""

import multiprocessing
import os
import sys
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["tests.preloaded"])


def start(output: Path, *commands: Sequence[str]) -> BaseProcess:
    """Start a process that runs commands of `keras-vgg`, one after the other, until one fails.

    Args:
        output: File that gets what they print, after what it has.
        commands: The arguments of each.

    Returns:
        The process; its `exitcode` is that of the last command.
    """
    process = _SERVER.Process(target=_run, args=(str(output), commands))
    process.start()
    return process


def _run(output: str, commands: Sequence[Sequence[str]]) -> None:
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for stream in (1, 2):
        os.dup2(file, stream)
    from keras_vgg.cli import main

    for command in commands:
        if status := main(list(command)):
            sys.exit(status)
