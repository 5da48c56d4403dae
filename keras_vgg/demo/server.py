"""Serve the page on a port of this machine."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keras_vgg.run import Run

if TYPE_CHECKING:
    import fastapi

    from keras_vgg.demo.answer import TimeLimit

_SHUTDOWN_SECONDS = 2  # for open connections when the server ends
_FORCED_END_SECONDS = 4  # after SIGTERM; then the process ends, whatever it is doing


def serve(
    run: Run,
    *,
    host: str = "127.0.0.1",
    port: int = 7860,
    max_upload_mb: int = 10,
    layer: str | None = None,
    announce: Callable[[str], Any] = print,
) -> None:
    """Serve a page that classifies pictures, until Ctrl-C or SIGTERM.

    Args:
        run, host, port, max_upload_mb, layer: As for `serving`.
        announce: Called with the address when the page is up.

    Raises:
        ValueError, OSError: as for `serving`.
        SystemExit: SIGTERM; the status is 143.
    """

    def terminate(number: int, frame: Any) -> None:
        # An answer may hold the process in C++ code, which no exception reaches.
        forced_end = threading.Timer(_FORCED_END_SECONDS, _end_at_once, (128 + number,))
        forced_end.daemon = True
        forced_end.start()
        raise SystemExit(128 + number)

    earlier_handler = None
    if threading.current_thread() is threading.main_thread():
        earlier_handler = signal.signal(signal.SIGTERM, terminate)
    try:
        with (
            serving(run, host=host, port=port, max_upload_mb=max_upload_mb, layer=layer) as address,
            contextlib.suppress(KeyboardInterrupt),
        ):
            announce(address)
            while True:  # On Windows, Ctrl-C does not interrupt a wait without an end.
                time.sleep(1)
    finally:
        if earlier_handler is not None:
            signal.signal(signal.SIGTERM, earlier_handler)


@contextlib.contextmanager
def serving(
    run: Run,
    *,
    host: str = "127.0.0.1",
    port: int = 7860,
    max_upload_mb: int = 10,
    layer: str | None = None,
    examples: int = 6,
    answer_seconds: float = 60.0,
) -> Iterator[str]:
    """Serve the page in a thread while the context lasts, and yield the address.

    Uploads and drawn pictures lie in a temporary folder, which is removed at the end. Several pages
    of one process share the folder; it is removed with the last page.

    A request gets the status 403 if a page of another site makes it. If only this machine reaches
    the address, a request for another host name than localhost, 127.0.0.1, [::1] or `host` gets 403
    as well. A proxy in front of the page must pass the Host header on.

    Args:
        run: A finished run.
        host: A name or address of this machine. Only this machine reaches 127.0.0.1. 0.0.0.0 is
            every address of this machine: then anyone who reaches the machine can use the page.
        port: 0 takes a free port.
        max_upload_mb: Size of the largest upload, in units of 2^20 bytes: of one file, and of all
            files in one request.
        layer: The layer for Grad-CAM, as for `explain.grad_cam`.
        examples: How many validation images the page offers to try.
        answer_seconds: Time limit of an answer; after it, the page shows a message instead.

    Raises:
        ValueError: a number out of range; no epoch of the run has ended or has no such layer;
            Gradio is not installed.
        OSError: the port is in use or may not be used, or the address does not exist.
    """
    if not 0 <= port <= 65_535:
        raise ValueError(f"port must be in [0, 65535], not {port}")
    if max_upload_mb < 1:
        raise ValueError(f"max_upload_mb must be 1 or more, not {max_upload_mb}")
    _require_gradio()
    with _bound_socket(host, port) as bound, _SHARED_FOLDER.shared():
        import uvicorn

        from keras_vgg.demo.answer import TimeLimit
        from keras_vgg.demo.guard import Guard

        limit = TimeLimit(answer_seconds)
        app, functions = _application(run, layer, examples, max_upload_mb, limit)
        app.add_middleware(
            Guard,
            host=host,
            address=bound.getsockname()[0],
            max_upload=max_upload_mb * 2**20,
            folder=Path(os.environ["GRADIO_TEMP_DIR"]),
            functions=functions,
        )
        server = uvicorn.Server(
            uvicorn.Config(
                app,
                log_config=None,
                log_level="critical",
                access_log=False,
                lifespan="on",
                ws="none",  # The page needs no websockets, and Guard does not check them.
                timeout_graceful_shutdown=_SHUTDOWN_SECONDS,
            )
        )
        thread = threading.Thread(target=server.run, args=([bound],), name="keras-vgg demo")
        thread.start()
        try:
            while not server.started and thread.is_alive():
                thread.join(0.05)
            if not server.started:
                raise OSError(f"the server did not start on {_address(bound)}; try another port")
            yield _address(bound)
        finally:
            limit.close()
            server.should_exit = True
            thread.join()


def _require_gradio() -> None:
    try:
        import gradio  # noqa: F401
    except ModuleNotFoundError as error:
        if error.name != "gradio":
            raise
        raise ValueError("the demo needs Gradio: pip install 'keras-vgg[demo]'") from None


def _application(
    run: Run, layer: str | None, examples: int, max_upload_mb: int, limit: TimeLimit
) -> tuple[fastapi.FastAPI, dict[int, int]]:
    """Return the page as an application, and Gradio's number of each function -> its inputs."""
    import fastapi
    import gradio as gr

    from keras_vgg.demo.answer import Answerer, Examples
    from keras_vgg.demo.page import LOOKS, demo_page

    answerer, example_images = Answerer(run, layer), Examples(run, examples)

    async def mounted_page() -> tuple[fastapi.FastAPI, gr.Blocks]:
        blocks = demo_page(run, answerer, example_images, max_upload_mb, limit)
        app = gr.mount_gradio_app(
            fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None),
            blocks,
            path="/",
            max_file_size=max_upload_mb * 2**20,
            ssr_mode=False,
            enable_monitoring=False,
            run_history=False,
            mcp_server=False,
            pwa=False,
            show_error=False,
            **LOOKS,
        )
        return app, blocks

    # Without a running event loop, Gradio opens one for each lock, and leaves it open. The loop
    # runs in a thread, because a notebook has a running loop in this one.
    with ThreadPoolExecutor(1) as thread:
        app, blocks = thread.submit(asyncio.run, mounted_page()).result()
    # Gradio checks the paths in a request only if it has launched the application itself.
    blocks.has_launched = True
    return app, {number: len(function.inputs) for number, function in blocks.fns.items()}


