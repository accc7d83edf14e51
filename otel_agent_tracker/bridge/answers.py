"""What senders are told, in the words of OTLP over HTTP and in the encoding of their request."""

from __future__ import annotations

import orjson
from google.rpc.status_pb2 import Status
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from otel_agent_tracker.bridge.otlp import Encoding
from otel_agent_tracker.bridge.receiver import Receipt

__all__ = [
    "INTERNAL",
    "INVALID_ARGUMENT",
    "RESOURCE_EXHAUSTED",
    "UNAUTHENTICATED",
    "UNAVAILABLE",
    "error",
    "taken",
]

INVALID_ARGUMENT, RESOURCE_EXHAUSTED, INTERNAL, UNAVAILABLE, UNAUTHENTICATED = 3, 8, 13, 14, 16
"""Codes of google.rpc.Status."""


def taken(receipt: Receipt, encoding: Encoding) -> bytes:
    """The body of a success, or of a partial one."""
    if encoding is Encoding.PROTOBUF:
        return taken_message(receipt)
    if not receipt.rejected_spans:
        return b"{}"
    partial = {"rejectedSpans": str(receipt.rejected_spans), "errorMessage": receipt.message}
    return orjson.dumps({"partialSuccess": partial})


def taken_message(receipt: Receipt) -> bytes:
    """The answer in protobuf: of a full success nothing is said."""
    answer = ExportTraceServiceResponse()
    if receipt.rejected_spans:
        answer.partial_success.rejected_spans = receipt.rejected_spans
        answer.partial_success.error_message = receipt.message
    return answer.SerializeToString()


def error(code: int, message: str, encoding: Encoding) -> bytes:
    """A google.rpc.Status."""
    if encoding is Encoding.PROTOBUF:
        return bytes(Status(code=code, message=message).SerializeToString())
    return orjson.dumps({"code": code, "message": message})
