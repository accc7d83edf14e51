"""Events in: kept word for word, and all that is derived from them brought up to date.

A repeated event adds the fields that the stored one lacks and changes none. Everything derived is made again
from all stored events of the sessions touched, or overwritten under the event's own key; so neither order nor
repetition of arrival matters.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson
from sqlalchemy import Connection, bindparam, select, update

from otel_agent_tracker import wire
from otel_agent_tracker.server import arrivals, derivation, tables
from otel_agent_tracker.server.arrivals import Arrival, Service
from otel_agent_tracker.server.counts import Tally
from otel_agent_tracker.server.database import insert_or_ignore, upsert

__all__ = ["ingest"]

Rows = list[dict[str, Any]]
CHUNK = 500  # ids in one query


def ingest(
    connection: Connection, project_id: int, arrived: Sequence[Arrival], received_us: int
) -> list[str | None]:
    """Keep what arrived, within a transaction of the caller's; for each why it was refused, or None."""
    heartbeats = [each for each in arrived if isinstance(each.request, wire.AgentHeartbeat)]
    changes = _Changes(_stored(connection, project_id, arrived))
    refusals = [
        None if isinstance(each.request, wire.AgentHeartbeat) else changes.add(each) for each in arrived
    ]
    fresh, filled = list(changes.fresh.values()), list(changes.filled.values())
    tally = Tally(project_id)
    told = [each for each in fresh + filled if each.event is not None]
    derivation.derive(connection, project_id, told, received_us, tally)
    _keep_turns(connection, project_id, fresh, tally)
    _keep_activities(connection, project_id, fresh + filled)
    tally.write(connection)
    insert_or_ignore(connection, tables.events, [_event_row(project_id, each, received_us) for each in fresh])
    _update_events(connection, project_id, filled)
    _keep_instances(connection, project_id, heartbeats)
    _keep_agents(connection, project_id, [*fresh, *filled, *heartbeats])
    return refusals


@dataclass(slots=True)
class _Changes:
    """What arrivals change: events seen for the first time, and stored ones that gain fields."""

    stored: dict[str, Arrival]
    fresh: dict[str, Arrival] = field(default_factory=dict)
    filled: dict[str, Arrival] = field(default_factory=dict)

    def add(self, arrival: Arrival) -> str | None:
        """Take an arrival in; why it is refused, or None."""
        known = self.fresh.get(arrival.event_id) or self.stored.get(arrival.event_id)
        if known is None:
            self.fresh[arrival.event_id] = arrival
            return None
        try:
            merged = arrivals.fill(known, arrival)
        except ValueError as error:
            return str(error)
        if merged is not known:
            self._replace(merged)
        return None

    def _replace(self, merged: Arrival) -> None:
        if merged.event_id in self.fresh:
            self.fresh[merged.event_id] = merged
        else:
            self.stored[merged.event_id] = self.filled[merged.event_id] = merged


# --- the events themselves ----------------------------------------------------------------------------------


def _stored(connection: Connection, project_id: int, arrived: Iterable[Arrival]) -> dict[str, Arrival]:
    """The stored events whose ids arrived again."""
    ids = list({each.event_id for each in arrived})
    found = {}
    for start in range(0, len(ids), CHUNK):
        chunk = {"project": project_id, "ids": ids[start : start + CHUNK]}
        for event_id, path, body, *service in connection.execute(_STORED, chunk):
            found[event_id] = arrivals.read(path, body, event_id, Service(*service))
    return found


def _event_row(project_id: int, arrival: Arrival, received_us: int) -> dict[str, Any]:
    return {
        "project_id": project_id,
        "event_id": arrival.event_id,
        "path": arrival.path,
        "session_id": arrival.session_id,
        "agent_id": arrival.agent_id,
        "time_us": arrival.time_us,
        "received_us": received_us,
        "body": arrival.body,
        **arrival.service._asdict(),
    }


def _update_events(connection: Connection, project_id: int, filled: Iterable[Arrival]) -> None:
    rows = [
        {"project": project_id, "event": each.event_id, "body": each.body, **each.service._asdict()}
        for each in filled
    ]
    if rows:
        connection.execute(_UPDATE, rows)


# --- what is derived ----------------------------------------------------------------------------------------


def _keep_turns(connection: Connection, project_id: int, fresh: Iterable[Arrival], tally: Tally) -> None:
    """Those heard of for the first time: nothing that is kept of a turn can be lacking, or change."""
    rows = [_turn_row(project_id, each) for each in fresh if isinstance(each.request, wire.ConversationTurn)]
    upsert(connection, tables.turns, rows)
    for row in rows:
        tally.turn(row)


def _keep_activities(connection: Connection, project_id: int, changed: Iterable[Arrival]) -> None:
    told = [each for each in changed if isinstance(each.request, wire.AgentActivity)]
    upsert(connection, tables.activities, [_activity_row(project_id, each) for each in told])


def _turn_row(project_id: int, arrival: Arrival) -> dict[str, Any]:
    request: Any = arrival.request
    return {
        "project_id": project_id,
        "event_id": arrival.event_id,
        "session_id": request.session_id,
        "agent_id": request.agent_id,
        "end_us": arrival.time_us,
        "seconds": request.duration_seconds,
        "status": request.status,
    }


