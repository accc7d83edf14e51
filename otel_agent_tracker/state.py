"""The state file: open sessions, outbox, dead letters and counters of one state folder, in SQLite.

Only workers use it, each through a connection of its own. Numbers of rows in `OutboxRow.id` only grow, so they
tell what was there before. What belongs together moves in one transaction:
the journal's consumed offset with the rows made from it, an end with its session. `accepted = delivered +
pending + dead-lettered + dropped` holds after each.
"""

from __future__ import annotations

import os
import random
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain, groupby, islice, product
from pathlib import Path
from types import NoneType
from typing import Any, NamedTuple, TypeVar

import orjson

from otel_agent_tracker.rollup import RollUp
from otel_agent_tracker.salvage import rows_by_id, rows_from_both_ends
from otel_agent_tracker.sqlite_lock import change_to_wal

__all__ = ["Counts", "DamagedState", "NewRow", "OutboxRow", "SessionRow", "State", "Tombstone"]

FORMAT = 1
NEWEST_FORMAT = FORMAT + 1  # what a release adds, the one before it passes over
MAX_TOMBSTONES = 1_000_000
TOMBSTONE_US = 7 * 24 * 3600 * 1_000_000
_PAGE_BYTES = 4096
_RESERVED_PAGES = (
    768  # beyond the limit: a batch that reaches over it, and what deliveries note of their rows
)
_BEYOND_COUNTING = 1 << 62
_MOST_VALUES = 800  # in one statement; builds of SQLite before 3.32 take 999

_Values = TypeVar("_Values", bound=NamedTuple)


class FullState(sqlite3.OperationalError):
    """The file is as large as it may become."""

    sqlite_errorcode = sqlite3.SQLITE_FULL


class DamagedState(sqlite3.DatabaseError):
    """SQLite can read the file, but it holds what we did not write."""


@dataclass(frozen=True, slots=True)
class Counts:
    """The books of a state folder; `oldest_pending_us` is the time of the event accepted first of those pending.

    `identity` tells this state from every other, also from one of the same path on another machine.
    """

    accepted: int = 0
    delivered: int = 0
    pending: int = 0
    dead_lettered: int = 0
    dropped: int = 0
    dropped_by_kind: Mapping[str, int] = field(default_factory=dict)
    oldest_pending_us: int | None = None
    identity: int = field(default=0, compare=False)

    @property
    def add_up(self) -> bool:
        """Whether every accepted event is somewhere."""
        return self.accepted == self.delivered + self.pending + self.dead_lettered + self.dropped


class SessionRow(NamedTuple):
    """An open session; `record` is what `SessionMap.dump` gave.

    Within the boot `boot_id`, wall time less `wall_less_monotonic_us` is time of the monotonic clock.
    `last_turn_us` is when the turn that started last did so, 0 without turns.
    """

    session_id: str
    agent_id: str
    start_us: int
    last_activity_us: int
    record: bytes
    boot_id: str
    wall_less_monotonic_us: int
    last_turn_us: int = 0


class Tombstone(NamedTuple):
    """What is remembered of an ended conversation: the end that the outcome rules prefer."""

    session_id: str
    agent_id: str
    start_us: int
    end_us: int
    outcome: str
    ended_by: str
    quality: int | None
    error_message: str | None


class NewRow(NamedTuple):
    """An event on its way into the outbox; `lane` orders delivery, `body` and `service` are JSON."""

    event_id: str
    event: str
    path: str
    lane: str
    body: bytes
    service: bytes
    otlp: bytes
    time_us: int


class OutboxRow(NamedTuple):
    """An event in the outbox."""

    id: int
    event_id: str
    event: str
    path: str
    lane: str
    body: bytes
    service: bytes
    otlp: bytes
    time_us: int
    attempts: int
    reason: str | None


