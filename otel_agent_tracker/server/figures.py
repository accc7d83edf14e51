"""Figures over conversations and turns.

A conversation belongs to the period of its start, a turn to that of its end. Percentiles are exact, by
nearest rank: the smallest duration that at least that share of all durations do not exceed.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, and_, case, func, select

from otel_agent_tracker import wire
from otel_agent_tracker.semconv import EndedBy, Outcome
from otel_agent_tracker.server import tables
from otel_agent_tracker.server.database import Database
from otel_agent_tracker.server.selection import Page, Selection

__all__ = ["Figures"]

Conditions = list[ColumnElement[bool]]
_columns = tables.conversations.columns
_seconds = tables.turns.columns.seconds


class Figures:
    """The figures of all projects; a selection takes in conversations without an outcome too."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def success_rates(self, project_id: int, selection: Selection) -> wire.SuccessRates:
        """How many conversations ended how."""
        with self._database.reading() as connection:
            return _success_rates(connection, _of_conversations(project_id, selection))

    def response_times(self, project_id: int, selection: Selection) -> wire.ResponseTimes:
        """How long turns took."""
        with self._database.reading() as connection:
            return _response_times(connection, _of_turns(project_id, selection))

    def quality(self, project_id: int, selection: Selection) -> wire.Quality:
        """How conversations were rated."""
        with self._database.reading() as connection:
            return _quality(connection, _of_conversations(project_id, selection))

    def failures(self, project_id: int, selection: Selection, page: Page) -> wire.Failures:
        """The failed conversations, the last that ended first."""
        with self._database.reading() as connection:
            return _failures(connection, _of_conversations(project_id, selection), page.size)

    def overview(self, project_id: int, selection: Selection, page: Page) -> wire.PerformanceOverview:
        """The four, of one moment."""
        conversations = _of_conversations(project_id, selection)
        with self._database.reading() as connection:
            return wire.PerformanceOverview(
                success_rates=_success_rates(connection, conversations),
                response_times=_response_times(connection, _of_turns(project_id, selection)),
                quality=_quality(connection, conversations),
                failures=_failures(connection, conversations, page.size),
            )


def _of_conversations(project_id: int, selection: Selection) -> Conditions:
    return [_columns.project_id == project_id, *selection.conditions(tables.conversations, "start_us")]


def _of_turns(project_id: int, selection: Selection) -> Conditions:
    return [tables.turns.columns.project_id == project_id, *selection.conditions(tables.turns, "end_us")]


def _success_rates(connection: Connection, wanted: Conditions) -> wire.SuccessRates:
    counted = [_count(_columns.status == status.value) for status in Outcome]
    idle = _count(_columns.ended_by == EndedBy.IDLE.value)
    *by_outcome, idle_ended, total = connection.execute(
        select(*counted, idle, func.count()).where(*wanted)
    ).one()
    counts = dict(zip(Outcome, by_outcome, strict=True))
    decided = counts[Outcome.COMPLETED] + counts[Outcome.FAILED]
    return wire.SuccessRates(
        total=total,
        completed=counts[Outcome.COMPLETED],
        failed=counts[Outcome.FAILED],
        expired=counts[Outcome.EXPIRED],
        idle_ended=idle_ended,
        active=counts[Outcome.ACTIVE],
        success_rate=counts[Outcome.COMPLETED] / decided if decided else None,
    )


def _count(condition: ColumnElement[bool]) -> ColumnElement[int]:
    """Of how many rows it holds; no GROUP BY, for which SQLite would leave the index that fits the filter."""
    return func.coalesce(func.sum(case((condition, 1), else_=0)), 0)


def _response_times(connection: Connection, wanted: Conditions) -> wire.ResponseTimes:
    count, mean = connection.execute(select(func.count(), func.avg(_seconds)).where(*wanted)).one()
    p50, p95, p99 = (_percentile(connection, wanted, count, percent) for percent in (50, 95, 99))
    return wire.ResponseTimes(count=count, mean=mean, p50=p50, p95=p95, p99=p99)


def _percentile(connection: Connection, wanted: Conditions, count: int, percent: int) -> float | None:
    below = max(-(-percent * count // 100) - 1, 0)
    # Of all turns the index by seconds has the answer; of some, it would be searched for each of them.
    order = _seconds if len(wanted) == 1 else _seconds + 0
    query = select(_seconds).where(*wanted).order_by(order).limit(1).offset(below)
    return connection.execute(query).scalar_one_or_none()


def _quality(connection: Connection, wanted: Conditions) -> wire.Quality:
    columns = [func.count(), func.count(_columns.quality), func.avg(_columns.quality)]
    row = connection.execute(select(*columns, *map(_count_rounded, range(1, 6))).where(*wanted)).one()
    total, rated, mean, *distribution = row
    return wire.Quality(
        rated=rated,
        total=total,
        share=rated / total if total else None,
        mean=mean,
        distribution={str(score): count for score, count in enumerate(distribution, start=1)},
    )


def _count_rounded(score: int) -> ColumnElement[int]:
    """How many have this score, halves rounded up."""
    return _count(and_(_columns.quality >= score - 0.5, _columns.quality < score + 0.5))


def _failures(connection: Connection, wanted: Conditions, limit: int) -> wire.Failures:
    failed = [*wanted, _columns.status == Outcome.FAILED.value]
    order = (_columns.end_us.desc(), _columns.session_id.desc(), _columns.number.desc())
    count = connection.execute(select(func.count()).where(*failed)).scalar_one()
    rows = connection.execute(select(tables.conversations).where(*failed).order_by(*order).limit(limit)).all()
    return wire.Failures(count=count, failures=[_failure(row) for row in rows])


def _failure(row: Row[Any]) -> wire.Failure:
    return wire.Failure(
        session_id=row.session_id,
        agent_id=row.agent_id,
        end_time=wire.format_time(row.end_us),
        error_type=row.error_type,
        error_message=row.error_message,
    )
