"""What SQLite leaves to those who open a file that others have."""

from __future__ import annotations

import sqlite3
import time

__all__ = ["change_to_wal", "is_busy", "primary_code"]

_PAUSE_SECONDS = 0.005  # no event tells that another process has let go


def change_to_wal(connection: sqlite3.Connection) -> None:
    """Have the file written in WAL mode; raises sqlite3.OperationalError if others have it for too long.

    SQLite itself waits with everything else for as long as the connection's timeout says, but not with this: of
    processes that make a file together all but one would be told that it is locked.
    """
    [milliseconds] = connection.execute("PRAGMA busy_timeout").fetchone()
    give_up = time.monotonic() + milliseconds / 1000
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if not is_busy(error) or time.monotonic() >= give_up:
                raise
            time.sleep(_PAUSE_SECONDS)
        else:
            return


def is_busy(error: Exception) -> bool:
    """Whether SQLite says that others have the file."""
    return primary_code(error) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def primary_code(error: Exception) -> int:
    """SQLite's result code, without the part that says in which call; 0 if it comes from elsewhere."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF
