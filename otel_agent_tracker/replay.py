"""What a dead process accepted and nobody stored, into our map: its open sessions are ours now."""

from __future__ import annotations

from otel_agent_tracker import mapping, wire
from otel_agent_tracker.entry import Entry
from otel_agent_tracker.semconv import Event, Origin, TurnStatus
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
            sessions.take(entry.session_id, started_by_us=entry.time_us, ended_at_us=entry.time_us)


def _open(session_id: str, entry: Entry, sessions: SessionMap) -> None:
    mark = entry.body.get("metadata", {}).get(mapping.MARK, {})
    sessions.open(
        session_id,
        entry.agent_id,
        user_id=entry.body.get("user_id"),
        origin=Origin(mark.get("origin", Origin.CALL)),
        start_us=entry.time_us,
    )


def _turn(session_id: str, entry: Entry, sessions: SessionMap) -> None:
    body = entry.body
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
