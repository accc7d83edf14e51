"""The questions that can be asked of a tracker: path and query of each, escaped."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from typing import NamedTuple
from urllib.parse import quote

from otel_agent_tracker import arguments

__all__ = [
    "Query",
    "active_agents",
    "activity",
    "agent_status",
    "conversations",
    "metrics",
    "overview",
    "session",
]


class Query(NamedTuple):
    """What to get."""

    path: str
    query: Mapping[str, str | int | None]


def session(session_id: str) -> Query:
    """A session's newest conversation; ids that no path can carry go as a query."""
    segment = path_segment(arguments.session_identifier("session_id", session_id))
    if segment is None:
        return Query("/conversations", {"session_id": session_id})
    return Query(f"/conversations/{segment}", {})


def conversations(agent_id: str | None, *, limit: int | None = None, cursor: str | None = None) -> Query:
    """The open conversations."""
    return Query("/conversations/active", {"agent_id": _agent(agent_id), "limit": limit, "cursor": cursor})


def metrics(
    name: str, agent_id: str | None, start_date: date | str | None = None, end_date: date | str | None = None
) -> Query:
    """A figure over the half-open period from `start_date` to `end_date`; a date includes its whole day."""
    start = None if start_date is None else arguments.date_text("start_date", start_date)
    end = None if end_date is None else arguments.date_text("end_date", end_date)
    return Query(f"/metrics/{name}", {"agent_id": _agent(agent_id), "start_date": start, "end_date": end})


def active_agents() -> Query:
    """The agents that are not offline."""
    return Query("/agents/active", {})


def agent_status(agent_id: str) -> Query:
    """One agent with its instances."""
    segment = path_segment(arguments.identifier("agent_id", agent_id))
    return (
        Query("/agents/status", {"agent_id": agent_id})
        if segment is None
        else Query(f"/agents/{segment}/status", {})
    )


def activity(limit: int, agent_id: str | None) -> Query:
    """The newest activities, of one agent or all."""
    query = {"limit": arguments.count("limit", limit)}
    if agent_id is None:
        return Query("/agents/activity", query)
    segment = path_segment(arguments.identifier("agent_id", agent_id))
    if segment is None:
        return Query("/agents/activity", {**query, "agent_id": agent_id})
    return Query(f"/agents/{segment}/activity", query)


def overview() -> Query:
    """All agents at a glance."""
    return Query("/operations/overview", {})


def path_segment(identifier: str) -> str | None:
    """`identifier` quoted as one segment of a path, or None if no path can carry it.

    Dot segments are resolved away on the way, servers decode ``%2F`` before they look for segments, and
    ``active`` is a path of its own; such ids go into a query.
    """
    return None if identifier in (".", "..", "active") or "/" in identifier else quote(identifier, safe="")


def _agent(agent_id: str | None) -> str | None:
    return None if agent_id is None else arguments.identifier("agent_id", agent_id)
