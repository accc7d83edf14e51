"""OTLP over HTTP, as an ASGI application: protobuf or JSON, packed or not, each request answered in its own encoding.

A sender repeats what 503 answers and drops what any other status does, so whatever may be better later is 503.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

from starlette.responses import PlainTextResponse, Response
from starlette.types import Receive, Scope, Send

from otel_agent_tracker.bridge import answers
from otel_agent_tracker.bridge.bodies import ENCODINGS, TooLarge, Unreadable, unpack
from otel_agent_tracker.bridge.otlp import Encoding
from otel_agent_tracker.bridge.receiver import NotKept, Receipt, Receiver
from otel_agent_tracker.bridge.tokens import Tokens
from otel_agent_tracker.log import Log

__all__ = ["MAX_BODY_BYTES", "Bounds", "HttpReceiver"]

_logger = Log(__name__)

MAX_BODY_BYTES = 64 * 1024 * 1024  # packed and unpacked; what the specification recommends
MAX_BYTES_UNDER_WAY = 256 * 1024 * 1024  # of all requests together that are being received
BODY_SECONDS = 30.0
LAST_BODY_SECONDS = 1.0  # that bodies under way have when the bridge stops
RETRY_AFTER_SECONDS = (
    2  # little: the SDKs' exporters give up at once if they would have to wait beyond their timeout
)
READERS = 2  # requests that are unpacked and decoded at the same time


class Bounds:
    """What one process may hold of bodies that are under way."""

    def __init__(
        self,
        *,
        body_bytes: int = MAX_BODY_BYTES,
        bytes_under_way: int = MAX_BYTES_UNDER_WAY,
        body_seconds: float = BODY_SECONDS,
    ) -> None:
        self.body_bytes = body_bytes
        self.body_seconds = body_seconds
        self._bytes_left = bytes_under_way

    def take(self, size: int) -> None:
        """Hold so many bytes more; raises NotKept if that is too many now."""
        if size > self._bytes_left:
            raise NotKept("too many requests are under way")
        self._bytes_left -= size

    def give_back(self, size: int) -> None:
        """Hold so many bytes less."""
        self._bytes_left += size


class HttpReceiver:
    """The application. `close` ends its threads."""

    def __init__(self, receiver: Receiver, tokens: Tokens, bounds: Bounds | None = None) -> None:
        self._receiver = receiver
        self._tokens = tokens
        self._bounds = bounds or Bounds()
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="otel-agent-tracker-otlp")
        self._answered: Counter[int] = Counter()
        self._awaited: set[asyncio.Timeout] = set()
        self._body_seconds = self._bounds.body_seconds

    @property
    def answered(self) -> Mapping[int, int]:
        """How many requests were answered with each status."""
        return dict(self._answered)

    def begin_to_stop(self) -> None:
        """Wait for no body much longer; on the thread that serves."""
        self._body_seconds = LAST_BODY_SECONDS
        for timeout in self._awaited:
            timeout.reschedule(asyncio.get_running_loop().time() + LAST_BODY_SECONDS)

    def close(self) -> None:
        """End the threads, once no request comes any more."""
        self._readers.shutdown()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            return
        answer = await self._answer(scope, receive)
        self._answered[answer.status_code] += 1
        await answer(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive) -> Response:
        if scope["path"] not in _PATHS:
            return _plain(404, f"there is nothing at {scope['path'][:100]}; traces go to /v1/traces")
        if scope["method"] != "POST":
            return _plain(405, "only POST is answered", {"Allow": "POST"})
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        try:
            encoding = Encoding(_header(headers, b"content-type").partition(";")[0].strip().lower())
        except ValueError:
            return _plain(415, f"Content-Type must be {' or '.join(Encoding)}")
        try:
            return await self._receipt(scope["path"], headers, encoding, receive)
        except _Refused as refused:
            return refused.response(encoding)
        except NotKept as error:
            return _unavailable(str(error), encoding)
        except Exception as error:
            _logger.exception("a request could not be answered")
            return _unavailable(f"something is wrong here: {type(error).__name__}", encoding)

    async def _receipt(
        self, path: str, headers: list[tuple[bytes, bytes]], encoding: Encoding, receive: Receive
    ) -> Response:
        if not self._tokens.admit([value for name, value in headers if name == b"authorization"]):
            raise _Refused(401, answers.UNAUTHENTICATED, "the bearer token is missing or wrong")
        packing = _header(headers, b"content-encoding").strip().lower()
        if packing not in ENCODINGS:
            raise _Refused(
                415,
                answers.INVALID_ARGUMENT,
                f"Content-Encoding must be {', '.join(filter(None, ENCODINGS))}",
            )
        length = _header(headers, b"content-length")
        if length.isdigit() and (len(length) > _LENGTH_DIGITS or int(length) > self._bounds.body_bytes):
            raise _too_large(self._bounds)
        if length and _header(headers, b"transfer-encoding"):
            raise _Refused(400, answers.INVALID_ARGUMENT, "the length of the body is said in two ways")
        async with self._body(receive) as body:
            receipt = await asyncio.get_running_loop().run_in_executor(
                self._readers, self._take, path, body, packing, encoding
            )
        return Response(answers.taken(receipt, encoding), headers={"Content-Type": encoding})

    def _take(self, path: str, body: bytes, packing: str, encoding: Encoding) -> Receipt:
        """On a thread of ours. Logs and metrics hold nothing for us; they are taken, lest somebody repeats them."""
        try:
            unpacked = unpack(body, packing, self._bounds.body_bytes)
            return self._receiver.traces(unpacked, encoding) if path == _TRACES else Receipt()
        except TooLarge as error:
            raise _Refused(413, answers.RESOURCE_EXHAUSTED, str(error)) from error
        except Unreadable as error:
            raise _Refused(400, answers.INVALID_ARGUMENT, str(error)) from error

    @asynccontextmanager
    async def _body(self, receive: Receive) -> AsyncIterator[bytes]:
        """The body as it came, held until the block is left."""
        body = _Body(self._bounds)
        try:
            try:
                async with asyncio.timeout(self._body_seconds) as timeout:
                    self._awaited.add(timeout)
                    await body.receive(receive)
            except TimeoutError:
                raise NotKept("the body did not come in time") from None
            finally:
                self._awaited.discard(timeout)
            yield b"".join(body.chunks)
        finally:
            self._bounds.give_back(body.size)


class _Body:
    """A body that is being received."""

    def __init__(self, bounds: Bounds) -> None:
        self._bounds = bounds
        self.chunks: list[bytes] = []
        self.size = 0

    async def receive(self, receive: Receive) -> None:
        """All of it; raises as soon as it is too much."""
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise NotKept("the sender has gone")
            chunk: bytes = message.get("body", b"")
            self._bounds.take(len(chunk))
            self.size += len(chunk)
            if self.size > self._bounds.body_bytes:
                raise _too_large(self._bounds)
            self.chunks.append(chunk)
            more = message.get("more_body", False)


class _Refused(Exception):  # noqa: N818 - it is an answer
    """A request that would be refused again."""

    def __init__(self, status: int, code: int, message: str) -> None:
        super().__init__(message)
        self._status = status
        self._code = code

    def response(self, encoding: Encoding) -> Response:
        headers = {"Content-Type": str(encoding), "Connection": "close"}
        if self._status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return Response(answers.error(self._code, str(self), encoding), self._status, headers)


def _too_large(bounds: Bounds) -> _Refused:
    message = f"the body must not be larger than {bounds.body_bytes} bytes"
    return _Refused(413, answers.RESOURCE_EXHAUSTED, message)


def _unavailable(message: str, encoding: Encoding) -> Response:
    body = answers.error(answers.UNAVAILABLE, message, encoding)
    headers = {"Content-Type": str(encoding), "Retry-After": str(RETRY_AFTER_SECONDS), "Connection": "close"}
    return Response(body, 503, headers)


def _plain(status: int, message: str, headers: Mapping[str, str] | None = None) -> Response:
    return PlainTextResponse(message, status, {"Connection": "close", **(headers or {})})


def _header(headers: list[tuple[bytes, bytes]], name: bytes) -> str:
    return next((value.decode("latin-1") for key, value in headers if key == name), "")


_TRACES = "/v1/traces"
_PATHS = frozenset((_TRACES, "/v1/logs", "/v1/metrics"))
_LENGTH_DIGITS = 18
