"""Spans of any sender, checked and made what our own event spans are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanContext, Status, StatusCode, TraceFlags

from otel_agent_tracker import arguments, semconv
from otel_agent_tracker.bridge.otlp import FoundSpan, Value
from otel_agent_tracker.semconv import (
    AgentStatus,
    EndedBy,
    Event,
    ExpiryReason,
    FeedbackSource,
    Origin,
    Outcome,
    TurnStatus,
)

__all__ = ["event_span"]

LATEST_NS = 253_402_300_800 * 1_000_000_000  # the year 10000, which no time on the wire can name
_TRACE_ID_BYTES, _SPAN_ID_BYTES = 16, 8
_SAMPLED = TraceFlags(TraceFlags.SAMPLED)


def event_span(found: FoundSpan, resource: Resource) -> ReadableSpan:
    """The event span that was found, with what a request needs of it.

    Raises ValueError or TypeError, which says why, if it tells no event that a tracker would take.
    """
    attributes = _checked(found.attributes)
    event = attributes.get(semconv.EVENT)
    if event is None:
        raise TypeError(f"{semconv.EVENT} must be a string")
    for key in _NEEDED.get(event, (semconv.SESSION_ID,)):
        if key not in attributes:
            raise ValueError(f"{event} needs {key}")
    if not 0 < found.start_ns <= found.end_ns < LATEST_NS:
        raise ValueError("a span must start after 1970 and not after its end")
    return ReadableSpan(
        name=str(event),
        context=SpanContext(
            _id("trace id", found.trace_id, _TRACE_ID_BYTES),
            _id("span id", found.span_id, _SPAN_ID_BYTES),
            is_remote=True,
            trace_flags=_SAMPLED,
        ),
        resource=resource,
        attributes=attributes,  # type: ignore[arg-type]  # a mapping of what attributes may be
        status=Status(StatusCode.ERROR, found.status_message) if found.is_error else Status(),
        start_time=found.start_ns,
        end_time=found.end_ns,
    )


def _id(name: str, given: bytes, length: int) -> int:
    number = int.from_bytes(given, "big")
    if len(given) != length or not number:
        raise ValueError(f"a {name} must have {length} bytes that are not all zero")
    return number


def _checked(attributes: Mapping[str, Value]) -> dict[str, object]:
    """The attributes that our events have, each as it must be; unknown ones are left out."""
    checked = {
        key: check(key, value) for key, value in attributes.items() if (check := _CHECKS.get(key)) is not None
    }
    session = checked.get(semconv.SESSION_ID) or checked.get(semconv.GEN_AI_CONVERSATION_ID)
    if session is not None:
        checked[semconv.SESSION_ID] = session
    return checked


def _flag(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be a bool, not {type(value).__name__}")
    return value


def _whole(check: Callable[[str, object], int], name: str, value: object) -> int:
    """A number that must be whole; languages that know one kind of number only send it as a double."""
    return check(name, int(value) if isinstance(value, float) and value.is_integer() else value)


def _event_id(name: str, value: object) -> str:
    text = arguments.text(name, value)
    if len(text) != _EVENT_ID_DIGITS or not _HEX.issuperset(text):
        raise ValueError(f"{name} must have {_EVENT_ID_DIGITS} lower-case hex digits")
    return text


def _texts(name: str, value: object) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise TypeError(f"{name} must be an array of strings")
    return tuple(value)


def _thumbs(name: str, value: object) -> str:
    if value not in ("up", "down"):
        raise ValueError(f"{name} must be up or down")
    return str(value)


_EVENT_ID_DIGITS = 32
_HEX = frozenset("0123456789abcdef")
_COUNT = partial(_whole, arguments.count)
_QUALITY = partial(_whole, arguments.quality)

_NEEDED: dict[object, tuple[str, ...]] = {
    Event.AGENT_REGISTER: (semconv.GEN_AI_AGENT_ID,),
    Event.AGENT_STATUS: (semconv.GEN_AI_AGENT_ID, semconv.AGENT_STATUS),
    Event.AGENT_ACTIVITY: (semconv.GEN_AI_AGENT_ID, semconv.AGENT_ACTION),
}
"""What an event cannot do without; the others need their session."""

_CHECKS: dict[str, Callable[[str, object], object]] = {
    semconv.EVENT: partial(arguments.member, choices=Event),
    semconv.EVENT_ID: _event_id,
    semconv.COPY: _flag,
    semconv.SESSION_ID: arguments.session_identifier,
    semconv.GEN_AI_CONVERSATION_ID: arguments.session_identifier,
    semconv.GEN_AI_AGENT_ID: arguments.identifier,
    semconv.USER_ID: arguments.identifier,
    semconv.ERROR_TYPE: arguments.text,
    semconv.GEN_AI_INPUT_TOKENS: _COUNT,
    semconv.GEN_AI_OUTPUT_TOKENS: _COUNT,
    semconv.ORIGIN: partial(arguments.member, choices=Origin),
    semconv.METADATA: arguments.text,
    semconv.TTL_SECONDS: arguments.positive_number,
    semconv.TURN_ID: arguments.identifier,
    semconv.TURN_STATUS: partial(arguments.member, choices=TurnStatus),
    semconv.TIME_TO_FIRST_TOKEN: arguments.seconds,
    semconv.OUTCOME: partial(arguments.member, choices=Outcome),
    semconv.ENDED_BY: partial(arguments.member, choices=EndedBy),
    semconv.LAST_ACTIVITY_TIME: _COUNT,
    semconv.IDLE_SECONDS: arguments.seconds,
    semconv.UNGROUPED: _flag,
    semconv.LACKS: _texts,
    semconv.QUALITY_SCORE: _QUALITY,
    semconv.FEEDBACK: arguments.text,
    semconv.MESSAGE_COUNT: _COUNT,
    semconv.ERROR_MESSAGE: arguments.text,
    semconv.EXPIRY_REASON: partial(arguments.member, choices=ExpiryReason),
    semconv.FEEDBACK_ID: arguments.identifier,
    semconv.FEEDBACK_SOURCE: partial(arguments.member, choices=FeedbackSource),
    semconv.FEEDBACK_SCORE: _QUALITY,
    semconv.FEEDBACK_THUMBS: _thumbs,
    semconv.FEEDBACK_NAME: arguments.text,
    semconv.FEEDBACK_TEXT: arguments.text,
    semconv.FEEDBACK_TURN_ID: arguments.identifier,
    semconv.AGENT_SDK_VERSION: arguments.text,
    semconv.AGENT_STATUS: partial(arguments.member, choices=AgentStatus),
    semconv.AGENT_PREVIOUS_STATUS: partial(arguments.member, choices=AgentStatus),
    semconv.AGENT_ACTION: arguments.text,
    semconv.AGENT_DETAILS: arguments.text,
}
