"""What arrives: requests checked and read, alike whether alone, in a batch or back from the database.

An id tells repetitions: the one that the sender minted, else one derived from the request, so that an exact
retry by a client that knows no ids counts once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from math import isfinite
from typing import Any, NamedTuple, cast

import orjson
from pydantic import TypeAdapter, ValidationError

from otel_agent_tracker import outcome, wire
from otel_agent_tracker.arguments import count, identifier, session_identifier
from otel_agent_tracker.session_id import turn_event_id

__all__ = ["Arrival", "Service", "UnknownPath", "arrive", "fill", "read", "read_batch_event", "restore"]

Json = dict[str, Any]
MAX_DEPTH = 100


class UnknownPath(ValueError):  # noqa: N818 - says what is so
    """No request is posted to this path."""


class Service(NamedTuple):
    """The process that an event tells of."""

    service: str | None = None
    version: str | None = None
    environment: str | None = None
    instance: str | None = None

    @classmethod
    def read(cls, value: object) -> Service:
        """From ``{"name", "version", "environment", "instance"}``; what is no text counts as absent."""
        if not isinstance(value, dict):
            return cls()
        texts = map(value.get, ("name", "version", "environment", "instance"))
        return cls(*[text if isinstance(text, str) and text else None for text in texts])

    def filled_by(self, other: Service) -> Service:
        """This, with what it lacks from `other`."""
        return (
            Service(*[own or others for own, others in zip(self, other, strict=True)])
            if None in self
            else self
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """One request that was read; `event` is what it tells the outcome rules, None for an agent's.

    `body` is the request as JSON text, as far as this release knows its fields.
    """

    event_id: str
    request: wire.Request
    body: str
    time_us: int
    event: outcome.Event | None
    service: Service

    @property
    def path(self) -> str:
        """Where it was posted."""
        return self.request.PATH

    @property
    def session_id(self) -> str | None:
        """The session that it tells of."""
        return getattr(self.request, "session_id", None)

    @property
    def agent_id(self) -> str | None:
        """The agent that it tells of."""
        return getattr(self.request, "agent_id", None)


def read(path: str, body: bytes | str | Json, event_id: str, service: Service) -> Arrival:
    """Check and read a request; raises ValueError with what was wrong, `UnknownPath` for an unknown path."""
    adapter = _ADAPTERS.get(path)
    if adapter is None:
        raise UnknownPath(f"unknown path {path[:64]!r}")
    try:
        request = adapter.validate_python(body) if isinstance(body, dict) else adapter.validate_json(body)
    except ValidationError as error:
        raise ValueError(_explain(error)) from error
    return arrive(request, event_id, service)


def arrive(request: wire.Request, event_id: str | None, service: Service | None = None) -> Arrival:
    """Check a request of the right types; raises ValueError with what was wrong."""
    for name, rule in _RULES[type(request)]:
        if (value := getattr(request, name)) is not None:
            rule(name, value)
    if isinstance(request, wire.ConversationFeedback):
        _check_said(request)
    body = _write(request)
    ours = _ours(request)
    event_id = identifier("event_id", event_id or _said_event_id(ours) or _derived_event_id(request, body))
    event = _event(request, event_id)
    return Arrival(
        event_id=event_id,
        request=request,
        body=body.decode(),
        time_us=_time_us(request, event),
        event=event,
        service=_told_service(request, ours, service),
    )


def read_batch_event(value: object) -> Arrival:
    """One event of a batch; raises as `read` does."""
    try:
        event = _BATCH_EVENT.validate_python(value)
    except ValidationError as error:
        raise ValueError(_explain(error)) from error
    return read(event.path, event.body, identifier("event_id", event.event_id), Service.read(event.service))


def restore(path: str, body: str, event_id: str) -> outcome.Event:
    """The event of a stored request, which was checked when it came."""
    event = _event(_ADAPTERS[path].validate_json(body), event_id)
    if event is None:
        raise ValueError(f"a request to {path} tells nothing of a conversation")
    return event


def fill(stored: Arrival, repeated: Arrival) -> Arrival:
    """`stored` with the fields that it lacks from `repeated`; `stored` itself if it lacks none of them.

    Raises ValueError if the two cannot be one event.
    """
    if (stored.path, stored.session_id) != (repeated.path, repeated.session_id):
        raise ValueError("this event_id belongs to another event")
    body = wire.to_json(repeated.request) | wire.to_json(stored.request)
    service = stored.service.filled_by(repeated.service)
    if service == stored.service and len(body) == len(wire.to_json(stored.request)):
        return stored
    return replace(read(stored.path, body, stored.event_id, service), service=service)


# --- reading ------------------------------------------------------------------------------------------------


def _ours(request: wire.Request) -> Json:
    ours = (getattr(request, "metadata", None) or {}).get("agent_tracker")
    return ours if isinstance(ours, dict) else {}


def _write(request: wire.Request) -> bytes:
    """The request as JSON; raises ValueError for what is nested so deep that answers could not hold it."""
    fields = wire.to_json(request)
    try:
        body = orjson.dumps(fields, option=orjson.OPT_SORT_KEYS)
    except orjson.JSONEncodeError:
        raise ValueError(_TOO_DEEP) from None
    if body.count(b"{") + body.count(b"[") > MAX_DEPTH and _is_deep(fields):
        raise ValueError(_TOO_DEEP)
    return body


def _told_service(request: wire.Request, ours: Json, service: Service | None) -> Service:
    """What came beside the request goes before what it holds itself."""
    if service and None not in service:
        return service
    told = Service.read(getattr(request, "service", None) or ours.get("service"))
    return service.filled_by(told) if service else told


def _said_event_id(ours: Json) -> str | None:
    event_id = ours.get("event_id")
    return event_id if isinstance(event_id, str) else None


def _derived_event_id(request: wire.Request, body: bytes) -> str:
    match request:
        case wire.ConversationTurn():
            return turn_event_id(request.turn_id)
        case wire.ConversationFeedback():
            return request.feedback_id
    return sha256(request.PATH.encode() + b"\n" + body).hexdigest()[:32]


def _event(request: wire.Request, event_id: str) -> outcome.Event | None:
    return outcome.read_event(request, event_id) if isinstance(request, outcome.ConversationRequest) else None


def _time_us(request: wire.Request, event: outcome.Event | None) -> int:
    match event:
        case outcome.Start() | outcome.Feedback():
            return event.time_us
        case outcome.Turn() | outcome.End():
            return event.end_us
    name = "registration_time" if isinstance(request, wire.AgentRegistration) else "timestamp"
    return _read_time(name, getattr(request, name))


def _read_time(name: str, text: str) -> int:
    try:
        time_us = wire.parse_time(text)
    except ValueError:
        raise ValueError(f"{name} must be an RFC 3339 time, not {text[:64]!r}") from None
    if not 0 <= time_us < _YEAR_10000_US:
        raise ValueError(f"{name} must lie between 1970 and 9999, not {text[:64]!r}")
    return time_us


def _explain(error: ValidationError) -> str:
    return "; ".join(
        f"{'.'.join(map(str, each['loc'])) or 'body'}: {each['msg']}" for each in error.errors()[:5]
    )


# --- rules of single fields ---------------------------------------------------------------------------------


def _seconds(name: str, value: Any) -> None:
    if not (isfinite(value) and value >= 0):
        raise ValueError(f"{name} must be a finite number of 0 or more, not {value}")


def _quality(name: str, value: Any) -> None:
    if not 1 <= value <= 5:
        raise ValueError(f"{name} must be a whole number from 1 to 5, not {value}")


def _check_said(feedback: wire.ConversationFeedback) -> None:
    """As the library has it: something is said, and one rating at most."""
    if feedback.quality_score is None and feedback.thumbs is None and feedback.user_feedback is None:
        raise ValueError("feedback needs a quality_score, thumbs (up or down) or a user_feedback")
    if feedback.quality_score is not None and feedback.thumbs is not None:
        raise ValueError("feedback takes either a quality_score or thumbs, not both")


def _is_deep(value: Json) -> bool:
    level, depth = _containers([value]), 0
    while level and depth <= MAX_DEPTH:
        depth += 1
        level = [child for parent in level for child in _containers(parent)]
    return depth > MAX_DEPTH


def _containers(values: Iterable[Any]) -> list[Iterable[Any]]:
    """The objects and arrays among `values`, each as what it holds."""
    return [
        value.values() if isinstance(value, dict) else value
        for value in values
        if isinstance(value, dict | list)
    ]


_TOO_DEEP = f"what is sent must not be nested deeper than {MAX_DEPTH}"
_YEAR_10000_US = 253_402_300_800_000_000
_FIELD_RULES: Mapping[str, Callable[[str, Any], object]] = {
    **dict.fromkeys(("agent_id", "user_id", "turn_id", "feedback_id", "instance"), identifier),
    "session_id": session_identifier,
    **dict.fromkeys(("message_count", "input_tokens", "output_tokens"), count),
    **dict.fromkeys(("duration_seconds", "duration", "time_to_first_token"), _seconds),
    "quality_score": _quality,
}
_RULES = {
    request: [(name, _FIELD_RULES[name]) for name in request.__dataclass_fields__ if name in _FIELD_RULES]
    for request in wire.REQUESTS.values()
}
_BATCH_EVENT = TypeAdapter(wire.BatchEvent)
_ADAPTERS = {
    path: cast(TypeAdapter[wire.Request], TypeAdapter(type_)) for path, type_ in wire.REQUESTS.items()
}
