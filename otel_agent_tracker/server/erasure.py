"""Sessions out: everything that was kept of one and derived from it, as if it had never been."""

from __future__ import annotations

from sqlalchemy import Connection, Table, delete, select

from otel_agent_tracker.server import tables
from otel_agent_tracker.server.counts import Tally

__all__ = ["erase"]


def erase(connection: Connection, project_id: int, session_id: str) -> bool:
    """Delete a session's events, conversations and turns, within a transaction of the caller's.

    An agent of which nothing else is known goes too. False if the project has no such session. What arrives
    of the session later is kept again.
    """
    agent_ids = _agents_of(connection, project_id, session_id)
    _uncount(connection, project_id, session_id)
    found = [_delete_session(connection, table, project_id, session_id) for table in _OF_SESSIONS]
    for agent_id in agent_ids:
        _delete_unknown_agent(connection, project_id, agent_id)
    return any(found)


def _agents_of(connection: Connection, project_id: int, session_id: str) -> list[str]:
    events = tables.events.columns
    wanted = (events.project_id == project_id, events.session_id == session_id, events.agent_id.is_not(None))
    return list(connection.execute(select(events.agent_id).where(*wanted).distinct()).scalars())


def _uncount(connection: Connection, project_id: int, session_id: str) -> None:
    tally = Tally(project_id)
    for table, count in ((tables.conversations, tally.conversation), (tables.turns, tally.turn)):
        columns = table.columns
        wanted = (columns.project_id == project_id, columns.session_id == session_id)
        for row in connection.execute(select(table).where(*wanted)):
            count(row._asdict(), -1)
    tally.write(connection)


def _delete_session(connection: Connection, table: Table, project_id: int, session_id: str) -> int:
    columns = table.columns
    wanted = (columns.project_id == project_id, columns.session_id == session_id)
    return connection.execute(delete(table).where(*wanted)).rowcount


def _delete_unknown_agent(connection: Connection, project_id: int, agent_id: str) -> None:
    """Delete the agent if it never reported itself and is in nothing that is left."""
    agents = tables.agents.columns
    elsewhere = [
        select(table.columns.agent_id)
        .where(table.columns.project_id == project_id, table.columns.agent_id == agent_id)
        .exists()
        for table in _OF_AGENTS
    ]
    wanted = (
        agents.project_id == project_id,
        agents.agent_id == agent_id,
        agents.registration_us.is_(None),
        agents.status_us.is_(None),
        *(~found for found in elsewhere),
    )
    connection.execute(delete(tables.agents).where(*wanted))


_OF_SESSIONS = (tables.events, tables.conversations, tables.turns)
_OF_AGENTS = (tables.conversations, tables.activities, tables.instances)
