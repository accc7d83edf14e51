"""What is answered to OTLP over gRPC, as the specification has it, and as exporters read it."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace.export import SpanExportResult

from otel_agent_tracker import semconv
from otel_agent_tracker.bridge import grpc as grpc_receiver
from otel_agent_tracker.bridge.grpc import GrpcReceiver
from otel_agent_tracker.bridge.receiver import Receiver
from otel_agent_tracker.bridge.tokens import Tokens
from tests.bridge.world import Kept, answer_of, end, foreign, request, start
from tests.event_spans import foreign_span

TRACES = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
Address = tuple[str, int]


@contextmanager
def receiving(kept: Kept, tokens: Path | None = None) -> Iterator[GrpcReceiver]:
    """A receiver on loopback."""
    receiver = GrpcReceiver(Receiver(kept), Tokens(tokens), host="127.0.0.1", port=0)
    receiver.start()
    try:
        yield receiver
    finally:
        receiver.stop()


@pytest.fixture
def kept() -> Kept:
    return Kept()


@pytest.fixture
def export(kept: Kept) -> Iterator[Callable[..., bytes]]:
    """Sends a body as it is; what is answered, or grpc.RpcError."""
    with receiving(kept) as receiver, channel(receiver) as connected:
        yield lambda body, **options: send(connected, body, **options)


def channel(receiver: GrpcReceiver) -> grpc.Channel:
    return grpc.insecure_channel(f"127.0.0.1:{receiver.address[1]}")


def send(connected: grpc.Channel, body: bytes, *, method: str = TRACES, **options: Any) -> bytes:
    """One call, without a codec between the test and the wire."""
    call: Any = connected.unary_unary(method)
    answer: bytes = call(body, timeout=20, **options)
    return answer


def bytes_of(value: str | bytes) -> bytes:
    """The value of metadata whose name ends with ``-bin``."""
    assert isinstance(value, bytes)
    return value


@pytest.mark.parametrize("compression", [grpc.Compression.NoCompression, grpc.Compression.Gzip])
def test_the_sdks_exporter_is_understood(kept: Kept, compression: grpc.Compression) -> None:
    """With and without gzip."""
    with receiving(kept) as receiver:
        exporter = OTLPSpanExporter(
            f"http://127.0.0.1:{receiver.address[1]}", insecure=True, compression=compression
        )
        span = foreign_span("conversation.start", {semconv.SESSION_ID: "thread-7"})
        assert exporter.export([span]) is SpanExportResult.SUCCESS
        exporter.shutdown()
        assert receiver.answered == {"ok": 1}
    assert [span.name for span in kept.spans] == ["conversation.start"]


def test_a_request_of_many_megabytes_is_taken(export: Callable[..., bytes], kept: Kept) -> None:
    """Prompts make such requests; gRPC's own limit is 4 MiB."""
    prompts = [foreign({"gen_ai.prompt": "x" * 1_000_000}, number) for number in range(2, 22)]
    assert export(request(start(), *prompts)) == b""
    assert len(kept.spans) == 1


def test_a_partial_success_is_told(export: Callable[..., bytes], kept: Kept) -> None:
    """As over HTTP."""
    rejected, message = answer_of(export(request(start(agent_tracker__ttl_seconds=-1.0), end())))
    assert (rejected, message) == (1, "agent_tracker.ttl_seconds must be a finite number above 0, not -1.0")
    assert len(kept.spans) == 1


@pytest.mark.parametrize("signal", ["logs", "metrics"])
def test_other_signals_are_taken(export: Callable[..., bytes], signal: str) -> None:
    """They hold nothing for us."""
    method = f"/opentelemetry.proto.collector.{signal}.v1.{signal.capitalize()}Service/Export"
    assert export(b"whatever", method=method) == b""


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"\xff", grpc.StatusCode.INVALID_ARGUMENT),
        (request(start())[:-1], grpc.StatusCode.INVALID_ARGUMENT),
        (bytes(grpc_receiver.MAX_MESSAGE_BYTES + 1), grpc.StatusCode.RESOURCE_EXHAUSTED),
    ],
    ids=["garbage", "cut off", "too large"],
)
def test_what_cannot_be_taken_is_refused(
    export: Callable[..., bytes], body: bytes, code: grpc.StatusCode
) -> None:
    """With codes after which nobody sends it again."""
    with pytest.raises(grpc.RpcError) as refused:
        export(body)
    assert refused.value.code() is code


def test_a_bomb_is_refused(export: Callable[..., bytes]) -> None:
    """What gzip unpacks to counts."""
    with pytest.raises(grpc.RpcError) as refused:
        export(bytes(grpc_receiver.MAX_MESSAGE_BYTES + 1), compression=grpc.Compression.Gzip)
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_what_cannot_be_kept_is_to_be_sent_again(export: Callable[..., bytes], kept: Kept) -> None:
    """UNAVAILABLE, and when: where Python's exporter looks, and where a Collector does."""
    kept.cannot_keep_because = "the disk refuses"
    with pytest.raises(grpc.RpcError) as refused:
        export(request(start()))
    assert (refused.value.code(), refused.value.details()) == (
        grpc.StatusCode.UNAVAILABLE,
        "the disk refuses",
    )
    trailing = {item.key: item.value for item in refused.value.trailing_metadata()}
    status = Status.FromString(bytes_of(trailing["grpc-status-details-bin"]))
    in_details = RetryInfo()
    assert status.details[0].Unpack(in_details)
    assert (status.code, in_details.retry_delay.seconds) == (14, 2)
    assert RetryInfo.FromString(bytes_of(trailing["google.rpc.retryinfo-bin"])) == in_details


def test_a_mistake_of_ours_is_no_reason_to_drop_a_request(
    export: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """UNAVAILABLE and not UNKNOWN."""

    def fail(*arguments: object) -> bool:
        raise RuntimeError("a mistake")

    monkeypatch.setattr(Receiver, "traces", fail)
    with pytest.raises(grpc.RpcError) as refused:
        export(request(start()))
    assert (refused.value.code(), "a mistake" in caplog.text) == (grpc.StatusCode.UNAVAILABLE, True)


@pytest.mark.parametrize("given", ["", "Bearer wrong", "right", None])
def test_who_may_not_send_is_told_so(kept: Kept, tmp_path: Path, given: str | None) -> None:
    """UNAUTHENTICATED without the token, or with another; with it, nothing is in the way."""
    (tmp_path / "token").write_text("right\n")
    with receiving(kept, tmp_path / "token") as receiver, channel(receiver) as connected:
        metadata = [] if given is None else [("authorization", given)]
        with pytest.raises(grpc.RpcError) as refused:
            send(connected, request(start()), metadata=metadata)
        assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
        assert kept.spans == []
        assert send(connected, request(start()), metadata=[("authorization", "Bearer right")]) == b""
        assert receiver.answered == {"unauthenticated": 1, "ok": 1}


def test_a_port_that_is_taken_is_not_shared(kept: Kept) -> None:
    """Two bridges on one port would each get some of the requests."""
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(OSError, match="in use"):
        GrpcReceiver(Receiver(kept), Tokens(None), host="127.0.0.1", port=taken.getsockname()[1])
