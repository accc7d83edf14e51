"""The form in which an outbox row goes to a tracker, by what the tracker offers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import orjson

from otel_agent_tracker import wire
from otel_agent_tracker.mapping import MARK
from otel_agent_tracker.rollup import RollUp
from otel_agent_tracker.semconv import Outcome
from otel_agent_tracker.state import OutboxRow, Tombstone

__all__ = ["batch_event", "end_with", "rating_of", "second_end"]

Json = dict[str, Any]


def batch_event(row: OutboxRow, body: bytes) -> bytes:
    """The element of a batch that carries `row` with `body`."""
    head = orjson.dumps({"event_id": row.event_id, "path": row.path})
    return b'%b,"body":%b,"service":%b}' % (head[:-1], body, row.service)


def end_with(body: bytes, *, roll_up: RollUp | None, feedback: Iterable[bytes]) -> bytes:
    """The end `body` with the turns and the feedback that the tracker does not take by themselves."""
    end: Json = orjson.loads(body)
    if roll_up is not None:
        metadata = end.setdefault("metadata", {})
        metadata[MARK] = {**metadata.get(MARK, {}), **roll_up.summary()}
    if end.get("status") != Outcome.EXPIRED:
        for given in feedback:
            for name, value in rating_of(orjson.loads(given)).items():
                end.setdefault(name, value)
    return orjson.dumps(end)


def second_end(feedback: bytes, ended: Tombstone) -> tuple[str, bytes]:
    """Path and body of an end that repeats `ended` and adds the feedback given after it."""
    given: Json = orjson.loads(feedback)
    times = {
        "session_id": ended.session_id,
        "agent_id": ended.agent_id,
        "start_time": wire.format_time(ended.start_us),
        "end_time": wire.format_time(ended.end_us),
        "duration_seconds": max(0, ended.end_us - ended.start_us) / 1e6,
    }
    mark: Json = {"event_id": given["feedback_id"], "ended_by": ended.ended_by}
    if ended.outcome == Outcome.EXPIRED:
        body = {**times, "status": "expired", "expiry_reason": "ttl_timeout"}
        return wire.ConversationExpired.PATH, orjson.dumps(
            {**body, "metadata": {**rating_of(given), MARK: mark}}
        )
    body = {
        **times,
        "status": ended.outcome,
        **_known(quality_score=ended.quality, error_message=ended.error_message),
    }
    return wire.ConversationEnd.PATH, orjson.dumps({**body, **rating_of(given), "metadata": {MARK: mark}})


def rating_of(feedback: Mapping[str, Any]) -> Json:
    """What an end can carry of a feedback request."""
    thumbs = {"up": 5, "down": 1}.get(feedback.get("thumbs", ""))
    return _known(
        quality_score=feedback.get("quality_score", thumbs), user_feedback=feedback.get("user_feedback")
    )


def _known(**fields: object) -> Json:
    return {name: value for name, value in fields.items() if value is not None}
