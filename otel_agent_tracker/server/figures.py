"""Figures over conversations and turns.

A conversation belongs to the period of its start, a turn to that of its end. Percentiles are exact, by
nearest rank: the smallest duration that at least that share of all durations do not exceed.

Whole hours and days of a period come from the counts, what it has of the hours at its edges from the rows.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, and_, case, func, select

from otel_agent_tracker import wire
from otel_agent_tracker.semconv import EndedBy, Outcome
from otel_agent_tracker.server import tables
from otel_agent_tracker.server.counts import split, whose
from otel_agent_tracker.server.database import Database
from otel_agent_tracker.server.durations import Durations
from otel_agent_tracker.server.selection import Page, Selection

__all__ = ["Figures", "count_conversations"]

_columns = tables.conversations.columns
_turns = tables.turns.columns


class Figures:
    """The figures of all projects, of the agent and period of a selection; they take in open conversations."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def success_rates(self, project_id: int, selection: Selection) -> wire.SuccessRates:
        """How many conversations ended how."""
        with self._database.reading() as connection:
            return _success_rates(_sums(connection, project_id, selection))

    def response_times(self, project_id: int, selection: Selection) -> wire.ResponseTimes:
        """How long turns took."""
        with self._database.reading() as connection:
            return _response_times(connection, project_id, selection)

    def quality(self, project_id: int, selection: Selection) -> wire.Quality:
        """How conversations were rated."""
        with self._database.reading() as connection:
            return _quality(_sums(connection, project_id, selection))

    def failures(self, project_id: int, selection: Selection, page: Page) -> wire.Failures:
        """The failed conversations, the last that ended first."""
        with self._database.reading() as connection:
            sums = _sums(connection, project_id, selection)
            return _failures(connection, project_id, selection, sums, page.size)

    def overview(self, project_id: int, selection: Selection, page: Page) -> wire.PerformanceOverview:
        """The four, of one moment."""
        with self._database.reading() as connection:
            sums = _sums(connection, project_id, selection)
            return wire.PerformanceOverview(
                success_rates=_success_rates(sums),
                response_times=_response_times(connection, project_id, selection),
                quality=_quality(sums),
                failures=_failures(connection, project_id, selection, sums, page.size),
            )


def count_conversations(connection: Connection, project_id: int, selection: Selection) -> int:
    """How many conversations there are of a selection that names no user."""
    sums = _sums(connection, project_id, selection)
    return sums["total"] if selection.status is None else _by_outcome(sums)[Outcome(selection.status)]


# --- conversations ------------------------------------------------------------------------------------------


def _sums(connection: Connection, project_id: int, selection: Selection) -> dict[str, Any]:
    """The sums that are kept of conversations, by the names of their columns."""
    spans, edges = split(selection.period)
    counts = tables.conversation_counts
    of_agent = whose(counts, project_id, selection.agent_id)
    parts = [select(*_COUNTED).where(*of_agent, *span.conditions(counts)) for span in spans]
    for edge in edges:
        within = Selection(agent_id=selection.agent_id, period=edge).conditions(
            tables.conversations, "start_us"
        )
        parts.append(select(*_COUNTED_ROWS).where(_columns.project_id == project_id, *within))
    rows = [connection.execute(part).mappings().one() for part in parts]
    return {name: sum(row[name] for row in rows) for name in rows[0]}


def _by_outcome(sums: dict[str, Any]) -> dict[Outcome, int]:
    ended = {each: sums[each.value] for each in Outcome if each != Outcome.ACTIVE}
    return ended | {Outcome.ACTIVE: sums["total"] - sum(ended.values())}


def _success_rates(sums: dict[str, Any]) -> wire.SuccessRates:
    counts = _by_outcome(sums)
    decided = counts[Outcome.COMPLETED] + counts[Outcome.FAILED]
    return wire.SuccessRates(
        total=sums["total"],
        completed=counts[Outcome.COMPLETED],
        failed=counts[Outcome.FAILED],
        expired=counts[Outcome.EXPIRED],
        idle_ended=sums["idle_ended"],
        active=counts[Outcome.ACTIVE],
        success_rate=counts[Outcome.COMPLETED] / decided if decided else None,
    )


