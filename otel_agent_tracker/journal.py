"""The journal: where accepted events wait, on disk, until the worker has stored them elsewhere.

Any thread appends; one worker thread does everything else. Appending copies one frame into a mapped file
under a lock that covers only that copy: no system call, nothing that gives up the GIL. What was appended
survives the process, though not a power cut: another process finds it by trying the lock that every living
process holds on its files. Where the disk refuses, events wait in memory until it accepts them again.

New files are made by a thread of their own, or by the worker: a caller that needs one waits for it, but no longer
for the disk than a host can be made to wait. Then events wait in memory until the disk has answered.

The lock may be taken twice by one thread, when a signal handler or a finaliser appends in the middle of an
append. Such an event is put aside and follows as soon as the outer one is in place.
"""

from __future__ import annotations

import errno
import itertools
import os
import queue
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock

from otel_agent_tracker import frames, session_id
from otel_agent_tracker.frames import ReadResult
from otel_agent_tracker.hot_lock import HotLock
from otel_agent_tracker.making import Making
from otel_agent_tracker.segment import DISK_SUPPORTED, SUFFIX, WARM_BYTES, Segment, adopt_dead

__all__ = ["DISK_SUPPORTED", "Journal", "JournalCounters", "MemoryJournal", "ReadResult", "Segment"]

SEGMENT_BYTES = 4 * 1024 * 1024
RING_BYTES = 16 * 1024 * 1024
_SPARES = 2
_MOST_UNREAD = 64  # bounds disk and descriptors should the worker be stuck
_MOST_ADOPTED = 64
_RETRIES = 2


@dataclass(slots=True)
class JournalCounters:
    """What happened to the events of this process since it started.

    Every call of `append` is counted once, in `appended` or in `dropped`; `not_durable` are those of
    `appended` that had to wait in memory, whatever became of them; `dropped` also counts what still waited
    there at `close`. `refused` are events, by kind, that were not let as far as `append`.
    """

    appended: int = 0
    not_durable: int = 0
    dropped: int = 0
    made_by_callers: int = 0
    skipped_bytes: int = 0
    refused: Counter[str] = field(default_factory=Counter)

    def lost(self) -> Counter[str]:
        """How many events were not kept, by kind; those dropped here have the kind ``journal``."""
        return Counter(journal=self.dropped) + self.refused.copy()


