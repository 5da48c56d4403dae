"""A server on 127.0.0.1 in the place of the Hugging Face hub."""

import contextlib
import threading
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants


@contextlib.contextmanager
def in_place_of_the_hub(
    server: ThreadingHTTPServer, url: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """Let huggingface_hub ask a server, which runs meanwhile, with an empty cache in `cache`."""
    # huggingface_hub reads its variables when imported.
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", True)
    # For the user agent it would fetch and keep a list.
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    # It waits 23 s in all before it gives up.
    monkeypatch.setattr("time.sleep", lambda _: None)
    with serving(server):
        yield
    huggingface_hub.close_session()


@contextlib.contextmanager
def serving(server: ThreadingHTTPServer) -> Iterator[None]:
    """Let a server run meanwhile."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield
    server.shutdown()
    thread.join()
