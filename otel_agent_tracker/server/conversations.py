"""Questions about conversations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import orjson
from sqlalchemy import Row, func, select

from otel_agent_tracker import wire
from otel_agent_tracker.semconv import Outcome
from otel_agent_tracker.server import tables
from otel_agent_tracker.server.database import Database
from otel_agent_tracker.server.figures import count_conversations
from otel_agent_tracker.server.selection import Page, Selection

__all__ = ["Conversations"]

_table = tables.conversations
_columns = _table.columns


class Conversations:
    """The conversations of all projects."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def get(self, project_id: int, session_id: str) -> wire.ConversationAnswer | None:
        """A session's newest conversation, with all as its episodes; None for a session unknown."""
        wanted = (_columns.project_id == project_id, _columns.session_id == session_id)
        with self._database.reading() as connection:
            rows = connection.execute(select(_table).where(*wanted).order_by(_columns.number)).all()
        return _answer(rows[-1], [_episode(row) for row in rows]) if rows else None

    def page(self, project_id: int, selection: Selection, page: Page) -> wire.Conversations:
        """The selected conversations by their start, newest first; `total` counts all that are selected."""
        wanted = (_columns.project_id == project_id, *selection.conditions(_table, "start_us"))
        keys = (_columns.start_us, _columns.session_id, _columns.number)
        with self._database.reading() as connection:
            if selection.user_id is None:
                total = count_conversations(connection, project_id, selection)
            else:
                total = connection.execute(select(func.count()).where(*wanted)).scalar_one()
            rows = connection.execute(page.apply(select(_table).where(*wanted), keys)).all()
        rows, cursor = page.take(rows, [key.name for key in keys])
        return wire.Conversations(
            conversations=[_answer(row) for row in rows], total=total, next_cursor=cursor
        )

    def active(self, project_id: int, agent_id: str | None, page: Page) -> wire.Conversations:
        """Those without an outcome."""
        return self.page(project_id, Selection(agent_id=agent_id, status=Outcome.ACTIVE), page)


def _answer(row: Row[Any], episodes: Sequence[wire.Episode] = ()) -> wire.ConversationAnswer:
    return wire.ConversationAnswer(session_id=row.session_id, episodes=list(episodes), **_episode_fields(row))


def _episode(row: Row[Any]) -> wire.Episode:
    return wire.Episode(**_episode_fields(row))


def _episode_fields(row: Row[Any]) -> dict[str, Any]:
    stored = row._asdict()
    return {name: stored[name] for name in _SAME_NAMES} | {
        "start_time": wire.format_time(row.start_us),
        "end_time": None if row.end_us is None else wire.format_time(row.end_us),
        "last_activity_time": wire.format_time(row.last_activity_us),
        "quality_score": row.quality,
        "user_feedback": row.feedback,
        "metadata": orjson.loads(row.metadata) if row.metadata else None,
    }


_SAME_NAMES = [
    field.name for field in fields(wire.Episode) if field.name in _columns and field.name != "metadata"
]
