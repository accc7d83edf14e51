"""State folders as one who looks on sees them: the books, and what the journal holds that is not in them yet.

Nothing here takes a lock or a segment from a running application.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from otel_agent_tracker.entry import Entry
from otel_agent_tracker.segment import SUFFIX, Segment
from otel_agent_tracker.state import Counts, OutboxRow, State

__all__ = ["Books", "StateFolder", "folders_below"]

_NAME = re.compile(r"[0-9a-f]{12}")
_TRIES = 10
_UNBOUNDED = 1 << 40  # what looks on needs no limit


@dataclass(frozen=True, slots=True)
class Books:
    """The books of a folder; `unread` counts by kind what waits in the journal and in no other figure."""

    counts: Counts
    unread: Mapping[str, int]
    service: str | None = None

    @property
    def accepted(self) -> int:
        """All that was ever accepted."""
        return self.counts.accepted + self.unread_total

    @property
    def pending(self) -> int:
        """All that waits to be delivered."""
        return self.counts.pending + self.unread_total

    @property
    def unread_total(self) -> int:
        """How many events the worker has not yet taken out of the journal."""
        return sum(self.unread.values())

    def to_json(self) -> dict[str, Any]:
        """For machines."""
        return {
            "accepted": self.accepted,
            "delivered": self.counts.delivered,
            "pending": self.pending,
            "dead_lettered": self.counts.dead_lettered,
            "dropped": self.counts.dropped,
            "dropped_by_kind": dict(self.counts.dropped_by_kind),
            "oldest_pending_us": self.counts.oldest_pending_us,
            "unread_in_journal": self.unread_total,
            "unread_by_kind": dict(self.unread),
            "service": self.service,
        }


@dataclass(frozen=True, slots=True)
class StateFolder:
    """The folder of one destination. What reads it raises sqlite3.Error or OSError if it cannot be read."""

    path: Path

    @property
    def name(self) -> str:
        """The 12 hex digits."""
        return self.path.name

    @contextmanager
    def state(self) -> Iterator[State]:
        """The state file; an empty one in memory if none was made yet."""
        file = self.path / "state.sqlite3"
        state = State(file if file.exists() else None, writer=f"cli-{os.getpid()}", max_bytes=_UNBOUNDED)
        try:
            yield state
        finally:
            state.close()

    def books(self) -> Books:
        """The books as they are now."""
        with self.state() as state:
            offsets, counts = _at_one_moment(state)
            # Afterwards: what is taken out of the journal meanwhile is counted here, and not twice.
            unread = Counter(_kind(payload) for payload in _unread(self.path, offsets))
            return Books(counts, unread, _service([*state.pending(1), *state.dead_letters(1)]))


def folders_below(state_dir: Path) -> list[StateFolder]:
    """The state folders in `state_dir`, by name; none if it does not exist."""
    with suppress(FileNotFoundError, NotADirectoryError):
        found = sorted(path for path in state_dir.iterdir() if _NAME.fullmatch(path.name) and path.is_dir())
        return [StateFolder(path) for path in found]
    return []


def _at_one_moment(state: State) -> tuple[dict[str, int], Counts]:
    """Offsets and counts between which nobody wrote; after a few tries, those that were read last."""
    for _ in range(_TRIES):
        version = state.data_version()
        offsets, counts = state.offsets(), state.counts()
        if state.data_version() == version:
            break
    return offsets, counts


def _unread(folder: Path, offsets: Mapping[str, int]) -> Iterator[bytes]:
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        with suppress(FileNotFoundError):  # read and deleted meanwhile
            yield from _payloads(path, offsets.get(path.name, 0))


def _payloads(path: Path, offset: int) -> list[bytes]:
    """The intact frames from `offset` on, of a file that its process may go on writing."""
    fd = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0))
    size = os.fstat(fd).st_size
    segment = Segment(path, fd, size=size, end=size, sealed=True, on_skip=lambda _: None)
    payloads: list[bytes] = []
    try:
        while not segment.done:
            read = segment.read(offset)
            payloads += read.payloads
            offset = read.offset
    finally:
        segment.release()
    return payloads


def _kind(payload: bytes) -> str:
    try:
        return Entry.decode(payload).event.value
    except ValueError:
        return "unreadable"


def _service(rows: list[OutboxRow]) -> str | None:
    """The service that an event in the outbox comes from: a folder's name does not tell it."""
    for row in rows:
        with suppress(orjson.JSONDecodeError):
            service = orjson.loads(row.service)
            if isinstance(service, dict) and isinstance(service.get("name"), str):
                return str(service["name"])
    return None
