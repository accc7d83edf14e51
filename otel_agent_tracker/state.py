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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from otel_agent_tracker.rollup import RollUp

__all__ = ["Counts", "NewRow", "OutboxRow", "SessionRow", "State", "Tombstone"]

FORMAT = 1
MAX_TOMBSTONES = 1_000_000
TOMBSTONE_US = 7 * 24 * 3600 * 1_000_000
_PAGE_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Counts:
    """The books of a state folder; `oldest_pending_us` is the time of the oldest pending event."""

    accepted: int = 0
    delivered: int = 0
    pending: int = 0
    dead_lettered: int = 0
    dropped: int = 0
    dropped_by_kind: Mapping[str, int] = field(default_factory=dict)
    oldest_pending_us: int | None = None


class SessionRow(NamedTuple):
    """An open session; `record` is what `SessionMap.dump` gave.

    Within the boot `boot_id`, wall time less `wall_less_monotonic_us` is time of the monotonic clock.
    """

    session_id: str
    agent_id: str
    start_us: int
    last_activity_us: int
    record: bytes
    boot_id: str
    wall_less_monotonic_us: int


class Tombstone(NamedTuple):
    """What is remembered of an ended conversation."""

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
    every call raises sqlite3.ProgrammingError.
    """

    def __init__(self, path: Path | None, *, writer: str, max_bytes: int) -> None:
        self._path = path
        self._writer = writer
        self._max_bytes = max_bytes
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
            self._configure(connection.execute)
        except BaseException:
            connection.close()
            raise
        return connection

    def _configure(self, execute: Callable[[str], object]) -> None:
        execute("PRAGMA journal_mode = WAL")
        execute("PRAGMA synchronous = NORMAL")
        execute("PRAGMA wal_autocheckpoint = 1000")
        execute(f"PRAGMA max_page_count = {max(1000, self._max_bytes // _PAGE_BYTES)}")

    def _prepare(self) -> None:
        execute = self._connection.execute
        with self.transaction():
            found = execute("PRAGMA user_version").fetchone()[0]
            if found > FORMAT:
                raise sqlite3.NotSupportedError(f"state file format {found} is newer than {FORMAT}")
            for statement in _SCHEMA:
                execute(statement)
            execute("INSERT OR IGNORE INTO counters VALUES ('identity', ?)", (random.getrandbits(62),))
            execute(f"PRAGMA user_version = {FORMAT}")

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
        try:
            yield
            self._connection.execute("COMMIT")
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
        self._connection.executemany(_PUT_OFFSET, offsets)

    def forget_segments(self, segments: Iterable[str]) -> None:
        """Segments were deleted."""
        self._connection.executemany("DELETE FROM journal WHERE segment = ?", [(name,) for name in segments])

    # --- sessions -------------------------------------------------------------------------------------------

    def put_sessions(self, rows: Iterable[SessionRow]) -> None:
        """Write open sessions, but none over newer activity, nor one that has ended since it started.

        An inferred end that activity has overtaken is none.
        """
        seq = self._next_seq()
        self._connection.executemany(
            _PUT_SESSION,
            [(*row, self._writer, seq, row.session_id, row.start_us, row.last_activity_us) for row in rows],
        )

    def session(self, session_id: str) -> SessionRow | None:
        """The open session of that id."""
        row = self._connection.execute(f"{_SELECT_SESSION} WHERE session_id = ?", (session_id,)).fetchone()
        return SessionRow(*row) if row else None

    def end_sessions(self, tombstones: Sequence[Tombstone]) -> None:
        """These conversations are not open any more; a later one of the same session is left alone."""
        if not tombstones:
            return
        seq = self._next_seq()
        self._connection.executemany(
            "DELETE FROM sessions WHERE session_id = ? AND start_us <= ?",
            [(tombstone.session_id, tombstone.end_us) for tombstone in tombstones],
        )
        self._connection.executemany(
            _PUT_TOMBSTONE, [(*tombstone, self._writer, seq) for tombstone in tombstones]
        )

    def tombstone(self, session_id: str) -> Tombstone | None:
        """What is remembered of the newest ended conversation of the session."""
        row = self._connection.execute(
            f"SELECT {', '.join(Tombstone._fields)} FROM tombstones WHERE session_id = ?", (session_id,)
        ).fetchone()
        return Tombstone(*row) if row else None

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

    def changes_of_others(self, since: int) -> tuple[int, list[SessionRow], list[Tombstone]]:
        """Where the file stands now; sessions that others wrote after `since`, and conversations they ended."""
        newest = self._connection.execute("SELECT value FROM counters WHERE name = 'seq'").fetchone()[0]
        others = "seq > ? AND writer <> ?"
        sessions = self._connection.execute(
            f"{_SELECT_SESSION} WHERE {others}", (since, self._writer)
        ).fetchall()
        ended = self._connection.execute(
            f"SELECT {', '.join(Tombstone._fields)} FROM tombstones WHERE {others}", (since, self._writer)
        ).fetchall()
        return newest, [SessionRow(*row) for row in sessions], [Tombstone(*row) for row in ended]

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
            "INSERT OR REPLACE INTO rollups VALUES (?, ?)", (session_id, orjson.dumps(roll_up.to_json()))
        )

    def drop_roll_up(self, session_id: str) -> None:
        """The roll-up has gone with its end."""
        self._connection.execute("DELETE FROM rollups WHERE session_id = ?", (session_id,))

    # --- outbox ---------------------------------------------------------------------------------------------

    def accept(self, rows: Sequence[NewRow]) -> None:
        """Put events into the outbox; one whose event id is there already is not accepted again."""
        before = self._connection.total_changes
        self._connection.executemany(_ACCEPT, rows)
        self._count("accepted", self._connection.total_changes - before)

    def count_dropped(self, dropped: Mapping[str, int]) -> None:
        """Events of these kinds were offered and could not be kept."""
        for kind, number in dropped.items():
            self._count("accepted", number)
            self._count(f"dropped.{kind}", number)

    def pending(self, limit: int, *, without_paths: Sequence[str] = ()) -> list[OutboxRow]:
        """The oldest events to deliver, but none whose path is among `without_paths`."""
        marks = ", ".join("?" * len(without_paths))
        rows = self._connection.execute(
            f"SELECT {', '.join(OutboxRow._fields)} FROM outbox WHERE dead = 0 "
            f"AND path NOT IN ({marks}) ORDER BY id LIMIT ?",
            (*without_paths, limit),
        ).fetchall()
        return [OutboxRow(*row) for row in rows]

    def pending_of(self, lane: str, event: str) -> list[OutboxRow]:
        """The undelivered events of one kind in one lane."""
        rows = self._connection.execute(
            f"SELECT {', '.join(OutboxRow._fields)} FROM outbox WHERE dead = 0 AND lane = ? AND event = ? ORDER BY id",
            (lane, event),
        ).fetchall()
        return [OutboxRow(*row) for row in rows]

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
        before = self._connection.total_changes
        self._connection.executemany("DELETE FROM outbox WHERE id = ?", [(row_id,) for row_id in ids])
        self._count("delivered", self._connection.total_changes - before)

    def rewrite(self, row_id: int, body: bytes) -> None:
        """The event of this row is told with more in it."""
        self._connection.execute("UPDATE outbox SET body = ? WHERE id = ?", (body, row_id))

    def note_attempts(self, ids: Sequence[int], reason: str) -> None:
        """These rows were sent and not acknowledged."""
        self._connection.executemany(
            "UPDATE outbox SET attempts = attempts + 1, reason = ? WHERE id = ?",
            [(reason, row_id) for row_id in ids],
        )

    def dead_letter(self, row_id: int, reason: str) -> None:
        """The tracker refuses this row for good; it is kept, with the reason, until it is retried or purged."""
        self._connection.execute("UPDATE outbox SET dead = 1, reason = ? WHERE id = ?", (reason, row_id))

    def dead_letters(self, limit: int) -> list[OutboxRow]:
        """The oldest dead letters."""
        rows = self._connection.execute(
            f"SELECT {', '.join(OutboxRow._fields)} FROM outbox WHERE dead = 1 ORDER BY id LIMIT ?", (limit,)
        ).fetchall()
        return [OutboxRow(*row) for row in rows]

    def row(self, row_id: int) -> tuple[OutboxRow, bool] | None:
        """The row of that id, and whether it is a dead letter."""
        row = self._connection.execute(
            f"SELECT {', '.join(OutboxRow._fields)}, dead FROM outbox WHERE id = ?", (row_id,)
        ).fetchone()
        return (OutboxRow(*row[:-1]), bool(row[-1])) if row else None

    def revive(self, row_id: int | None) -> int:
        """Make one dead letter, or all of them, pending again; how many."""
        where, values = ("", ()) if row_id is None else (" AND id = ?", (row_id,))
        return self._connection.execute(
            f"UPDATE outbox SET dead = 0, reason = NULL WHERE dead = 1{where}", values
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
            counters = dict(self._connection.execute("SELECT name, value FROM counters").fetchall())
            dead_and_live = self._connection.execute(
                "SELECT dead, count(*), min(time_us) FROM outbox GROUP BY dead"
            ).fetchall()
        by_dead: dict[int, tuple[int, int]] = {
            dead: (number, oldest) for dead, number, oldest in dead_and_live
        }
        dropped = {name[8:]: value for name, value in counters.items() if name.startswith("dropped.")}
        return Counts(
            accepted=counters.get("accepted", 0),
            delivered=counters.get("delivered", 0),
            pending=by_dead.get(0, (0, 0))[0],
            dead_lettered=by_dead.get(1, (0, 0))[0],
            dropped=sum(dropped.values()),
            dropped_by_kind=dropped,
            oldest_pending_us=by_dead[0][1] if 0 in by_dead else None,
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
        """`take_over` from a damaged file, as far as it can be read."""
        connection = sqlite3.connect(str(path), isolation_level=None)
        try:
            return self._take_over(connection)
        finally:
            connection.close()

    def _take_over(self, other: sqlite3.Connection) -> int:
        with self.transaction():
            self._connection.executemany(
                _PUT_OFFSET, _readable(other, "SELECT segment, read_to FROM journal")
            )
            for row in _readable(other, f"SELECT {', '.join(Tombstone._fields)} FROM tombstones"):
                self._connection.execute(_PUT_TOMBSTONE, (*row, self._writer, self._next_seq()))
            self.put_sessions([SessionRow(*row) for row in _readable(other, _SELECT_SESSION)])
            self._connection.executemany(
                "INSERT OR IGNORE INTO rollups VALUES (?, ?)",
                _readable(other, "SELECT session_id, summary FROM rollups"),
            )
            self._take_over_history(dict(_readable(other, "SELECT name, value FROM counters")))
            before = self._connection.total_changes
            for order in ("ASC", "DESC"):  # from both ends, up to what cannot be read
                self._connection.executemany(_TAKE_OVER, _readable(other, _SELECT_ALL.format(order=order)))
            came = self._connection.total_changes - before
            self._count("accepted", came)
        return came

    def _take_over_history(self, counters: Mapping[str, int]) -> None:
        """What became of events that are not in the outbox any more."""
        mark = f"took over {counters.get('identity', 0)}"
        if self._connection.execute("SELECT 1 FROM counters WHERE name = ?", (mark,)).fetchone():
            return
        self._count(mark, 1)
        for name, value in counters.items():
            if name == "delivered" or name.startswith("dropped."):
                self._count(name, value)
                self._count("accepted", value)

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
        if number:
            self._connection.execute(
                "INSERT INTO counters VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = value + excluded.value",
                (name, number),
            )

    def _next_seq(self) -> int:
        row: Any = self._connection.execute(
            "UPDATE counters SET value = value + 1 WHERE name = 'seq' RETURNING value"
        ).fetchone()
        return int(row[0])


def _readable(connection: sqlite3.Connection, statement: str) -> Iterator[tuple[Any, ...]]:
    """The rows up to the first that cannot be read; what lies beyond it is lost."""
    with suppress(sqlite3.DatabaseError):
        yield from connection.execute(statement)


_SELECT_SESSION = f"SELECT {', '.join(SessionRow._fields)} FROM sessions"

_PUT_SESSION = """
INSERT INTO sessions SELECT ?, ?, ?, ?, ?, ?, ?, ?, ?
WHERE NOT EXISTS (
    SELECT 1 FROM tombstones
    WHERE session_id = ? AND end_us >= ? AND (ended_by = 'call' OR end_us >= ?)
)
ON CONFLICT (session_id) DO UPDATE SET
    agent_id = excluded.agent_id, start_us = min(start_us, excluded.start_us),
    last_activity_us = excluded.last_activity_us, record = excluded.record,
    boot_id = excluded.boot_id, wall_less_monotonic_us = excluded.wall_less_monotonic_us,
    writer = excluded.writer, seq = excluded.seq
