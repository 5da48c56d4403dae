"""Several processes that train one network, on one machine or many, with Keras on JAX.

`tf.distribute.MultiWorkerMirroredStrategy` is not used: Keras 3 does not support it
(keras-team/keras#20585).
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

from keras_vgg.backend import backend_name, is_jax

# Words in the errors of JAX's communication.
_COMMUNICATION = ("Gloo", "NCCL", "heartbeat", "oordination", "UNAVAILABLE")
_HEARTBEAT_SECONDS = 30  # without a sign of life; then a host counts as lost


def join(coordinator: str, processes: int | None = None, process: int | None = None) -> None:
    """Join a job of several processes. Call this before anything is computed.

    Args:
        coordinator: HOST:PORT of the first process, the same for all; "auto" under SLURM and Open
            MPI, which give the other two arguments too.
        processes: The number of processes.
        process: The number of this process, from 0. Default: the index of a Kubernetes indexed job.

    Raises:
        ValueError: Keras' backend is not JAX, or an argument is missing or wrong.
        OSError: the other processes did not join within five minutes.
    """
    if not is_jax():
        raise ValueError(
            f"several hosts train with Keras on JAX, not on {backend_name()}: use "
            "--backend jax, or set KERAS_BACKEND=jax"
        )
    import jax

    options: dict[str, Any] = {}
    if coordinator != "auto":
        if process is None and "JOB_COMPLETION_INDEX" in os.environ:
            process = int(os.environ["JOB_COMPLETION_INDEX"])
        if processes is None or process is None:
            raise ValueError(
                f"coordinator={coordinator} needs the number of processes and the number of this "
                "one: --processes N --process I"
            )
        if not 0 <= process < processes:
            raise ValueError(f"process={process} must be in [0, {processes})")
        if not coordinator.rpartition(":")[2].isdigit():
            raise ValueError(f"coordinator must be HOST:PORT or auto, not {coordinator!r}")
        options = {
            "coordinator_address": coordinator,
            "num_processes": processes,
            "process_id": process,
        }
    try:
        jax.distributed.initialize(heartbeat_timeout_seconds=_HEARTBEAT_SECONDS, **options)
    except ValueError as error:
        raise ValueError(f"coordinator={coordinator}: {error}") from error
    except RuntimeError as error:
        raise OSError(
            f"the other processes of the job did not join: {_first_line(error)}"
        ) from error


def index() -> int:
    """Return the number of this process, from 0."""
    return _jax().process_index() if is_jax() else 0


def count() -> int:
    """Return the number of processes."""
    return _jax().process_count() if is_jax() else 1


def share(value: Any = None) -> Any:
    """Return the first process's value on all processes. The value must be possible in JSON."""
    if count() == 1:
        return value
    from jax.experimental import multihost_utils

    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
    padded = np.resize(text, size) if index() else text
    return json.loads(bytes(np.asarray(multihost_utils.broadcast_one_to_all(padded))))


def wait(name: str) -> None:
    """Wait until all processes call this function with the same name."""
    if count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)


def must_stop(step: int) -> bool:
    """Return whether any process got SIGTERM: the same answer on all processes at a step."""
    from jax.experimental import multihost_utils

    return multihost_utils.reached_preemption_sync_point(step)


def require_same(name: str, value: Any) -> None:
    """Wait for all processes; raise ValueError on all if one has another value than the first."""
    if count() == 1:
        return
    from jax.experimental import multihost_utils

    same = share(value) == json.loads(json.dumps(value))
    answers = np.asarray(multihost_utils.process_allgather(np.int32(same))).ravel()
    if not answers.all():
        others = ", ".join(str(i) for i in np.flatnonzero(answers == 0))
        raise ValueError(
            f"the {name} of process {others} is not that of the first process; start all "
            "processes with the same arguments"
        )


@contextlib.contextmanager
def ended_together() -> Iterator[None]:
    """End all processes of a job if one fails.

    The failed process exits at once: JAX's own shutdown would wait minutes for the others and then
    abort. The others get an error of their communication, which becomes an OSError with the cause.

    Raises:
        OSError: another process is lost.
    """
    if count() == 1:
        yield
        return
    try:
        yield
    except Exception as error:
        atexit.register(_leave, 1 if isinstance(error, ArithmeticError) else 2)
        if isinstance(error, RuntimeError | ValueError) and _is_of_communication(error):
            raise OSError(
                "one of the processes of this job is lost; end the others and start all again: "
                f"they resume from the last checkpoint ({_first_line(error)})"
            ) from error
        raise


def _is_of_communication(error: Exception) -> bool:
    return any(mark in str(error) for mark in _COMMUNICATION)


def _leave(status: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def _jax():
    import jax

    return jax
