"""OTLP over gRPC: the same requests and answers, in gRPC's words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status

from otel_agent_tracker.bridge import answers
from otel_agent_tracker.bridge.bodies import TooLarge, Unreadable
from otel_agent_tracker.bridge.otlp import Encoding
from otel_agent_tracker.bridge.receiver import NotKept, Receipt, Receiver
from otel_agent_tracker.bridge.tokens import Tokens
from otel_agent_tracker.listening import listen
from otel_agent_tracker.log import Log

__all__ = ["GrpcReceiver"]

_logger = Log(__name__)

MAX_MESSAGE_BYTES = 64 * 1024 * 1024  # unpacked; gRPC's own limit, 4 MiB, has a Collector drop what it holds
RETRY_AFTER_SECONDS = 2
GRACE_SECONDS = 3.0  # for open requests when it stops
READERS = 2  # requests that are decoded at the same time
_OPTIONS = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_concurrent_streams", 16),  # on one connection; a sender waits with what is beyond
    ("grpc.so_reuseport", 0),  # a port that is taken is not shared in silence
    ("grpc.server_handshake_timeout_ms", 10_000),
    # A Collector pings every ten seconds; unless that is allowed, its connection is closed for too many pings.
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
)
_Answer = tuple[grpc.StatusCode, str, bytes]
_TRACES = "opentelemetry.proto.collector.trace.v1.TraceService"
_OTHERS = (
    "opentelemetry.proto.collector.logs.v1.LogsService",
    "opentelemetry.proto.collector.metrics.v1.MetricsService",
)


class GrpcReceiver:
    """Serves on `host` and `port` (0: any that is free) between `start` and `stop`; with a certificate, over TLS.

    Raises OSError if the address, or a file, cannot be had.
    """

    def __init__(
        self,
        receiver: Receiver,
        tokens: Tokens,
        *,
        host: str,
        port: int,
        tls_cert: Path | None = None,
        tls_key: Path | None = None,
    ) -> None:
        self._tokens = tokens
        self._answered: Counter[str] = Counter()
        self._lock = Lock()
        with listen(host, port) as tried:  # whose errors say why it cannot be had
            self.address = tried.getsockname()
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="otel-agent-tracker-grpc")
        self._server = grpc.server(self._readers, options=_OPTIONS)
        self._server.add_generic_rpc_handlers(
            (
                _handler(_TRACES, self._export(lambda body: receiver.traces(body, Encoding.PROTOBUF))),
                # they hold nothing for us; they are taken, lest somebody repeats them
                *(_handler(service, self._export(lambda body: Receipt())) for service in _OTHERS),
            )
        )
        where = f"{f'[{self.address[0]}]' if ':' in self.address[0] else self.address[0]}:{self.address[1]}"
        try:
            if tls_cert is None or tls_key is None:
                self._server.add_insecure_port(where)
            else:
                pair = (tls_key.read_bytes(), tls_cert.read_bytes())
                self._server.add_secure_port(where, grpc.ssl_server_credentials([pair]))
        except RuntimeError as error:
            raise OSError(f"{where}: {error}") from error

    @property
    def answered(self) -> Mapping[str, int]:
        """How many requests were answered with each status."""
        with self._lock:
            return dict(self._answered)

    def start(self) -> None:
        """Begin to answer."""
        self._server.start()

    def stop(self) -> None:
        """Answer what is under way, for a few seconds at most. For good; idempotent."""
        self._server.stop(GRACE_SECONDS).wait()
        self._readers.shutdown()

    def _export(
        self, take: Callable[[bytes], Receipt]
    ) -> Callable[[bytes, grpc.ServicerContext], bytes | None]:
        def export(body: bytes, context: grpc.ServicerContext) -> bytes | None:
            code, message, answer = self._answer(take, body, context)
            with self._lock:
                self._answered[code.name.lower()] += 1
            if code is grpc.StatusCode.OK:
                return answer
            if code is grpc.StatusCode.UNAVAILABLE:
                context.set_trailing_metadata(_retry(message))
            context.set_code(code)
            context.set_details(message)
            return None

        return export

    def _answer(
        self, take: Callable[[bytes], Receipt], body: bytes, context: grpc.ServicerContext
    ) -> _Answer:
        metadata = context.invocation_metadata()
        if not self._tokens.admit([_bytes(value) for key, value in metadata if key == "authorization"]):
            return grpc.StatusCode.UNAUTHENTICATED, "the bearer token is missing or wrong", b""
        try:
            return grpc.StatusCode.OK, "", answers.taken_message(take(body))
        except TooLarge as error:
            return grpc.StatusCode.RESOURCE_EXHAUSTED, str(error), b""
        except Unreadable as error:
            return grpc.StatusCode.INVALID_ARGUMENT, str(error), b""
        except NotKept as error:
            return grpc.StatusCode.UNAVAILABLE, str(error), b""
        except Exception as error:  # UNKNOWN would have the sender drop what it holds
            _logger.exception("a request could not be answered")
            return grpc.StatusCode.UNAVAILABLE, f"something is wrong here: {type(error).__name__}", b""


def _handler(
    service: str, export: Callable[[bytes, grpc.ServicerContext], bytes | None]
) -> grpc.GenericRpcHandler:
    """Of messages as they came: they are decoded by us, or not at all."""
    return grpc.method_handlers_generic_handler(
        service, {"Export": grpc.unary_unary_rpc_method_handler(export)}
    )


def _retry(message: str) -> tuple[tuple[str, bytes], ...]:
    """When to come again, in both places where senders look: Python's in the first, Go's in the second."""
    info = RetryInfo(retry_delay=Duration(seconds=RETRY_AFTER_SECONDS))
    details = AnyMessage()
    details.Pack(info)
    status = Status(code=answers.UNAVAILABLE, message=message, details=[details])
    return (
        ("google.rpc.retryinfo-bin", info.SerializeToString()),
        ("grpc-status-details-bin", status.SerializeToString()),
    )


def _bytes(value: str | bytes) -> bytes:
    return value.encode() if isinstance(value, str) else value
