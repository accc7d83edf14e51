"""Whatever a sender writes is an answer and never a mistake; `FUZZ_EXAMPLES` says how long to look for one."""

from __future__ import annotations

import os
from typing import Any

import orjson
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from opentelemetry.sdk.resources import Resource

from otel_agent_tracker import semconv
from otel_agent_tracker.bridge.bodies import ENCODINGS, TooLarge, Unreadable, unpack
from otel_agent_tracker.bridge.otlp import Encoding, Traces, decode_traces
from otel_agent_tracker.bridge.spans import event_span
from otel_agent_tracker.clock import SYSTEM_CLOCK
from otel_agent_tracker.entry import Entry
from otel_agent_tracker.intake import Intake
from otel_agent_tracker.redaction import Redactor
from otel_agent_tracker.sessions import SessionMap
from tests.bridge.world import end, foreign, json_request, request, start

EXAMPLES = settings(max_examples=int(os.environ.get("FUZZ_EXAMPLES", "100")))
RESOURCE = Resource({"service.name": "shop"})
KEYS = sorted(
    value
    for name, value in vars(semconv).items()
    if name.isupper() and isinstance(value, str) and "." in value
)
WORDS = sorted({str(word) for each in (semconv.Event, semconv.Outcome, semconv.TurnStatus) for word in each})

values = st.one_of(
    st.sampled_from(WORDS),
    st.text(max_size=20),
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(),
    st.lists(st.text(max_size=5), max_size=3),
)
attributes = st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=10), values, max_size=8)
sessions = st.just({"session.id": "thread-7"})
events = st.builds(lambda a, s, e, n: foreign({**s, **a, "agent_tracker.event": e}, n), attributes, sessions,
    st.sampled_from(list(semconv.Event)), st.integers(1, 9))  # fmt: skip
spans = st.lists(events | st.builds(foreign, attributes, st.integers(1, 9)), max_size=4)
BODIES = [
    request(start(), foreign({"a": 1}, 2), end(number=3, agent_tracker__lacks=["a"])),
    orjson.dumps(json_request(start(), foreign({"a": 1}, 2), end(number=3))),
]


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A good body with some of its bytes replaced, left out or doubled."""
    body = bytearray(draw(st.sampled_from(BODIES)))
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, max(0, len(body) - 1)))
        length = draw(st.integers(0, 8))
        body[at : at + length] = draw(
            st.one_of(st.binary(max_size=8), st.just(bytes(body[at : at + length]) * 2))
        )
    return bytes(body)


def requests_of(traces: Traces) -> list[dict[str, Any]]:
    """What the tracker would get; spans that are refused are left out, and leave no trace."""
    bodies: list[dict[str, Any]] = []

    def keep(entry: Entry) -> bool:
        assert Entry.decode(entry.encode()) == entry
        bodies.append(entry.body)
        return True

    sessions = SessionMap(ttl_seconds=60, idle_seconds=60, max_sessions=10, clock=SYSTEM_CLOCK)
    intake = Intake(sessions, keep, Redactor())
    for found in traces.events:
        before = len(bodies)
        try:
            if not isinstance(found, str):
                assert intake.take_in(event_span(found, RESOURCE))
        except (TypeError, ValueError):
            assert len(bodies) == before
    return bodies


@EXAMPLES
@given(st.binary(max_size=300) | damaged(), st.sampled_from(Encoding))
def test_any_bytes_are_read_or_refused(body: bytes, encoding: Encoding) -> None:
    """Nothing but the two reasons to refuse is raised, and what is found can be told."""
    try:
        traces = decode_traces(body, encoding)
    except (Unreadable, TooLarge):
        return
    requests_of(traces)


@EXAMPLES
@given(spans)
def test_any_spans_are_found_in_either_encoding(made: list[Span]) -> None:
    """All that are events, as a full parse finds them, and the same in protobuf and in JSON."""
    body = request(*made)
    traces = decode_traces(body, Encoding.PROTOBUF)
    assert traces.span_count == len(made)
    assert len(traces.events) == sum(
        any(pair.key == semconv.EVENT for pair in span.attributes) for span in made
    )
    assert requests_of(decode_traces(orjson.dumps(json_request(*made)), Encoding.JSON)) == requests_of(traces)


@EXAMPLES
@given(damaged())
def test_what_is_walked_is_what_protobuf_parses(body: bytes) -> None:
    """A body that protobuf parses is taken, with as many spans."""
    try:
        whole = ExportTraceServiceRequest.FromString(body)
    except DecodeError:
        return
    count = sum(len(scope.spans) for each in whole.resource_spans for scope in each.scope_spans)
    assert decode_traces(body, Encoding.PROTOBUF).span_count == count


@EXAMPLES
@given(st.sampled_from(sorted(ENCODINGS)), st.binary(max_size=200), st.integers(0, 300))
def test_any_bytes_are_unpacked_or_refused(encoding: str, body: bytes, limit: int) -> None:
    """Never to more than the limit."""
    try:
        assert len(unpack(body, encoding, limit)) <= limit
    except (Unreadable, TooLarge):
        return
