"""Where the state of a folder is kept: in its file, or in memory while the disk refuses."""

from __future__ import annotations

import os
import sqlite3
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

from otel_agent_tracker.log import Log
from otel_agent_tracker.segment import private_folder
from otel_agent_tracker.sqlite_lock import is_busy, primary_code
from otel_agent_tracker.state import DamagedState, State

__all__ = ["StateFile", "is_damage", "open_state"]

NAME = "state.sqlite3"
RETRY_SECONDS = 60.0
MOST_SET_ASIDE = 5

_logger = Log(__name__)


class StateFile:
    """Opens the state of `folder`, and brings it back to disk when it had to leave; `folder` None is memory.

    Of the worker's thread only. What was accepted into one state goes over into the next; `tally` counts on
    through all of them. `unusable` is why the file may never be opened by this process.
    """

    def __init__(
        self,
        folder: Path | None,
        *,
        writer: str,
        limit_bytes: int,
        tally: Counter[str] | None = None,
        unusable: str | None = None,
    ) -> None:
        self.on_disk = False
        self.state: State | None = None
        self._folder = folder
        self._writer = writer
        self._limit_bytes = limit_bytes
        self._tally: Counter[str] = Counter() if tally is None else tally
        self._unusable = unusable
        self._retry_at = 0.0

    def must_change(self, now: float) -> bool:
        """Whether `change` is to be called: at first, when the file was deleted, or to try the disk again."""
        if self.state is None:
            return True
        if self.on_disk:
            return not self.state.is_in_place
        return self._folder is not None and self._unusable is None and now >= self._retry_at

    def change(self, now: float) -> State:
        """The state from now on; raises sqlite3.OperationalError if the file is busy, then call again."""
        if self._unusable is not None:
            return self._without_disk(self._unusable)
        try:
            opened = open_state(
                self._folder, writer=self._writer, limit_bytes=self._limit_bytes, tally=self._tally
            )
        except (OSError, sqlite3.Error) as error:
            if is_busy(error):
                raise
            self._retry_at = now + RETRY_SECONDS
            return self._without_disk(str(error))
        if self.state is not None:
            opened.take_over(self.state)
            self.state.close()
        if not self.on_disk and self.state is not None:
            _logger.info("the state folder accepts events again")
        self.state, self.on_disk = opened, self._folder is not None
        return opened

    def abandon_damaged(self, error: sqlite3.Error) -> None:
        """The open file is damaged: set it aside, so that the next `change` begins a new one."""
        if self.state is None or self._folder is None or not self.on_disk:
            return
        in_place = self.state.is_in_place
        self.close()
        if in_place:
            _replaced(self._folder / NAME, error, writer=self._writer, limit_bytes=self._limit_bytes).close()

    def close(self) -> None:
        """Close the state; idempotent."""
        if self.state is not None:
            self.state.close()
            self.state = None

    def _without_disk(self, reason: str) -> State:
        """What there is goes on, though its file be deleted; or else there is a new one in memory."""
        if self.on_disk or self.state is None:
            _logger.warning("the state folder cannot be used, events are kept in memory: %s", reason)
        self.on_disk = False
        if self.state is None:
            self.state = State(None, writer=self._writer, max_bytes=self._limit_bytes, tally=self._tally)
        return self.state


def open_state(
    folder: Path | None, *, writer: str, limit_bytes: int, tally: Counter[str] | None = None
) -> State:
    """The state file of `folder`, made if missing, for its owner alone; None is memory.

    One that is damaged is set aside and what can be read of it taken over. Raises OSError or sqlite3.Error.
    """
    if folder is None:
        return State(None, writer=writer, max_bytes=limit_bytes, tally=tally)
    with private_folder(folder):
        path = folder / NAME
    if path.is_symlink():
        raise OSError(f"{path} is a symbolic link")
    _create(path)
    before = path.stat()
    try:
        return State(path, writer=writer, max_bytes=limit_bytes, tally=tally)
    except sqlite3.Error as error:
        if not is_damage(error) or not os.path.samestat(before, path.stat()):
            raise
        return _replaced(path, error, writer=writer, limit_bytes=limit_bytes, tally=tally)


def is_damage(error: Exception) -> bool:
    """Whether the file is no database any more, or not the one that was written."""
    if isinstance(error, sqlite3.OperationalError) and not hasattr(error, "sqlite_errorcode"):
        return True  # not SQLite's own but Python's: a text does not decode
    return isinstance(error, DamagedState) or primary_code(error) in (
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_NOTADB,
    )


def _create(path: Path) -> None:
    """Make the file if it is missing, for its owner alone, free of what a deleted one left beside it.

    One that exists is not opened: closing it again would free the locks that SQLite has on it.
    """
    left = [(beside, beside.stat()) for beside in _beside(path) if beside.exists()]
    with suppress(FileExistsError):
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        for beside, status in left:
            with suppress(FileNotFoundError):
                if os.path.samestat(beside.stat(), status):
                    beside.unlink()


def _beside(path: Path) -> list[Path]:
    return [path.with_name(path.name + suffix) for suffix in ("-wal", "-shm")]


def _replaced(
    path: Path,
    error: sqlite3.Error,
    *,
    writer: str,
    limit_bytes: int,
    tally: Counter[str] | None = None,
) -> State:
    """A new file at `path`, with what can be read of the damaged one, which is kept beside it."""
    aside = path.with_suffix(f".corrupt-{time.time_ns()}")
    for found, kept in zip([path, *_beside(path)], [aside, *_beside(aside)], strict=True):
        with suppress(FileNotFoundError):
            found.rename(kept)
    _create(path)
    _forget_old(path)
    state = State(path, writer=writer, max_bytes=limit_bytes, tally=tally)
    recovered = state.salvage(aside)
    _logger.error(
        "the state file is damaged (%s) and set aside as %s; %d events were recovered, %d were lost",
        error,
        aside.name,
        recovered,
        state.counts().dropped_by_kind.get("damaged", 0),
    )
    return state


def _forget_old(path: Path) -> None:
    """Keep the newest of those that were set aside: a disk that damages everything must not be filled too."""
    aside = sorted(path.parent.glob(f"{path.stem}.corrupt-*[0-9]"))
    for old in aside[:-MOST_SET_ASIDE]:
        for each in (old, *_beside(old)):
            each.unlink(missing_ok=True)
