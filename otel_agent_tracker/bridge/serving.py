"""`HttpServer`: uvicorn in a thread, with bounds that it has not: slow, half-open and too many connections."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from pathlib import Path
from threading import Event, Thread

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

__all__ = ["HttpServer"]

HEAD_SECONDS = 10.0
MOST_CONNECTIONS = 1000
GRACE_SECONDS = 3  # for open requests when it stops
KEEP_ALIVE_SECONDS = 120  # longer than senders keep an idle connection, so that they close it and not we
_FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 5\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
)


class HttpServer(uvicorn.Server):
    """Serves `app` on the socket `listening` between `start` and `stop`; with a certificate, over TLS.

    The head of a request must come whole in `head_seconds`; of connections beyond `most_connections` each is told so
    and closed. `stopping` is called on the thread that serves when it is to end. Raises OSError for a certificate
    that cannot be used.
    """

    def __init__(
        self,
        listening: socket.socket,
        app: ASGIApp,
        *,
        head_seconds: float = HEAD_SECONDS,
        most_connections: int = MOST_CONNECTIONS,
        tls_cert: Path | None = None,
        tls_key: Path | None = None,
        stopping: Callable[[], None] = lambda: None,
    ) -> None:
        bounds = {"head_seconds": head_seconds, "most_connections": most_connections}
        config = uvicorn.Config(
            app,
            http=type("BoundedProtocol", (_Bounded,), bounds),
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="error",
            access_log=False,
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=GRACE_SECONDS,
            ssl_certfile=tls_cert,
            ssl_keyfile=tls_key,
        )
        config.load()  # now, so that a certificate that cannot be used is told by whoever makes this
        super().__init__(config)
        self._listening = listening
        self._stopping = stopping
        self._settled = Event()
        self._thread = Thread(target=self._run, name="otel-agent-tracker-bridge")

    def start(self) -> None:
        """Begin to serve; returns when requests are answered. Raises RuntimeError if that fails."""
        self._thread.start()
        self._settled.wait()
        if not self.started:
            raise RuntimeError("the server could not be started")

    def stop(self) -> None:
        """Answer what is under way, for a few seconds at most. Idempotent."""
        self.should_exit = True
        if self._thread.ident is not None:
            self._thread.join()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Uvicorn's, and tell that it is over."""
        await super().startup(sockets)
        self._settled.set()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Uvicorn's, once the application knows."""
        self._stopping()
        await super().shutdown(sockets)

    def _run(self) -> None:
        try:
            asyncio.run(self.serve(sockets=[self._listening]))
        finally:
            self._settled.set()


class _Bounded(H11Protocol):
    """One connection."""

    head_seconds: float
    most_connections: int
    _head_is_due: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        if len(self.connections) >= self.most_connections:
            self.transport = transport
            transport.write(_FULL)
            transport.close()
            return
        super().connection_made(transport)
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._cease_to_expect()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:  # a head has come
            self._cease_to_expect()
        elif self._head_is_due is None and self.conn.trailing_data[0]:
            self._expect_head()

    def _expect_head(self) -> None:
        self._head_is_due = self.loop.call_later(self.head_seconds, self.transport.close)

    def _cease_to_expect(self) -> None:
        if self._head_is_due is not None:
            self._head_is_due.cancel()
            self._head_is_due = None