@contextlib.contextmanager
def _bound_socket(host: str, port: int) -> Iterator[socket.socket]:
    """Bind a socket first, so that a port in use is an error before anything is loaded."""
    try:
        family, *_, place = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.create_server(place[:2], family=family)
    except OSError as error:
        reason = error.strerror or error
        raise OSError(
            f"{host}, port {port}: {reason}; choose another with --port or --host; --port 0 takes"
            " a free port"
        ) from None
    with bound:
        # Connections inherit it. Without it the second part of an answer waits for 40 ms until the
        # client has acknowledged the first.
        bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        yield bound


class _SharedFolder:
    """The folder of Gradio's temporary files, which is removed with the last page of the process.

    Gradio reads the folder's path from the environment each time, so all pages must share one.
    """

    def __init__(self) -> None:
        self._lock, self._pages, self._cleanup = threading.Lock(), 0, contextlib.ExitStack()

    @contextlib.contextmanager
    def shared(self) -> Iterator[None]:
        with self._lock:
            if not self._pages:
                self._cleanup.enter_context(_temporary_folder())
            self._pages += 1
        try:
            yield
        finally:
            with self._lock:
                self._pages -= 1
                if not self._pages:
                    self._cleanup.close()


@contextlib.contextmanager
def _temporary_folder() -> Iterator[None]:
    earlier_folder = os.environ.get("GRADIO_TEMP_DIR")
    with tempfile.TemporaryDirectory(prefix="keras-vgg-demo-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = str(Path(folder).resolve())
        try:
            yield
        finally:
            if earlier_folder is None:
                del os.environ["GRADIO_TEMP_DIR"]
            else:
                os.environ["GRADIO_TEMP_DIR"] = earlier_folder


_SHARED_FOLDER = _SharedFolder()


def _end_at_once(status: int) -> None:
    shutil.rmtree(os.environ.get("GRADIO_TEMP_DIR", ""), ignore_errors=True)
    os._exit(status)


def _address(bound: socket.socket) -> str:
    host, port = bound.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host) or host
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