def _quality(sums: dict[str, Any]) -> wire.Quality:
    distribution = {str(score): sums[f"score_{score}"] for score in range(1, 6)}
    rated, total = sum(distribution.values()), sums["total"]
    return wire.Quality(
        rated=rated,
        total=total,
        share=rated / total if total else None,
        mean=sums["quality"] / rated if rated else None,
        distribution=distribution,
    )


def _failures(
    connection: Connection, project_id: int, selection: Selection, sums: dict[str, Any], limit: int
) -> wire.Failures:
    order = (_columns.end_us.desc(), _columns.session_id.desc(), _columns.number.desc())
    wanted = [_columns.project_id == project_id, _columns.status == Outcome.FAILED.value]
    # Only the index in the order of the list may be used: by another all failures would be sorted.
    wanted += selection.period.conditions(_columns.start_us + 0)
    if selection.agent_id is not None:
        wanted.append(_columns.agent_id + "" == selection.agent_id)
    rows = connection.execute(select(tables.conversations).where(*wanted).order_by(*order).limit(limit)).all()
    return wire.Failures(
        count=sums[Outcome.FAILED.value],
        failures=[_failure(row) for row in rows],
    )


def _failure(row: Row[Any]) -> wire.Failure:
    return wire.Failure(
        session_id=row.session_id,
        agent_id=row.agent_id,
        end_time=wire.format_time(row.end_us),
        error_type=row.error_type,
        error_message=row.error_message,
    )


# --- turns --------------------------------------------------------------------------------------------------


def _response_times(connection: Connection, project_id: int, selection: Selection) -> wire.ResponseTimes:
    durations = _durations(connection, project_id, selection)
    count = durations.total
    if count == 0:
        return wire.ResponseTimes(count=0, mean=None, p50=None, p95=None, p99=None)
    ranks = [-(-percent * count // 100) for percent in (50, 95, 99)]
    p50, p95, p99 = (_ranked(connection, project_id, selection, durations.locate(rank)) for rank in ranks)
    return wire.ResponseTimes(count=count, mean=durations.seconds / count, p50=p50, p95=p95, p99=p99)


def _durations(connection: Connection, project_id: int, selection: Selection) -> Durations:
    spans, edges = split(selection.period)
    of_agent = whose(tables.turn_counts, project_id, selection.agent_id)
    counts = tables.turn_counts.columns
    durations = Durations()
    for span in spans:
        wanted = (*of_agent, *span.conditions(tables.turn_counts))
        for row in connection.execute(select(counts.histogram, counts.seconds).where(*wanted)):
            durations.add(Durations.read(*row))
    for edge in edges:
        within = Selection(agent_id=selection.agent_id, period=edge).conditions(tables.turns, "end_us")
        for seconds in connection.scalars(
            select(_turns.seconds).where(_turns.project_id == project_id, *within)
        ):
            durations.count(seconds)
    return durations


def _ranked(
    connection: Connection, project_id: int, selection: Selection, located: tuple[float, float, int]
) -> float:
    """The duration that lies where `Durations.locate` said."""
    shortest, beyond, shorter = located
    wanted = [_turns.project_id == project_id, _turns.seconds >= shortest, _turns.seconds < beyond]
    # Only the index by the duration may be used: it has the order, and the other columns.
    wanted += selection.period.conditions(_turns.end_us + 0)
    if selection.agent_id is not None:
        wanted.append(_turns.agent_id + "" == selection.agent_id)
    query = select(_turns.seconds).where(*wanted).order_by(_turns.seconds).limit(1).offset(shorter)
    found: float = connection.execute(query).scalar_one()
    return found


def _count(condition: ColumnElement[bool]) -> ColumnElement[int]:
    return func.coalesce(func.sum(case((condition, 1), else_=0)), 0)


# The sums that are kept of conversations: made of counts, and of the rows themselves.
_COUNTED = [
    func.coalesce(func.sum(column), 0).label(column.name)
    for column in tables.conversation_counts.columns
    if not column.primary_key
]
_COUNTED_ROWS = [
    func.count().label("total"),
    *[_count(_columns.status == each.value).label(each.value) for each in Outcome if each != Outcome.ACTIVE],
    _count(_columns.ended_by == EndedBy.IDLE.value).label("idle_ended"),
    *[
        _count(and_(_columns.quality >= score - 0.5, _columns.quality < score + 0.5)).label(f"score_{score}")
        for score in range(1, 6)
    ],
    func.coalesce(func.sum(_columns.quality), 0).label("quality"),
]
