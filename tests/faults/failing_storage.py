"""A state folder whose storage fails at its Nth call, or answers none: files, mappings and SQLite.

storage = FailingStorage(monkeypatch)
storage.fail_at(7, for_good=True)
...
storage.heal()
storage.hang()
...
storage.heal()
"""

from __future__ import annotations

import errno
import mmap
import os
import sqlite3
from collections.abc import Callable, Iterable
from threading import Event, Lock
from types import ModuleType
from typing import Any

import pytest

from otel_agent_tracker import segment, sender_lock, state, state_file

__all__ = ["FailingStorage"]

_OS_CALLS = frozenset({"open", "posix_fallocate", "pread", "pwrite", "fstat", "scandir"})


class FailingStorage:
    """Counts what the modules that keep the state folder ask of the system, and lets some of it fail."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls = 0
        self.failed = 0
        self._first: int | None = None
        self._for_good = False
        self._lock = Lock()
        self._answers = Event()
        self._answers.set()
        for module in (segment, sender_lock, state_file):
            monkeypatch.setattr(
                module, "os", _Passing(os, {name: self._file_call(name) for name in _OS_CALLS})
            )
        monkeypatch.setattr(segment, "mmap", _Passing(mmap, {"mmap": self._wrapped(mmap.mmap, _io_error)}))
        monkeypatch.setattr(state, "sqlite3", _Passing(sqlite3, {"connect": self._connect}))

    def fail_at(self, number: int, *, for_good: bool) -> None:
        """Let the call of this number fail, counted from 0 and from now; and all after it `for_good`."""
        with self._lock:
            self.calls, self._first, self._for_good = 0, number, for_good

    def hang(self) -> None:
        """Let every call from now on wait until the storage is healed."""
        self._answers.clear()

    def heal(self) -> None:
        """Let every call succeed again, those that wait too."""
        with self._lock:
            self._first = None
        self._answers.set()

    def count(self, error: Callable[[], Exception]) -> None:
        """One call; raises what `error` makes if it is one that fails."""
        self._answers.wait()
        with self._lock:
            number, self.calls = self.calls, self.calls + 1
            fails = self._first is not None and (
                number >= self._first if self._for_good else number == self._first
            )
            self.failed += fails
        if fails:
            raise error()

    def _file_call(self, name: str) -> Callable[..., Any]:
        return self._wrapped(getattr(os, name), _io_error)

    def _wrapped(self, function: Callable[..., Any], error: Callable[[], Exception]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            self.count(error)
            return function(*arguments, **options)

        return call

    def _connect(self, database: str, **options: Any) -> sqlite3.Connection:
        if database == ":memory:":
            return sqlite3.Connection(database, **options)
        self.count(_sqlite_error)
        failing = _Connection(database, **options)
        failing.storage = self
        return failing


class _Connection(sqlite3.Connection):
    storage: FailingStorage

    def execute(self, sql: str, parameters: Any = (), /) -> sqlite3.Cursor:
        if sql != "ROLLBACK":  # what fails is undone by SQLite itself
            self.storage.count(_sqlite_error)
        return super().execute(sql, parameters)

    def executemany(self, sql: str, parameters: Iterable[Any], /) -> sqlite3.Cursor:
        self.storage.count(_sqlite_error)
        return super().executemany(sql, parameters)


class _Passing:
    """A module, some of whose names are others."""

    def __init__(self, module: ModuleType, others: dict[str, Callable[..., Any]]) -> None:
        self._module = module
        vars(self).update(others)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


def _io_error() -> OSError:
    return OSError(errno.EIO, os.strerror(errno.EIO))


def _sqlite_error() -> sqlite3.OperationalError:
    error = sqlite3.OperationalError("disk I/O error")
    error.sqlite_errorcode = sqlite3.SQLITE_IOERR  # as SQLite itself sets it
    return error
