"""Counts of conversations and turns by the hour and by the day, which change with the rows they count.

Each row is counted in four places: its agent's and all agents', in its UTC hour and in its UTC day. So a figure
adds up few numbers, over a year and over a thousand agents too. A place that holds nothing any more is deleted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Connection, Table, bindparam, delete, select, tuple_

from otel_agent_tracker.semconv import EndedBy, Outcome
from otel_agent_tracker.server import tables
from otel_agent_tracker.server.database import add, delete_rows, upsert
from otel_agent_tracker.server.durations import Durations
from otel_agent_tracker.server.selection import Period

__all__ = ["Span", "Tally", "recount", "split", "whose"]

ALL_AGENTS = ""  # no agent has an empty id
HOUR_US = 3_600_000_000
CHUNK = 500  # places in one query
RECOUNTED = 10_000  # rows at once when all are counted again


class Tally:
    """What becomes of the counts of a project when rows come and go."""

    def __init__(self, project_id: int) -> None:
        self._project_id = project_id
        self._conversations: dict[_Hour, Counter[str]] = {}
        self._come: dict[_Hour, Durations] = {}
        self._gone: dict[_Hour, Durations] = {}

    def conversation(self, row: dict[str, Any], sign: int = 1) -> None:
        """One more with the values of `row`, or with `sign` -1 one less."""
        hour = _Hour(row["agent_id"], row["start_us"] // HOUR_US)
        sums = self._conversations.setdefault(hour, Counter())
        sums["total"] += sign
        if row["status"] != Outcome.ACTIVE:
            sums[row["status"]] += sign
        if row["ended_by"] == EndedBy.IDLE:
            sums["idle_ended"] += sign
        if row["quality"] is not None:
            sums[f"score_{int(row['quality'] + 0.5)}"] += sign
            sums["quality"] += sign * row["quality"]

    def turn(self, row: dict[str, Any], sign: int = 1) -> None:
        """One more with the values of `row`, or with `sign` -1 one less."""
        hour = _Hour(row["agent_id"], row["end_us"] // HOUR_US)
        changing = self._come if sign > 0 else self._gone
        changing.setdefault(hour, Durations()).count(row["seconds"])

    def write(self, connection: Connection) -> None:
        """Change the counts, within a transaction of the caller's."""
        self._write_conversations(connection)
        self._write_turns(connection)

    def _write_conversations(self, connection: Connection) -> None:
        sums: dict[_Place, Counter[str]] = {}
        for hour, change in self._conversations.items():
            for place in hour.places():
                sums.setdefault(place, Counter()).update(change)
        rows = [self._row(place) | {name: change[name] for name in _SUMS} for place, change in sums.items()]
        table = tables.conversation_counts
        add(connection, table, [row for row in rows if any(row[name] for name in _SUMS)])
        fewer = [row for row in rows if row["total"] < 0]
        delete_rows(connection, table, fewer, table.columns.total == 0)

    def _write_turns(self, connection: Connection) -> None:
        places = {place for hour in (*self._come, *self._gone) for place in hour.places()}
        durations = self._stored_durations(connection, list(places))
        for hour, come in self._come.items():
            for place in hour.places():
                durations.setdefault(place, Durations()).add(come)
        for hour, gone in self._gone.items():
            for place in hour.places():
                durations.setdefault(place, Durations()).subtract(gone)
        rows = [self._row(place) | _columns_of(each) for place, each in durations.items() if each.total]
        upsert(connection, tables.turn_counts, rows)
        empty = [self._row(place) for place, each in durations.items() if not each.total]
        delete_rows(connection, tables.turn_counts, empty)

    def _stored_durations(self, connection: Connection, places: list[_Place]) -> dict[_Place, Durations]:
        stored = {}
        for start in range(0, len(places), CHUNK):
            chunk = {"project": self._project_id, "places": places[start : start + CHUNK]}
            for agent_id, hours, hour, seconds, histogram in connection.execute(_DURATIONS, chunk):
                stored[_Place(agent_id, hours, hour)] = Durations.read(histogram, seconds)
        return stored

    def _row(self, place: _Place) -> dict[str, Any]:
        return {"project_id": self._project_id, **place._asdict()}


