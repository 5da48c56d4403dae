"""The page on a port of this machine."""

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

_PATIENCE = 2  # seconds that an open page is given when the server ends
_LAST = 4  # seconds after which a process that was told to end does so, whatever it is doing


def serve(
    run: Run,
    *,
    host: str = "127.0.0.1",
    port: int = 7860,
    max_upload_mb: int = 10,
    layer: str | None = None,
    announce: Callable[[str], Any] = print,
) -> None:
    """Serve a page that names what is on pictures, until Ctrl-C or SIGTERM.

    Args:
        run, host, port, max_upload_mb, layer: As of `serving`.
        announce: Is told the address when the page is up.

    Raises:
        ValueError, OSError: as of `serving`.
        SystemExit: SIGTERM; the status is 143.
    """

    def terminate(number: int, frame: Any) -> None:
        # An answer may hold the process in C++ code, which no exception reaches.
        last = threading.Timer(_LAST, _end_at_once, (128 + number,))
        last.daemon = True
        last.start()
        raise SystemExit(128 + number)

    before = None
    if threading.current_thread() is threading.main_thread():
        before = signal.signal(signal.SIGTERM, terminate)
    try:
        with (
            serving(run, host=host, port=port, max_upload_mb=max_upload_mb, layer=layer) as address,
            contextlib.suppress(KeyboardInterrupt),
        ):
            announce(address)
            while True:  # a wait without an end hears no Ctrl-C on Windows
                time.sleep(1)
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)


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
    """The page, up while the context lasts, in a thread; its address.

    What is uploaded or drawn lies in a folder of its own, of which nothing stays. Pages that one
    process serves at once share the folder, which goes with the last of them.

    Only the page itself is listened to: a browser's request that another site's page makes is
    answered 403, and so is, on an address that this machine alone reaches, one for another name
    than localhost, 127.0.0.1, [::1] or `host`. A proxy before it must pass the Host header on.

    Args:
        run: A finished run.
        host: A name or address of this machine. 127.0.0.1 can be reached from it alone; 0.0.0.0
            is all of its addresses, and anyone who reaches one can use the page.
        port: 0 takes a free one.
        max_upload_mb: Larger files are refused, in units of 2^20 bytes, and so are several that
            are larger in one request.
        layer: Whose Grad-CAM is drawn, as `explain.grad_cam` takes it.
        examples: How many validation images are offered to try.
        answer_seconds: After so long without an answer a picture gets a message instead.

    Raises:
        ValueError: a number out of range; the run has not finished training or has no such layer;
            Gradio is not installed.
        OSError: the port is in use or may not be taken, or there is no such address.
    """
    if not 0 <= port <= 65_535:
        raise ValueError(f"port must be in [0, 65535], not {port}")
    if max_upload_mb < 1:
        raise ValueError(f"max_upload_mb must be 1 or more, not {max_upload_mb}")
    _require_gradio()
    with _bound(host, port) as bound, _FOLDER.shared():
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
                ws="none",  # the page has none, and Guard knows none
                timeout_graceful_shutdown=_PATIENCE,
            )
        )
        thread = threading.Thread(target=server.run, args=([bound],), name="keras-vgg demo")
        thread.start()
        try:
            while not server.started and thread.is_alive():
                thread.join(0.05)
            if not server.started:
                raise OSError("the server of the page did not start")
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
    """The page as an application; Gradio's number of each function -> how many inputs it has."""
    import fastapi
    import gradio as gr

    from keras_vgg.demo.answer import Answerer, Examples
    from keras_vgg.demo.page import LOOKS, page

    answerer, offered = Answerer(run, layer), Examples(run, examples)

    async def mounted() -> tuple[fastapi.FastAPI, gr.Blocks]:
        blocks = page(run, answerer, offered, max_upload_mb, limit)
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

    # Where no event loop runs, Gradio opens one for each lock that it makes, and leaves it open.
    # In a thread, for here one may run already: a notebook's.
    with ThreadPoolExecutor(1) as thread:
        app, blocks = thread.submit(asyncio.run, mounted()).result()
    # Gradio looks at the paths that a request names only in an application that it launched itself.
    blocks.has_launched = True
    return app, {number: len(function.inputs) for number, function in blocks.fns.items()}


@contextlib.contextmanager
def _bound(host: str, port: int) -> Iterator[socket.socket]:
    """A socket that has the port already, so that another's is found before anything is loaded."""
    try:
        family, *_, place = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.create_server(place[:2], family=family)
    except OSError as error:
        why = error.strerror or error
        raise OSError(
            f"{host}, port {port}: {why}; --port or --host takes another, --port 0 a free one"
        ) from None
    with bound:
        yield bound


class _Folder:
    """Gradio's temporary files in a folder, which is removed when the last page of the process
    ends: Gradio asks the environment for it again and again, and so knows but one."""

    def __init__(self) -> None:
        self._lock, self._pages, self._last = threading.Lock(), 0, contextlib.ExitStack()

    @contextlib.contextmanager
    def shared(self) -> Iterator[None]:
        with self._lock:
            if not self._pages:
                self._last.enter_context(_own_folder())
            self._pages += 1
        try:
            yield
        finally:
            with self._lock:
                self._pages -= 1
                if not self._pages:
                    self._last.close()


@contextlib.contextmanager
def _own_folder() -> Iterator[None]:
    before = os.environ.get("GRADIO_TEMP_DIR")
    with tempfile.TemporaryDirectory(prefix="keras-vgg-demo-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = str(Path(folder).resolve())
        try:
            yield
        finally:
            if before is None:
                del os.environ["GRADIO_TEMP_DIR"]
            else:
                os.environ["GRADIO_TEMP_DIR"] = before


_FOLDER = _Folder()


def _end_at_once(status: int) -> None:
    shutil.rmtree(os.environ.get("GRADIO_TEMP_DIR", ""), ignore_errors=True)
    os._exit(status)


def _address(bound: socket.socket) -> str:
    host, port = bound.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host) or host
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