WHERE excluded.last_activity_us >= sessions.last_activity_us
"""

_PUT_TOMBSTONE = """
INSERT INTO tombstones VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (session_id) DO UPDATE SET
    agent_id = excluded.agent_id, start_us = excluded.start_us, end_us = excluded.end_us,
    outcome = excluded.outcome, ended_by = excluded.ended_by, quality = excluded.quality,
    error_message = excluded.error_message, writer = excluded.writer, seq = excluded.seq
WHERE excluded.end_us >= tombstones.end_us
"""

_PUT_OFFSET = """
INSERT INTO journal VALUES (?, ?)
ON CONFLICT (segment) DO UPDATE SET read_to = max(read_to, excluded.read_to)
"""

_FORGET_ROLL_UPS = """
DELETE FROM rollups WHERE session_id NOT IN (SELECT session_id FROM sessions)
AND session_id NOT IN (SELECT session_id FROM tombstones)
AND session_id NOT IN (SELECT lane FROM outbox WHERE dead = 0)
"""

_ACCEPT = """
INSERT OR IGNORE INTO outbox (event_id, event, path, lane, body, service, otlp, time_us)
VALUES (?, ?, ?, ?, ?, ?, ?, ?)
"""

_CARRIED = (*(name for name in OutboxRow._fields if name != "id"), "dead")
_SELECT_ALL = f"SELECT {', '.join(_CARRIED)} FROM outbox ORDER BY id {{order}}"
_TAKE_OVER = f"INSERT OR IGNORE INTO outbox ({', '.join(_CARRIED)}) VALUES ({', '.join('?' * len(_CARRIED))})"

_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID",
    "INSERT OR IGNORE INTO counters VALUES ('seq', 0)",
    "CREATE TABLE IF NOT EXISTS journal (segment TEXT PRIMARY KEY, read_to INTEGER NOT NULL) WITHOUT ROWID",
    """CREATE TABLE IF NOT EXISTS sessions (
        session_id TEXT PRIMARY KEY, agent_id TEXT NOT NULL, start_us INTEGER NOT NULL,
        last_activity_us INTEGER NOT NULL, record BLOB NOT NULL, boot_id TEXT NOT NULL,
        wall_less_monotonic_us INTEGER NOT NULL, writer TEXT NOT NULL, seq INTEGER NOT NULL
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
    "CREATE INDEX IF NOT EXISTS outbox_by_lane ON outbox (lane)",
    "CREATE INDEX IF NOT EXISTS outbox_by_time ON outbox (dead, time_us)",  # the books, without the bodies
)
