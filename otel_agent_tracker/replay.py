"""What another process accepted, into our map: one that is dead, and left it; or a sender behind a bridge."""

from __future__ import annotations

from typing import Any

from otel_agent_tracker import mapping, wire
from otel_agent_tracker.entry import Entry
from otel_agent_tracker.semconv import Event, Origin, TurnStatus
from otel_agent_tracker.session_id import parse
from otel_agent_tracker.sessions import SessionMap

__all__ = ["replay"]


def replay(entry: Entry, sessions: SessionMap) -> None:
    """Change `sessions` as the event in `entry` did in the process that accepted it.

    Raises KeyError, TypeError or ValueError if the entry is not as this release writes it.
    """
    if entry.session_id is None:
        return
    match entry.event:
        case Event.CONVERSATION_START:
            _open(entry.session_id, entry, sessions)
        case Event.CONVERSATION_TURN:
            _turn(entry.session_id, entry, sessions)
        case Event.CONVERSATION:
            sessions.forget(  # known as ended here too, though the map may never have held it
                entry.session_id,
                started_by_us=entry.time_us,
                ended_at_us=entry.time_us,
                ended_by=mapping.ended_by(entry),
            )


def _open(session_id: str, entry: Entry, sessions: SessionMap) -> None:
    """A start says that none was open there: what is open here has ended, if its window had passed by then."""
    mark = _mark(entry)
    sessions.lapse(session_id, by_us=entry.time_us, ttl_seconds=mark.get("ttl_seconds"))
    sessions.open(
        session_id,
        entry.agent_id,
        user_id=entry.body.get("user_id"),
        origin=Origin(mark.get("origin", Origin.CALL)),
        start_us=entry.time_us,
    )


def _mark(entry: Entry) -> dict[str, Any]:
    """What is ours in the metadata."""
    mark: dict[str, Any] = entry.body.get("metadata", {}).get(mapping.MARK, {})
    return mark


def _turn(session_id: str, entry: Entry, sessions: SessionMap) -> None:
    body = entry.body
    if sessions.get(session_id) is None and sessions.resume(session_id, turn_start_us=entry.time_us) is None:
        _open_for_turn(session_id, entry, sessions)
    sessions.turn(
        session_id,
        turn_id=body["turn_id"],
        seconds=body["duration_seconds"],
        status=TurnStatus(body["status"]),
        end_us=wire.parse_time(body["end_time"]),
        error_type=body.get("error_type"),
        error_message=body.get("error_message"),
        input_tokens=body.get("input_tokens"),
        output_tokens=body.get("output_tokens"),
    )


def _open_for_turn(session_id: str, entry: Entry, sessions: SessionMap) -> None:
    """The session was open there; it is here, unless the turn belongs to what has ended since."""
    start_us, parsed = entry.time_us, parse(session_id)
    if sessions.belongs_to_ended(session_id, start_us):
        return
    if parsed is not None and not sessions.ended(session_id):
        start_us = min(parsed.start_seconds * 1_000_000, start_us)  # another process started it by call
    sessions.open(
        session_id,
        entry.agent_id,
        user_id=entry.body.get("user_id"),
        origin=sessions.origin_of_next(session_id),
        start_us=start_us,
    )
