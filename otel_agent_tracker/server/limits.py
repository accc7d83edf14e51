"""ASGI middleware around all: how large a body may be, and what browsers must be told."""

from __future__ import annotations

import zlib

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import MutableHeaders
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["MAX_BODY_BYTES", "MAX_FORM_BYTES", "BodyLimit", "SecurityHeaders"]

MAX_BODY_BYTES = 16 * 1024 * 1024
MAX_FORM_BYTES = 4096  # of the form for a key, which anyone may send
_GZIP = 16 + zlib.MAX_WBITS


class BodyLimit:
    """Reads a request's body, packed and unpacked at most `max_bytes`, before it lets the request in."""

    def __init__(self, app: ASGIApp, max_bytes: int = MAX_BODY_BYTES) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD"):
            await self._app(scope, receive, send)
            return
        body = await self._read(scope, receive)
        if isinstance(body, Response):
            await body(scope, receive, send)
        else:
            await self._app(_without_encoding(scope, len(body)), _replay(body, receive), send)

    async def _read(self, scope: Scope, receive: Receive) -> bytes | Response:
        """The body as it was before it was packed, or why it is refused."""
        headers = {name: value.strip() for name, value in scope["headers"]}
        encoding = headers.get(b"content-encoding", b"identity").lower()
        if encoding not in (b"identity", b"gzip", b""):
            return _refuse(415, "Content-Encoding must be identity or gzip")
        length = headers.get(b"content-length", b"")
        limit = min(self._max_bytes, MAX_FORM_BYTES) if scope["path"] == "/login" else self._max_bytes
        if length.isdigit() and (len(length) > 18 or int(length) > limit):
            return _too_large(limit)
        body = await _receive(receive, limit)
        if body is None:
            return _too_large(limit)
        return body if encoding != b"gzip" else await run_in_threadpool(_unpack, body, limit)


class SecurityHeaders:
    """Tells browsers to run nothing but this package's own files, and to guess nothing."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(_HEADERS)
                headers["Content-Security-Policy"] = (
                    _REFERENCE_POLICY if scope["path"] == "/docs" else _POLICY
                )
            await send(message)

        await self._app(scope, receive, send_with_headers)


async def _receive(receive: Receive, limit: int) -> bytes | None:
    """The body as it comes; None once it is too large."""
    chunks: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        chunk = message.get("body", b"")
        size += len(chunk)
        if size > limit:
            return None
        chunks.append(chunk)
        if not message.get("more_body", False):
            return b"".join(chunks)


def _unpack(packed: bytes, limit: int) -> bytes | Response:
    unpacked = b""
    try:
        while packed:
            member = zlib.decompressobj(_GZIP)
            unpacked += member.decompress(packed, limit + 1 - len(unpacked))
            if len(unpacked) > limit:
                return _too_large(limit)
            if not member.eof:
                return _refuse(400, "the body is no complete gzip")
            packed = member.unused_data
    except zlib.error:
        return _refuse(400, "the body is no gzip")
    return unpacked


def _too_large(limit: int) -> Response:
    return _refuse(413, f"the body must not be larger than {limit} bytes")


def _refuse(status: int, detail: str) -> Response:
    return JSONResponse({"detail": detail}, status, {"Connection": "close"})


def _without_encoding(scope: Scope, size: int) -> Scope:
    told = (b"content-encoding", b"content-length", b"transfer-encoding")
    headers = [(name, value) for name, value in scope["headers"] if name not in told]
    return {**scope, "headers": [*headers, (b"content-length", str(size).encode())]}


def _replay(body: bytes, receive: Receive) -> Receive:
    """A receive that hands out the body that was read, and then what comes after it."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return messages.pop() if messages else await receive()

    return replay


_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",  # with no-referrer browsers do not say where a form came from
    "Cache-Control": "no-store",
}
_POLICY = (
    "default-src 'none'; style-src 'self'; img-src 'self'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
_REFERENCE_POLICY = (  # Swagger UI draws its icons from data and asks this tracker only
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
