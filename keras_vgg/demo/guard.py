"""What is asked for and by whom, before Gradio sees it; and what every answer says."""

from __future__ import annotations

import ipaddress
import re
from typing import Any

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


class _TooLarge(MultiPartException):
    """What Gradio takes for a bad form: it removes what it has of the files."""


class Guard:
    """An ASGI application's requests, of which some are refused, and its answers with _HEADERS.

    403: the request comes from a page of another site, as its Origin tells; or, on an address that
    only this machine reaches, it is for a name that is not this machine's, which another site's
    name server has pointed here. 413: its body is larger than a file may be.

    Args:
        app: The application, without websockets.
        host: What the user calls this machine.
        address: To which the server is bound.
        max_upload: Bytes of a file. A request may have 2^16 more.
    """

    def __init__(self, app: Any, *, host: str, address: str, max_upload: int) -> None:
        self._app, self._most = app, max_upload + _ENVELOPE
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

        if why := self._strange(scope["headers"]):
            await PlainTextResponse(why, 403)(scope, receiving, sending)
            return
        try:
            await self._app(scope, receiving, sending)
        except _TooLarge as error:
            if not started:
                await PlainTextResponse(str(error), 413)(scope, receive, sending)

    def _strange(self, headers: list[tuple[bytes, bytes]]) -> str | None:
        """Why the request is refused, or None."""
        host, *others = [v.decode("latin-1").lower() for k, v in headers if k == b"host"] or [""]
        if self._names and (others or re.sub(r":\d*$", "", host) not in self._names):
            return f"this page is for {', '.join(sorted(self._names))}; --host takes another name"
        for origin in (v.decode("latin-1").lower() for k, v in headers if k == b"origin"):
            if origin not in (f"http://{host}", f"https://{host}"):
                return "this page takes no requests from the pages of other sites"
        return None
