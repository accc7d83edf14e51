"""Event spans to the tracker's requests: the one module that knows both vocabularies."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from hashlib import sha256
from typing import Any, Literal, cast

import orjson
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan

from otel_agent_tracker import semconv, session_id, wire
from otel_agent_tracker.entry import Entry
from otel_agent_tracker.sdk_private import attributes_of
from otel_agent_tracker.semconv import EndedBy, Event, ExpiryReason, Origin, Outcome, TurnStatus

__all__ = ["MARK", "complete", "ended_by", "service_of", "to_request"]

Json = dict[str, Any]

MARK = "agent_tracker"
"""The key of `metadata` that is ours."""


def to_request(span: ReadableSpan) -> Entry | None:
    """The request that the event span `span` asks for; None for any other span and for marked copies."""
    attributes = attributes_of(span)
    event, build = _BUILDERS.get(attributes.get(semconv.EVENT, ""), _NO_EVENT)
    if event is None or attributes.get(semconv.COPY):
        return None
    reader = _Reader(span, attributes)
    if not reader.session_id and event not in _AGENT_EVENTS:
        return None
    path, body, time_us = build(reader)
    return Entry(
        event=event,
        event_id=reader.event_id,
        path=path,
        body=body,
        agent_id=reader.agent_id,
        time_us=time_us,
        session_id=reader.session_id or None,
        service=reader.service,
        lacks=tuple(attributes.get(semconv.LACKS, ())),
    )


def complete(entry: Entry, *, agent_id: str | None, start_us: int | None) -> Entry:
    """The end `entry` with what its caller lacked, as far as the state file knows it."""
    body = dict(entry.body)
    if "agent_id" in entry.lacks and agent_id is not None:
        body["agent_id"] = agent_id
    if "start_time" in entry.lacks and start_us is not None:
        end_us = wire.parse_time(body["end_time"])
        body["start_time"] = wire.format_time(min(start_us, end_us))
        body["duration_seconds"] = _seconds(start_us, end_us)
    return entry._replace(body=body, agent_id=body["agent_id"], lacks=())


def ended_by(entry: Entry) -> str:
    """What ended the conversation, as the end `entry` says."""
    return str(entry.body.get("metadata", {}).get(MARK, {}).get("ended_by", EndedBy.CALL))


def service_of(resource: Resource) -> Json:
    """Name, version, environment and instance of the service that `resource` describes."""
    found = _services.get(id(resource))
    if found is None or found[0] is not resource:
        if len(_services) >= _MAX_SERVICES:
            _services.clear()
        found = _services[id(resource)] = (resource, _read_service(resource.attributes))
    return found[1]


class _Reader:
    """One event span, read in the words of the requests."""

    __slots__ = (
        "agent_id",
        "attributes",
        "end_us",
        "event_id",
        "get",
        "service",
        "session_id",
        "span",
        "start_us",
    )

    def __init__(self, span: ReadableSpan, attributes: Mapping[str, Any]) -> None:
        self.span = span
        self.attributes = attributes
        self.get = get = attributes.get
        self.start_us = (span.start_time or 0) // 1000
        self.end_us = (span.end_time or 0) // 1000
        self.service = service_of(span.resource)
        self.session_id: str = get(semconv.SESSION_ID) or get(semconv.GEN_AI_CONVERSATION_ID) or ""
        self.event_id: str = get(semconv.EVENT_ID) or self._derived_event_id()
        self.agent_id: str = get(semconv.GEN_AI_AGENT_ID) or self._likely_agent_id()

    def metadata(self, marks: Json) -> Json:
        """The user's metadata with our mark, which a key of theirs cannot overwrite."""
        text = self.get(semconv.METADATA)
        mark = {
            "event_id": self.event_id,
            "trace_id": f"{self.span.context.trace_id:032x}",
            "origin": self.get(semconv.ORIGIN) or Origin.CALL,
            "service": self.service,
        }
        for name, value in marks.items():
            if value is not None:
                mark[name] = value
        return {**_json_object(text), MARK: mark} if text else {MARK: mark}

    def _likely_agent_id(self) -> str:
        parsed = session_id.parse(self.session_id)
        return parsed.agent_id if parsed else str(self.service["name"])

    def _derived_event_id(self) -> str:
        context = self.span.context
        text = f"{context.trace_id:032x}\n{context.span_id:016x}\n{self.attributes[semconv.EVENT]}"
        return sha256(text.encode()).digest()[:16].hex()


