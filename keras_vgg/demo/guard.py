"""What is asked for and by whom, before Gradio sees it; and what every answer says."""

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

from fastapi.responses import PlainTextResponse
from starlette.formparsers import MultiPartException

# Nothing of the page comes from another host, whatever a later Gradio would like to load. Its
# scripts stand in the page and compile templates.
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
_ENVELOPE = 2**16  # bytes around a file: the boundaries and headers of its part, other fields
_QUESTION = 2**16  # bytes of a question: the path of an upload, or the number of an example
_UPLOADS = 20  # times the largest upload: what all uploads together may take

# What the page and Gradio's client ask for. Gradio has many more routes, and some of them read or
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
    """What Gradio takes for a bad form: it removes what it has of the files."""


class _Refused(Exception):
    """A request that is not passed on; its HTTP status and why."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


def require_upload(path: str, folder: Path, largest: int) -> Path:
    """Return the real path of a regular file below `folder`, the folder of uploads.

    Raises:
        ValueError: it lies elsewhere, also by a link, is no regular file, or is larger than
            `largest` bytes. Nothing has been opened.
    """
    try:
        real = Path(path).resolve(strict=True)
        status = real.stat()
    except (OSError, ValueError, RuntimeError):  # a null byte, a loop of links
        raise ValueError("only files that are uploaded are looked at") from None
    if not real.is_relative_to(folder.resolve()) or not stat.S_ISREG(status.st_mode):
        raise ValueError("only files that are uploaded are looked at")
    if status.st_size > largest:
        raise ValueError(f"the file has {status.st_size} bytes; at most {largest} are read")
    return real


class Guard:
    """An ASGI application's requests, of which some are refused, and its answers with _HEADERS.

    403: the request comes from a page of another site, as its Origin tells; or, on an address that
    only this machine reaches, it is for a name that is not this machine's, which another site's
    name server has pointed here; or it names a file that was not uploaded. 404: the page does not
    need it. 400: it is no question that the page asks. 413: its body is larger than a file may be.
    503: the uploads together are too large.

    Args:
        app: The application, without websockets.
        host: What the user calls this machine.
        address: To which the server is bound.
        max_upload: Bytes of a file. A request may have 2^16 more.
        folder: Where the uploads lie. None: no file is known.
        functions: Gradio's number of each thing that may be asked -> how many files it takes;
            one that takes none is asked for an example.
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
        self._app, self._most = app, max_upload + _ENVELOPE
        self._folder, self._functions = folder, functions
        self._uploading = 0
        self._names: set[str] | None = None
        if ipaddress.ip_address(address).is_loopback:
            self._names = {"localhost", "127.0.0.1", "[::1]"}
            self._names |= {f"[{n}]" if ":" in n else n for n in (host.lower(), address)}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        received, started = 0, False

        async def receiving() -> Any:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))  # whatever its Content-Length says
            if received > self._most:
                raise _TooLarge(f"a request has at most {self._most} bytes")
            return message

        async def sending(message: Any) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                # To the application it was a bad form, or JSON that cannot be read.
                status = 413 if received > self._most else message["status"]
                headers = [*message["headers"], *_HEADERS]
                message = {**message, "status": status, "headers": headers}
            await send(message)

        uploads = scope["method"] == "POST" and scope["path"] == f"{_API}/upload"
        self._uploading += uploads
        try:
            self._require_expected(scope)
            if scope["method"] == "POST" and not uploads:
                receiving = await self._question(scope["path"], receiving)
            await self._app(scope, receiving, sending)
        except _TooLarge as error:
            if not started:
                await PlainTextResponse(str(error), 413)(scope, receive, sending)
        except _Refused as error:
            await PlainTextResponse(str(error), error.status)(scope, receive, sending)
        finally:
            self._uploading -= uploads

    def _require_expected(self, scope: Any) -> None:
        """Raise _Refused for what can be told without the body."""
        if why := self._strange(scope["headers"]):
            raise _Refused(403, why)
        method, path = scope["method"], scope["path"]
        route = _ROUTES.get(method)
        if route is None or not route.fullmatch(path):
            raise _Refused(404, "the page has no such address")
        if "deep_link" in parse_qs(scope.get("query_string", b"").decode("latin-1")):
            raise _Refused(404, "the page keeps no state")
        if path.startswith(f"{_API}/file="):
            self._require_upload(path.partition("=")[2])
        if method == "POST" and path == f"{_API}/upload":
            self._require_room()

    def _require_room(self) -> None:
        """Count what lies there, and the most of each upload that comes in now."""
        kept = _bytes_below(self._folder) if self._folder is not None else 0
        if kept + self._uploading * self._most > _UPLOADS * self._most:
            raise _Refused(503, "there are too many uploads; they are deleted after minutes")

    def _require_upload(self, path: Any) -> None:
        try:
            if not isinstance(path, str) or self._folder is None:
                raise ValueError("only files that are uploaded are looked at")
            require_upload(path, self._folder, self._most)
        except ValueError as error:
            raise _Refused(403, str(error)) from None

    async def _question(self, path: str, receive: Any) -> Any:
        """Read a body of JSON and raise _Refused if it is none of the page's; give it again."""
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > _QUESTION:
                raise _Refused(413, f"a question has at most {_QUESTION} bytes")
        self._require_question(path, body)
        messages = [{"type": "http.request", "body": body, "more_body": False}]

        async def again() -> Any:
            return messages.pop() if messages else await receive()

        return again

    def _require_question(self, path: str, body: bytes) -> None:
        try:
            asked = json.loads(body or b"{}")
        except (ValueError, RecursionError):
            raise _Refused(400, "the question is not JSON") from None
        if not isinstance(asked, dict):
            raise _Refused(400, "the question is not a JSON object")
        for name in ("session_hash", "event_id"):
            if not isinstance(asked.get(name), str | None):
                raise _Refused(400, f"{name} must be a text")
        if not path.endswith(("/queue/join", "/call/classify")):
            return
        inputs = 1  # of classify
        if path.endswith("/queue/join"):
            number = asked.get("fn_index")
            if type(number) is not int or number not in self._functions:
                raise _Refused(404, f"the page has no function {number!r:.20}")
            inputs = self._functions[number]
        data, event = asked.get("data"), asked.get("event_data")
        if not isinstance(data, list) or len(data) != inputs:
            raise _Refused(400, f"data must be a list of {inputs} files")
        if not inputs and not (
            isinstance(event, dict) and type(event.get("index")) is int and "value" in event
        ):
            raise _Refused(400, "event_data must name the number of an example")
        for file in data:
            if file is not None:
                self._require_upload(file.get("path") if isinstance(file, dict) else None)

    def _strange(self, headers: list[tuple[bytes, bytes]]) -> str | None:
        """Why the request is refused, or None."""
        host, *others = [v.decode("latin-1").lower() for k, v in headers if k == b"host"] or [""]
        if self._names and (others or re.sub(r":\d*$", "", host) not in self._names):
            return f"this page is for {', '.join(sorted(self._names))}; --host takes another name"
        for origin in (v.decode("latin-1").lower() for k, v in headers if k == b"origin"):
            if origin not in (f"http://{host}", f"https://{host}"):
                return "this page takes no requests from the pages of other sites"
        return None


def _bytes_below(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # it has just been deleted
            total += path.stat().st_size
    return total