class MemoryJournal:
    """A journal without a disk: events wait in a bounded ring in memory and end with the process.

    It is what `AGENT_TRACKER_DURABILITY=memory` asks for, what a platform without ``flock`` or ``mmap`` gets
    (`DISK_SUPPORTED` is False there), and the ring of `Journal`. Workers treat both alike.
    """

    counters: JournalCounters
    refusal: OSError | None
    moving: Lock
    """Held by whoever takes events out of memory, to store them elsewhere or to bring them to disk."""
    _bell: queue.SimpleQueue[None]
    _busy: bool
    _closed: bool
    _sleeping: bool
    _seen: int
    _ring: deque[bytes]
    _deferred: deque[bytes]

    def __init__(self, *, ring_bytes: int = RING_BYTES) -> None:
        self._ring_limit = ring_bytes
        self._begin()

    def append(self, payload: bytes) -> bool:
        """Keep an event, from any thread. False: it is not durable; beyond `ring_bytes` it is dropped.

        An event takes as many bytes as its frame would on disk.
        """
        with self._lock:
            if self._busy:
                self._deferred.append(payload)
                return False
            self._busy = True
            try:
                self._remember(payload)
            finally:
                self._busy = False
        self._notify()
        return False

    def persist(self, payload: bytes) -> bool:
        """Keep an event that its sender keeps too, or have no trace of it; whether it is kept. From any thread."""
        with self._lock:
            if self._busy:
                return False
            self._busy = True
            try:
                kept = self._fits(payload)
                if kept:
                    self._remember(payload)
            finally:
                self._busy = False
        self._notify()
        return kept

    def refuse(self, kind: str, number: int = 1) -> None:
        """Count events of this kind that are not to be kept, from any thread."""
        with self._lock:
            self.counters.refused[kind] += number

    def prepare(self) -> None:
        """Make ready for what will be appended; the worker calls it in each of its cycles."""

    def save_ring(self) -> None:
        """Bring what waits in memory to disk; for a worker that cannot store it elsewhere just now."""

    def adopt(self) -> int:
        """Take over what dead processes left; how many segments that were."""
        return 0

    def readable(self) -> list[Segment]:
        """The segments to read: those of dead processes, then our own; in each the oldest first."""
        return []

    def is_own(self, segment: Segment) -> bool:
        """Whether this process wrote the segment, and not one that is dead."""
        return False

    def read_ring(self) -> list[bytes]:
        """What waits in memory, oldest first; it stays there until it is drained."""
        with self._lock:
            return list(self._ring)

    def drain_ring(self, most: int | None = None) -> list[bytes]:
        """Take what waits in memory, oldest first, at most `most` events."""
        with self._alone():
            count = len(self._ring) if most is None else min(most, len(self._ring))
            return [self._forget_oldest() for _ in range(count)]

    def wait(self, timeout: float | None = None) -> bool:
        """Sleep until an event comes, `wake` is called, or `timeout` seconds are over; for the worker.

        Returns at once if an event has come since the last wait ended, so none is overlooked. True if one
        has come.
        """
        if (
            type(self._bell) is not queue.SimpleQueue
        ):  # gevent has replaced it since: the old one would stop its loop
            self._bell = queue.SimpleQueue()
        self._sleeping = True
        if self.counters.appended == self._seen:
            with suppress(queue.Empty):
                self._bell.get(timeout=timeout)
        self._sleeping = False
        for _ in range(self._bell.qsize()):
            self._bell.get_nowait()
        seen, self._seen = self._seen, self.counters.appended
        return seen != self._seen

    def wake(self) -> None:
        """End the worker's wait, or its next one; from any thread."""
        self._bell.put(None)

    def after_fork_in_child(self) -> None:
        """Begin anew in a forked child: what waited belongs to the parent."""
        self._begin()

    def close(self) -> None:
        """End the journal, once the worker has stopped; later events are dropped. Idempotent."""
        with self._lock:
            if self._closed:  # also by a signal handler in the midst of this
                return
            self._closed = True
            self.counters.dropped += len(self._ring)
            self._ring.clear()
            self._ring_bytes = 0
            self.wake()

    def _begin(self) -> None:
        self.counters = JournalCounters()
        self.refusal = None
        self.moving = Lock()
        self._lock = HotLock()
        self._busy = False
        self._deferred = deque()
        self._ring = deque()
        self._ring_bytes = 0
        self._closed = False
        self._bell = queue.SimpleQueue()  # may be rung from within its own wait
        self._sleeping = False
        self._seen = 0

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """The lock, with what this thread appends meanwhile put aside; for all but the hot path."""
        with self._lock:
            self._busy = True
            try:
                yield
            finally:
                self._busy = False
        if self._deferred:
            self._append_deferred()

    def _remember(self, payload: bytes) -> None:
        """Into the ring, or dropped. Callers hold the lock."""
        if not self._fits(payload):
            self.counters.dropped += 1
            return
        self._ring.append(payload)
        self._ring_bytes += frames.HEADER_BYTES + len(payload)
        self.counters.appended += 1
        self.counters.not_durable += 1

    def _fits(self, payload: bytes) -> bool:
        size = frames.HEADER_BYTES + len(payload)
        return (
            not self._closed and size <= frames.LARGEST_FRAME and self._ring_bytes + size <= self._ring_limit
        )

    def _forget_oldest(self) -> bytes:
        payload = self._ring.popleft()
        self._ring_bytes -= frames.HEADER_BYTES + len(payload)
        return payload

    def _notify(self) -> None:
        """After an append: rouse the worker if it sleeps."""
        if self._sleeping:
            self._sleeping = False
            self._bell.put(None)
        if self._deferred:
            self._append_deferred()

    def _append_deferred(self) -> None:
        with suppress(IndexError):  # another thread may take the last one
            while True:
                self.append(self._deferred.popleft())


