"""What the tracker knows: one object behind which all of the database is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import time_ns
from typing import Any

from sqlalchemy import Connection, Row, select

from otel_agent_tracker import wire
from otel_agent_tracker.semconv import EndedBy, Event
from otel_agent_tracker.server import arrivals, tables
from otel_agent_tracker.server.agents import Agents
from otel_agent_tracker.server.arrivals import Arrival
from otel_agent_tracker.server.conversations import Conversations
from otel_agent_tracker.server.counts import recount
from otel_agent_tracker.server.database import Database
from otel_agent_tracker.server.derivation import silence_us
from otel_agent_tracker.server.erasure import erase
from otel_agent_tracker.server.figures import Figures
from otel_agent_tracker.server.ingest import ingest
from otel_agent_tracker.server.keys import DEFAULT_PROJECT, Keys
from otel_agent_tracker.session_id import derived_event_id

__all__ = ["Store"]

SWEEP_CHUNK = 500  # silent conversations ended in one transaction, between which others may write


class Store:
    """The data of a tracker, its schema brought up to date; `now_us` tells the time in Unix microseconds.

    Safe for use from many threads. Every method raises sqlalchemy's OperationalError while the database
    cannot answer, locked by another process for example; what it was asked to keep is then not kept.
    """

    def __init__(self, database: Database, now_us: Callable[[], int] | None = None) -> None:
        self._database = database
        self._now_us = now_us or _now_us
        database.migrate(recount)
        self.keys = Keys(database, self._now_us)
        self.conversations = Conversations(database)
        self.agents = Agents(database, self._now_us)
        self.figures = Figures(database)
        self.default_project: int = self.keys.ensure_project(DEFAULT_PROJECT)

    def ingest(self, project_id: int, arrived: Sequence[Arrival]) -> list[str | None]:
        """Keep what arrived, all in one transaction; for each why it was refused, or None."""
        with self._database.writing() as connection:
            return ingest(connection, project_id, arrived, self._now_us())

    def erase(self, project_id: int, session_id: str) -> bool:
        """Delete all that is known of a session; False if nothing is."""
        with self._database.writing() as connection:
            return erase(connection, project_id, session_id)

    def end_silent(self, now_us: int | None = None) -> int:
        """End the open conversations of which nothing was heard for too long; how many there were."""
        now_us = self._now_us() if now_us is None else now_us
        ended = 0
        while True:
            with self._database.writing() as connection:
                silent = _silent(connection, now_us)
                for project_id in {row.project_id for row in silent}:
                    ends = [_inferred_end(row) for row in silent if row.project_id == project_id]
                    ingest(connection, project_id, ends, now_us)
            ended += len(silent)
            if len(silent) < SWEEP_CHUNK:
                return ended

    def recount(self) -> None:
        """Count all conversations and turns again, in one transaction; others wait to write meanwhile."""
        with self._database.writing() as connection:
            recount(connection)

    def check(self) -> None:
        """Raises OperationalError if the database does not answer."""
        self._database.check()

    def close(self) -> None:
        """Close the database; it may be asked no more."""
        self._database.close()


def _now_us() -> int:
    return time_ns() // 1_000


def _silent(connection: Connection, now_us: int) -> Sequence[Row[Any]]:
    columns = tables.conversations.columns
    query = select(tables.conversations).where(columns.silent_at_us < now_us)
    return connection.execute(query.order_by(columns.silent_at_us).limit(SWEEP_CHUNK)).all()


def _inferred_end(row: Row[Any]) -> Arrival:
    """An event like any other's: whatever says that the conversation went on refutes it."""
    last_us = row.last_activity_us
    ours = {
        "ended_by": EndedBy.SERVER.value,
        "last_activity_time": wire.format_time(last_us),
        "idle_seconds": silence_us(row.ttl_seconds) / 1_000_000,
    }
    request = wire.ConversationExpired(
        session_id=row.session_id,
        agent_id=row.agent_id,
        start_time=wire.format_time(row.start_us),
        end_time=wire.format_time(last_us),
        duration_seconds=(last_us - row.start_us) / 1_000_000,
        expiry_reason="server",
        metadata={"agent_tracker": ours},
    )
    return arrivals.arrive(request, derived_event_id(Event.CONVERSATION, row.session_id, last_us))
