"""What is decoded of an OTLP request, and how much it may ask for."""

from __future__ import annotations

import tracemalloc
from typing import Any

import orjson
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Status

from otel_agent_tracker.bridge import otlp
from otel_agent_tracker.bridge.bodies import TooLarge, Unreadable
from otel_agent_tracker.bridge.otlp import Encoding, Traces, decode_traces
from tests.bridge.world import end, foreign, json_request, request, start

FAILED = end(
    number=3, error__type="OSError", agent_tracker__quality__score=4, agent_tracker__lacks=["a", "b"]
)
FAILED.status.MergeFrom(Status(code=Status.STATUS_CODE_ERROR, message="no route"))
SPANS = (start(), foreign({"http.route": "/", "gen_ai.prompt": "x" * 300}, 2), FAILED)


def decoded(body: bytes) -> Traces:
    return decode_traces(body, Encoding.PROTOBUF)


def decoded_json(body: object) -> Traces:
    return decode_traces(orjson.dumps(body), Encoding.JSON)


def test_both_encodings_tell_the_same() -> None:
    """Ids, times, attributes of each kind, status and service; of foreign spans only how many there are."""
    traces = decoded(request(*SPANS))
    assert traces == decoded_json(json_request(*SPANS))
    assert traces.span_count == 3
    first, second = traces.events
    assert not isinstance(first, str)
    assert not isinstance(second, str)
    assert first.attributes == {
        "agent_tracker.event": "conversation.start",
        "session.id": "thread-7",
        "gen_ai.agent.id": "support-bot",
    }
    assert (first.trace_id, first.span_id) == (SPANS[0].trace_id, SPANS[0].span_id)
    assert (first.end_ns - first.start_ns, first.is_error) == (2_500_000_000, False)
    assert first.resource == {"service.name": "shop", "service.version": "2"}
    assert (second.is_error, second.status_message) == (True, "no route")
    assert second.attributes["agent_tracker.lacks"] == ["a", "b"]
    assert second.attributes["agent_tracker.quality.score"] == 4


def test_nothing_is_a_request_without_spans() -> None:
    """So says protobuf of no bytes, and OTLP of an empty object."""
    assert decoded(b"") == decoded_json({}) == Traces(0, [])


def test_what_is_unknown_is_passed_over() -> None:
    """Fields that are to come, at each level and of each kind."""
    unknown = bytes((0xF8, 0x7F, 1)) + bytes((0xF9, 0x7F)) + bytes(8) + bytes((0xFD, 0x7F)) + bytes(4)
    unknown += bytes((0xFA, 0x7F, 2)) + b"xy"
    scope_spans = field(2, SPANS[0].SerializeToString() + unknown) + unknown
    resource_spans = field(1, b"") + unknown + field(2, scope_spans)
    assert decoded(field(1, resource_spans) + unknown).span_count == 1
    with_more = json_request(*SPANS)
    with_more["resourceSpans"][0]["scopeSpans"][0]["spans"][0] |= {"new": [1], "flags": 257}
    with_more["new"] = {"a": None}
    assert decoded_json(with_more) == decoded_json(json_request(*SPANS))


def field(number: int, content: bytes) -> bytes:
    """A field with a length, as protobuf writes it."""
    return bytes((number << 3 | 2,)) + varint(len(content)) + content


def varint(number: int) -> bytes:
    out = b""
    while number >= 0x80:
        out += bytes((number & 0x7F | 0x80,))
        number >>= 7
    return out + bytes((number,))


def test_a_resource_may_follow_its_spans() -> None:
    """Protobuf promises no order of fields; pieces of one message are their sum."""
    message = ExportTraceServiceRequest.FromString(request(SPANS[0])).resource_spans[0]
    scope_spans = message.scope_spans[0].SerializeToString()
    resource = message.resource.SerializeToString()
    assert decoded(field(1, field(2, scope_spans) + field(1, resource))) == decoded(request(SPANS[0]))
    first, second = (field(1, pair.SerializeToString()) for pair in message.resource.attributes)
    assert decoded(field(1, field(1, first) + field(2, scope_spans) + field(1, second))) == decoded(
        request(SPANS[0])
    )


@pytest.mark.parametrize("kept", range(1, 300, 7))
def test_a_body_that_is_cut_off_is_refused(kept: int) -> None:
    """Wherever that is: nothing of it is taken."""
    with pytest.raises(Unreadable):
        decoded(request(*SPANS)[:kept])
    with pytest.raises(Unreadable):
        decode_traces(orjson.dumps(json_request(*SPANS))[:kept], Encoding.JSON)