class Journal(MemoryJournal):
    """A journal on disk, one per pipeline and process, with a ring in memory for when the disk refuses.

    `refusal` is why the disk does, or None while it does not.
    """

    _making: Making | None  # the segment that is being made
    _is_slow: bool  # whether the last one that callers waited for kept them waiting for the disk
    _excused: set[int]  # threads that wait for one, or make it, and are not to wait once more
    _current: Segment | None
    _spares: deque[Segment]
    _own: list[Segment]  # in the order in which they were written; the current one is the last
    _adopted: list[Segment]

    def __init__(
        self, folder: Path, *, segment_bytes: int = SEGMENT_BYTES, ring_bytes: int = RING_BYTES
    ) -> None:
        if not DISK_SUPPORTED:
            raise NotImplementedError("this platform has no flock or mmap; use MemoryJournal")
        self._folder = folder
        self._segment_bytes = segment_bytes
        super().__init__(ring_bytes=ring_bytes)

    def append(self, payload: bytes) -> bool:
        """Keep an event, from any thread; never raises.

        True: it is on disk. False: it waits in memory, follows the one that this call interrupted, or was
        dropped because memory is full, it is larger than 16 MiB, or the journal is closed.
        """
        checksum = frames.checksum(payload)
        with self._lock:
            if self._busy:
                self._deferred.append(payload)
                return False
            durable = self._write_alone(payload, checksum)
        if not durable and not self._append_to_new(payload, checksum):
            return super().append(payload)
        if self._sleeping or self._deferred:
            self._notify()
        return True

    def persist(self, payload: bytes) -> bool:
        """Keep an event on disk, or not at all; whether it is there. From any thread."""
        checksum = frames.checksum(payload)
        with self._lock:
            if self._busy:
                return False
            durable = self._write_alone(payload, checksum)
        if not durable and not self._append_to_new(payload, checksum):
            return False
        if self._sleeping or self._deferred:
            self._notify()
        return True

    def prepare(self) -> None:
        """Keep two segments ready and notice deleted ones; after a refusal try the disk again."""
        if self._closed:
            return
        self._abandon_deleted()
        for segment in self._all_own():
            if segment.sealed:
                segment.unmap()
        try:
            self._make_spares()
            self.refusal = None
        except OSError as error:
            self.refusal = error

    def save_ring(self) -> None:
        """Bring what waits in memory to disk, if that accepts; for a worker that cannot store it just now.

        It comes behind what is on disk already, though it be older: a worker that can stores it from memory.
        """
        if self._closed or self.refusal is not None:
            return
        with self.moving:
            try:
                self._move_ring_to_disk()
            except OSError as error:
                self.refusal = error

    def adopt(self) -> int:
        """Take over segments of dead processes; how many. Some may be left for a later call."""
        adopted = self._live_adopted()
        known = {segment.name for segment in [*self._all_own(), *adopted]}
        try:
            found = adopt_dead(
                self._folder, known=known, most=_MOST_ADOPTED - len(adopted), on_skip=self._count_skipped
            )
        except OSError:  # a folder that is not fit also refuses `prepare`, which says so
            found = []
        self._adopted = sorted([*adopted, *found], key=lambda segment: segment.name)
        return len(found)

    def readable(self) -> list[Segment]:
        """The segments to read: those of dead processes, then our own; in each the oldest first."""
        with self._alone():
            self._own = [segment for segment in self._own if not segment.retired]
            return [*self._live_adopted(), *self._own]

    def is_own(self, segment: Segment) -> bool:
        """Whether this process wrote the segment, and not one that is dead."""
        return segment.name.startswith(self._set)

    def after_fork_in_child(self) -> None:
        """Begin anew in a forked child: close what it inherited, and make own segments when they are needed.

        An inherited descriptor would hold the parent's lock beyond the parent's death. (One that another
        thread was just opening escapes: its file is then adopted only when this child is dead too.)
        """
        self._release_all()
        super().after_fork_in_child()

    def close(self) -> None:
        """End the journal, once the worker has stopped; what is appended afterwards is dropped. Idempotent.

        What was appended and not retired stays on disk, for the next process.
        """
        with self._lock:
            super().close()
            self._current = None
            # A signal handler that interrupts an append leaves the files to it and to the process's end.
            if not self._busy:
                for segment in self._spares:
                    segment.retire()
                self._release_all()

    def _begin(self) -> None:
        super()._begin()
        self._making = None
        self._is_slow = False
        self._excused = set()
        self._current = None
        self._spares = deque()
        self._own = []
        self._adopted = []
        self._sequence = itertools.count()
        started_us = time.time_ns() // 1000
        self._set = f"{started_us:016x}-{os.getpid()}-{session_id.mint_span_id():016x}"

    # --- writing: any thread --------------------------------------------------------------------------------

    def _write_alone(self, payload: bytes, checksum: int) -> bool:
        """Write and count one event; False if there is no room for it. Callers hold the lock."""
        self._busy = True
        try:
            if not self._write(payload, checksum):
                return False
            self.counters.appended += 1
            return True
        except OSError as error:  # only from a segment that is not mapped
            self.refusal = error
            return False
        finally:
            self._busy = False

    def _write(self, payload: bytes, checksum: int) -> bool:
        """One frame into the current segment or the next spare, if there is room. Callers are alone."""
        current = self._current
        if current is not None and current.write(payload, checksum):
            return True
        size = frames.HEADER_BYTES + len(payload)
        for spare in self._spares:
            if spare.size >= size:
                break
        else:
            return False
        self._install(spare)
        self._spares.remove(spare)  # only now: a fork in between must find it in one of the two
        return spare.write(payload, checksum)

    def _install(self, segment: Segment) -> None:
        """Seal the current segment and go on with this one. Callers are alone."""
        self._own.append(segment)
        if self._current is not None:
            self._current.sealed = True
        self._current = segment

    def _append_to_new(self, payload: bytes, checksum: int) -> bool:
        """Write to a segment that is made for it; False if the disk refuses one, or keeps it waiting."""
        thread = threading.get_ident()
        if len(payload) > frames.LARGEST_PAYLOAD or thread in self._excused:
            return False
        if self._lock.is_mine:  # by the call that this one interrupts; whoever makes one needs it too
            return False
        self._excused.add(thread)
        try:
            while not self._closed and self.refusal is None:
                with self._lock:
                    if self._write_alone(payload, checksum):  # somebody has made one meanwhile
                        return True
                    making, is_new = self._claim()
                if is_new:
                    self._make_elsewhere(making, frames.HEADER_BYTES + len(payload))
                finished = making.wait()
                self._is_slow = making.is_slow
                if not finished:
                    return False
            return False
        finally:
            self._excused.discard(thread)

    def _make_elsewhere(self, making: Making, least: int) -> None:
        """Make a segment on a thread of its own: a disk that hangs is to hang no caller."""
        name = "otel-agent-tracker-journal"
        try:
            threading.Thread(
                target=self._make_for_callers, args=(making, least), name=name, daemon=True
            ).start()
        except (RuntimeError, MemoryError):  # as while the interpreter exits
            self._make_for_callers(making, least)

    def _make_for_callers(self, making: Making, least: int) -> None:
        with suppress(Exception), self._as_maker(making):
            self.counters.made_by_callers += not self._make_spare(least).retired
            if self._ring and self.moving.acquire(blocking=False):  # else the worker is storing it
                try:
                    self._move_ring_to_disk()
                finally:
                    self.moving.release()

    def _claim(self) -> tuple[Making, bool]:
        """The segment in the making, and whether the caller has the right and the duty to make it."""
        with self._lock:
            making = self._making
            if making is not None:
                return making, False
            self._making = Making(is_slow=self._is_slow)
            return self._making, True

    @contextmanager
    def _as_maker(self, making: Making) -> Iterator[None]:
        """Make what was claimed in here; whatever fails is a refusal before anybody looks for the segment."""
        thread = threading.get_ident()
        self._excused.add(thread)
        try:
            making.begin()
            yield
        except Exception as error:
            self.refusal = error if isinstance(error, OSError) else OSError(errno.ENOMEM, repr(error))
            raise
        finally:
            self._excused.discard(thread)
            if self._making is making:  # not in a child forked meanwhile
                self._making = None
            making.finish()

    def _make_spare(self, least: int = 0) -> Segment:
        """Make a segment for whoever needs it first. Callers are makers."""
        segment = self._make(least)
        with self._alone():
            if not self._closed:
                self._spares.append(segment)
                return segment
        segment.retire()
        return segment

    def _make(self, least: int = 0) -> Segment:
        """A new segment of the usual size, or of `least` bytes if that is more. Callers are makers."""
        if sum(not segment.retired for segment in self._all_own()) >= _MOST_UNREAD:
            raise OSError(errno.EDQUOT, f"{_MOST_UNREAD} unread segments in the journal", str(self._folder))
        size = max(least, self._segment_bytes)
        for _ in range(_RETRIES):
            # Refused if another process just took the new file for a dead one's; it deletes it.
            with suppress(BlockingIOError):
                return Segment.create(self._next_path(), size, self._count_skipped)
        return Segment.create(self._next_path(), size, self._count_skipped)

    def _next_path(self) -> Path:
        return self._folder / f"{self._set}-{next(self._sequence):08d}{SUFFIX}"

    # --- the rest: the worker -------------------------------------------------------------------------------

    def _make_spares(self) -> None:
        while not self._closed and len(self._spares) < _SPARES:
            making, is_new = self._claim()
            if not is_new:
                if not making.wait():
                    return
                continue
            with self._as_maker(making):
                segment = self._make_spare()
            self._warm(segment)

    def _warm(self, segment: Segment) -> None:
        """Touch a spare in small steps, between which other threads run, until it is needed."""
        for start in range(0, segment.size, WARM_BYTES):
            with self._alone():
                if not segment.warm(start):
                    return
            time.sleep(0)  # hands over the GIL, which a waiting thread would otherwise get after 5 ms

    def _move_ring_to_disk(self) -> None:
        """Bring what waits in memory to disk, up to where that needs a segment that another thread makes."""
        while self._ring:
            payload = self._ring[0]  # nobody else takes any
            checksum = frames.checksum(payload)
            with self._alone():
                if self._write(payload, checksum):
                    self._forget_oldest()
                    continue
            making, is_new = self._claim()
            if not is_new:
                return
            with self._as_maker(making):
                self._make_spare(frames.HEADER_BYTES + len(payload))

    def _abandon_deleted(self) -> None:
        """Write no more to files that were deleted under us; what they hold can still be read."""
        deleted = [segment for segment in self._all_own() if not (segment.sealed or segment.is_linked)]
        if not deleted:
            return
        unused = []
        with self._alone():
            for segment in deleted:
                if segment is self._current:
                    segment.sealed = True
                    self._current = None
                elif segment in self._spares:  # pragma: no branch - else it was filled meanwhile
                    self._spares.remove(segment)
                    unused.append(segment)
        for segment in unused:
            segment.release()

    def _all_own(self) -> list[Segment]:
        with self._lock:
            return [*self._own, *self._spares]

    def _live_adopted(self) -> list[Segment]:
        self._adopted = [segment for segment in self._adopted if not segment.retired]
        return self._adopted

    def _release_all(self) -> None:
        for segment in [*self._own, *self._spares, *self._adopted]:
            segment.release()
        self._own, self._adopted = [], []
        self._spares.clear()

    def _count_skipped(self, count: int) -> None:
        self.counters.skipped_bytes += count