_Built = tuple[str, Json, int]


def _start(reader: _Reader) -> _Built:
    request = wire.ConversationStart(
        session_id=reader.session_id,
        agent_id=reader.agent_id,
        start_time=wire.format_time(reader.start_us),
        user_id=reader.get(semconv.USER_ID),
        metadata=reader.metadata({"ttl_seconds": reader.get(semconv.TTL_SECONDS)}),
    )
    return request.PATH, wire.to_json(request), reader.start_us


def _turn(reader: _Reader) -> _Built:
    request = wire.ConversationTurn(
        turn_id=reader.get(semconv.TURN_ID) or reader.event_id,
        session_id=reader.session_id,
        agent_id=reader.agent_id,
        start_time=wire.format_time(reader.start_us),
        end_time=wire.format_time(reader.end_us),
        duration_seconds=_seconds(reader.start_us, reader.end_us),
        status=cast("Literal['ok']", reader.get(semconv.TURN_STATUS) or _status_of(reader.span)),
        error_type=reader.get(semconv.ERROR_TYPE),
        error_message=reader.get(semconv.ERROR_MESSAGE) or reader.span.status.description,
        time_to_first_token=reader.get(semconv.TIME_TO_FIRST_TOKEN),
        input_tokens=reader.get(semconv.GEN_AI_INPUT_TOKENS),
        output_tokens=reader.get(semconv.GEN_AI_OUTPUT_TOKENS),
        user_id=reader.get(semconv.USER_ID),
        service=reader.service,
    )
    return request.PATH, wire.to_json(request), reader.start_us


def _conversation(reader: _Reader) -> _Built:
    return _expired(reader) if reader.get(semconv.OUTCOME) == Outcome.EXPIRED else _ended(reader)


def _ended(reader: _Reader) -> _Built:
    failed = reader.get(semconv.OUTCOME) == Outcome.FAILED
    request = wire.ConversationEnd(
        session_id=reader.session_id,
        agent_id=reader.agent_id,
        start_time=wire.format_time(reader.start_us),
        end_time=wire.format_time(reader.end_us),
        duration_seconds=_seconds(reader.start_us, reader.end_us),
        status="failed" if failed else "completed",
        quality_score=reader.get(semconv.QUALITY_SCORE),
        user_feedback=reader.get(semconv.FEEDBACK),
        error_message=(reader.get(semconv.ERROR_MESSAGE) or reader.span.status.description)
        if failed
        else None,
        message_count=reader.get(semconv.MESSAGE_COUNT),
        metadata=reader.metadata(_end_marks(reader)),
    )
    return request.PATH, wire.to_json(request), reader.end_us


def _expired(reader: _Reader) -> _Built:
    request = wire.ConversationExpired(
        session_id=reader.session_id,
        agent_id=reader.agent_id,
        start_time=wire.format_time(reader.start_us),
        end_time=wire.format_time(reader.end_us),
        duration_seconds=_seconds(reader.start_us, reader.end_us),
        expiry_reason=cast(
            "Literal['server']", reader.get(semconv.EXPIRY_REASON) or ExpiryReason.TTL_TIMEOUT
        ),
        metadata=reader.metadata(_end_marks(reader)),
    )
    return request.PATH, wire.to_json(request), reader.end_us


