"""Refuse requests before Gradio sees them, and add security headers to every answer.

Starlette's own parts were tried. TrustedHostMiddleware reads only the first of several Host headers
and does not compare Origin with Host. RequestBodyLimitMiddleware stops a request with an exception
that Gradio's upload does not handle, so the parts of the files that have arrived stay on the disk.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.parse import parse_qs

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.responses import PlainTextResponse

# A browser loads nothing from another host, whatever a later Gradio asks for. Gradio needs the two
# exceptions: scripts inside the page, and scripts that compile templates.
_POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; media-src 'self' data: blob:; "
    "font-src 'self' data:; style-src 'self' 'unsafe-inline'; "
    "script-src 'self' 'unsafe-inline' 'unsafe-eval'; worker-src 'self' blob:; "
    "object-src 'none'; form-action 'self'; frame-ancestors 'self'"
)
_HEADERS = (
    (b"content-security-policy", _POLICY.encode()),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
)
_FORM_OVERHEAD = 2**16  # bytes of a form around its file: boundaries, headers and other fields
_MAX_QUESTION = 2**16  # bytes of a question: the path of an upload, or the number of an example
_UPLOADS = 20  # All uploads together may take this many times the largest upload.
_NOT_UPLOADED = "only uploaded files are read"

# The routes that the page and Gradio's client use. Gradio has many more, and some of them read or
# write files that a request names.
_API = "/gradio_api"
_ROUTES = {
    "GET": re.compile(
        r"/|/(config|theme\.css|favicon\.ico|robots\.txt|manifest\.json|(assets|static|svelte)/.+)"
        rf"|{_API}/(info|startup-events|queue/data|upload_progress|heartbeat/[\w-]+|file=.+)"
        rf"|{_API}/call/classify/\w+"
    ),
    "POST": re.compile(rf"{_API}/(upload|queue/join|call/classify|cancel|reset)"),
}
_ROUTES["HEAD"] = _ROUTES["GET"]


class _TooLarge(MultiPartException):
    """The body is too large. For Gradio it is a bad form, of which no file is kept."""


def require_upload(path: str, folder: Path, largest: int) -> Path:
    """Return the real path of a regular file below `folder`, the folder of uploads.

    Raises:
        ValueError: the file lies elsewhere, also by a link, is not a regular file, or is larger
            than `largest` bytes. No file is opened.
    """
    try:
        real_path = Path(path).resolve(strict=True)
        status = real_path.stat()
    except (OSError, ValueError, RuntimeError):  # for example a null byte, or a loop of links
        raise ValueError(_NOT_UPLOADED) from None
    if not real_path.is_relative_to(folder.resolve()) or not stat.S_ISREG(status.st_mode):
        raise ValueError(_NOT_UPLOADED)
    if status.st_size > largest:
        raise ValueError(f"the file has {status.st_size} bytes; at most {largest} are read")
    return real_path


class Guard:
    """An ASGI middleware that refuses requests and adds _HEADERS to every answer.

    A request is refused with one of these statuses:

    - 400: the body is not a question of the page;
    - 403: the Origin header names another site; or the server is bound to an address that only this
      machine reaches, and the Host header has a name that is not this machine's (another site's
      name server can point its name here); or the request names a file that was not uploaded;
    - 404: the page does not use this route;
    - 413: the body is larger than an upload may be;
    - 503: all uploads together are too large.

    Args:
        app: The application, without websockets.
        host: The name by which the user calls this machine.
        address: The address to which the server is bound.
        max_upload: Bytes of the largest file. A request may have 2^16 more.
        folder: The folder of uploads. None: no file may be named.
        functions: Gradio's number of each function -> how many files it takes. A function that
            takes no file takes the number of an example.
    """

    def __init__(
        self,
        app: Any,
        *,
        host: str,
        address: str,
        max_upload: int,
        folder: Path | None = None,
        functions: Mapping[int, int] = MappingProxyType({}),
    ) -> None:
        self._app, self._max_body = app, max_upload + _FORM_OVERHEAD
        self._folder, self._functions = folder, functions
        self._running_uploads = 0
        self._hosts: set[str] | None = None
        if ipaddress.ip_address(address).is_loopback:
            self._hosts = {"localhost", "127.0.0.1", "[::1]"}
            self._hosts |= {f"[{n}]" if ":" in n else n for n in (host.lower(), address)}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        received_bytes, answered = 0, False

        async def limited_receive() -> Any:
            nonlocal received_bytes
            message = await receive()
            # Content-Length may be absent or wrong.
            received_bytes += len(message.get("body", b""))
            if received_bytes > self._max_body:
                raise _TooLarge(f"a request has at most {self._max_body} bytes")
            return message

        async def send_with_headers(message: Any) -> None:
            nonlocal answered
            if message["type"] == "http.response.start":
                answered = True
                # The application has taken a cut body for a bad form, or for bad JSON.
                status = 413 if received_bytes > self._max_body else message["status"]
                headers = [*message["headers"], *_HEADERS]
                message = {**message, "status": status, "headers": headers}
            await send(message)

        is_upload = scope["method"] == "POST" and scope["path"] == f"{_API}/upload"
        self._running_uploads += is_upload
        app_receive = limited_receive
        try:
            self._check_origin(Headers(scope=scope))
            self._check_route(scope)
            if is_upload:
                self._check_room()
            elif scope["method"] == "POST":
                app_receive = await self._checked_question(scope["path"], limited_receive)
            await self._app(scope, app_receive, send_with_headers)
        except _TooLarge as error:
            if not answered:
                await PlainTextResponse(str(error), 413)(scope, receive, send_with_headers)
        except HTTPException as error:
            response = PlainTextResponse(error.detail, error.status_code)
            await response(scope, receive, send_with_headers)
        finally:
            self._running_uploads -= is_upload

    def _check_origin(self, headers: Headers) -> None:
        host, *more_hosts = [value.lower() for value in headers.getlist("host")] or [""]
        if self._hosts and (more_hosts or re.sub(r":\d*$", "", host) not in self._hosts):
            hosts = ", ".join(sorted(self._hosts))
            raise HTTPException(403, f"this page is for {hosts}; --host sets another name")
        for origin in headers.getlist("origin"):
            if origin.lower() not in (f"http://{host}", f"https://{host}"):
                raise HTTPException(403, "this page takes no requests from pages of other sites")

    def _check_route(self, scope: Any) -> None:
        path, route = scope["path"], _ROUTES.get(scope["method"])
        if route is None or not route.fullmatch(path):
            raise HTTPException(404, "the page has no such address")
        if "deep_link" in parse_qs(scope.get("query_string", b"").decode("latin-1")):
            raise HTTPException(404, "the page keeps no state")
        if path.startswith(f"{_API}/file="):
            self._check_upload(path.partition("=")[2])

    def _check_room(self) -> None:
        """Count the uploads on the disk, and each running upload as the largest possible."""
        stored_bytes = _bytes_below(self._folder) if self._folder is not None else 0
        if stored_bytes + self._running_uploads * self._max_body > _UPLOADS * self._max_body:
            raise HTTPException(503, "there are too many uploads; try again after some minutes")

    def _check_upload(self, path: Any) -> None:
        if not isinstance(path, str) or self._folder is None:
            raise HTTPException(403, _NOT_UPLOADED)
        try:
            require_upload(path, self._folder, self._max_body)
        except ValueError as error:
            raise HTTPException(403, str(error)) from None

    async def _checked_question(self, path: str, receive: Any) -> Any:
        """Read and check a body of JSON; return a `receive` that gives the body again."""
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > _MAX_QUESTION:
                raise HTTPException(413, f"a question has at most {_MAX_QUESTION} bytes")
        self._check_question(path, body)
        messages = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive_again() -> Any:
            return messages.pop() if messages else await receive()

        return receive_again

    def _check_question(self, path: str, body: bytes) -> None:
        try:
            question = json.loads(body or b"{}")
        except (ValueError, RecursionError):
            raise HTTPException(400, "the question is not JSON") from None
        if not isinstance(question, dict):
            raise HTTPException(400, "the question is not a JSON object")
        for name in ("session_hash", "event_id"):
            if not isinstance(question.get(name), str | None):
                raise HTTPException(400, f"{name} must be a text")
        if not path.endswith(("/queue/join", "/call/classify")):
            return
        inputs = 1  # classify takes one file
        if path.endswith("/queue/join"):
            number = question.get("fn_index")
            if type(number) is not int or number not in self._functions:
                raise HTTPException(404, f"the page has no function {number!r:.20}")
            inputs = self._functions[number]
        data, event = question.get("data"), question.get("event_data")
        if not isinstance(data, list) or len(data) != inputs:
            raise HTTPException(400, f"data must be a list of {inputs} files")
        if not inputs and not (
            isinstance(event, dict) and type(event.get("index")) is int and "value" in event
        ):
            raise HTTPException(400, "event_data must have the number of an example")
        for file in data:
            if file is not None:
                self._check_upload(file.get("path") if isinstance(file, dict) else None)


def _bytes_below(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # The file has just been deleted.
            total += path.stat().st_size
    return total
