"""Conversations, made again from all stored events of the sessions that something new is known of.

Of what is made again only what differs from what is stored is written.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from sqlalchemy import Connection, bindparam, select

from otel_agent_tracker import outcome
from otel_agent_tracker.semconv import Outcome
from otel_agent_tracker.server import arrivals, tables
from otel_agent_tracker.server.arrivals import Arrival, Service
from otel_agent_tracker.server.counts import Tally
from otel_agent_tracker.server.database import delete_rows, upsert

__all__ = ["SILENT_AFTER_SECONDS", "derive", "silence_us"]

SILENT_AFTER_SECONDS = 20 * 3600
CHUNK = 500  # ids in one query


def derive(
    connection: Connection, project_id: int, told: Iterable[Arrival], received_us: int, tally: Tally
) -> None:
    """Replace the conversations of the sessions that `told` tells of, and tell `tally`.

    What `told` says goes before what is stored under the same event id; it need not be stored yet.
    """
    sessions = _by_session(told)
    older = _load(connection, project_id, list(sessions))
    for session_id, events in older.items():
        sessions[session_id] = events | sessions[session_id]
    rows = []
    for session_id, events in sessions.items():
        rows += _session_rows(project_id, session_id, list(events.values()), received_us)
    _replace(connection, _stored(connection, project_id, list(older)), rows, tally)


def silence_us(ttl_seconds: float | None) -> int:
    """How long nothing must be heard of an open conversation before the tracker ends it."""
    return int(max(SILENT_AFTER_SECONDS, 2 * (ttl_seconds or 0)) * 1_000_000)


@dataclass(frozen=True, slots=True)
class _Told:
    """An event, and which process told it when."""

    event: outcome.Event
    time_us: int
    service: Service


_Rows = list[dict[str, Any]]
_Sessions = dict[str, dict[str, _Told]]  # by session id, then by event id


def _by_session(told: Iterable[Arrival]) -> _Sessions:
    sessions: _Sessions = {}
    for each in told:
        if each.event and each.session_id:
            events = sessions.setdefault(each.session_id, {})
            events[each.event_id] = _Told(each.event, each.time_us, each.service)
    return sessions


def _load(connection: Connection, project_id: int, session_ids: list[str]) -> _Sessions:
    """The stored events of the sessions, those that have any."""
    sessions: _Sessions = {}
    for start in range(0, len(session_ids), CHUNK):
        chunk = {"project": project_id, "ids": session_ids[start : start + CHUNK]}
        for session_id, event_id, path, body, time_us, *service in connection.execute(_EVENTS, chunk):
            event = arrivals.restore(path, body, event_id)
            sessions.setdefault(session_id, {})[event_id] = _Told(event, time_us, Service(*service))
    return sessions


def _session_rows(
    project_id: int, session_id: str, told: Sequence[_Told], received_us: int
) -> list[dict[str, Any]]:
    conversations = outcome.conversations(each.event for each in told)
    services = _services(told, [conversation.start_us for conversation in conversations])
    return [
        {
            "project_id": project_id,
            "session_id": session_id,
            "silent_at_us": _silent_at_us(conversation, received_us),
            **_row(conversation),
            **services[conversation.number - 1],
        }
        for conversation in conversations
    ]


def _services(told: Sequence[_Told], starts: Sequence[int]) -> list[dict[str, str | None]]:
    """For each conversation the process that its newest event which names one names."""
    newest = [Service()] * len(starts)
    for each in sorted(told, key=lambda each: (each.time_us, each.event.event_id)) if starts else ():
        if any(each.service):
            newest[max(bisect_right(starts, each.time_us) - 1, 0)] = each.service
    return [{"service": it.service, "version": it.version, "environment": it.environment} for it in newest]


def _silent_at_us(conversation: outcome.Conversation, received_us: int) -> int | None:
    """When the tracker ends it by itself; what arrives late shows, too, that its sender lives."""
    if conversation.outcome != Outcome.ACTIVE:
        return None
    return max(conversation.last_activity_us, received_us) + silence_us(conversation.ttl_seconds)


def _row(conversation: outcome.Conversation) -> dict[str, Any]:
    metadata = conversation.metadata
    return {
        "number": conversation.number,
        "agent_id": conversation.agent_id,
        "user_id": conversation.user_id,
        "origin": conversation.origin.value,
        "start_us": conversation.start_us,
        "end_us": conversation.end_us,
        "last_activity_us": conversation.last_activity_us,
        "status": conversation.outcome.value,
        "ended_by": conversation.ended_by.value if conversation.ended_by else None,
        "quality": conversation.quality,
        "feedback": conversation.feedback,
        "error_type": conversation.error_type,
        "error_message": conversation.error_message,
        "message_count": conversation.message_count,
        "turns": len(conversation.turns),
        "waiting": conversation.waiting,
        "ungrouped": conversation.ungrouped,
        "ttl_seconds": conversation.ttl_seconds,
        "metadata": orjson.dumps(metadata, option=orjson.OPT_SORT_KEYS).decode() if metadata else None,
    }


def _stored(connection: Connection, project_id: int, session_ids: list[str]) -> _Rows:
    rows = []
    for start in range(0, len(session_ids), CHUNK):
        chunk = {"project": project_id, "ids": session_ids[start : start + CHUNK]}
        rows += [dict(row) for row in connection.execute(_CONVERSATIONS, chunk).mappings()]
    return rows


def _replace(connection: Connection, stored: _Rows, derived: _Rows, tally: Tally) -> None:
    """Write what has changed; late events may merge conversations that were several, and the rest goes."""
    before = {_key(row): row for row in stored}
    after = {_key(row): row for row in derived}
    gone = [row for key, row in before.items() if after.get(key) != row]
    come = [row for key, row in after.items() if before.get(key) != row]
    delete_rows(connection, tables.conversations, [row for row in gone if _key(row) not in after])
    upsert(connection, tables.conversations, come)
    for row in gone:
        tally.conversation(row, -1)
    for row in come:
        tally.conversation(row)


def _key(row: dict[str, Any]) -> tuple[str, int]:
    return row["session_id"], row["number"]


_events = tables.events.columns
_EVENTS = select(
    _events.session_id,
    _events.event_id,
    _events.path,
    _events.body,
    _events.time_us,
    _events.service,
    _events.version,
    _events.environment,
    _events.instance,
).where(
    _events.project_id == bindparam("project"),
    _events.session_id.in_(bindparam("ids", expanding=True)),
)
_CONVERSATIONS = select(tables.conversations).where(
    tables.conversations.columns.project_id == bindparam("project"),
    tables.conversations.columns.session_id.in_(bindparam("ids", expanding=True)),
)
