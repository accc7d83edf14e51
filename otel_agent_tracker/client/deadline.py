"""Network streams with one deadline for a whole request, where httpcore knows only a timeout per read.

httpcore hands the timeouts of a request through to its network backend untouched. Here they are not seconds
but the instant, on the monotonic clock, at which the request is given up: every look-up, connect, handshake,
write and read of it waits for no longer than what is left until then.
"""

from __future__ import annotations

import queue
import socket
import ssl
import time
from collections.abc import Iterable
from contextlib import suppress
from threading import Thread
from typing import Any

import httpcore

__all__ = ["DeadlineBackend", "timeouts"]


def timeouts(seconds: float) -> dict[str, float]:
    """The timeouts of a request that is given up `seconds` from now, as its ``timeout`` extension."""
    instant = time.monotonic() + seconds
    # the wait for a free connection never comes to the backend: it alone is in seconds
    return {"pool": seconds, "connect": instant, "write": instant, "read": instant}


class DeadlineBackend(httpcore.NetworkBackend):
    """A network backend for httpcore's synchronous pools that takes each `timeout` as an instant."""

    def __init__(self) -> None:
        self._backend = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        """A stream to the first address of `host` that answers; each gets its share of the time left."""
        addresses = _look_up(host, port, timeout)
        for others, address in zip(reversed(range(len(addresses))), addresses, strict=True):
            share = _time_left(timeout, httpcore.ConnectTimeout) / (others + 1)
            try:
                stream = self._backend.connect_tcp(address, port, share, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                if not others:
                    raise
            else:
                return _DeadlineStream(stream)
        raise httpcore.ConnectError("the host has no address")


class _DeadlineStream(httpcore.NetworkStream):
    """A connected stream; what is written waits for the next read, so that head and body go out as one."""

    def __init__(self, stream: httpcore.NetworkStream) -> None:
        self._stream = stream
        self._socket: socket.socket = stream.get_extra_info("socket")
        self._written: list[bytes] = []

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        if self._written:
            with suppress(httpcore.WriteError):  # who refuses a body half sent may have said why
                self._send(b"".join(self._written), timeout)
            self._written.clear()
        return self._stream.read(max_bytes, _time_left(timeout, httpcore.ReadTimeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._written.append(buffer)

    def _send(self, data: bytes, timeout: float | None) -> None:
        """Send all of `data`; not by the stream's own `write`, which waits anew for every part."""
        rest = memoryview(data)
        while rest:
            self._socket.settimeout(_time_left(timeout, httpcore.WriteTimeout))
            try:
                rest = rest[self._socket.send(rest) :]
            except TimeoutError as error:
                raise httpcore.WriteTimeout(error) from error
            except OSError as error:
                raise httpcore.WriteError(error) from error

    def close(self) -> None:
        """Close; a thread that waits in `read` wakes up at once."""
        with suppress(OSError):  # the other side may have been faster
            self._socket.shutdown(socket.SHUT_RDWR)
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        left = _time_left(timeout, httpcore.ConnectTimeout)
        return _DeadlineStream(self._stream.start_tls(ssl_context, server_hostname, left))

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


def _time_left(instant: float | None, error: type[httpcore.TimeoutException]) -> float:
    left = (instant or 0.0) - time.monotonic()  # no deadline, no time
    if left <= 0:
        raise error("the request's time is over")
    return left


def _look_up(host: str, port: int, instant: float | None) -> list[str]:
    """The addresses of `host`, on a thread of their own, because resolvers keep no deadline but theirs."""
    found: queue.SimpleQueue[list[str] | Exception] = queue.SimpleQueue()
    seconds = _time_left(instant, httpcore.ConnectTimeout)
    thread = Thread(target=_resolve, args=(host, port, found), name="agent-tracker-resolver", daemon=True)
    try:
        thread.start()
    except (RuntimeError, MemoryError):  # while the interpreter exits no thread can be started
        _resolve(host, port, found)
    try:
        addresses = found.get(timeout=seconds)
    except queue.Empty:
        raise httpcore.ConnectTimeout("the look-up of the host took too long") from None
    if isinstance(addresses, Exception):
        raise httpcore.ConnectError(addresses)
    return addresses


def _resolve(host: str, port: int, found: queue.SimpleQueue[list[str] | Exception]) -> None:
    try:
        entries = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:  # UnicodeError: a label that no name system takes
        found.put(error)
    else:
        found.put(list(dict.fromkeys(str(address[0]) for *_, address in entries)))
