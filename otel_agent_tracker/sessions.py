"""The map of live sessions: a sliding TTL, an idle window, an upper bound.

It has no thread and no clock of its own: whoever holds it sweeps it, and hands in the clock.

What holds whenever the lock is free:

- `_records` has every session, and one of the orders its id: the one of its place, that is of its flags.
- An order is sorted by last access, and its sessions have the same window: its front is due first, whatever
  the window is changed to.
- Sessions loaded from another process have orders of their own, where a record may enter before the end; the
  first access in this process takes it to the others.
- A session past its deadline is expired for every reader, swept or not. Each leaves the map once, under the
  lock: to the caller of `take`, or to one caller of `sweep`.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import OrderedDict, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice, takewhile
from threading import RLock
from typing import NamedTuple

from otel_agent_tracker import session_record
from otel_agent_tracker.arguments import positive_number
from otel_agent_tracker.clock import Clock
from otel_agent_tracker.semconv import EndedBy, Origin, TurnStatus
from otel_agent_tracker.session_record import (
    ACCESS,
    LOADED,
    PLACE,
    RECOGNISED,
    TOUCHED,
    WAITING,
    ResponseTimeSummary,
    Session,
    Turn,
)

__all__ = ["Expired", "ResponseTimeSummary", "Session", "SessionMap"]


@dataclass(frozen=True, slots=True)
class Expired:
    """A session that nobody ended: what ended it, and the window in seconds in which nothing happened.

    The window of one that was evicted is the TTL.
    """

    session_id: str
    ended_by: EndedBy
    window_seconds: float
    _record: bytearray = field(repr=False)

    @property
    def session(self) -> Session:
        """The session, unpacked at each call: a sweep of thousands need not wait for that."""
        return session_record.unpacked(self.session_id, self._record)


class SessionMap:
    """Live sessions of one process, at most `max_sessions`; safe to use from any thread.

    A session started by call, or one that waits for a human, lives for `ttl_seconds` after its last access; a
    recognised one ends after `idle_seconds` too, whichever comes first. Both can be changed at any time and
    hold at once for every session that is still in the map.

    Raises ValueError or TypeError if a window is not a finite number above 0, or `max_sessions` is below 1.
    """

    def __init__(self, *, ttl_seconds: float, idle_seconds: float, max_sessions: int, clock: Clock) -> None:
        if max_sessions < 1:
            raise ValueError(f"max_sessions must be 1 or more, not {max_sessions}")
        self._ttl_seconds = positive_number("ttl_seconds", ttl_seconds)
        self._idle_seconds = positive_number("idle_seconds", idle_seconds)
        self._max_sessions = max_sessions
        self._monotonic = clock.monotonic
        self._wall_ns = clock.time_ns
        # Re-entrant: a signal handler or finaliser within a method must not wait for its own thread.
        self._lock = RLock()
        self._records: dict[str, bytearray] = {}
        self._orders = _orders()
        self._windows = self._windows_by_place()
        self._changed: dict[str, None] = {}
        self._tombstones: OrderedDict[str, int] = OrderedDict()
        self._unreported: deque[Expired] = deque()  # left the map, and no sweep has returned them
        self._evicted_count = 0
        self._dropped_count = 0

    @property
    def ttl_seconds(self) -> float:
        """How long a session lives after its last access."""
        return self._ttl_seconds

    @ttl_seconds.setter
    def ttl_seconds(self, seconds: float) -> None:
        self._set_windows(positive_number("ttl_seconds", seconds), self._idle_seconds)

    @property
    def idle_seconds(self) -> float:
        """How long a recognised session may be idle before it ends by inference."""
        return self._idle_seconds

    @idle_seconds.setter
    def idle_seconds(self, seconds: float) -> None:
        self._set_windows(self._ttl_seconds, positive_number("idle_seconds", seconds))

    def __len__(self) -> int:
        """Sessions in the map, live or not."""
        return len(self._records)

    def __contains__(self, session_id: object) -> bool:
        """Whether the session is in the map, live or not."""
        return session_id in self._records

    def open(
        self,
        session_id: str,
        agent_id: str,
        *,
        user_id: str | None = None,
        origin: Origin = Origin.CALL,
        start_us: int,
        last_activity_us: int | None = None,
    ) -> bool:
        """Open a session that starts at `start_us` (Unix microseconds); False if it was open already.

        Then it is touched, gets its user if it had none, and a start by call makes a recognised session one
        started by call, at `start_us`. A session that ended opens anew. If the map is full, the idlest one is
        evicted.
        """
        activity_us = start_us if last_activity_us is None else last_activity_us
        with self._lock:
            now = self._monotonic()
            record = self._live(session_id, now)
            if record is not None:
                place = record[_FLAGS_AT] & PLACE
                self._join(record, user_id, origin, start_us)
                self._renew(session_id, record, place, now, max(activity_us, self._wall_us()))
                return False
            self._make_room(session_id, now)
            record = session_record.packed(
                agent_id=agent_id,
                user_id=user_id,
                origin=origin,
                start_us=start_us,
                last_access=now,
                last_activity_us=activity_us,
            )
            self._enter(session_id, record)
            self._changed[session_id] = None
            return True

    def turn(
        self,
        session_id: str,
        *,
        turn_id: str,
        seconds: float,
        status: TurnStatus,
        end_us: int,
        error_type: str | None = None,
        error_message: str | None = None,
        input_tokens: int | None = None,
        output_tokens: int | None = None,
        message_count: int | None = None,
    ) -> bool:
        """Count a turn that took `seconds` and ended at `end_us` (Unix microseconds), and reset the TTL.

        False, and nothing is changed, if the session is not live or has counted this turn. The turn that
        ended last decides whether the session waits, and which error it has; texts are cut at 500 characters.
        """
        turn = Turn(
            turn_id,
            seconds,
            status,
            end_us,
            error_type,
            error_message,
            input_tokens,
            output_tokens,
            message_count,
        )
        with self._lock:
            now = self._monotonic()
            record = self._live(session_id, now)
            if record is None:
                return False
            place = record[_FLAGS_AT] & PLACE
            if not session_record.add_turn(record, turn):
                return False
            self._renew(session_id, record, place, now, end_us)
            return True

    def touch(self, session_id: str) -> bool:
        """Reset the session's TTL; False if it is not live."""
        with self._lock:  # the hottest path of all: nothing here is called that need not be
            now = self._monotonic()
            record = self._records.get(session_id)
            if record is None:
                return False
            accessed, flags = _access(record)
            if now - accessed >= self._windows[flags & PLACE]:
                return False
            if flags & LOADED:
                self._move(session_id, flags & PLACE, flags & PLACE & ~LOADED)
                flags &= ~LOADED
            _set_access(record, 0, now, flags | TOUCHED)
            self._orders[flags & PLACE].move_to_end(session_id)
            self._changed[session_id] = None
            return True

    def get(self, session_id: str) -> Session | None:
        """The session if it is live. Nothing is reset."""
        with self._lock:
            record = self._live(session_id, self._monotonic())
            copy = None if record is None else record[:]
        return None if copy is None else session_record.unpacked(session_id, copy)

    def remaining_seconds(self, session_id: str) -> float | None:
        """Seconds of TTL that were left before this call, which resets it; None if it is not live."""
        with self._lock:
            now = self._monotonic()
            record = self._live(session_id, now)
            if record is None:
                return None
            accessed: float = _access(record)[0]
            self.touch(session_id)
            return self._ttl_seconds - (now - accessed)

    def take(
        self, session_id: str, *, started_by_us: int | None = None, ended_at_us: int | None = None
    ) -> Session | None:
        """Remove a live session in order to end it; None if it is not live. Of many callers one gets it.

        One that started after `started_by_us` stays: an end of that time is not for this conversation. The
        one taken is known as ended at `ended_at_us`, by default now. Both are Unix microseconds.
        """
        with self._lock:
            record = self._live(session_id, self._monotonic())
            if record is None or not _started_by(started_by_us, record):
                return None
            self._leave(session_id)
            self._bury(session_id, self._wall_us() if ended_at_us is None else ended_at_us)
        return session_record.unpacked(session_id, record)

    def forget(self, session_id: str, *, ended_at_us: int, started_by_us: int | None = None) -> bool:
        """Drop a session that another process ended, live or not, so that no sweep reports it.

        False if it was not there; it is known as ended all the same. One that started after `started_by_us`
        stays, and is not known as ended: then the end was that of its predecessor.
        """
        with self._lock:
            record = self._records.get(session_id)
            if record is not None and _started_by(started_by_us, record):
                self._leave(session_id)
                self._bury(session_id, ended_at_us)
                return True
            if record is None:
                self._bury(session_id, max(ended_at_us, self._tombstones.get(session_id, ended_at_us)))
            return self._forget_unreported(session_id)

    def sweep(self, limit: int = 500) -> list[Expired]:
        """Remove at most `limit` sessions that are past their deadline or were evicted.

        Each is returned once. The lock is given up after every 500.
        """
        swept: list[Expired] = []
        while len(swept) < limit:
            chunk = min(_CHUNK, limit - len(swept))
            ended = self._sweep_chunk(chunk)
            swept += ended
            if len(ended) < chunk:
                break
        return swept

    def is_due(self) -> bool:
        """Whether a sweep would return anything."""
        return self.next_deadline() == 0.0

    def next_deadline(self) -> float | None:
        """Seconds until a sweep has something to return: 0.0 if it has now, None if the map is empty."""
        with self._lock:
            if self._unreported:
                return 0.0
            now = self._monotonic()
            left = [self._windows[place] - (now - accessed) for accessed, place, _ in self._fronts()]
            return max(0.0, min(left)) if left else None

    def changed(self, limit: int) -> list[str]:
        """At most `limit` ids of sessions that changed since they were last asked for.

        At most 500 at a time, the newest first; sessions that have left the map are not among them.
        """
        with self._lock:
            count = min(limit, len(self._changed), _CHUNK)
            return [self._changed.popitem()[0] for _ in range(count)]

    def dump(self, session_id: str) -> bytes | None:
        """The session, live or not, as bytes for `load` in another process; None if it is not in the map.

        Times in it are Unix microseconds.
        """
        with self._lock:
            record = self._records.get(session_id)
            if record is None:
                return None
            now, wall_us = self._monotonic(), self._wall_us()
            session_record.settle(record, now, wall_us)
            return session_record.dumped(record, wall_us - (now - _access(record)[0]) * 1e6)

    def load(
        self, session_id: str, blob: bytes, *, last_access: float | None = None, revive: bool = False
    ) -> bool:
        """Take over what another process knows of a session; whether anything is new here.

        The record with the newer activity wins, and keeps what only the other one knows of its conversation.
        A session that ended here stays ended, unless the blob's conversation started later, or `revive` says
        that activity elsewhere has overtaken the end. A full map evicts a session idler than this one, else
        refuses. Load in order of last access: each costs a step per loaded session accessed later.

        `last_access` is in seconds of the monotonic clock, for a blob of the same boot; without it the blob's
        wall time decides. Raises ValueError if the blob cannot be read.
        """
        record = session_record.loaded(blob)
        with self._lock:
            now = self._monotonic()
            self._place_in_time(record, now, last_access)
            if session_id in self._records:
                return self._merge(session_id, record, now)
            ended_at_us = self._tombstones.get(session_id)
            if ended_at_us is not None and session_record.start_us(record) <= ended_at_us and not revive:
                return False
            if self._is_full() and min(self._fronts())[0] >= _access(record)[0]:
                return False
            self._make_room(session_id, now)
            self._enter_loaded(session_id, record)
            return True

    def read(self, session_id: str, blob: bytes) -> Session:
        """The session in a blob that `dump` made, without loading it. Raises ValueError as `load` does."""
        record = session_record.loaded(blob)
        self._place_in_time(record, self._monotonic(), None)
        return session_record.unpacked(session_id, record)

    def ended(self, session_id: str) -> bool:
        """Whether the session is one of the last 100,000 that ended here and did not open again."""
        return session_id in self._tombstones

    def ended_at_us(self, session_id: str) -> int | None:
        """When such a session ended, in Unix microseconds: its next conversation must start later."""
        return self._tombstones.get(session_id)

    def stats(self) -> dict[str, int | float]:
        """Counts, and for how many hours the sessions in the map have been idle (0.0 if there are none).

        `evicted_sessions` and `dropped_ends` count from the start; an end is dropped if no sweep returns it
        before 10,000 others have been evicted or opened anew.
        """
        with self._lock:
            now = self._monotonic()
            unreported = len(self._unreported)
            active = len(self._records) - sum(self._count_due(place, now) for place in _PLACES)
            total = len(self._records) + unreported
            longest = now - min((accessed for accessed, *_ in self._fronts()), default=now)
            shortest = now - max((accessed for accessed, *_ in self._fronts(newest=True)), default=now)
        return {
            "total_cached_sessions": total,
            "active_sessions": active,
            "expired_sessions_pending_cleanup": total - active,
            "avg_idle_time_hours": self._mean_idle_seconds() / 3600,
            "longest_idle_time_hours": longest / 3600,
            "shortest_idle_time_hours": shortest / 3600,
            "evicted_sessions": self._evicted_count,
            "dropped_ends": self._dropped_count,
        }

    def after_fork_in_child(self) -> None:
        """Make the map usable in a forked child: a new lock, and the orders as they should be.

        A thread of the parent that held the lock may have been half way through a change.
        """
        was_free = self._lock.acquire(blocking=False)
        self._lock = RLock()
        if was_free:
            return
        self._orders = _orders()
        for session_id, record in sorted(self._records.items(), key=lambda item: _access(item[1])[0]):
            self._orders[record[_FLAGS_AT] & PLACE][session_id] = None

    def _set_windows(self, ttl_seconds: float, idle_seconds: float) -> None:
        with self._lock:
            self._ttl_seconds, self._idle_seconds = ttl_seconds, idle_seconds
            self._windows = self._windows_by_place()

    def _mean_idle_seconds(self) -> float:
        """Walks the whole map, and gives up the lock after every 500 records."""
        total, count = 0.0, 0
        session_ids = list(self._records)
        for start in range(0, len(session_ids), _CHUNK):
            with self._lock:
                now = self._monotonic()
                records = map(self._records.get, session_ids[start : start + _CHUNK])
                idle = [now - _access(record)[0] for record in records if record is not None]
            total, count = total + sum(idle), count + len(idle)
        return total / count if count else 0.0

    def _sweep_chunk(self, limit: int) -> list[Expired]:
        with self._lock:
            now, wall_us = self._monotonic(), self._wall_us()
            swept = [self._unreported.popleft() for _ in range(min(limit, len(self._unreported)))]
            for place in _PLACES:
                ended_by, window = self._ending(place)
                due = list(islice(self._due(place, now), limit - len(swept)))
                swept += [self._end(session_id, ended_by, window, now, wall_us) for session_id in due]
            return swept

    # Everything below is called under the lock.

    def _wall_us(self) -> int:
        return self._wall_ns() // 1000

    def _windows_by_place(self) -> tuple[float, ...]:
        shorter = min(self._ttl_seconds, self._idle_seconds)
        return tuple(shorter if _may_idle_out(place) else self._ttl_seconds for place in range(PLACE + 1))

    def _live(self, session_id: str, now: float) -> bytearray | None:
        """The record, settled, if the session is live."""
        record = self._records.get(session_id)
        if record is None:
            return None
        accessed, flags = _access(record)
        if now - accessed >= self._windows[flags & PLACE]:
            return None
        if flags & TOUCHED:
            session_record.settle(record, now, self._wall_us())
        return record

    def _join(self, record: bytearray, user_id: str | None, origin: Origin, start_us: int) -> None:
        if user_id is not None:
            session_record.fill_in_user(record, user_id)
        if origin is Origin.CALL:
            session_record.start_by_call(record, start_us)

    def _renew(self, session_id: str, record: bytearray, place: int, now: float, activity_us: int) -> None:
        """Note an access to a record that stood at `place`, and bring it to the end of its order."""
        flags = record[_FLAGS_AT] & ~LOADED
        _set_access(record, 0, now, flags)
        session_record.note_activity(record, activity_us)
        self._move(session_id, place, flags & PLACE)
        self._changed[session_id] = None

    def _move(self, session_id: str, place: int, new_place: int) -> None:
        """Bring a session to the end of the order of its new place."""
        order = self._orders[new_place]
        if order is not self._orders[place]:
            del self._orders[place][session_id]
            order[session_id] = None
        order.move_to_end(session_id)

    def _enter(self, session_id: str, record: bytearray) -> None:
        self._tombstones.pop(session_id, None)
        self._orders[record[_FLAGS_AT] & PLACE][session_id] = None
        self._records[session_id] = record

    def _enter_loaded(self, session_id: str, record: bytearray) -> None:
        """Enter a record where its last access belongs, which need not be the end."""
        session_record.set_loaded(record)
        accessed, order = _access(record)[0], self._orders[record[_FLAGS_AT] & PLACE]
        records = self._records
        later = list(takewhile(lambda other: _access(records[other])[0] > accessed, reversed(order)))
        self._enter(session_id, record)
        for other in reversed(later):
            order.move_to_end(other)

    def _leave(self, session_id: str) -> bytearray:
        record = self._records.pop(session_id)
        del self._orders[record[_FLAGS_AT] & PLACE][session_id]
        self._changed.pop(session_id, None)
        return record

    def _bury(self, session_id: str, ended_at_us: int) -> None:
        self._tombstones[session_id] = ended_at_us
        if len(self._tombstones) > _MAX_TOMBSTONES:
            self._tombstones.popitem(last=False)

    def _is_full(self) -> bool:
        return len(self._records) >= self._max_sessions

    def _make_room(self, session_id: str, now: float) -> None:
        """Set aside the session's expired predecessor, or in a full map the idlest session, for a sweep."""
        if session_id in self._records:
            self._set_aside(session_id, now)
        elif self._is_full():
            self._set_aside(min(self._fronts())[2], now)

    def _set_aside(self, session_id: str, now: float) -> None:
        """End a session by its deadline, if that has passed, or else by eviction, ahead of the next sweep."""
        accessed, flags = _access(self._records[session_id])
        ended_by, window = self._ending(flags & PLACE)
        if now - accessed < window:
            ended_by, window = EndedBy.EVICTED, self._ttl_seconds
            self._evicted_count += 1
        if len(self._unreported) >= _MAX_UNREPORTED:
            self._unreported.popleft()
            self._dropped_count += 1
        self._unreported.append(self._end(session_id, ended_by, window, now, self._wall_us()))

    def _ending(self, place: int) -> tuple[EndedBy, float]:
        """What ends sessions at this place, and after how long; of two equal windows it is the TTL."""
        window = self._windows[place]
        return (EndedBy.IDLE if window < self._ttl_seconds else EndedBy.TTL), window

    def _forget_unreported(self, session_id: str) -> bool:
        others = deque(one for one in self._unreported if one.session_id != session_id)
        was_there = len(others) < len(self._unreported)
        self._unreported = others
        return was_there

    def _end(self, session_id: str, ended_by: EndedBy, window: float, now: float, wall_us: int) -> Expired:
        record = self._leave(session_id)
        session_record.settle(record, now, wall_us)
        closed_us = session_record.last_activity_us(record) + int(window * 1e6)
        self._bury(session_id, min(closed_us, wall_us))
        return Expired(session_id, ended_by, window, record)

    def _due(self, place: int, now: float) -> Iterator[str]:
        """The ids at the front of an order whose deadline has passed."""
        records, window = self._records, self._windows[place]
        return takewhile(lambda one: now - _access(records[one])[0] >= window, self._orders[place])

    def _is_due(self, session_id: str, place: int, now: float) -> bool:
        return bool(now - _access(self._records[session_id])[0] >= self._windows[place])

    def _count_due(self, place: int, now: float) -> int:
        """How many are due, found by bisection in a front part of the order that is made to hold them all."""
        size = _CHUNK
        while True:
            front = tuple(islice(self._orders[place], size))
            if len(front) < size or not self._is_due(front[-1], place, now):
                return bisect_left(front, True, key=lambda one: not self._is_due(one, place, now))
            size *= 8

    def _fronts(self, *, newest: bool = False) -> Iterator[_Front]:
        """The first, or last, session of each order."""
        for place in _PLACES:
            order = self._orders[place]
            session_id = next(reversed(order) if newest else iter(order), None)
            if session_id is not None:
                yield _Front(_access(self._records[session_id])[0], place, session_id)

    def _place_in_time(self, record: bytearray, now: float, last_access: float | None) -> None:
        """Turn the last access of a blob, in wall time, into time of the monotonic clock."""
        if last_access is None:
            last_access = now - (self._wall_us() - _access(record)[0]) / 1e6
        session_record.set_last_access(record, min(now, last_access))

    def _merge(self, session_id: str, theirs: bytearray, now: float) -> bool:
        ours = self._records[session_id]
        session_record.settle(ours, now, self._wall_us())
        known_to_them = theirs[:]
        newer, older = ours[:], theirs
        if session_record.last_activity_us(theirs) > session_record.last_activity_us(ours):
            newer, older = theirs, ours
        session_record.adopt(newer, older)
        if newer == ours:
            return False
        self._leave(session_id)
        if newer != known_to_them:
            self._changed[session_id] = None
        self._enter_loaded(session_id, newer)
        return True


class _Front(NamedTuple):
    last_access: float
    place: int
    session_id: str


def _started_by(time_us: int | None, record: bytearray) -> bool:
    return time_us is None or session_record.start_us(record) <= time_us


def _orders() -> tuple[OrderedDict[str, None], ...]:
    """An order for each place. Places that have the same window and are equally loaded share one."""
    own: list[OrderedDict[str, None]] = [OrderedDict(), OrderedDict()]
    others: list[OrderedDict[str, None]] = [OrderedDict(), OrderedDict()]
    return tuple((others if at & LOADED else own)[_may_idle_out(at)] for at in range(PLACE + 1))


def _may_idle_out(place: int) -> bool:
    """Whether sessions at this place have the idle window too: recognised, and not waiting."""
    return bool(place & RECOGNISED and not place & WAITING)


_access, _set_access = ACCESS.unpack_from, ACCESS.pack_into
_FLAGS_AT = session_record.FLAGS_AT
_PLACES = (0, RECOGNISED, LOADED, RECOGNISED | LOADED)  # one for each order
_CHUNK = 500  # records for which the lock is held
_MAX_TOMBSTONES = 100_000
_MAX_UNREPORTED = 10_000