def _end_marks(reader: _Reader) -> Json:
    get = reader.get
    last_activity_ns = get(semconv.LAST_ACTIVITY_TIME)
    return {
        "ended_by": get(semconv.ENDED_BY) or EndedBy.CALL,
        "last_activity_time": wire.format_time(last_activity_ns // 1000) if last_activity_ns else None,
        "idle_seconds": get(semconv.IDLE_SECONDS),
        "ungrouped": get(semconv.UNGROUPED),
        "error_type": get(semconv.ERROR_TYPE),
    }


def _feedback(reader: _Reader) -> _Built:
    request = wire.ConversationFeedback(
        feedback_id=reader.get(semconv.FEEDBACK_ID) or reader.event_id,
        session_id=reader.session_id,
        timestamp=wire.format_time(reader.end_us),
        source=reader.get(semconv.FEEDBACK_SOURCE) or "user",
        quality_score=reader.get(semconv.FEEDBACK_SCORE),
        thumbs=reader.get(semconv.FEEDBACK_THUMBS),
        name=reader.get(semconv.FEEDBACK_NAME),
        turn_id=reader.get(semconv.FEEDBACK_TURN_ID),
        user_feedback=reader.get(semconv.FEEDBACK_TEXT),
        agent_id=reader.get(semconv.GEN_AI_AGENT_ID),
    )
    return request.PATH, wire.to_json(request), reader.end_us


def _register(reader: _Reader) -> _Built:
    request = wire.AgentRegistration(
        agent_id=reader.agent_id,
        registration_time=wire.format_time(reader.end_us),
        sdk_version=reader.get(semconv.AGENT_SDK_VERSION),
        metadata=reader.metadata({}),
    )
    return request.PATH, wire.to_json(request), reader.end_us


def _status(reader: _Reader) -> _Built:
    request = wire.AgentStatusReport(
        agent_id=reader.agent_id,
        status=cast("Literal['active']", reader.get(semconv.AGENT_STATUS)),
        timestamp=wire.format_time(reader.end_us),
        previous_status=reader.get(semconv.AGENT_PREVIOUS_STATUS),
        metadata=reader.metadata({}),
    )
    return request.PATH, wire.to_json(request), reader.end_us


def _activity(reader: _Reader) -> _Built:
    details = reader.get(semconv.AGENT_DETAILS)
    duration = _seconds(reader.start_us, reader.end_us)
    request = wire.AgentActivity(
        agent_id=reader.agent_id,
        action=reader.get(semconv.AGENT_ACTION) or "",
        timestamp=wire.format_time(reader.end_us),
        details=_known_details(details),
        duration=duration or None,
    )
    return request.PATH, wire.to_json(request), reader.end_us


def _known_details(text: str | None) -> Any:
    """What was said of an activity; the field is required, and of nothing there is an empty object."""
    details = orjson.loads(text) if text else None
    return {} if details is None else details


def _status_of(span: ReadableSpan) -> TurnStatus:
    return TurnStatus.OK if span.status.is_unset or span.status.is_ok else TurnStatus.FAILED


def _seconds(start_us: int, end_us: int) -> float:
    return max(0, end_us - start_us) / 1e6


def _json_object(text: str) -> Json:
    """The JSON object in `text`; text of a sender without our library may be anything."""
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        return {"text": text}
    return value if isinstance(value, dict) else {"value": value}


def _read_service(attributes: Mapping[str, Any]) -> Json:
    environment = attributes.get(
        semconv.DEPLOYMENT_ENVIRONMENT_NAME, attributes.get(semconv.DEPLOYMENT_ENVIRONMENT)
    )
    service = {
        "name": str(attributes.get(semconv.SERVICE_NAME, "unknown_service")),
        "version": attributes.get(semconv.SERVICE_VERSION),
        "environment": environment,
        "instance": attributes.get(semconv.SERVICE_INSTANCE_ID),
    }
    return {name: str(value) for name, value in service.items() if value is not None}


_MAX_SERVICES = 1000
_services: dict[int, tuple[Resource, Json]] = {}

_BUILDERS: dict[str, tuple[Event | None, Callable[[_Reader], _Built]]] = {
    Event.CONVERSATION_START: (Event.CONVERSATION_START, _start),
    Event.CONVERSATION_TURN: (Event.CONVERSATION_TURN, _turn),
    Event.CONVERSATION: (Event.CONVERSATION, _conversation),
    Event.CONVERSATION_FEEDBACK: (Event.CONVERSATION_FEEDBACK, _feedback),
    Event.AGENT_REGISTER: (Event.AGENT_REGISTER, _register),
    Event.AGENT_STATUS: (Event.AGENT_STATUS, _status),
    Event.AGENT_ACTIVITY: (Event.AGENT_ACTIVITY, _activity),
}
_NO_EVENT: tuple[None, Callable[[_Reader], _Built]] = (None, _start)
_AGENT_EVENTS = frozenset((Event.AGENT_REGISTER, Event.AGENT_STATUS, Event.AGENT_ACTIVITY))
