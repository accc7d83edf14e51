"""A bridge under what Collectors do for long."""

from __future__ import annotations

from threading import Event
from typing import Any

import grpc
import pytest
from opentelemetry.sdk.trace import ReadableSpan

from otel_agent_tracker.bridge import grpc as grpc_receiver
from otel_agent_tracker.bridge.grpc import GrpcReceiver
from otel_agent_tracker.bridge.receiver import Receiver
from otel_agent_tracker.bridge.tokens import Tokens
from tests.bridge.world import Kept, request, start

SECONDS = 6.0  # without leave to ping, a connection is closed at the third second
PINGING = (
    ("grpc.keepalive_time_ms", 1_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.max_pings_without_data", 0),
)


class Slow(Kept):
    """Takes its time to keep an event."""

    def take_in(self, span: ReadableSpan) -> bool:
        Event().wait(SECONDS)
        return super().take_in(span)


def test_pings_during_a_long_call_are_tolerated(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Collector pings every ten seconds and may do so every five; here both are tenths of that."""
    shorter = [
        (name, value // 10 if "ping_interval" in name else value) for name, value in grpc_receiver._OPTIONS
    ]
    assert len({*shorter} - {*grpc_receiver._OPTIONS}) == 2
    monkeypatch.setattr(grpc_receiver, "_OPTIONS", shorter)
    receiver = GrpcReceiver(Receiver(Slow()), Tokens(None), host="127.0.0.1", port=0)
    receiver.start()
    try:
        with grpc.insecure_channel(f"127.0.0.1:{receiver.address[1]}", options=PINGING) as channel:
            export: Any = channel.unary_unary("/opentelemetry.proto.collector.trace.v1.TraceService/Export")
            assert export(request(start()), timeout=60) == b""
    finally:
        receiver.stop()
