"""The form in which an outbox row goes to a tracker, by what the tracker offers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import orjson

from otel_agent_tracker import session_id, wire
from otel_agent_tracker.mapping import MARK
from otel_agent_tracker.rollup import RollUp
from otel_agent_tracker.semconv import EndedBy, ExpiryReason, FeedbackSource, Outcome
from otel_agent_tracker.state import OutboxRow, Tombstone

__all__ = ["batch_event", "end_with_feedback", "end_with_roll_up", "second_end"]

Json = dict[str, Any]


def batch_event(row: OutboxRow, path: str, body: bytes) -> bytes:
    """The element of a batch that posts `body`, a form of `row`, to `path`."""
    head = orjson.dumps({"event_id": row.event_id, "path": path})
    return b'%b,"body":%b,"service":%b}' % (head[:-1], body, row.service)


def end_with_roll_up(end: bytes, roll_up: RollUp) -> bytes:
    """The body `end` with the turns that the tracker does not take by themselves."""
    body: Json = orjson.loads(end)
    metadata = body.setdefault("metadata", {})
    metadata[MARK] = {**metadata.get(MARK, {}), **roll_up.summary()}
    return orjson.dumps(body)


def end_with_feedback(end: bytes, feedback: Iterable[bytes]) -> bytes:
    """The body `end` with the feedback, oldest first, that the tracker does not take by itself.

    What the end itself says is the user's newest word; only an operator's overrules it.
    """
    body: Json = orjson.loads(end)
    given = sorted(map(orjson.loads, feedback), key=_weight)
    own = _rating(body)
    rating = {**_merged(f for f in given if _weight(f) <= _USERS_WORD), **own}
    rating |= _merged(f for f in given if _weight(f) > _USERS_WORD)
    return orjson.dumps(_rated(body, rating))


def second_end(row: OutboxRow, ended: Tombstone) -> tuple[str, bytes]:
    """Path and body of an end that repeats `ended` and adds the feedback in `row`, given after it.

    A rating of the user stays where the feedback is only an evaluator's, or about a single turn.
    """
    given: Json = orjson.loads(row.body)
    body: Json = {
        "session_id": ended.session_id,
        "agent_id": ended.agent_id,
        "start_time": wire.format_time(ended.start_us),
        "end_time": wire.format_time(ended.end_us),
        "duration_seconds": max(0, ended.end_us - ended.start_us) / 1e6,
        "status": ended.outcome,
        "metadata": {MARK: _mark(row, ended)},
    }
    old, new = _known(quality_score=ended.quality), _rating(given)
    rating = {**old, **new} if _weight(given) >= _USERS_WORD else {**new, **old}
    if ended.outcome == Outcome.EXPIRED:
        evicted = ended.ended_by == EndedBy.EVICTED
        body["expiry_reason"] = ExpiryReason.EVICTED if evicted else ExpiryReason.TTL_TIMEOUT
        return wire.ConversationExpired.PATH, orjson.dumps(_rated(body, rating))
    body |= _known(error_message=ended.error_message)
    return wire.ConversationEnd.PATH, orjson.dumps(_rated(body, rating))


def _rated(body: Json, rating: Json) -> Json:
    """The end `body` with a rating; one that expired has no place for it but its metadata."""
    if body.get("status") != Outcome.EXPIRED:
        return {**body, **rating}
    return {**body, "metadata": {**rating, **body.get("metadata", {})}}


def _rating(said: Json) -> Json:
    """What an end can carry of a feedback request, or carries itself."""
    thumbs = {"up": 5, "down": 1}.get(said.get("thumbs", ""))
    return _known(quality_score=said.get("quality_score", thumbs), user_feedback=said.get("user_feedback"))


def _merged(feedback: Iterable[Json]) -> Json:
    merged: Json = {}
    for given in feedback:
        merged |= _rating(given)
    return merged


def _weight(feedback: Json) -> tuple[bool, int]:
    """About the conversation before about a turn; then operator, user, evaluator."""
    return "turn_id" not in feedback, _SOURCES.get(feedback.get("source", FeedbackSource.USER), 0)


def _mark(row: OutboxRow, ended: Tombstone) -> Json:
    return {
        "event_id": row.event_id,
        "trace_id": f"{session_id.trace_id(ended.session_id):032x}",
        "ended_by": ended.ended_by,
        "service": orjson.loads(row.service),
    }


def _known(**fields: object) -> Json:
    return {name: value for name, value in fields.items() if value is not None}


_SOURCES = {FeedbackSource.EVALUATOR: 0, FeedbackSource.USER: 1, FeedbackSource.OPERATOR: 2}
_USERS_WORD = (True, _SOURCES[FeedbackSource.USER])
