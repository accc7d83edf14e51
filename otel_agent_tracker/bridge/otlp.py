"""OTLP requests, decoded as far as something in them is for us.

Of a protobuf request only the way to its spans is walked; a span that holds no event is stepped over, whatever it
weighs. JSON has to be read as a whole. How much a request may make of its bytes is bounded in either case.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from enum import StrEnum
from typing import Any, NamedTuple

import orjson
from google.protobuf.message import DecodeError
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from otel_agent_tracker import semconv
from otel_agent_tracker.bridge.bodies import TooLarge, Unreadable

__all__ = ["Encoding", "FoundSpan", "Traces", "Value", "decode_traces"]

Value = str | bool | int | float | list[str]
"""What an attribute of an event may be; other kinds of values are left out."""

MOST_PARTS = 500_000  # spans and whatever else a protobuf request consists of, above spans
MOST_JSON_PARTS = 2_000_000  # objects, arrays and what commas separate: each may cost a hundred bytes
MOST_EVENTS = 50_000  # in one request; each is an object until all of them are known to be readable
LARGEST_PART = 1024 * 1024  # bytes of one event's span or of its resource; ours have a sixth at most
_MARK = semconv.EVENT.encode()


class Encoding(StrEnum):
    """How a request is written, by its media type; its answer is written in the same."""

    PROTOBUF = "application/x-protobuf"
    JSON = "application/json"


class FoundSpan(NamedTuple):
    """A span that holds an event, as it came: ids may have any length, times any value (Unix nanoseconds)."""

    trace_id: bytes
    span_id: bytes
    start_ns: int
    end_ns: int
    attributes: dict[str, Value]
    is_error: bool
    status_message: str
    resource: dict[str, Value]


class Traces(NamedTuple):
    """What a request holds: how many spans, and those with an event.

    One that cannot be read by itself is told in place of its span.
    """

    span_count: int
    events: list[FoundSpan | str]


def decode_traces(body: bytes, encoding: Encoding) -> Traces:
    """The request in `body`. Raises Unreadable if it is no such request, TooLarge if it holds too much."""
    try:
        return _Protobuf(body).traces() if encoding is Encoding.PROTOBUF else _from_json(body)
    except (DecodeError, IndexError) as error:
        raise Unreadable("the body is no ExportTraceServiceRequest") from error


# --- protobuf -----------------------------------------------------------------------------------------------

_LENGTH_DELIMITED, _VARINT, _FIXED64, _FIXED32 = 2, 0, 1, 5
_RESOURCE_SPANS, _RESOURCE, _SCOPE_SPANS, _SPANS = 1, 1, 2, 2  # numbers of fields, each in its message


class _Protobuf:
    """One request that is walked."""

    def __init__(self, body: bytes) -> None:
        self._body = body
        self._parts_left = MOST_PARTS
        self._mark_at = body.find(_MARK)
        self._span_count = 0
        self._events: list[FoundSpan | str] = []

    def traces(self) -> Traces:
        for number, start, end in self._parts(0, len(self._body)):
            if number == _RESOURCE_SPANS:
                self._resource_spans(start, end)
        return Traces(self._span_count, self._events)

    def _resource_spans(self, start: int, end: int) -> None:
        """The resource may follow its spans, so it is looked for first."""
        parts = list(self._parts(start, end))
        holds_events = 0 <= self._mark_at < end
        resource = self._resource([at for at in parts if at[0] == _RESOURCE]) if holds_events else {}
        for number, scope_start, scope_end in parts:
            if number == _SCOPE_SPANS:
                for inner, span_start, span_end in self._parts(scope_start, scope_end):
                    if inner == _SPANS:
                        self._span(span_start, span_end, resource)

    def _resource(self, parts: list[tuple[int, int, int]]) -> dict[str, Value]:
        """As protobuf has it, a message that comes in pieces is their sum."""
        pieces = b"".join(self._body[start:end] for _, start, end in parts)
        if len(pieces) > LARGEST_PART:
            raise TooLarge(f"a resource must not be larger than {LARGEST_PART} bytes")
        return _attributes(Resource.FromString(pieces).attributes, _RESOURCE_KEYS)

    def _span(self, start: int, end: int, resource: dict[str, Value]) -> None:
        self._span_count += 1
        if 0 <= self._mark_at < start:
            self._mark_at = self._body.find(_MARK, start)
        if not start <= self._mark_at < end:
            return
        if end - start > LARGEST_PART:
            _add(self._events, f"an event's span must not be larger than {LARGEST_PART} bytes")
            return
        span = Span.FromString(self._body[start:end])
        if any(pair.key == semconv.EVENT for pair in span.attributes):
            found = FoundSpan(
                span.trace_id,
                span.span_id,
                span.start_time_unix_nano,
                span.end_time_unix_nano,
                _attributes(span.attributes, None),
                span.status.code == Status.STATUS_CODE_ERROR,
                span.status.message,
                resource,
            )
            _add(self._events, found)

    def _parts(self, at: int, end: int) -> Iterator[tuple[int, int, int]]:
        """Number, start and end of each field of the message from `at` to `end` that has a length."""
        body = self._body
        while at < end:
            self._parts_left -= 1
            if self._parts_left < 0:
                raise TooLarge(f"a request must not have more than {MOST_PARTS} parts")
            tag = body[at]
            at += 1
            if tag >= 0x80:
                tag, at = _varint(body, at - 1)
            kind = tag & 7
            if tag < 8:
                raise Unreadable("the body has a field without a number")
            if kind == _LENGTH_DELIMITED:
                length = body[at]
                at += 1
                if length >= 0x80:
                    length, at = _varint(body, at - 1)
                start, at = at, at + length
                if at > end:
                    break
                yield tag >> 3, start, at
            elif kind == _VARINT:
                _, at = _varint(body, at)
            elif kind in (_FIXED64, _FIXED32):
                at += 8 if kind == _FIXED64 else 4
            else:
                raise Unreadable("the body has a field of an unknown kind")
        if at != end:
            raise Unreadable("the body is cut off")


def _varint(body: bytes, at: int) -> tuple[int, int]:
    """The number at this place, and the place after it."""
    number = 0
    for shift in range(0, 70, 7):
        byte = body[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, at
    raise Unreadable("the body has a number without an end")


def _attributes(pairs: Any, keys: frozenset[str] | None) -> dict[str, Value]:
    """Those that an event may need, of the last value where a key comes twice."""
    found: dict[str, Value] = {}
    for pair in pairs:
        key = pair.key
        if (key in keys if keys is not None else _is_wanted(key)) and (
            value := _value(pair.value)
        ) is not None:
            found[key] = value
    return found


def _value(value: AnyValue) -> Value | None:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [item.string_value for item in value.array_value.values]
    if kind in ("string_value", "bool_value", "int_value", "double_value"):
        plain: Value = getattr(value, kind)
        return plain
    return None


# --- JSON ---------------------------------------------------------------------------------------------------


def _from_json(body: bytes) -> Traces:
    if sum(map(body.count, (b"{", b"[", b","))) > MOST_JSON_PARTS:
        raise TooLarge(f"a request in JSON must not have more than {MOST_JSON_PARTS} parts")
    try:
        request = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise Unreadable("the body is no JSON") from error
    if not isinstance(request, dict):
        raise Unreadable("the body is no JSON object")
    span_count, events = 0, list[FoundSpan | str]()
    for resource_spans in _objects(request, "resourceSpans"):
        resource = _json_attributes(_object(resource_spans, "resource"), _RESOURCE_KEYS)
        for scope_spans in _objects(resource_spans, "scopeSpans"):
            for span in _objects(scope_spans, "spans"):
                span_count += 1
                if any(pair.get("key") == semconv.EVENT for pair in _objects(span, "attributes")):
                    _add(events, _json_span(span, resource))
    return Traces(span_count, events)


def _json_span(span: dict[str, Any], resource: dict[str, Value]) -> FoundSpan | str:
    try:
        status = _object(span, "status")
        return FoundSpan(
            bytes.fromhex(_text(span, "traceId")),
            bytes.fromhex(_text(span, "spanId")),
            _whole(span.get("startTimeUnixNano") or 0),
            _whole(span.get("endTimeUnixNano") or 0),
            _json_attributes(span, None),
            _whole(status.get("code") or 0) == Status.STATUS_CODE_ERROR,
            _text(status, "message"),
            resource,
        )
    except ValueError as error:
        return f"a span cannot be read: {error}"


def _json_attributes(holder: dict[str, Any], keys: frozenset[str] | None) -> dict[str, Value]:
    found: dict[str, Value] = {}
    for pair in _objects(holder, "attributes"):
        key = _text(pair, "key")
        if (key in keys if keys is not None else _is_wanted(key)) and (
            value := _json_value(_object(pair, "value"))
        ) is not None:
            found[key] = value
    return found


def _json_value(value: dict[str, Any]) -> Value | None:
    for name, item in value.items():
        match name, item:
            case ("stringValue", str()) | ("boolValue", bool()):
                plain: Value = item
                return plain
            case "intValue", str() | int():
                return _whole(item)
            case "doubleValue", int() | float() if not isinstance(item, bool):
                return float(item)
            case "doubleValue", "NaN" | "Infinity" | "-Infinity":
                return float(item)
            case "arrayValue", dict():
                return [_text(each, "stringValue") for each in _objects(item, "values")]
    return None


def _objects(holder: dict[str, Any], name: str) -> list[dict[str, Any]]:
    items = holder.get(name)
    if items is None:
        return []
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise Unreadable(f"{name} must be an array of objects")
    return items


def _object(holder: dict[str, Any], name: str) -> dict[str, Any]:
    item = holder.get(name)
    if item is None:
        return {}
    if not isinstance(item, dict):
        raise Unreadable(f"{name} must be an object")
    return item


def _text(holder: dict[str, Any], name: str) -> str:
    text = holder.get(name)
    if text is None:
        return ""
    if not isinstance(text, str):
        raise Unreadable(f"{name} must be a string")
    return text


def _whole(number: object) -> int:
    """An integer of up to 64 bits, as a number or as decimal digits in a string."""
    if isinstance(number, str) and _DIGITS.fullmatch(number):
        number = int(number)
    if isinstance(number, bool) or not isinstance(number, int) or not -(2**63) <= number < 2**64:
        raise Unreadable("a number of 64 bits must be an integer, or its digits in a string")
    return number


_DIGITS = re.compile(r"-?[0-9]{1,20}")


# --- both ---------------------------------------------------------------------------------------------------


def _add(events: list[FoundSpan | str], event: FoundSpan | str) -> None:
    if len(events) >= MOST_EVENTS:
        raise TooLarge(f"a request must not have more than {MOST_EVENTS} events")
    events.append(event)


def _is_wanted(key: str) -> bool:
    return key.startswith("agent_tracker.") or key in _SPAN_KEYS


_SPAN_KEYS = frozenset(
    (
        semconv.SESSION_ID,
        semconv.GEN_AI_CONVERSATION_ID,
        semconv.GEN_AI_AGENT_ID,
        semconv.USER_ID,
        semconv.ERROR_TYPE,
        semconv.GEN_AI_INPUT_TOKENS,
        semconv.GEN_AI_OUTPUT_TOKENS,
    )
)
_RESOURCE_KEYS = frozenset(
    (
        semconv.SERVICE_NAME,
        semconv.SERVICE_VERSION,
        semconv.SERVICE_INSTANCE_ID,
        semconv.DEPLOYMENT_ENVIRONMENT_NAME,
        semconv.DEPLOYMENT_ENVIRONMENT,
    )
)
