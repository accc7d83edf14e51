"""A scripted HTTP/1.1 server on loopback: real sockets, and whatever a server should not do.

    with ScriptedServer(reply(503, headers={"Retry-After": "7"}), reply(201)) as server:
        ...  # talk to server.url
        assert server.requests[1].path == "/conversations/start"

Each request plays the next action; the last action is played for every request after it. Actions:

``reply(status, body, headers=…)``  a whole answer; `json_reply(value)` and `html()` are short for some
``respond(function)``               ask ``function(request)`` for the action to play
``hang()``                          read the request, never answer
``drip(data, seconds)``             send `data`, one byte every `seconds`, then wait for the client
``reset()``                         read the request, then reset the connection: done, but never told
``reset_unread()``                  reset the connection when its first bytes come, before reading them all
``disconnect()``                    read the request, then close without a word
``raw(data)``                       send `data` as it is, be it HTTP or garbage, and close
``lie(declared, body)``             announce `declared` bytes, send `body`, and close
``flood(size, …)``                  stream `size` bytes until the client stops reading

The server binds a free port, takes any number of connections at once, keeps them alive between whole answers
and closes everything, waiting actions included, when its block ends.
"""

from __future__ import annotations

import json
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import TypeAlias
from urllib.parse import parse_qs, urlsplit

__all__ = [
    "Action",
    "Connection",
    "ReceivedRequest",
    "ScriptedServer",
    "disconnect",
    "drip",
    "flood",
    "hang",
    "html",
    "json_reply",
    "lie",
    "raw",
    "reply",
    "reset",
    "reset_unread",
    "respond",
]


@dataclass(frozen=True, slots=True)
class ReceivedRequest:
    """A request as it came; `headers` are by lower-case name, `target` is path and query."""

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def path(self) -> str:
        """The path as it was on the wire, quoting included."""
        return urlsplit(self.target).path

    @property
    def query(self) -> dict[str, list[str]]:
        """The query, unquoted."""
        return parse_qs(urlsplit(self.target).query, keep_blank_values=True)

    def json(self) -> object:
        """The body as JSON."""
        return json.loads(self.body)


class ScriptedServer:
    """A server that plays `actions`, one a request; with `tls` it speaks HTTPS. `port` 0 is any free one."""

    def __init__(self, *actions: Action, tls: ssl.SSLContext | None = None, port: int = 0) -> None:
        self._actions = actions
        self._tls = tls
        self._listener = socket.create_server(("127.0.0.1", port))
        self._port: int = self._listener.getsockname()[1]
        self._changed = threading.Condition()
        self._requests: list[ReceivedRequest] = []
        self._begun = 0
        self._connections: list[Connection] = []
        self._threads: list[threading.Thread] = []
        self._stopping = threading.Event()

    @property
    def url(self) -> str:
        """The base URL, without a slash at its end."""
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}"

    @property
    def port(self) -> int:
        """The port; it stays told after the end."""
        return self._port

    @property
    def requests(self) -> list[ReceivedRequest]:
        """The whole requests that came so far, in order."""
        with self._changed:
            return list(self._requests)

    @property
    def connection_count(self) -> int:
        """How many connections were made so far."""
        with self._changed:
            return len(self._connections)

    @property
    def closed_count(self) -> int:
        """How many of them were closed by now."""
        with self._changed:
            return sum(connection.is_closed for connection in self._connections)

    @property
    def bytes_sent(self) -> int:
        """How much was sent on all connections so far."""
        with self._changed:
            return sum(connection.bytes_sent for connection in self._connections)

    def wait_for_requests(self, count: int, timeout_seconds: float = 5.0) -> list[ReceivedRequest]:
        """The requests, once there are `count` of them; raises TimeoutError if they do not come."""
        with self._changed:
            if not self._changed.wait_for(lambda: len(self._requests) >= count, timeout_seconds):
                raise TimeoutError(f"{len(self._requests)} of {count} requests came")
            return list(self._requests)

    def close(self) -> None:
        """Close the listener and all connections, and wait for their threads."""
        self._stopping.set()
        _shut_down(self._listener)
        self._listener.close()
        with self._changed:
            connections, threads = list(self._connections), list(self._threads)
        for connection in connections:
            connection.abort()
        for thread in threads:
            thread.join()

    def __enter__(self) -> ScriptedServer:
        self._start(self._accept)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _start(self, target: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)
        with self._changed:
            self._threads.append(thread)
            thread.start()

    def _accept(self) -> None:
        while not self._stopping.is_set():
            try:
                accepted, _ = self._listener.accept()
            except OSError:  # closed
                return
            connection = Connection(accepted, self._stopping)
            with self._changed:
                self._connections.append(connection)
            self._start(self._serve, connection)

    def _serve(self, connection: Connection) -> None:
        try:
            connection.begin(self._tls)
            while connection.wait_readable() and self._serve_one(connection):
                pass
        except OSError:  # the client went away, or the test is over
            pass
        finally:
            connection.close()

    def _serve_one(self, connection: Connection) -> bool:
        action = self._next_action()
        if action is _RESET_UNREAD:
            connection.reset()
            return False
        request = connection.read_request()
        if request is None:
            return False
        with self._changed:
            self._requests.append(request)
            self._changed.notify_all()
        return action(connection, request)

    def _next_action(self) -> Action:
        with self._changed:
            self._begun += 1
            return self._actions[min(self._begun, len(self._actions)) - 1]