@pytest.mark.parametrize(
    "body",
    [
        b"no protobuf",
        b"\xff" * 20,
        b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
        b"\x0b\x0c",  # groups
        b"\x02\x00",  # number 0
        orjson.dumps(json_request(*SPANS)),
    ],
)
def test_what_is_no_protobuf_is_refused(body: bytes) -> None:
    """JSON among it."""
    with pytest.raises(Unreadable):
        decoded(body)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"7",
        b"{",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"resourceSpans":{}}',
        b'{"resourceSpans":[1]}',
        b'{"resourceSpans":[{"resource":[1]}]}',
        b'{"resourceSpans":[{"scopeSpans":[{"spans":[{"attributes":"x"}]}]}]}',
        request(*SPANS),
    ],
)
def test_what_is_no_json_of_ours_is_refused(body: bytes) -> None:
    """Protobuf and depth without end among it; null is nothing said."""
    with pytest.raises(Unreadable):
        decode_traces(body, Encoding.JSON)
    assert decode_traces(b'{"resourceSpans":null}', Encoding.JSON) == Traces(0, [])


@pytest.mark.parametrize(
    "change",
    [
        {"traceId": "zz" * 16},
        {"traceId": "oaKyAAAAAAAAAAAAAAAAAQ=="},  # base64, as protobuf's own JSON has it
        {"startTimeUnixNano": "soon"},
        {"startTimeUnixNano": 1e300},
        {"endTimeUnixNano": "9" * 30},
        {"status": {"code": "STATUS_CODE_ERROR"}},
        {"attributes": [{"key": "agent_tracker.event", "value": {"intValue": "x"}}]},
    ],
)
def test_one_span_that_cannot_be_read_costs_no_other(change: dict[str, Any]) -> None:
    """It is told in the place of its span."""
    body = json_request(*SPANS)
    body["resourceSpans"][0]["scopeSpans"][0]["spans"][0] |= change
    spoilt, good = decoded_json(body).events
    assert isinstance(spoilt, str)
    assert spoilt.startswith("a span cannot be read: ")
    assert good == decoded(request(*SPANS)).events[1]


def test_numbers_may_be_numbers_or_digits() -> None:
    """64 bits do not fit into the numbers of every language."""
    body = json_request(SPANS[2])
    span = body["resourceSpans"][0]["scopeSpans"][0]["spans"][0]
    span["startTimeUnixNano"] = int(span["startTimeUnixNano"])
    for pair in span["attributes"]:
        if "intValue" in pair["value"]:
            pair["value"]["intValue"] = int(pair["value"]["intValue"])
    assert decoded_json(body) == decoded(request(SPANS[2]))


def test_many_empty_spans_cost_little() -> None:
    """A body of 1 MB that is half a million spans is refused, and takes no memory to speak of."""
    tracemalloc.start()
    try:
        with pytest.raises(TooLarge):
            decoded(field(1, field(2, field(2, b"") * otlp.MOST_PARTS)))
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()


def test_json_of_many_parts_is_refused_unread() -> None:
    """Each part would be an object."""
    with pytest.raises(TooLarge):
        decode_traces(b"[" + b"{}," * otlp.MOST_JSON_PARTS + b"{}]", Encoding.JSON)


def test_an_event_that_is_too_large_is_refused_alone() -> None:
    """Foreign spans may have any size."""
    large = start(agent_tracker__metadata="x" * otlp.LARGEST_PART)
    spoilt, good = decoded(request(large, foreign({"gen_ai.prompt": "x" * 3_000_000}, 2), SPANS[2])).events
    assert spoilt == f"an event's span must not be larger than {otlp.LARGEST_PART} bytes"
    assert not isinstance(good, str)


def test_a_resource_that_is_too_large_is_refused() -> None:
    """Of a request with events; no other is looked at."""
    resource = {"service.name": "x" * otlp.LARGEST_PART}
    with pytest.raises(TooLarge):
        decoded(request(start(), resource=resource))
    assert decoded(request(foreign({}), resource=resource)).span_count == 1


def test_events_have_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """All or none of them are taken."""
    monkeypatch.setattr(otlp, "MOST_EVENTS", 2)
    assert len(decoded(request(start(), end())).events) == 2
    with pytest.raises(TooLarge):
        decoded(request(*[start()] * 3))
    with pytest.raises(TooLarge):
        decoded_json(json_request(*[start()] * 3))


def test_a_mark_elsewhere_makes_no_event() -> None:
    """In a value, in another key, in a resource: only an attribute of the span's own counts."""
    named = foreign({"note": "agent_tracker.event", "x.agent_tracker.event": "conversation.start"})
    traces = decoded(request(named, resource={"agent_tracker.event": "conversation.start"}))
    assert traces == Traces(1, [])
