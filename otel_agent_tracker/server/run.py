"""A tracker that listens: the application, its database and uvicorn, in a thread or in this one."""

from __future__ import annotations

import gc
import os
import socket
from collections.abc import Callable
from pathlib import Path
from threading import Event, Thread
from types import TracebackType
from urllib.parse import urlsplit

import uvicorn

from otel_agent_tracker.listening import is_local, listen, url_of
from otel_agent_tracker.server.app import LOOPBACK_HOSTS, create_app
from otel_agent_tracker.server.database import Database, default_path
from otel_agent_tracker.server.guard import Logins
from otel_agent_tracker.server.opening import usable
from otel_agent_tracker.server.store import Store

__all__ = ["DEFAULT_HOST", "DEFAULT_PORT", "Server", "spoken"]

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 8700
GRACE_SECONDS = 3  # for open requests when it stops; without it a half-sent body would hold it for ever


class Server:
    """A tracker on `host` and `port` (0: any that is free) over the database at a URL or a SQLite path.

    It listens when it is made; requests wait until `start` or `run`. Whatever is not loopback needs keys: if
    none was ever made, one is, and `key_file` names the file that holds it. `rebuild` counts again first what
    figures are added up from. Raises OSError if the address cannot be had, ValueError for a `database` that
    names none, and RuntimeError, which says why, for one that cannot be used. `stop` is for good.
    """

    def __init__(
        self,
        *,
        host: str = DEFAULT_HOST,
        port: int = DEFAULT_PORT,
        database: str | None = None,
        now_us: Callable[[], int] | None = None,
        rebuild: bool = False,
    ) -> None:
        self._socket = listen(host, port)
        self._address = self._socket.getsockname()
        local = is_local(self._address)
        try:
            self._database = Database(database or str(default_path()))
            with usable(self._database):
                self.store = Store(self._database, now_us)
                if rebuild:
                    self.store.recount()
                self.key_file = None if local else _ensure_key(self.store, self._database)
        except BaseException:
            self._socket.close()
            raise
        self._logins = Logins()
        hosts = LOOPBACK_HOSTS | {host.lower(), f"[{host.lower()}]"}
        app = create_app(self.store, logins=self._logins, open_to=hosts if local else None)
        self._uvicorn = _Uvicorn(
            uvicorn.Config(
                app,
                log_config=None,
                log_level="warning",
                access_log=False,
                server_header=False,
                ws="none",
                timeout_graceful_shutdown=GRACE_SECONDS,
            )
        )
        self._thread: Thread | None = None

    @property
    def port(self) -> int:
        """The port that it listens on."""
        port: int = self._address[1]
        return port

    @property
    def url(self) -> str:
        """Where it is reached from this machine."""
        return url_of(self._address)

    @property
    def database(self) -> str:
        """The database, as it may be shown: without a password."""
        return self._database.shown

    def page_url(self) -> str:
        """A link to the page; where keys are in force, one that works once."""
        self.store.keys.refresh()
        return f"{self.url}/login?token={self._logins.offer()}" if self.store.keys.in_force else self.url

    def start(self) -> None:
        """Serve in a thread; returns when requests are answered. Raises RuntimeError if that fails."""
        self._thread = Thread(target=self._serve, name="otel-agent-tracker-server")
        self._thread.start()
        self._uvicorn.settled.wait()
        if not self._uvicorn.started:
            self.stop()
            raise RuntimeError("the tracker could not start; its log says why")

    def run(self) -> None:
        """Serve in this thread until the process is asked to stop (SIGINT, SIGTERM).

        The process is taken to be the tracker's own: what is there now is left out of garbage collection.
        """
        gc.freeze()
        try:
            self._serve()
        finally:
            self.stop()

    def stop(self) -> None:
        """Answer what is under way, for three seconds at most, and close everything."""
        self._uvicorn.should_exit = True
        if self._thread is not None:
            self._thread.join()
        self._socket.close()
        self.store.close()

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _serve(self) -> None:
        try:
            self._uvicorn.run(sockets=[self._socket])
        finally:
            self._uvicorn.settled.set()


class _Uvicorn(uvicorn.Server):
    """Tells when it has started, or has failed to."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.settled = Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.settled.set()


def spoken(url: str) -> str:
    """`url` as people write it: with localhost for 127.0.0.1, where that is what localhost means."""
    parts = urlsplit(url)
    if parts.hostname != DEFAULT_HOST:
        return url
    try:
        meant = socket.getaddrinfo("localhost", parts.port, type=socket.SOCK_STREAM)
    except OSError:
        return url
    is_here = any(address[0] == DEFAULT_HOST for *_, address in meant)
    return url.replace(DEFAULT_HOST, "localhost", 1) if is_here else url


def _ensure_key(store: Store, database: Database) -> Path | None:
    """The file of a key made now; None if there were keys before."""
    store.keys.refresh()
    if store.keys.in_force:
        return None
    path = (database.path or default_path()).with_suffix(".key")
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as file:
        file.write(store.keys.create(name="made at the first start") + "\n")
    return path