def _activity_row(project_id: int, arrival: Arrival) -> dict[str, Any]:
    request: Any = arrival.request
    return {
        "project_id": project_id,
        "event_id": arrival.event_id,
        "agent_id": request.agent_id,
        "action": request.action,
        "time_us": arrival.time_us,
        "details": _json_text(request.details),
        "duration": request.duration,
    }


def _json_text(value: Any) -> str | None:
    return None if value is None else orjson.dumps(value, option=orjson.OPT_SORT_KEYS).decode()


# --- agents -------------------------------------------------------------------------------------------------


def _keep_instances(connection: Connection, project_id: int, heartbeats: Sequence[Arrival]) -> None:
    """The newest heartbeat of each process."""
    newest: dict[tuple[str, str], Arrival] = {}
    for each in sorted(heartbeats, key=lambda arrival: arrival.time_us):
        request: Any = each.request
        newest[request.agent_id, request.instance] = each
    rows = [_instance_row(project_id, each) for each in newest.values()]
    known = _last_seen(connection, project_id, {row["agent_id"] for row in rows})
    upsert(
        connection,
        tables.instances,
        [row for row in rows if row["last_seen_us"] >= known.get((row["agent_id"], row["instance"]), 0)],
    )


def _last_seen(connection: Connection, project_id: int, agent_ids: set[str]) -> dict[tuple[str, str], int]:
    found = (
        connection.execute(_INSTANCES, {"project": project_id, "ids": list(agent_ids)}) if agent_ids else ()
    )
    return {(agent_id, instance): last_seen_us for agent_id, instance, last_seen_us in found}


def _instance_row(project_id: int, arrival: Arrival) -> dict[str, Any]:
    request: Any = arrival.request
    return {
        "project_id": project_id,
        "agent_id": request.agent_id,
        "instance": request.instance,
        "last_seen_us": arrival.time_us,
        "delivery": orjson.dumps(request.delivery).decode(),
        "service": arrival.service.service,
        "version": arrival.service.version,
        "environment": arrival.service.environment,
    }


def _keep_agents(connection: Connection, project_id: int, arrived: Sequence[Arrival]) -> None:
    """What the newest event of each kind says of an agent; of two in one microsecond a fixed one."""
    ids = list({each.agent_id for each in arrived if each.agent_id})
    agents: dict[str, dict[str, Any]] = {}
    for start in range(0, len(ids), CHUNK):
        chunk = {"project": project_id, "ids": ids[start : start + CHUNK]}
        agents |= {row["agent_id"]: dict(row) for row in connection.execute(_AGENTS, chunk).mappings()}
    for agent_id in ids:
        agents.setdefault(agent_id, _unknown_agent(project_id, agent_id))
    for each in arrived:
        if each.agent_id:
            _tell(agents[each.agent_id], each)
    upsert(connection, tables.agents, list(agents.values()))


def _unknown_agent(project_id: int, agent_id: str) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(column.name for column in tables.agents.columns)
    return row | {"project_id": project_id, "agent_id": agent_id, "last_seen_us": 0}


def _tell(agent: dict[str, Any], arrival: Arrival) -> None:
    agent["last_seen_us"] = max(agent["last_seen_us"], arrival.time_us)
    match arrival.request:
        case wire.AgentRegistration(sdk_version=sdk_version, metadata=metadata):
            said = {"registration_us": arrival.time_us, "sdk_version": sdk_version}
            _keep_newer(agent, said | {"metadata": _user_metadata(metadata)})
        case wire.AgentStatusReport(status=status):
            _keep_newer(agent, {"status_us": arrival.time_us, "status": status})


def _keep_newer(agent: dict[str, Any], said: dict[str, Any]) -> None:
    if _rank(said.values()) >= _rank(agent[name] for name in said):
        agent.update(said)


def _rank(values: Iterable[Any]) -> list[tuple[bool, Any]]:
    return [(value is not None, value) for value in values]


def _user_metadata(metadata: dict[str, Any] | None) -> str | None:
    users = {name: value for name, value in (metadata or {}).items() if name != "agent_tracker"}
    return _json_text(users or None)


_event_columns = tables.events.columns
_STORED = select(
    _event_columns.event_id,
    _event_columns.path,
    _event_columns.body,
    _event_columns.service,
    _event_columns.version,
    _event_columns.environment,
    _event_columns.instance,
).where(
    _event_columns.project_id == bindparam("project"),
    _event_columns.event_id.in_(bindparam("ids", expanding=True)),
)
_UPDATE = update(tables.events).where(
    _event_columns.project_id == bindparam("project"), _event_columns.event_id == bindparam("event")
)
_AGENTS = select(tables.agents).where(
    tables.agents.columns.project_id == bindparam("project"),
    tables.agents.columns.agent_id.in_(bindparam("ids", expanding=True)),
)
_INSTANCES = select(
    tables.instances.columns.agent_id,
    tables.instances.columns.instance,
    tables.instances.columns.last_seen_us,
).where(
    tables.instances.columns.project_id == bindparam("project"),
    tables.instances.columns.agent_id.in_(bindparam("ids", expanding=True)),
)
