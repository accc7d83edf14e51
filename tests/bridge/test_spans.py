"""What of a sender's span becomes an event, and what is wrong with it otherwise."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan

from otel_agent_tracker import semconv
from otel_agent_tracker.bridge.otlp import Encoding, FoundSpan, decode_traces
from otel_agent_tracker.bridge.spans import LATEST_NS, event_span
from tests.bridge.world import foreign, json_request, request, start

RESOURCE = Resource({"service.name": "shop"})
KNOWN = {"agent_tracker.event": "conversation.start", "session.id": "thread-7"}


def found(attributes: dict[str, Any] | None = None, **changed: Any) -> FoundSpan:
    (span,) = decode_traces(request(foreign(KNOWN | (attributes or {}))), Encoding.PROTOBUF).events
    assert isinstance(span, FoundSpan)
    return span._replace(**changed)


def made(attributes: dict[str, Any] | None = None, **changed: Any) -> ReadableSpan:
    return event_span(found(attributes, **changed), RESOURCE)


def test_an_event_span_has_the_event_and_nothing_unknown() -> None:
    """Name, ids, times, status and service; attributes that no request needs are left out."""
    span = made(
        {"agent_tracker.new": 1, "agent_tracker.quality.score": 4.0}, is_error=True, status_message="no"
    )
    assert span.name == "conversation.start"
    assert span.attributes == {**KNOWN, "agent_tracker.quality.score": 4}
    assert (span.context.trace_id, span.context.span_id) == (0xA1B2 << 96 | 1, 0xC3D4 << 32 | 1)
    assert ((span.end_time or 0) - (span.start_time or 0), span.resource) == (2_500_000_000, RESOURCE)
    assert (span.status.is_ok, span.status.description) == (False, "no")


def test_a_conversation_id_is_a_session_id() -> None:
    """GenAI's name does as well; ours goes before it."""
    span = made({"gen_ai.conversation.id": "other"})
    assert (span.attributes or {})[semconv.SESSION_ID] == "thread-7"
    without = found({"gen_ai.conversation.id": "other"})
    del without.attributes["session.id"]
    assert (event_span(without, RESOURCE).attributes or {})[semconv.SESSION_ID] == "other"


@pytest.mark.parametrize(
    "changed",
    [
        {"trace_id": b""},
        {"trace_id": bytes(16)},
        {"trace_id": b"x" * 24},
        {"span_id": bytes(8)},
        {"span_id": b"x" * 12},
        {"start_ns": 0},
        {"start_ns": -1},
        {"start_ns": 2, "end_ns": 1},
        {"end_ns": LATEST_NS},
    ],
    ids=str,
)
def test_ids_and_times_must_be_some(changed: dict[str, Any]) -> None:
    """Neither zero nor of another length; after 1970, before the year 10000, and the start first."""
    with pytest.raises(ValueError, match=r"a (trace id|span id|span) must"):
        made(**changed)


@pytest.mark.parametrize(
    "attributes",
    [
        {"agent_tracker.event": "conversation.begin"},
        {"agent_tracker.event": 7},
        {"session.id": ""},
        {"session.id": "x" * 321},
        {"session.id": "a\x00b"},
        {"session.id": 7},
        {"gen_ai.agent.id": "x" * 257},
        {"user.id": "a\r\nb"},
        {"agent_tracker.event_id": "ABC"},
        {"agent_tracker.copy": "true"},
        {"agent_tracker.turn_status": "great"},
        {"agent_tracker.outcome": "won"},
        {"agent_tracker.quality.score": 6},
        {"agent_tracker.quality.score": 4.5},
        {"agent_tracker.feedback.thumbs": "sideways"},
        {"agent_tracker.message_count": -1},
        {"gen_ai.usage.input_tokens": "12"},
        {"agent_tracker.time_to_first_token": float("nan")},
        {"agent_tracker.idle_seconds": -1.0},
        {"agent_tracker.lacks": "agent_id"},
        {"agent_tracker.metadata": 7},
    ],
    ids=str,
)
def test_a_wrong_value_is_told_with_its_name(attributes: dict[str, Any]) -> None:
    """No tracker would take it: its sender is told now and not by nobody later."""
    with pytest.raises((TypeError, ValueError), match=next(iter(attributes))):
        made(attributes)


def test_an_event_without_a_value_is_refused() -> None:
    """As bytes, say, in which no event is told: in either encoding."""
    body = json_request(start())
    body["resourceSpans"][0]["scopeSpans"][0]["spans"][0]["attributes"][0]["value"] = {"bytesValue": "YQ=="}
    in_protobuf = start()
    in_protobuf.attributes[0].value.bytes_value = b"a"
    for traces in (
        decode_traces(orjson.dumps(body), Encoding.JSON),
        decode_traces(request(in_protobuf), Encoding.PROTOBUF),
    ):
        (span,) = traces.events
        assert isinstance(span, FoundSpan)
        with pytest.raises(TypeError, match=r"agent_tracker\.event must be a string"):
            event_span(span, RESOURCE)


@pytest.mark.parametrize(
    ("event", "missing"),
    [
        ("conversation.start", "session.id"),
        ("conversation.feedback", "session.id"),
        ("agent.register", "gen_ai.agent.id"),
        ("agent.status", "agent_tracker.agent.status"),
        ("agent.activity", "agent_tracker.agent.action"),
    ],
)
def test_what_an_event_cannot_do_without_is_named(event: str, missing: str) -> None:
    """An end or a turn needs its session, too."""
    span = found({"agent_tracker.event": event, "gen_ai.agent.id": "a"} | _STATUS)
    del span.attributes[missing]
    with pytest.raises(ValueError, match=f"^{event} needs {missing}$"):
        event_span(span, RESOURCE)


_STATUS = {"agent_tracker.agent.status": "busy", "agent_tracker.agent.action": "purr"}
