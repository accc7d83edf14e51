"""SQLite waits by itself for what others have, but not before it changes to WAL."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from otel_agent_tracker.server.counts import recount
from otel_agent_tracker.server.database import Database
from otel_agent_tracker.sqlite_lock import change_to_wal, is_busy
from otel_agent_tracker.state import Counts, State


def open_state(path: Path) -> None:
    with closing(State(path, writer="a", max_bytes=1 << 26)) as state:
        assert state.counts() == Counts()


def open_tracker(path: Path) -> None:
    with closing(Database(str(path))) as database:
        database.migrate(recount)
        database.check()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "some.sqlite3"


@pytest.fixture
def other(file: Path) -> Iterator[sqlite3.Connection]:
    """Another process, which has begun to make the file."""
    with closing(sqlite3.connect(file, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield connection


@pytest.mark.parametrize("open_file", [open_state, open_tracker])
def test_a_file_that_others_are_making_is_waited_for(
    file: Path, other: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch, open_file: Callable[[Path], None]
) -> None:
    """Of processes that find it missing together none is refused; the other lets go at the first pause."""
    pauses: list[float] = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        other.rollback()

    monkeypatch.setattr(time, "sleep", pause)
    open_file(file)
    assert len(pauses) == 1


def test_a_file_that_others_keep_is_busy(file: Path, other: sqlite3.Connection) -> None:
    """As long as the timeout of the connection says, and no longer."""
    with closing(sqlite3.connect(file, timeout=0.05)) as connection:
        with pytest.raises(sqlite3.OperationalError) as caught:
            change_to_wal(connection)
        assert is_busy(caught.value)
    assert other.in_transaction
