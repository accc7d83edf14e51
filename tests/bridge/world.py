"""What the tests of the bridge are made of: requests, senders, and bridges as processes of their own."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha256
from math import isfinite
from typing import Any, NamedTuple

from google.rpc.status_pb2 import Status as RpcStatus
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span
from opentelemetry.sdk.trace import ReadableSpan

from otel_agent_tracker import semconv
from otel_agent_tracker.metrics import Counted, FolderNow
from tests.leash import leashed

__all__ = [
    "JSON",
    "PROTOBUF",
    "BridgeProcess",
    "Kept",
    "answer_of",
    "bridging",
    "end",
    "foreign",
    "json_request",
    "request",
    "span",
    "start",
    "status_of",
]

PROTOBUF, JSON = "application/x-protobuf", "application/json"
START_NS = 1_705_681_056_000_001_000
SERVICE = {"service.name": "shop", "service.version": "2"}

Attributes = Mapping[str, Any]


def start(session: str = "thread-7", *, number: int = 1, **attributes: Any) -> Span:
    """The start of a conversation, as a sender without our library makes it; ``__`` in a name is a dot."""
    return span("conversation.start", session, _dotted(attributes), number)


def end(session: str = "thread-7", *, number: int = 1, **attributes: Any) -> Span:
    """Its end."""
    return span("conversation", session, {semconv.OUTCOME: "completed", **_dotted(attributes)}, number)


def span(event: str, session: str, attributes: Attributes, number: int = 1) -> Span:
    """The span of an event, with the names that each has; `number` makes ids of its own and of its session."""
    known = {semconv.EVENT: event, semconv.SESSION_ID: session, semconv.GEN_AI_AGENT_ID: "support-bot"}
    made = foreign({**known, **attributes}, number)
    made.trace_id = sha256(session.encode()).digest()[:16]
    return made


def _dotted(attributes: Attributes) -> Attributes:
    return {key.replace("__", "."): value for key, value in attributes.items()}


def foreign(attributes: Attributes, number: int = 1) -> Span:
    """A span with these attributes."""
    return Span(
        trace_id=(0xA1B2 << 96 | number).to_bytes(16, "big"),
        span_id=(0xC3D4 << 32 | number).to_bytes(8, "big"),
        name="whatever",
        start_time_unix_nano=START_NS,
        end_time_unix_nano=START_NS + 2_500_000_000,
        attributes=[KeyValue(key=key, value=_value(value)) for key, value in attributes.items()],
    )


def request(*spans: Span, resource: Attributes = SERVICE) -> bytes:
    """An export of these spans, in protobuf."""
    return ExportTraceServiceRequest(
        resource_spans=[
            ResourceSpans(
                resource=Resource(
                    attributes=[KeyValue(key=key, value=_value(value)) for key, value in resource.items()]
                ),
                scope_spans=[ScopeSpans(spans=spans)],
            )
        ]
    ).SerializeToString()


def json_request(*spans: Span, resource: Attributes = SERVICE) -> dict[str, Any]:
    """The same in OTLP's JSON, whose ids are hexadecimal."""
    return {
        "resourceSpans": [
            {
                "resource": {"attributes": _json_attributes(resource)},
                "scopeSpans": [{"spans": [_json_span(each) for each in spans]}],
            }
        ]
    }


def _json_span(each: Span) -> dict[str, Any]:
    return {
        "traceId": each.trace_id.hex(),
        "spanId": each.span_id.hex().upper(),
        "name": each.name,
        "startTimeUnixNano": str(each.start_time_unix_nano),
        "endTimeUnixNano": str(each.end_time_unix_nano),
        "attributes": [{"key": pair.key, "value": _json_value(pair.value)} for pair in each.attributes],
        "status": {"code": int(each.status.code), "message": each.status.message},
    }


def _json_attributes(attributes: Attributes) -> list[dict[str, Any]]:
    return [{"key": key, "value": _json_value(_value(value))} for key, value in attributes.items()]


def _value(value: Any) -> AnyValue:
    match value:
        case bool():
            return AnyValue(bool_value=value)
        case int():
            return AnyValue(int_value=value)
        case float():
            return AnyValue(double_value=value)
        case str():
            return AnyValue(string_value=value)
    return AnyValue(array_value=ArrayValue(values=[_value(item) for item in value]))


def _json_value(value: AnyValue) -> dict[str, Any]:
    match value.WhichOneof("value"):
        case "bool_value":
            return {"boolValue": value.bool_value}
        case "int_value":
            return {"intValue": str(value.int_value)}
        case "double_value":
            number = value.double_value
            return {"doubleValue": number if isfinite(number) else _NOT_FINITE[str(number)]}
        case "array_value":
            return {"arrayValue": {"values": [_json_value(item) for item in value.array_value.values]}}
    return {"stringValue": value.string_value}


_NOT_FINITE = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}


def answer_of(body: bytes) -> tuple[int, str]:
    """How many spans an answer in protobuf rejects, and why."""
    partial = ExportTraceServiceResponse.FromString(body).partial_success
    return partial.rejected_spans, partial.error_message


def status_of(body: bytes) -> tuple[int, str]:
    """Code and message of a google.rpc.Status."""
    status = RpcStatus.FromString(body)
    return status.code, status.message


class Kept:
    """Keeps events in a list, or nothing while there is a reason."""

    def __init__(self) -> None:
        self.cannot_keep_because: str | None = None
        self.spans: list[ReadableSpan] = []

    def take_in(self, span: ReadableSpan) -> bool:
        self.spans.append(span)
        return True

    def counted(self) -> Counted:
        return Counted(
            accepted=len(self.spans),
            delivered=2,
            rejected=1,
            dropped={"journal": 3},
            ended={("call", "completed"): 1},
            turns={},
            evaluations={},
        )

    def folder_now(self) -> FolderNow | None:
        return FolderNow(name="memory", pending=4, dead_letters=1, oldest_pending_age=1.5, live_sessions=6)


class BridgeProcess(NamedTuple):
    """A bridge in a process of its own, and its addresses."""

    process: subprocess.Popen[str]
    url: str
    grpc_url: str
    admin_url: str


@contextmanager
def bridging(*arguments: object) -> Iterator[BridgeProcess]:
    """`otel-agent-tracker bridge` on free ports; it is ended, if it has not ended, when the block is left."""
    ports = [word for kind in ("http", "grpc", "admin") for word in (f"--{kind}-port", "0")]
    with leashed("bridge", *ports, *arguments) as process:
        assert process.stdout is not None
        found = dict[str, str]()
        while len(found) < 3 and (line := process.stdout.readline()):
            if match := re.match(r"(OTLP\S+|Admin) .*?(http\S+?)(?:/readyz)?$", line.rstrip()):
                found[match[1]] = match[2]
        yield BridgeProcess(process, found["OTLP/HTTP"], found["OTLP/gRPC"], found["Admin"])