class Connection:
    """A client's connection, as actions see it."""

    def __init__(self, accepted: socket.socket, stopping: threading.Event) -> None:
        self._socket = accepted
        self._buffer = b""
        self.stopping = stopping
        self.bytes_sent = 0

    def begin(self, tls: ssl.SSLContext | None) -> None:
        """Make ready for requests, with a TLS handshake if need be."""
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if tls is not None:
            self._socket = tls.wrap_socket(self._socket, server_side=True)

    def send(self, data: bytes) -> None:
        """Send all of `data`; raises OSError if the client is gone."""
        self._socket.sendall(data)
        self.bytes_sent += len(data)

    def wait_for_client(self) -> None:
        """Return when the client closes, or the test ends."""
        while self._socket.recv(65536):
            pass

    def wait_readable(self) -> bool:
        """Wait for the first byte of a request; False if none comes any more."""
        self._buffer = self._buffer or self._socket.recv(1)
        return bool(self._buffer)

    def read_request(self) -> ReceivedRequest | None:
        """The next request, None if the client closes in the middle of it."""
        while b"\r\n\r\n" not in self._buffer:
            if not self._receive():
                return None
        head, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        length = int(headers.get("content-length", "0"))
        while len(self._buffer) < length:
            if not self._receive():
                return None
        body, self._buffer = self._buffer[:length], self._buffer[length:]
        method, target, _ = first.split(" ")
        return ReceivedRequest(method, target, headers, body)

    def reset(self) -> None:
        """Close with a TCP reset in place of an orderly end."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._socket.close()

    def abort(self) -> None:
        """Wake up whatever waits on this connection."""
        _shut_down(self._socket)

    def close(self) -> None:
        """Close; harmless if it is closed."""
        self._socket.close()

    @property
    def is_closed(self) -> bool:
        """Whether this side has closed."""
        return self._socket.fileno() < 0

    def _receive(self) -> bool:
        data = self._socket.recv(65536)
        self._buffer += data
        return bool(data)


Action: TypeAlias = Callable[[Connection, ReceivedRequest], bool]
"""Plays its part on the connection; returns whether the connection is kept for another request."""


def reply(status: int = 200, body: bytes | str = b"", *, headers: Mapping[str, str] | None = None) -> Action:
    """A whole answer with its true length; `headers` may replace the content type, which is JSON."""
    content = body.encode() if isinstance(body, str) else body
    fields = {"Content-Type": "application/json", "Content-Length": str(len(content))} | dict(headers or {})
    data = _head(status, fields) + content

    def play(connection: Connection, request: ReceivedRequest) -> bool:
        connection.send(data)
        return True

    return play


def json_reply(value: object, status: int = 200) -> Action:
    """An answer whose body is `value` as JSON."""
    return reply(status, json.dumps(value))


def html(status: int = 200, body: str = "<!DOCTYPE html><html><body>Please sign in</body></html>") -> Action:
    """A page for people, as captive portals and login proxies answer."""
    return reply(status, body, headers={"Content-Type": "text/html; charset=utf-8"})


def respond(function: Callable[[ReceivedRequest], Action]) -> Action:
    """The action that `function` chooses for the request."""
    return lambda connection, request: function(request)(connection, request)


def hang() -> Action:
    """No answer, ever."""

    def play(connection: Connection, request: ReceivedRequest) -> bool:
        connection.wait_for_client()
        return False

    return play


def drip(data: bytes, seconds: float = 0.2) -> Action:
    """`data` byte by byte, one every `seconds`."""

    def play(connection: Connection, request: ReceivedRequest) -> bool:
        for byte in data:
            if connection.stopping.wait(seconds):
                return False
            connection.send(bytes([byte]))
        connection.wait_for_client()
        return False

    return play


def reset() -> Action:
    """A reset after the request was read: whatever it asked for has been done."""

    def play(connection: Connection, request: ReceivedRequest) -> bool:
        connection.reset()
        return False

    return play


def reset_unread() -> Action:
    """A reset when the request begins to come; it is not recorded."""
    return _RESET_UNREAD


def disconnect() -> Action:
    """An orderly end of the connection in place of an answer."""
    return raw(b"")


def raw(data: bytes) -> Action:
    """`data`, then the end of the connection."""

    def play(connection: Connection, request: ReceivedRequest) -> bool:
        connection.send(data)
        return False

    return play


def lie(declared: int, body: bytes = b"", status: int = 200) -> Action:
    """A `Content-Length` of `declared`, `body`, then the end of the connection."""
    return raw(_head(status, {"Content-Type": "application/json", "Content-Length": str(declared)}) + body)


def flood(size: int = 10**9, status: int = 200, *, headers: Mapping[str, str] | None = None) -> Action:
    """An answer of `size` bytes, sent for as long as the client reads; `ScriptedServer.bytes_sent` tells."""
    fields = {"Content-Type": "application/json", "Content-Length": str(size)} | dict(headers or {})

    def play(connection: Connection, request: ReceivedRequest) -> bool:
        connection.send(_head(status, fields))
        for _ in range(size // len(_CHUNK)):
            connection.send(_CHUNK)
        return False

    return play


def _head(status: int, headers: Mapping[str, str]) -> bytes:
    lines = [f"HTTP/1.1 {status} Scripted", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def _shut_down(open_socket: socket.socket) -> None:
    try:
        open_socket.shutdown(socket.SHUT_RDWR)
    except OSError:  # never connected, or closed by its own thread
        return


def _RESET_UNREAD(connection: Connection, request: ReceivedRequest) -> bool:  # noqa: N802 - a mark, known by identity
    raise AssertionError("played before a request is read")


_CHUNK = b" " * 65536
