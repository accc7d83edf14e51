"""A tracker and an OTLP endpoint that acknowledge everything and count: ``python -m benchmarks.sink``.

It is a process of its own, so that it competes for a core and not for the interpreter of what is measured. It
prints its port, and ends when its standard input does: nothing is left behind by a benchmark that dies.
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import http.client
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import orjson

__all__ = ["Counts", "Sink", "running_sink"]

_CAPABILITIES = {
    "batch": {"path": "/batch", "max_events": 500},
    "turns": {"path": "/conversations/turn"},
    "feedback": {"path": "/conversations/feedback"},
    "heartbeat": {"path": "/agents/heartbeat"},
}
_ACKNOWLEDGED = orjson.dumps(
    {"status": "ok"}
    | {"successes": [], "errors": []}  # what langfuse's client wants to see
    | {"token": "token", "project_id": "benchmark", "project_prem_status": "pro"}  # and agentops'
)


class Counts(NamedTuple):
    """What has arrived; `distinct` counts event ids, so `events` - `distinct` were sent twice."""

    requests: int
    events: int
    distinct: int
    spans: int


class Sink(NamedTuple):
    """Where a running sink listens."""

    port: int

    @property
    def url(self) -> str:
        """Its base URL."""
        return f"http://127.0.0.1:{self.port}"

    def counts(self) -> Counts:
        """What has arrived until now."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request("GET", "/counts")
            return Counts(**json.loads(connection.getresponse().read()))
        finally:
            connection.close()


@contextmanager
def running_sink(*, batch: bool = True, delay_seconds: float = 0.0, port: int = 0) -> Iterator[Sink]:
    """A sink in a process of its own that is there until the block ends."""
    options = ["--port", str(port), "--delay", str(delay_seconds)] + ([] if batch else ["--no-batch"])
    command = [sys.executable, "-m", "benchmarks.sink", *options]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield Sink(int(process.stdout.readline()))
    finally:
        process.stdin.close()
        process.stdout.close()
        process.wait(timeout=10)


# --- the process itself -------------------------------------------------------------------------------------


class _Tally:
    """What all connections have received."""

    def __init__(self, *, batch: bool, delay_seconds: float) -> None:
        self.batch = batch
        self.delay_seconds = delay_seconds
        self._requests = 0
        self._events = 0
        self._spans = 0
        self._ids: set[str] = set()

    def answer(self, method: bytes, path: bytes, event_id: str, body: bytes) -> tuple[int, bytes, bytes]:
        """Status, content type and body of the answer to one request."""
        if method == b"GET":
            return self._answer_to_get(path)
        if method != b"POST":
            return 405, b"application/json", b"{}"
        self._requests += 1
        if path.endswith(b"/v1/traces"):
            self._spans += _count_spans(body)
            return 200, b"application/x-protobuf", b""
        if path.endswith(b"/batch") and self.batch:
            return 200, b"application/json", self._batch(orjson.loads(body)["events"])
        if not path.endswith(b"/heartbeat"):
            self._count(event_id or f"request {self._requests}")
        return 201, b"application/json", _ACKNOWLEDGED

    def _answer_to_get(self, path: bytes) -> tuple[int, bytes, bytes]:
        if path.endswith(b"/counts"):
            counts = Counts(self._requests, self._events, len(self._ids), self._spans)
            return 200, b"application/json", orjson.dumps(counts._asdict())
        if path.endswith(b"/capabilities") and self.batch:
            return 200, b"application/json", orjson.dumps(_CAPABILITIES)
        return 404, b"application/json", b"{}"

    def _batch(self, events: list[dict[str, str]]) -> bytes:
        for event in events:
            self._count(event["event_id"])
        return orjson.dumps({"results": [{"event_id": event["event_id"], "status": 201} for event in events]})

    def _count(self, event_id: str) -> None:
        self._events += 1
        self._ids.add(event_id)


class _Connection(asyncio.Protocol):
    """HTTP/1.1 with keep-alive and bodies of a known length; enough for the clients measured here."""

    def __init__(self, tally: _Tally) -> None:
        self._tally = tally
        self._received = bytearray()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        while (end := self._received.find(b"\r\n\r\n")) >= 0:
            request, *lines = bytes(self._received[:end]).split(b"\r\n")
            headers = {
                name.lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines)
            }
            length = int(headers.get(b"content-length", 0))
            if len(self._received) < end + 4 + length:
                return
            body = bytes(self._received[end + 4 : end + 4 + length])
            del self._received[: end + 4 + length]
            self._answer(request, headers, body)

    def _answer(self, request: bytes, headers: dict[bytes, bytes], body: bytes) -> None:
        method, target, _ = request.split(b" ")
        if headers.get(b"content-encoding") == b"gzip":
            body = gzip.decompress(body)
        event_id = headers.get(b"idempotency-key", b"").decode()
        answer = self._tally.answer(method, target.partition(b"?")[0], event_id, body)
        if self._tally.delay_seconds and method != b"GET":
            asyncio.get_running_loop().call_later(self._tally.delay_seconds, self._write, answer)
        else:
            self._write(answer)

    def _write(self, answer: tuple[int, bytes, bytes]) -> None:
        status, content_type, body = answer
        assert self._transport is not None
        head = b"HTTP/1.1 %d OK\r\ncontent-type: %b\r\ncontent-length: %d\r\n\r\n"
        if not self._transport.is_closing():
            self._transport.write(head % (status, content_type, len(body)) + body)


def _count_spans(body: bytes) -> int:
    """How many spans an ExportTraceServiceRequest holds: resource_spans (1), scope_spans (2), spans (2)."""
    return sum(
        1
        for resource_spans in _fields(memoryview(body), 1)
        for scope_spans in _fields(resource_spans, 2)
        for _ in _fields(scope_spans, 2)
    )


def _fields(message: memoryview, number: int) -> Iterator[memoryview]:
    """The length-delimited fields `number` of a message that has no other wire type at this level."""
    position = 0
    while position < len(message):
        key, position = _varint(message, position)
        length, position = _varint(message, position)
        if key >> 3 == number:
            yield message[position : position + length]
        position += length


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7


async def _serve(port: int, tally: _Tally) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Connection(tally), "127.0.0.1", port)
    print(server.sockets[0].getsockname()[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.read)
    server.close()


def main() -> None:
    """Serve until standard input ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--delay", type=float, default=0.0, help="seconds added to each answer")
    parser.add_argument("--no-batch", dest="batch", action="store_false")
    options = parser.parse_args()
    asyncio.run(_serve(options.port, _Tally(batch=options.batch, delay_seconds=options.delay)))


if __name__ == "__main__":
    main()