class State:
    """One connection to the state file at `path`; None keeps everything in memory.

    Raises sqlite3.Error when the file cannot be used. Only the thread that made it may use it; after `close`
    every call raises sqlite3.ProgrammingError. `tally` counts what is done through this connection alone: where
    the file is shared, the counters in it count what all do.
    """

    def __init__(
        self, path: Path | None, *, writer: str, max_bytes: int, tally: Counter[str] | None = None
    ) -> None:
        self._path = path
        self._writer = writer
        self._max_bytes = max_bytes
        self._tally: Counter[str] = Counter() if tally is None else tally
        self._uncommitted: Counter[str] = Counter()
        self._openings = 0
        self._opened: sqlite3.Connection | None = None
        try:
            self._prepare()
            self._file = path.stat() if path else None
        except BaseException:
            self.close()
            raise

    @property
    def _connection(self) -> sqlite3.Connection:
        """The connection, opened anew after `suspend`."""
        if self._opened is None:
            lost = self._openings > 0 and not self.is_in_place
            path = None if lost else self._path  # an empty one stands in for a file that is gone
            self._opened = self._connect(str(path or ":memory:"))
            self._openings += 1
            if lost:
                self._prepare()
        return self._opened

    def _connect(self, database: str) -> sqlite3.Connection:
        connection = sqlite3.connect(database, isolation_level=None, timeout=5.0, check_same_thread=False)
        try:
            change_to_wal(connection)
            self._configure(connection.execute)
        except BaseException:
            connection.close()
            raise
        return connection

    def _configure(self, execute: Callable[[str], object]) -> None:
        execute("PRAGMA synchronous = NORMAL")
        execute("PRAGMA wal_autocheckpoint = 1000")
        execute("PRAGMA secure_delete = ON")  # not every build of SQLite overwrites what is deleted
        execute(self._limit())

    def _limit(self) -> str:
        return f"PRAGMA max_page_count = {self._most_pages + _RESERVED_PAGES}"

    @property
    def _most_pages(self) -> int:
        return max(1000, self._max_bytes // _PAGE_BYTES)

    def _check_room(self) -> None:
        """Refuse events at the limit; what is reserved is for those that empty the file, and for sessions."""
        if self.bytes_used() >= self._most_pages * _PAGE_BYTES:
            raise FullState("the state file is full")

    def _prepare(self) -> None:
        execute = self._connection.execute
        with self.transaction():
            found = execute("PRAGMA user_version").fetchone()[0]
            if found > NEWEST_FORMAT:
                raise sqlite3.NotSupportedError(f"state file format {found} is newer than {NEWEST_FORMAT}")
            for statement in _SCHEMA:
                execute(statement)
            execute(
                "INSERT OR IGNORE INTO counters (name, value) VALUES ('identity', ?)",
                (random.getrandbits(62),),
            )
            execute(f"PRAGMA user_version = {max(found, FORMAT)}")

    def close(self) -> None:
        """Close the connection; idempotent."""
        if self._opened is None:
            self._opened = sqlite3.connect(":memory:")  # closed, it refuses every call
        self._opened.close()

    def suspend(self) -> None:
        """Close the file until the next call, from any thread while no other uses the state; not memory.

        A child forked while it is open would inherit locks that are not its own.
        """
        if self._opened is not None and self._path is not None and self.is_in_place:
            self._opened.close()
            self._opened = None

    @property
    def max_bytes(self) -> int:
        """How large the file may become; what it holds already stays."""
        return self._max_bytes

    @max_bytes.setter
    def max_bytes(self, max_bytes: int) -> None:
        if max_bytes != self._max_bytes:
            self._max_bytes = max_bytes
            self._connection.execute(self._limit())

    @property
    def is_private(self) -> bool:
        """Whether everything is in the memory of this process."""
        return self._path is None

    @property
    def is_in_place(self) -> bool:
        """Whether the file is still at its path: what goes into a deleted file ends with the process."""
        if self._path is None or self._file is None:
            return True
        try:
            return os.path.samestat(self._path.stat(), self._file)
        except OSError:
            return False

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Everything inside is written, or, if anything raises, nothing."""
        self._connection.execute("BEGIN IMMEDIATE")
        self._uncommitted.clear()
        try:
            yield
            self._connection.execute("COMMIT")
            self._tally.update(self._uncommitted)
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise

    # --- the journal ----------------------------------------------------------------------------------------

    def offsets(self) -> dict[str, int]:
        """How far each journal segment has been read."""
        return dict(self._connection.execute("SELECT segment, read_to FROM journal").fetchall())

    def set_offsets(self, offsets: Iterable[tuple[str, int]]) -> None:
        """Remember how far segments have been read; what has been read further stays so."""
        self._at_once(_PUT_OFFSET, offsets)

    def forget_segments(self, segments: Iterable[str]) -> None:
        """Segments were deleted."""
        self._at_once("DELETE FROM journal WHERE segment IN (VALUES {})", ((name,) for name in segments))

    # --- sessions -------------------------------------------------------------------------------------------

    def put_sessions(self, rows: Iterable[SessionRow]) -> None:
        """Write open sessions, but none over newer activity, nor one that has ended since it started.

        An inferred end that activity has overtaken is none; nor is one before a turn, which opened the next
        conversation.
        """
        self._at_once(_PUT_SESSION, rows, self._writer, self._next_seq())

    def session(self, session_id: str) -> SessionRow | None:
        """The open session of that id."""
        rows = self._connection.execute(f"{_SELECT_SESSION} WHERE session_id = ?", (session_id,))
        return next(iter(_checked(SessionRow, rows)), None)

    def end_sessions(self, tombstones: Sequence[Tombstone]) -> None:
        """These conversations are not open any more; a later one of the same session is left alone.

        So is one that has a turn which started after the end: that turn opened the next.
        """
        if not tombstones:
            return
        seq = self._next_seq()
        self._at_once(_CLOSE_SESSION, ((each.session_id, each.end_us) for each in tombstones))
        for way, alike in groupby(tombstones, lambda each: f"ended.{each.ended_by}.{each.outcome}"):
            rows = [(*each, self._writer, seq) for each in alike]
            self._uncommitted[way] += self._at_once(_PUT_TOMBSTONE, rows)

    def tombstone(self, session_id: str) -> Tombstone | None:
        """What is remembered of the newest ended conversation of the session."""
        rows = self._connection.execute(f"{_SELECT_TOMBSTONE} WHERE session_id = ?", (session_id,))
        return next(iter(_checked(Tombstone, rows)), None)

    def prune_tombstones(self, now_us: int) -> None:
        """Forget ended conversations after 7 days, and the oldest beyond a million; turns that came too late too."""
        self._connection.execute("DELETE FROM tombstones WHERE end_us < ?", (now_us - TOMBSTONE_US,))
        self._connection.execute(
            "DELETE FROM tombstones WHERE session_id IN "
            "(SELECT session_id FROM tombstones ORDER BY seq DESC LIMIT -1 OFFSET ?)",
            (MAX_TOMBSTONES,),
        )
        self._connection.execute(_FORGET_ROLL_UPS)

    def data_version(self) -> int:
        """Changes when another connection has written."""
        version = int(self._connection.execute("PRAGMA data_version").fetchone()[0])
        return version + (self._openings << 32)  # each connection counts for itself

    def changes_of_others(self, since: int) -> tuple[int, Iterator[SessionRow], Iterator[Tombstone]]:
        """Where the file stands now; sessions that others wrote after `since`, and conversations they ended.

        Sessions come in order of their last activity. There may be a million: they are read, within one
        transaction, as they are asked for.
        """
        newest = self._connection.execute("SELECT value FROM counters WHERE name = 'seq'").fetchone()[0]
        others = "seq > ? AND writer <> ?"
        sessions = self._connection.execute(
            f"{_SELECT_SESSION} WHERE {others} ORDER BY last_activity_us", (since, self._writer)
        )
        ended = self._connection.execute(f"{_SELECT_TOMBSTONE} WHERE {others}", (since, self._writer))
        return newest, _each_checked(SessionRow, sessions), _each_checked(Tombstone, ended)

    # --- roll-ups -------------------------------------------------------------------------------------------

    def has_roll_ups(self) -> bool:
        """Whether any session has one."""
        return bool(self._connection.execute("SELECT EXISTS (SELECT 1 FROM rollups)").fetchone()[0])

    def roll_up(self, session_id: str) -> RollUp | None:
        """The roll-up of the session's turns, if any was added."""
        row = self._connection.execute(
            "SELECT summary FROM rollups WHERE session_id = ?", (session_id,)
        ).fetchone()
        return RollUp.from_json(orjson.loads(row[0])) if row else None

    def put_roll_up(self, session_id: str, roll_up: RollUp) -> None:
        """Keep the roll-up until `drop_roll_up`."""
        self._connection.execute(
            "INSERT OR REPLACE INTO rollups (session_id, summary) VALUES (?, ?)",
            (session_id, orjson.dumps(roll_up.to_json())),
        )

    def drop_roll_up(self, session_id: str) -> None:
        """The roll-up has gone with its end."""
        self._connection.execute("DELETE FROM rollups WHERE session_id = ?", (session_id,))

    # --- outbox ---------------------------------------------------------------------------------------------

    def accept(self, rows: Sequence[NewRow]) -> None:
        """Put events into the outbox; one whose event id is there already is not accepted again.

        Raises FullState if the file is as large as it may become.
        """
        if rows:
            self._check_room()
        self._count("accepted", self._at_once(_ACCEPT, rows))

    def count_dropped(self, dropped: Mapping[str, int]) -> None:
        """Events of these kinds were offered and could not be kept."""
        for kind, number in dropped.items():
            self._count("accepted", number)
            self._count(f"dropped.{kind}", number)

    def pending(
        self, limit: int, *, without_paths: Sequence[str] = (), without_lanes: Sequence[str] = ()
    ) -> list[OutboxRow]:
        """The oldest events to deliver, but none whose path or lane is left out."""
        others, left_out = _without(without_paths, without_lanes)
        rows = self._connection.execute(
            f"{_SELECT_ROW} WHERE dead = 0 AND {others} ORDER BY id LIMIT ?", (*left_out, limit)
        )
        return _checked(OutboxRow, rows)

    def newest(
        self,
        limit: int,
        *,
        of_each_lane: int,
        without_paths: Sequence[str] = (),
        without_lanes: Sequence[str] = (),
    ) -> list[OutboxRow]:
        """Events of the lanes heard of last, the last one first; of each the oldest, in order."""
        others, left_out = _without(without_paths, without_lanes)
        lanes = self._connection.execute(
            f"SELECT lane FROM outbox WHERE dead = 0 AND {others} ORDER BY id DESC LIMIT ?",
            (*left_out, limit),
        ).fetchall()
        rows: list[OutboxRow] = []
        for (lane,) in dict.fromkeys(lanes):
            if len(rows) >= limit:
                break
            found = self._connection.execute(
                f"{_SELECT_ROW} WHERE dead = 0 AND {others} AND lane = ? ORDER BY id LIMIT ?",
                (*left_out, lane, min(of_each_lane, limit - len(rows))),
            )
            rows += _checked(OutboxRow, found)
        return rows

    def pending_of(self, lane: str, event: str) -> list[OutboxRow]:
        """The undelivered events of one kind in one lane."""
        rows = self._connection.execute(
            f"{_SELECT_ROW} WHERE dead = 0 AND lane = ? AND event = ? ORDER BY id", (lane, event)
        )
        return _checked(OutboxRow, rows)

    def newest_pending_id(self) -> int:
        """The newest undelivered row's id, 0 if there is none."""
        return int(
            self._connection.execute("SELECT coalesce(max(id), 0) FROM outbox WHERE dead = 0").fetchone()[0]
        )

    def oldest_pending_id(self) -> int | None:
        """The oldest undelivered row's id."""
        return self._connection.execute("SELECT min(id) FROM outbox WHERE dead = 0").fetchone()[0]  # type: ignore[no-any-return]  # sqlite3 types rows as Any

    def delivered(self, ids: Sequence[int]) -> None:
        """The tracker has acknowledged these rows."""
        rows = ((row_id,) for row_id in ids)
        self._count("delivered", self._at_once("DELETE FROM outbox WHERE id IN (VALUES {})", rows))

    def rewrite(self, row_id: int, body: bytes) -> None:
        """The event of this row is told with more in it."""
        self._connection.execute("UPDATE outbox SET body = ? WHERE id = ?", (body, row_id))

    def note_attempts(self, ids: Sequence[int], reason: str) -> None:
        """These rows were sent and not acknowledged."""
        rows = ((row_id,) for row_id in ids)
        self._at_once(_NOTE_ATTEMPTS, rows, reason)

    def dead_letter(self, row_id: int, reason: str) -> None:
        """The tracker refuses this row for good; it is kept, with the reason, until it is retried or purged."""
        self._connection.execute("UPDATE outbox SET dead = 1, reason = ? WHERE id = ?", (reason, row_id))
        self._uncommitted["dead_lettered"] += 1

    def dead_letters(self, limit: int) -> list[OutboxRow]:
        """The oldest dead letters."""
        rows = self._connection.execute(f"{_SELECT_ROW} WHERE dead = 1 ORDER BY id LIMIT ?", (limit,))
        return _checked(OutboxRow, rows)

    def row(self, row_id: int) -> tuple[OutboxRow, bool] | None:
        """The row of that id, and whether it is a dead letter."""
        row = self._connection.execute(
            f"SELECT {', '.join(OutboxRow._fields)}, dead FROM outbox WHERE id = ?", (row_id,)
        ).fetchone()
        return (OutboxRow(*row[:-1]), bool(row[-1])) if row else None

    def revive(self, row_id: int | None) -> int:
        """Make one dead letter, or all of them, pending again; how many.

        The attempt that was refused is forgotten: it is no sending that may have arrived unnoticed.
        """
        where, values = ("", ()) if row_id is None else (" AND id = ?", (row_id,))
        return self._connection.execute(
            "UPDATE outbox SET dead = 0, reason = NULL, attempts = max(0, attempts - 1) "
            f"WHERE dead = 1{where}",
            values,
        ).rowcount

    def purge(self, row_id: int | None) -> int:
        """Delete one dead letter, or all of them, counted as dropped; how many."""
        where, values = ("", ()) if row_id is None else (" AND id = ?", (row_id,))
        number = self._connection.execute(f"DELETE FROM outbox WHERE dead = 1{where}", values).rowcount
        self._count("dropped.purged", number)
        return number

    def counts(self) -> Counts:
        """The books, counted now, in one look at the file."""
        with self._one_look():
            counters = _numbers(self._connection.execute("SELECT name, value FROM counters"))
            by_dead = dict(
                self._connection.execute("SELECT dead, count(*) FROM outbox GROUP BY dead").fetchall()
            )
            oldest = self._connection.execute(
                "SELECT time_us FROM outbox WHERE dead = 0 ORDER BY id LIMIT 1"
            ).fetchone()
        dropped = {name[8:]: value for name, value in counters.items() if name.startswith("dropped.")}
        return Counts(
            accepted=counters.get("accepted", 0),
            delivered=counters.get("delivered", 0),
            pending=by_dead.get(0, 0),
            dead_lettered=by_dead.get(1, 0),
            dropped=sum(dropped.values()),
            dropped_by_kind=dropped,
            oldest_pending_us=oldest[0] if oldest else None,
            identity=counters["identity"],
        )

    def bytes_used(self) -> int:
        """How large the file is, without the pages it could reuse."""
        pages, free = (
            self._connection.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("page_count", "freelist_count")
        )
        return int(pages - free) * _PAGE_BYTES

    # --- another file ---------------------------------------------------------------------------------------

    def take_over(self, other: State) -> int:
        """Take what `other` holds and this file does not, all or nothing; how many events came.

        Several processes may do so with one deleted file: its history is counted once.
        """
        return self._take_over(other._connection)

    def salvage(self, path: Path) -> int:
        """`take_over` from a damaged file, as far as it can be read; what its books miss is counted as dropped."""
        connection = sqlite3.connect(str(path), isolation_level=None)
        try:
            return self._take_over(connection)
        finally:
            connection.close()

    def _take_over(self, other: sqlite3.Connection) -> int:
        with self.transaction():
            self.set_offsets(
                _written(rows_from_both_ends(other, "journal", "segment, read_to", "segment"), _OFFSET)
            )
            seq = self._next_seq()
            ended = _found(other, "tombstones", Tombstone)
            self._at_once(_PUT_TOMBSTONE, ((*row, self._writer, seq) for row in ended))
            self.put_sessions(_found(other, "sessions", SessionRow))
            self._at_once(
                "INSERT OR IGNORE INTO rollups (session_id, summary) VALUES {}",
                _written(
                    rows_from_both_ends(other, "rollups", "session_id, summary", "session_id"), _ROLL_UP
                ),
            )
            rows = _written(rows_by_id(other, "outbox", ", ".join(_CARRIED)), _CARRIED_TYPES)
            came = self._at_once(_TAKE_OVER, (row for row in rows if row[-1] in (0, 1)))
            self._add("accepted", came)
            counters = rows_from_both_ends(other, "counters", "name, value", "name")
            sound = (
                (name, value) for name, value in _written(counters, _COUNTER) if 0 <= value < _BEYOND_COUNTING
            )
            self._take_over_history(dict(sound), came)
        return came

    def _take_over_history(self, counters: Mapping[str, int], came: int) -> None:
        """What became of events that are not in the outbox any more."""
        mark = f"took over {counters.get('identity', 0)}"
        if self._connection.execute("SELECT 1 FROM counters WHERE name = ?", (mark,)).fetchone():
            return
        self._add(mark, 1)
        history = {
            name: value
            for name, value in counters.items()
            if name == "delivered" or name.startswith("dropped.")
        }
        for name, value in history.items():
            self._add(name, value)
            self._add("accepted", value)
        lost = max(0, counters.get("accepted", 0) - sum(history.values()) - came)
        self._add("accepted", lost)
        self._add("dropped.damaged", lost)

    def _at_once(self, statement: str, rows: Iterable[Sequence[object]], *more: object) -> int:
        """Run `statement`, with ``{}`` for the values of many rows, as few times as can be; how many rows it changed.

        SQLite gives up the GIL in each step, and from a busy host it comes back slowly: with a statement for each row
        the worker would mostly wait. `more` are the values behind those of the rows.
        """
        before, remaining = self._connection.total_changes, iter(rows)
        for first in remaining:
            most = max(1, (_MOST_VALUES - len(more)) // len(first))
            some = [first, *islice(remaining, most - 1)]
            marks = f"({', '.join('?' * len(first))})"
            values = (*chain.from_iterable(some), *more)
            self._connection.execute(statement.format(", ".join([marks] * len(some))), values)
        return self._connection.total_changes - before

    @contextmanager
    def _one_look(self) -> Iterator[None]:
        """Whatever others write meanwhile is not seen; a transaction sees nothing of it anyway."""
        if self._connection.in_transaction:
            yield
            return
        self._connection.execute("BEGIN")
        try:
            yield
        finally:
            self._connection.execute("ROLLBACK")

    def _count(self, name: str, number: int) -> None:
        """Count what is done here and now."""
        self._add(name, number)
        self._uncommitted[name] += number

    def _add(self, name: str, number: int) -> None:
        if number:
            self._connection.execute(
                "INSERT INTO counters (name, value) VALUES (?, ?) "
                "ON CONFLICT (name) DO UPDATE SET value = value + excluded.value",
                (name, number),
            )

    def _next_seq(self) -> int:
        row: Any = self._connection.execute(
            "UPDATE counters SET value = value + 1 WHERE name = 'seq' RETURNING value"
        ).fetchone()
        return int(row[0])


def _without(paths: Sequence[str], lanes: Sequence[str]) -> tuple[str, tuple[str, ...]]:
    """What leaves rows of these paths and lanes out, and its values."""
    marks = [", ".join("?" * len(left_out)) for left_out in (paths, lanes)]
    return "path NOT IN ({}) AND lane NOT IN ({})".format(*marks), (*paths, *lanes)


def _checked(kind: type[_Values], rows: Iterable[tuple[Any, ...]]) -> list[_Values]:
    """The rows as values. What SQLite gives out undecoded, or of another type, is not what was put in."""
    return list(_each_checked(kind, rows))


def _each_checked(kind: type[_Values], rows: Iterable[tuple[Any, ...]]) -> Iterator[_Values]:
    types = _TYPES[kind]
    for row in rows:
        if tuple(map(type, row)) not in types:
            raise DamagedState(f"a {kind.__name__} holds values of other types")
        yield kind(*row)


def _numbers(rows: Iterable[tuple[Any, ...]]) -> dict[str, int]:
    counters = dict(rows)
    if not all(isinstance(value, int) for value in counters.values()):
        raise DamagedState("a counter holds no number")
    return counters


def _found(other: sqlite3.Connection, table: str, kind: type[_Values]) -> Iterator[_Values]:
    """The rows of another file that can be read."""
    rows = rows_from_both_ends(other, table, ", ".join(kind._fields), "session_id")
    return (kind(*row) for row in _written(rows, _TYPES[kind]))


def _written(
    rows: Iterable[tuple[Any, ...]], types: frozenset[tuple[type, ...]]
) -> Iterator[tuple[Any, ...]]:
    """The rows that are as somebody wrote them."""
    return (row for row in rows if tuple(map(type, row)) in types)


def _either(*types: type | tuple[type, ...]) -> frozenset[tuple[type, ...]]:
    """Every row of types there can be, where each column has one of those given for it."""
    return frozenset(product(*(each if isinstance(each, tuple) else (each,) for each in types)))


_OUTBOX_TYPES = (str, str, str, str, bytes, bytes, bytes, int, int, (str, NoneType))
_CARRIED_TYPES = _either(*_OUTBOX_TYPES, int)
_OFFSET = _COUNTER = _either(str, int)
_ROLL_UP = _either(str, bytes)
_TYPES: dict[type, frozenset[tuple[type, ...]]] = {
    OutboxRow: _either(int, *_OUTBOX_TYPES),
    SessionRow: _either(str, str, int, int, bytes, str, int, int),
    Tombstone: _either(str, str, int, int, str, str, (int, NoneType), (str, NoneType)),
}

_SELECT_SESSION = f"SELECT {', '.join(SessionRow._fields)} FROM sessions"
_SELECT_TOMBSTONE = f"SELECT {', '.join(Tombstone._fields)} FROM tombstones"
_SELECT_ROW = f"SELECT {', '.join(OutboxRow._fields)} FROM outbox"

_PUT_SESSION = f"""
WITH new ({", ".join(SessionRow._fields)}) AS (VALUES {{}})
INSERT INTO sessions ({", ".join(SessionRow._fields)}, writer, seq) SELECT new.*, ?, ? FROM new
WHERE NOT EXISTS (
    SELECT 1 FROM tombstones
    WHERE tombstones.session_id = new.session_id AND end_us >= max(new.start_us, new.last_turn_us)
    AND (ended_by = 'call' OR end_us >= new.last_activity_us)
)
ON CONFLICT (session_id) DO UPDATE SET
    agent_id = excluded.agent_id,
    start_us = CASE WHEN excluded.start_us > last_activity_us THEN excluded.start_us
        ELSE min(start_us, excluded.start_us) END,
    last_activity_us = excluded.last_activity_us, record = excluded.record,
    boot_id = excluded.boot_id, wall_less_monotonic_us = excluded.wall_less_monotonic_us,
    last_turn_us = excluded.last_turn_us, writer = excluded.writer, seq = excluded.seq
WHERE excluded.last_activity_us >= sessions.last_activity_us
"""
"""What starts after all that was known is the next conversation, though nobody may have told yet that one ended."""

_CLOSE_SESSION = """
WITH ended (session_id, end_us) AS (VALUES {})
DELETE FROM sessions WHERE session_id IN (
    SELECT session_id FROM ended JOIN sessions AS open USING (session_id)
    WHERE max(open.start_us, open.last_turn_us) <= ended.end_us
)
"""

_PUT_TOMBSTONE = f"""
INSERT INTO tombstones ({", ".join(Tombstone._fields)}, writer, seq) VALUES {{}}
ON CONFLICT (session_id) DO UPDATE SET
    agent_id = excluded.agent_id, start_us = excluded.start_us, end_us = excluded.end_us,
    outcome = excluded.outcome, ended_by = excluded.ended_by, quality = excluded.quality,
    error_message = excluded.error_message, writer = excluded.writer, seq = excluded.seq
WHERE CASE
    WHEN excluded.start_us > tombstones.end_us OR excluded.end_us < tombstones.start_us
        THEN excluded.end_us > tombstones.end_us
    WHEN (excluded.ended_by = 'call') <> (tombstones.ended_by = 'call') THEN excluded.ended_by = 'call'
    WHEN excluded.ended_by = 'call' THEN excluded.end_us < tombstones.end_us
    ELSE excluded.end_us >= tombstones.end_us
END
"""
"""Of two conversations the newer is remembered; of two ends of one that which the outcome rules prefer."""

_PUT_OFFSET = """
INSERT INTO journal (segment, read_to) VALUES {}
ON CONFLICT (segment) DO UPDATE SET read_to = max(read_to, excluded.read_to)
"""

_FORGET_ROLL_UPS = """
DELETE FROM rollups WHERE session_id NOT IN (SELECT session_id FROM sessions)
AND session_id NOT IN (SELECT session_id FROM tombstones)
AND session_id NOT IN (SELECT lane FROM outbox WHERE dead = 0)
"""

_ACCEPT = """
INSERT OR IGNORE INTO outbox (event_id, event, path, lane, body, service, otlp, time_us) VALUES {}
"""

_NOTE_ATTEMPTS = """
WITH tried (id) AS (VALUES {})
UPDATE outbox SET attempts = attempts + 1, reason = ? WHERE id IN tried
"""

_CARRIED = (*(name for name in OutboxRow._fields if name != "id"), "dead")
_TAKE_OVER = f"INSERT OR IGNORE INTO outbox ({', '.join(_CARRIED)}) VALUES {{}}"

_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID",
    "INSERT OR IGNORE INTO counters (name, value) VALUES ('seq', 0)",
    "CREATE TABLE IF NOT EXISTS journal (segment TEXT PRIMARY KEY, read_to INTEGER NOT NULL) WITHOUT ROWID",
    """CREATE TABLE IF NOT EXISTS sessions (
        session_id TEXT PRIMARY KEY, agent_id TEXT NOT NULL, start_us INTEGER NOT NULL,
        last_activity_us INTEGER NOT NULL, record BLOB NOT NULL, boot_id TEXT NOT NULL,
        wall_less_monotonic_us INTEGER NOT NULL, last_turn_us INTEGER NOT NULL,
        writer TEXT NOT NULL, seq INTEGER NOT NULL
    ) WITHOUT ROWID""",
    "CREATE INDEX IF NOT EXISTS sessions_by_seq ON sessions (seq)",
    """CREATE TABLE IF NOT EXISTS tombstones (
        session_id TEXT PRIMARY KEY, agent_id TEXT NOT NULL, start_us INTEGER NOT NULL, end_us INTEGER NOT NULL,
        outcome TEXT NOT NULL, ended_by TEXT NOT NULL, quality INTEGER, error_message TEXT,
        writer TEXT NOT NULL, seq INTEGER NOT NULL
    ) WITHOUT ROWID""",
    "CREATE INDEX IF NOT EXISTS tombstones_by_seq ON tombstones (seq)",
    "CREATE INDEX IF NOT EXISTS tombstones_by_end ON tombstones (end_us)",
    "CREATE TABLE IF NOT EXISTS rollups (session_id TEXT PRIMARY KEY, summary BLOB NOT NULL) WITHOUT ROWID",
    """CREATE TABLE IF NOT EXISTS outbox (
        id INTEGER PRIMARY KEY AUTOINCREMENT, event_id TEXT NOT NULL UNIQUE, event TEXT NOT NULL,
        path TEXT NOT NULL, lane TEXT NOT NULL, body BLOB NOT NULL, service BLOB NOT NULL, otlp BLOB NOT NULL,
        time_us INTEGER NOT NULL, attempts INTEGER NOT NULL DEFAULT 0,
        dead INTEGER NOT NULL DEFAULT 0, reason TEXT
    )""",
    # what has equal values there is in order of id: what is next is found without a look at all that waits
    "CREATE INDEX IF NOT EXISTS outbox_by_lane ON outbox (lane, dead)",
    "CREATE INDEX IF NOT EXISTS outbox_by_dead ON outbox (dead)",
)
