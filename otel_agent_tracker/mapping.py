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
from otel_agent_tracker.semconv import EndedBy, Event, ExpiryReason, Origin, Outcome, TurnStatus

__all__ = ["MARK", "complete", "service_of", "to_request"]

Json = dict[str, Any]

MARK = "agent_tracker"
"""The key of `metadata` that is ours."""


def to_request(span: ReadableSpan) -> Entry | None:
    """The request that the event span `span` asks for; None for any other span and for marked copies."""
    attributes = span.attributes or {}
    build = _BUILDERS.get(cast("str", attributes.get(semconv.EVENT)))
    if build is None or attributes.get(semconv.COPY):
        return None
    return _Reader(span, attributes).entry(build)


def complete(entry: Entry, *, agent_id: str | None, start_us: int | None) -> Entry:
    """The end `entry` with what its caller lacked, as far as the state file knows it."""
    body = dict(entry.body)
    if "agent_id" in entry.lacks and agent_id is not None:
        body["agent_id"] = agent_id
    if "start_time" in entry.lacks and start_us is not None:
        end_us = wire.parse_time(body["end_time"])
        body["start_time"] = wire.format_time(min(start_us, end_us))
        body["duration_seconds"] = _seconds(start_us, end_us)
    return Entry(
        event=entry.event,
        event_id=entry.event_id,
        path=entry.path,
        body=body,
        agent_id=body["agent_id"],
        time_us=entry.time_us,
        session_id=entry.session_id,
        service=entry.service,
        otlp=entry.otlp,
    )


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

    __slots__ = ("attributes", "end_us", "service", "session_id", "span", "start_us")

    def __init__(self, span: ReadableSpan, attributes: Mapping[str, Any]) -> None:
        self.span = span
        self.attributes = attributes
        self.start_us = (span.start_time or 0) // 1000
        self.end_us = (span.end_time or 0) // 1000
        self.service = service_of(span.resource)
        self.session_id: str = attributes.get(semconv.SESSION_ID) or attributes.get(
            semconv.GEN_AI_CONVERSATION_ID, ""
        )

    def entry(self, build: Callable[[_Reader], tuple[str, Json, int]]) -> Entry | None:
        if not self.session_id and build not in _AGENT_BUILDERS:
            return None
        path, body, time_us = build(self)
        return Entry(
            event=Event(self.attributes[semconv.EVENT]),
            event_id=self.event_id,
            path=path,
            body=body,
            agent_id=self.agent_id,
            time_us=time_us,
            session_id=self.session_id or None,
            service=self.service,
            lacks=tuple(self.attributes.get(semconv.LACKS, ())),
        )

    @property
    def event_id(self) -> str:
        minted = self.attributes.get(semconv.EVENT_ID)
        return cast("str", minted) if minted else self._derived_event_id()

    @property
    def agent_id(self) -> str:
        agent_id = self.attributes.get(semconv.GEN_AI_AGENT_ID)
        if agent_id:
            return cast("str", agent_id)
        parsed = session_id.parse(self.session_id)
        return parsed.agent_id if parsed else str(self.service["name"])

    def get(self, key: str) -> Any:
        return self.attributes.get(key)

    def metadata(self, **marks: object) -> Json:
        """The user's metadata with our mark, which a key of theirs cannot overwrite."""
        text = self.attributes.get(semconv.METADATA)
        mark = {
            "event_id": self.event_id,
            "trace_id": f"{self.span.context.trace_id:032x}",
            "origin": self.attributes.get(semconv.ORIGIN, Origin.CALL),
            "service": self.service,
        }
        mark.update((name, value) for name, value in marks.items() if value is not None)
        return {**(_json_object(text) if text else {}), MARK: mark}

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
        metadata=reader.metadata(ttl_seconds=reader.get(semconv.TTL_SECONDS)),
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
        metadata=reader.metadata(**_end_marks(reader)),
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
        metadata=reader.metadata(**_end_marks(reader)),
    )
    return request.PATH, wire.to_json(request), reader.end_us


def _end_marks(reader: _Reader) -> Json:
    last_activity_ns = reader.get(semconv.LAST_ACTIVITY_TIME)
    return {
        "ended_by": reader.get(semconv.ENDED_BY) or EndedBy.CALL,
        "last_activity_time": wire.format_time(last_activity_ns // 1000) if last_activity_ns else None,
        "idle_seconds": reader.get(semconv.IDLE_SECONDS),
        "ungrouped": reader.get(semconv.UNGROUPED),
        "error_type": reader.get(semconv.ERROR_TYPE),
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
        metadata=reader.metadata(),
    )
    return request.PATH, wire.to_json(request), reader.end_us


def _status(reader: _Reader) -> _Built:
    request = wire.AgentStatusReport(
        agent_id=reader.agent_id,
        status=reader.get(semconv.AGENT_STATUS),
        timestamp=wire.format_time(reader.end_us),
        previous_status=reader.get(semconv.AGENT_PREVIOUS_STATUS),
        metadata=reader.metadata(),
    )
    return request.PATH, wire.to_json(request), reader.end_us


def _activity(reader: _Reader) -> _Built:
    details = reader.get(semconv.AGENT_DETAILS)
    duration = _seconds(reader.start_us, reader.end_us)
    request = wire.AgentActivity(
        agent_id=reader.agent_id,
        action=reader.get(semconv.AGENT_ACTION) or "",
        timestamp=wire.format_time(reader.end_us),
        details=orjson.loads(details) if details else {},
        duration=duration or None,
    )
    return request.PATH, wire.to_json(request), reader.end_us


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

_BUILDERS: dict[str, Callable[[_Reader], _Built]] = {
    Event.CONVERSATION_START: _start,
    Event.CONVERSATION_TURN: _turn,
    Event.CONVERSATION: _conversation,
    Event.CONVERSATION_FEEDBACK: _feedback,
    Event.AGENT_REGISTER: _register,
    Event.AGENT_STATUS: _status,
    Event.AGENT_ACTIVITY: _activity,
}
_AGENT_BUILDERS = frozenset((_register, _status, _activity))
