"""`Bridge`: the receivers, the pipeline behind them, and the sockets in front."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType

from otel_agent_tracker.bridge.admin import Admin
from otel_agent_tracker.bridge.grpc import GrpcReceiver
from otel_agent_tracker.bridge.http import HttpReceiver
from otel_agent_tracker.bridge.receiver import Receiver
from otel_agent_tracker.bridge.serving import HttpServer
from otel_agent_tracker.bridge.tokens import Tokens
from otel_agent_tracker.config import Config
from otel_agent_tracker.listening import is_local, listen, url_of
from otel_agent_tracker.pipeline import acquire

__all__ = ["DEFAULT_MAX_SESSIONS", "SERVICE_NAME", "Bridge", "Listen"]

DEFAULT_MAX_SESSIONS = 1_000_000
SERVICE_NAME = "otel-agent-tracker-bridge"
ADMIN_CONNECTIONS = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Listen:
    """Where a bridge listens, and who may come in; a port of 0 is any that is free."""

    host: str = "127.0.0.1"
    http_port: int = 14318
    grpc_port: int = 14317
    admin_host: str = "127.0.0.1"
    admin_port: int = 8701
    tls_cert: Path | None = None
    tls_key: Path | None = None
    token_file: Path | None = None


class Bridge:
    """Receives OTLP and hands the events in it to a tracker.

    It listens when it is made; requests wait until `start`. Raises OSError if an address or a file cannot be had, and
    ValueError for a token file without tokens, or an address that others reach without one.
    """

    def __init__(self, config: Config, where: Listen, *, accepts_copies: bool = False) -> None:
        with ExitStack() as undo:
            tokens = Tokens(where.token_file)
            http_socket = undo.enter_context(listen(where.host, where.http_port))
            admin_socket = undo.enter_context(listen(where.admin_host, where.admin_port))
            self._http_address, self._admin_address = http_socket.getsockname(), admin_socket.getsockname()
            # whoever reaches it could invent conversations
            if where.token_file is None and not is_local(self._http_address):
                raise ValueError(
                    f"{where.host} is reached from other machines: --ingest-token-file is needed"
                )
            self._scheme = "https" if where.tls_cert else "http"
            self._pipeline = acquire(_for_a_bridge(config))
            undo.callback(self._pipeline.release)
            self._receiver = Receiver(self._pipeline, accepts_copies=accepts_copies)
            self._http = HttpReceiver(self._receiver, tokens)
            undo.callback(self._http.close)
            admin = Admin(self._pipeline, lambda: self._receiver.counts, self._answered)
            self._servers = (
                HttpServer(
                    http_socket,
                    self._http,
                    tls_cert=where.tls_cert,
                    tls_key=where.tls_key,
                    stopping=self._http.begin_to_stop,
                ),
                HttpServer(admin_socket, admin, most_connections=ADMIN_CONNECTIONS),
            )
            self._grpc = GrpcReceiver(
                self._receiver,
                tokens,
                host=where.host,
                port=where.grpc_port,
                tls_cert=where.tls_cert,
                tls_key=where.tls_key,
            )
            undo.callback(self._grpc.stop)
            self._closing = undo.pop_all()

    @property
    def http_url(self) -> str:
        """Where senders of OTLP over HTTP reach it from this machine, without the path."""
        return url_of(self._http_address, self._scheme)

    @property
    def grpc_url(self) -> str:
        """Where senders of OTLP over gRPC reach it from this machine."""
        return url_of(self._grpc.address, self._scheme)

    @property
    def admin_url(self) -> str:
        """Where operators reach it from this machine."""
        return url_of(self._admin_address)

    def start(self) -> None:
        """Begin to answer, in threads; returns when it does. Raises RuntimeError if that fails."""
        self._pipeline.start()
        try:
            for server in (*self._servers, self._grpc):
                server.start()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Answer what is under way, for a few seconds at most, deliver what can be, and close. For good."""
        for server in (self._grpc, *self._servers):
            server.stop()
        self._closing.close()

    def __enter__(self) -> Bridge:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _answered(self) -> Mapping[str, int]:
        return {
            **{f"http {status}": number for status, number in self._http.answered.items()},
            **{f"grpc {status}": number for status, number in self._grpc.answered.items()},
        }


def _for_a_bridge(config: Config) -> Config:
    """The settings, with a bridge's own defaults for what nobody has set."""
    if config.sources.get("max_sessions", "default") == "default":
        config = replace(config, max_sessions=DEFAULT_MAX_SESSIONS)
    if config.sources.get("service_name", "default") == "default":
        config = replace(config, service_name=SERVICE_NAME)
    return config
