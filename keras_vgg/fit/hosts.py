"""Several processes that train one network, on one machine or many: Keras on JAX.

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

# What the errors of JAX's ways to talk have in them.
_COMMUNICATION = ("Gloo", "NCCL", "heartbeat", "oordination", "UNAVAILABLE")
_HEARTBEAT_SECONDS = 30  # without a sign of life, after which a host is taken for lost


def join(coordinator: str, processes: int | None = None, process: int | None = None) -> None:
    """Become one of the processes of a job. Call it before anything is computed.

    Args:
        coordinator: HOST:PORT of the first process, the same for all; "auto" under SLURM and Open
            MPI, which say the rest too.
        processes: How many there are.
        process: Which this is, from 0; by default what Kubernetes' indexed jobs say.

    Raises:
        ValueError: Keras' backend is not JAX, or something is missing.
        OSError: the others did not come within five minutes.
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
                f"coordinator={coordinator} needs the number of processes and which this is: "
                "--processes N --process I"
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
        raise OSError(f"the job did not come together: {_first_line(error)}") from error


def index() -> int:
    """Which of the processes this is; 0 where there is one."""
    return _jax().process_index() if _is_jax() else 0


def count() -> int:
    return _jax().process_count() if _is_jax() else 1


def share(value: Any = None) -> Any:
    """What the first process gives, on all of them: anything that JSON can say."""
    if count() == 1:
        return value
    from jax.experimental import multihost_utils

    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
    padded = np.resize(text, size) if index() else text
    return json.loads(bytes(np.asarray(multihost_utils.broadcast_one_to_all(padded))))


def wait(name: str) -> None:
    """Until all processes are here."""
    if count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)


def told_to_stop(step: int) -> bool:
    """Whether any of the processes got SIGTERM; all say so at the same step."""
    from jax.experimental import multihost_utils

    return multihost_utils.reached_preemption_sync_point(step)


def require_same(name: str, value: Any) -> None:
    """Until all processes are here; ValueError on all of them where one has another value."""
    if count() == 1:
        return
    from jax.experimental import multihost_utils

    same = share(value) == json.loads(json.dumps(value))
    told = np.asarray(multihost_utils.process_allgather(np.int32(same))).ravel()
    if not told.all():
        others = ", ".join(str(i) for i in np.flatnonzero(told == 0))
        raise ValueError(f"the {name} of process {others} is not that of the first")


@contextlib.contextmanager
def ended_together() -> Iterator[None]:
    """A process that fails leaves its job at once, and the others end for it.

    They see an error of their communication, which is given its meaning. Without this JAX's own
    end waits minutes for the others, and aborts.

    Raises:
        OSError: another process is gone.
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
                f"they go on from the last checkpoint ({_first_line(error)})"
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


def _is_jax() -> bool:
    return is_jax()


def _jax():
    import jax

    return jax