def recount(connection: Connection) -> None:
    """Count all rows again, within a transaction of the caller's, in memory that does not grow with them."""
    for table, rows, count in _RECOUNTED:
        connection.execute(delete(table))
        for chunk in connection.execute(rows, execution_options={"yield_per": RECOUNTED}).partitions():
            tallies: dict[int, Tally] = {}
            for row in chunk:
                tally = tallies.setdefault(row.project_id, Tally(row.project_id))
                count(tally, row._asdict())
            for tally in tallies.values():
                tally.write(connection)


def whose(table: Table, project_id: int, agent_id: str | None) -> list[ColumnElement[bool]]:
    """What holds of the counts in `table` of one agent, or of all if it is None."""
    return [table.columns.project_id == project_id, table.columns.agent_id == (agent_id or ALL_AGENTS)]


@dataclass(frozen=True, slots=True)
class Span:
    """Places of `hours` each, from the Unix hour `first` up to but not including `last`; None is unbounded."""

    hours: int
    first: int | None
    last: int | None

    def conditions(self, table: Table) -> list[ColumnElement[bool]]:
        """What holds of the counts in `table` that lie within."""
        columns = table.columns
        wanted = [columns.hours == self.hours]
        if self.first is not None:
            wanted.append(columns.hour >= self.first)
        if self.last is not None:
            wanted.append(columns.hour < self.last)
        return wanted


def split(period: Period) -> tuple[list[Span], list[Period]]:
    """A period as the whole hours and days in it, which are counted, and what it has of the hours at its edges."""
    start, end = period.start_us, period.end_us
    first = None if start is None else -(-start // HOUR_US)
    last = None if end is None else end // HOUR_US
    if first is not None and last is not None and first >= last:
        return [], [period]
    edges = []
    if first is not None and start != first * HOUR_US:
        edges.append(Period(start_us=start, end_us=first * HOUR_US))
    if last is not None and end != last * HOUR_US:
        edges.append(Period(start_us=last * HOUR_US, end_us=end))
    return _spans(first, last), edges


def _spans(first: int | None, last: int | None) -> list[Span]:
    """Days, and the hours before the first and after the last of them."""
    first_day = None if first is None else first + -first % 24
    last_day = None if last is None else last - last % 24
    if first_day is not None and last_day is not None and first_day >= last_day:
        return [Span(1, first, last)]
    spans = [Span(1, first, first_day), Span(24, first_day, last_day), Span(1, last_day, last)]
    return [span for span in spans if span.hours > 1 or span.first != span.last]


class _Hour(NamedTuple):
    """An hour of an agent's, counted from 1970 on."""

    agent_id: str
    hour: int

    def places(self) -> Iterator[_Place]:
        """Where it is counted."""
        for agent_id in (self.agent_id, ALL_AGENTS):
            for hours in (1, 24):
                yield _Place(agent_id, hours, self.hour - self.hour % hours)


class _Place(NamedTuple):
    agent_id: str
    hours: int
    hour: int


def _columns_of(durations: Durations) -> dict[str, Any]:
    return {"seconds": durations.seconds, "histogram": durations.write()}


_SUMS = [column.name for column in tables.conversation_counts.columns if not column.primary_key]
_turn_counts = tables.turn_counts.columns
_place = (_turn_counts.agent_id, _turn_counts.hours, _turn_counts.hour)
_DURATIONS = select(*_place, _turn_counts.seconds, _turn_counts.histogram).where(
    _turn_counts.project_id == bindparam("project"), tuple_(*_place).in_(bindparam("places", expanding=True))
)
_conversations, _turns = tables.conversations.columns, tables.turns.columns
# Agent by agent and hour by hour, so that few places change with each chunk; an index has all that is read.
_RECOUNTED = (
    (
        tables.conversation_counts,
        select(
            _conversations.project_id,
            _conversations.agent_id,
            _conversations.start_us,
            _conversations.status,
            _conversations.ended_by,
            _conversations.quality,
        ).order_by(_conversations.project_id, _conversations.agent_id, _conversations.start_us),
        Tally.conversation,
    ),
    (
        tables.turn_counts,
        select(_turns.project_id, _turns.agent_id, _turns.end_us, _turns.seconds).order_by(
            _turns.project_id, _turns.agent_id, _turns.end_us
        ),
        Tally.turn,
    ),
)
