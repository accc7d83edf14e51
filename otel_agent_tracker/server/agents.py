"""Questions about agents: who is there, in which processes, and what they did outside conversations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import orjson
from sqlalchemy import ColumnElement, Connection, Row, func, or_, select

from otel_agent_tracker import wire
from otel_agent_tracker.semconv import AgentStatus, Outcome
from otel_agent_tracker.server import tables
from otel_agent_tracker.server.database import Database
from otel_agent_tracker.server.figures import count_conversations
from otel_agent_tracker.server.selection import Page, Selection

__all__ = ["SILENT_AFTER_SECONDS", "Agents"]

SILENT_AFTER_SECONDS = 15 * 60
RECENT = 20  # activities in an overview
_OPEN = Selection(status=Outcome.ACTIVE)
_agents = tables.agents.columns
_activities = tables.activities.columns
_instances = tables.instances.columns


class Agents:
    """The agents of all projects; `now_us` tells the time in Unix microseconds."""

    def __init__(self, database: Database, now_us: Callable[[], int]) -> None:
        self._database = database
        self._now_us = now_us

    def active(self, project_id: int, page: Page) -> wire.Agents:
        """All but those that said they go offline, last seen first; silent ones are marked."""
        wanted = (_agents.project_id == project_id, _is_not_offline())
        keys = (_agents.last_seen_us, _agents.agent_id)
        with self._database.reading() as connection:
            total = connection.execute(select(func.count()).where(*wanted)).scalar_one()
            rows = connection.execute(page.apply(select(tables.agents).where(*wanted), keys)).all()
        rows, cursor = page.take(rows, [key.name for key in keys])
        agents = [wire.AgentAnswer(**self._fields(row)) for row in rows]
        return wire.Agents(agents=agents, total=total, next_cursor=cursor)

    def status(self, project_id: int, agent_id: str) -> wire.AgentStatusAnswer | None:
        """An agent with the processes it runs in; None for one unknown."""
        wanted = (_agents.project_id == project_id, _agents.agent_id == agent_id)
        running = (_instances.project_id == project_id, _instances.agent_id == agent_id)
        order = (_instances.last_seen_us.desc(), _instances.instance)
        with self._database.reading() as connection:
            row = connection.execute(select(tables.agents).where(*wanted)).one_or_none()
            instances = connection.execute(select(tables.instances).where(*running).order_by(*order)).all()
        if row is None:
            return None
        return wire.AgentStatusAnswer(instances=[_instance(each) for each in instances], **self._fields(row))

    def activity(self, project_id: int, agent_id: str | None, page: Page) -> wire.Activities:
        """What one agent or all did, newest first."""
        wanted = _of_activities(project_id, agent_id)
        with self._database.reading() as connection:
            activities, cursor = _recent_activity(connection, project_id, agent_id, page)
            total = connection.execute(select(func.count()).where(*wanted)).scalar_one()
        return wire.Activities(activities=activities, total=total, next_cursor=cursor)

    def overview(self, project_id: int) -> wire.OperationsOverview:
        """All agents at a glance."""
        with self._database.reading() as connection:
            return wire.OperationsOverview(
                agents_by_status=_count_by_status(connection, project_id),
                active_conversations=count_conversations(connection, project_id, _OPEN),
                silent_agents=self._silent(connection, project_id),
                recent_activity=_recent_activity(connection, project_id, None, Page(limit=RECENT))[0],
            )

    def _silent(self, connection: Connection, project_id: int) -> list[str]:
        long_ago = _agents.last_seen_us < self._silent_before_us()
        wanted = (_agents.project_id == project_id, _is_not_offline(), long_ago)
        return list(connection.scalars(select(_agents.agent_id).where(*wanted).order_by(_agents.agent_id)))

    def _silent_before_us(self) -> int:
        return self._now_us() - SILENT_AFTER_SECONDS * 1_000_000

    def _fields(self, row: Row[Any]) -> dict[str, Any]:
        status = row.status or AgentStatus.ACTIVE.value
        silent = status != AgentStatus.OFFLINE and row.last_seen_us < self._silent_before_us()
        return {
            "agent_id": row.agent_id,
            "status": status,
            "last_seen": wire.format_time(row.last_seen_us),
            "silent": silent,
            "sdk_version": row.sdk_version,
            "registration_time": None
            if row.registration_us is None
            else wire.format_time(row.registration_us),
            "metadata": orjson.loads(row.metadata) if row.metadata else None,
        }


def _is_not_offline() -> ColumnElement[bool]:
    return or_(_agents.status.is_(None), _agents.status != AgentStatus.OFFLINE.value)


def _count_by_status(connection: Connection, project_id: int) -> dict[str, int]:
    """How many agents have each status; one that never said so is active."""
    status = func.coalesce(_agents.status, AgentStatus.ACTIVE.value)
    counted = connection.execute(
        select(status.label("status"), func.count().label("agents"))
        .where(_agents.project_id == project_id)
        .group_by(status)
    )
    return dict.fromkeys((each.value for each in AgentStatus), 0) | {
        row.status: row.agents for row in counted
    }


def _of_activities(project_id: int, agent_id: str | None) -> list[ColumnElement[bool]]:
    wanted = [_activities.project_id == project_id]
    if agent_id is not None:
        wanted.append(_activities.agent_id == agent_id)
    return wanted


def _recent_activity(
    connection: Connection, project_id: int, agent_id: str | None, page: Page
) -> tuple[list[wire.ActivityAnswer], str | None]:
    """A page of activities, and the cursor of the next."""
    wanted = _of_activities(project_id, agent_id)
    keys = (_activities.time_us, _activities.event_id)
    rows = connection.execute(page.apply(select(tables.activities).where(*wanted), keys)).all()
    rows, cursor = page.take(rows, [key.name for key in keys])
    return [_activity(row) for row in rows], cursor


def _activity(row: Row[Any]) -> wire.ActivityAnswer:
    return wire.ActivityAnswer(
        agent_id=row.agent_id,
        action=row.action,
        timestamp=wire.format_time(row.time_us),
        details=orjson.loads(row.details) if row.details else None,
        duration=row.duration,
    )


def _instance(row: Row[Any]) -> wire.InstanceAnswer:
    return wire.InstanceAnswer(
        instance=row.instance,
        last_seen=wire.format_time(row.last_seen_us),
        service=row.service,
        version=row.version,
        environment=row.environment,
        delivery=orjson.loads(row.delivery),
    )
