"""One SQL database: connections, transactions and its schema.

SQLite lets one connection write at a time. Writers of this process queue at a lock instead of polling for it,
and begin at once with the right to write, so that no transaction fails half way; readers go on meanwhile.
"""

from __future__ import annotations

import errno
import os
import sqlite3
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.util.exc import CommandError
from sqlalchemy import (
    URL,
    ColumnElement,
    Compiled,
    Connection,
    Dialect,
    Engine,
    Table,
    bindparam,
    create_engine,
    delete,
    event,
    make_url,
    text,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import ArgumentError
from sqlalchemy.pool import ConnectionPoolEntry, QueuePool

from otel_agent_tracker.sqlite_lock import change_to_wal

__all__ = ["Database", "add", "default_path", "delete_rows", "insert_or_ignore", "upsert"]

Rows = list[dict[str, Any]]


class Database:
    """A database by its URL, or by the path of a SQLite file; nothing is opened before the first use.

    Raises ValueError for a URL that is none, one of another kind of database than SQLite and PostgreSQL, or a
    SQLite database in memory, which connections cannot share.
    """

    def __init__(self, url: str, *, busy_timeout_seconds: float = 5.0) -> None:
        self.url = _read_url(url)
        self._engine = _engine(self.url, busy_timeout_seconds)
        self._write_lock = Lock()

    @property
    def path(self) -> Path | None:
        """The SQLite file; None for a database server."""
        return Path(self.url.database or "") if _is_sqlite(self.url) else None

    @property
    def shown(self) -> str:
        """The database, as it may be shown: without a password."""
        return str(self.path or self.url.render_as_string())

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A connection on which all reads see the same moment."""
        with self._engine.connect() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction, committed when the block is left and rolled back when it raises."""
        writer = self._engine.execution_options(writes=True)
        with self._write_lock, writer.begin() as connection:
            yield connection

    def migrate(self, recount: Callable[[Connection], None]) -> None:
        """Bring the schema up to date, and `recount` what is counted if it was not, all in one transaction.

        Raises RuntimeError if a newer release has written this database; OSError or sqlalchemy's
        SQLAlchemyError mean that it cannot be had.
        """
        _create_private_file(self.path)
        config = Config()
        config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
        with self.writing() as connection:
            config.attributes["connection"] = connection
            before = MigrationContext.configure(connection).get_current_revision()
            try:
                command.upgrade(config, "head")
            except CommandError as error:
                raise RuntimeError(f"the database was written by a newer release: {error}") from error
            if before != MigrationContext.configure(connection).get_current_revision():
                recount(connection)

    def check(self) -> None:
        """Raises OperationalError if the database does not answer."""
        with self.reading() as connection:
            connection.execute(text("SELECT 1 FROM projects"))

    def close(self) -> None:
        """Close all connections that are not in use."""
        self._engine.dispose()


def default_path() -> Path:
    """The SQLite file in the platform's data folder."""
    return _data_folder() / "otel-agent-tracker" / "tracker.sqlite3"


def insert_or_ignore(connection: Connection, table: Table, rows: Rows) -> None:
    """Insert `rows`, which have the same columns; those whose key is there already change nothing."""
    if rows:
        _execute_many(connection, _insert_or_ignore(table, tuple(rows[0]), connection.dialect), rows)


def upsert(connection: Connection, table: Table, rows: Rows) -> None:
    """Insert `rows`, which have the same columns, or overwrite those that have the same primary key."""
    if rows:
        _execute_many(connection, _upsert(table, tuple(rows[0]), connection.dialect), rows)


def add(connection: Connection, table: Table, rows: Rows) -> None:
    """Insert `rows`, which have the same columns, or add their values to those of the same primary key."""
    if rows:
        _execute_many(connection, _add(table, tuple(rows[0]), connection.dialect), rows)


def delete_rows(connection: Connection, table: Table, rows: Rows, *conditions: ColumnElement[bool]) -> None:
    """Delete the rows with the primary keys that `rows` have, those for which all `conditions` hold."""
    key = [(f"key_{column.name}", column) for column in table.primary_key]
    if rows:
        wanted = [column == bindparam(name) for name, column in key]
        keys = [{name: row[column.name] for name, column in key} for row in rows]
        connection.execute(delete(table).where(*wanted, *conditions), keys)


@lru_cache(maxsize=64)
def _insert_or_ignore(table: Table, names: tuple[str, ...], dialect: Dialect) -> Compiled:
    compiled: Compiled = (
        _insert_of(dialect)(table).on_conflict_do_nothing().compile(dialect=dialect, column_keys=names)
    )
    return compiled


@lru_cache(maxsize=64)
def _upsert(table: Table, names: tuple[str, ...], dialect: Dialect) -> Compiled:
    return _insert_or(table, names, dialect, lambda _, given: given)


@lru_cache(maxsize=64)
def _add(table: Table, names: tuple[str, ...], dialect: Dialect) -> Compiled:
    return _insert_or(table, names, dialect, lambda stored, given: stored + given)


def _insert_or(
    table: Table,
    names: tuple[str, ...],
    dialect: Dialect,
    value: Callable[[ColumnElement[Any], ColumnElement[Any]], ColumnElement[Any]],
) -> Compiled:
    """An insertion that gives a row of the same key the `value` made of what is stored and what is given."""
    statement = _insert_of(dialect)(table)
    key = [column.name for column in table.primary_key]
    values = {name: value(table.columns[name], statement.excluded[name]) for name in names if name not in key}
    changing = statement.on_conflict_do_update(index_elements=key, set_=values)
    compiled: Compiled = changing.compile(dialect=dialect, column_keys=names)
    return compiled


def _insert_of(dialect: Dialect) -> Any:
    """The dialect's own INSERT; the two spell ON CONFLICT alike."""
    return sqlite.insert if dialect.name == "sqlite" else postgresql.insert


def _execute_many(connection: Connection, statement: Compiled, rows: Rows) -> None:
    """Hand rows of plain values to the driver as they are, for which they need no work on each."""
    order = getattr(statement, "positiontup", None)
    connection.exec_driver_sql(
        str(statement), [tuple(map(row.get, order)) for row in rows] if order else rows
    )


def _read_url(url: str) -> URL:
    if "://" not in url:
        return URL.create("sqlite", database=str(Path(url).expanduser().absolute()))
    try:
        read = make_url(url)
    except ArgumentError as error:
        raise ValueError("it is neither the path of a file nor the URL of a database") from error
    if read.drivername not in _DRIVERS:
        raise ValueError(
            f"a database is the path of a SQLite file or a postgresql:// URL, not one of {read.drivername}"
        )
    if _is_sqlite(read) and read.database in (None, "", ":memory:"):
        raise ValueError(
            "the database must be a file or a server; one in memory cannot be shared by connections"
        )
    return read.set(drivername="postgresql+psycopg") if read.drivername == "postgresql" else read


def _is_sqlite(url: URL) -> bool:
    return url.get_backend_name() == "sqlite"


def _engine(url: URL, busy_timeout_seconds: float) -> Engine:
    if not _is_sqlite(url):
        return create_engine(url, pool_pre_ping=True)
    arguments: Mapping[str, Any] = {"timeout": busy_timeout_seconds, "check_same_thread": False}
    engine = create_engine(url, connect_args=arguments, poolclass=QueuePool, pool_size=8, max_overflow=32)
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: sqlite3.Connection, _: ConnectionPoolEntry) -> None:
    connection.isolation_level = (
        None  # the driver would begin by itself, too late and without the right to write
    )
    change_to_wal(connection)
    for pragma in _PRAGMAS:
        connection.execute(pragma)


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get("writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _create_private_file(path: Path | None) -> None:
    """What people said to agents is in it: nobody else on the machine may read it."""
    if path is not None and path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if path is not None and not path.exists():
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))


def _data_folder() -> Path:
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")


_DRIVERS = ("sqlite", "sqlite+pysqlite", "postgresql", "postgresql+psycopg")
_PRAGMAS: Iterable[str] = (
    "PRAGMA synchronous = FULL",  # what was acknowledged survives a power cut, which NORMAL does not promise
    "PRAGMA cache_size = -65536",
    "PRAGMA wal_autocheckpoint = 8192",  # pages; a page that several batches change is moved to the file once
    "PRAGMA secure_delete = ON",  # not every build of SQLite overwrites what is deleted
)
