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
from typing import NamedTuple

from otel_agent_tracker import session_record
from otel_agent_tracker.arguments import positive_number
from otel_agent_tracker.clock import Clock
from otel_agent_tracker.hot_lock import HotLock
from otel_agent_tracker.semconv import EndedBy, Origin, TurnStatus
from otel_agent_tracker.session_id import parse
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
        self._lock = HotLock()
        self._records: dict[str, bytearray] = {}
        self._orders = _orders()
        self._windows = self._windows_by_place()
        self._changed: dict[str, None] = {}
        self._tombstones: OrderedDict[str, int] = OrderedDict()
        self._inferred: dict[str, _Ended] = {}  # those of the tombstones that a turn may refute
        self._unreported: deque[Expired] = deque()  # left the map, and no sweep has returned them
        self._evicted_count = 0
        self._dropped_count = 0
        self._unbooked_count = 0  # of the dropped

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

    def lapse(self, session_id: str, *, by_us: int, ttl_seconds: float | None = None) -> bool:
        """End a session whose window had passed by `by_us` (Unix microseconds), ahead of the next sweep.

        It is for what is heard of later: another process saw the window pass, whose TTL was `ttl_seconds`. False,
        and nothing is changed, if there is no such session or its window had not passed.
        """
        with self._lock:
            now, record = self._monotonic(), self._records.get(session_id)
            if record is None:
                return False
            session_record.settle(record, now, self._wall_us())
            ended_by, window = self._ending(record[_FLAGS_AT] & PLACE, ttl_seconds)
            if by_us <= _closed_us(record, window):
                return False
            self._set_aside(session_id, ended_by, window, now)
            return True

    def resume(self, session_id: str, *, turn_start_us: int) -> Session | None:
        """Go on with a conversation that seems to be over, though a turn began before it was; None if none does.

        During a long turn nothing else need happen, and the window passes. What is inferred from that does not
        count, so the conversation has to end once more. An end by call stands.
        """
        with self._lock:
            now, record = self._monotonic(), self._records.get(session_id)
            if record is not None:
                if not self._renew_if_begun_before(turn_start_us, session_id, record, now):
                    return None
            else:
                ended = self._inferred.get(session_id)
                if ended is None or ended.record is None or turn_start_us > ended.closed_us:
                    return None
                over = session_record.unpacked(session_id, ended.record)
                self.open(
                    session_id,
                    over.agent_id,
                    user_id=over.user_id,
                    origin=over.origin,
                    start_us=over.start_us,
                    last_activity_us=turn_start_us,
                )
            return self.get(session_id)

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

    def find(self, session_id: str) -> Session | None:
        """The session, live or not. Nothing is reset."""
        with self._lock:
            record = self._records.get(session_id)
            if record is None:
                return None
            session_record.settle(record, self._monotonic(), self._wall_us())
            copy = record[:]
        return session_record.unpacked(session_id, copy)

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
        self,
        session_id: str,
        *,
        started_by_us: int | None = None,
        ended_at_us: int | None = None,
    ) -> Session | None:
        """Remove a live session in order to end it; None if it is not live. Of many callers one gets it.

        One that started after `started_by_us` stays: an end of that time is not for this conversation. The
        one taken is known as ended at `ended_at_us`, by default now. Both are Unix microseconds. If a turn has
        begun since then, the session stays too, as its next conversation.
        """
        with self._lock:
            record = self._live(session_id, self._monotonic())
            if record is None or not _started_by(started_by_us, record):
                return None
            if ended_at_us is not None and self._goes_on(session_id, record, ended_at_us):
                return None
            self._leave(session_id)
            self._bury(session_id, self._wall_us() if ended_at_us is None else ended_at_us, None)
        return session_record.unpacked(session_id, record)

    def forget(
        self,
        session_id: str,
        *,
        ended_at_us: int,
        started_by_us: int | None = None,
        ended_by: str = EndedBy.CALL,
    ) -> bool:
        """Drop a session that another process ended, live or not, so that no sweep reports it.

        False if it was not there; it is known as ended all the same. One that started after `started_by_us`
        stays, and is not known as ended: then the end was that of its predecessor. So does one that a turn
        has begun in since `ended_at_us`: it is the next conversation, which that turn opened.
        """
        with self._lock:
            record = self._records.get(session_id)
            if record is not None and self._goes_on(session_id, record, ended_at_us):
                return False
            if record is not None and _started_by(started_by_us, record):
                self._leave(session_id)
                self._bury(session_id, ended_at_us, self._inferred_end(record, ended_by))
                return True
            if record is None:
                self._bury_unheld(session_id, ended_at_us, ended_by)
            return self._forget_unreported(session_id)

    def sweep(self, limit: int = 500, *, idle_only: bool = False) -> list[Expired]:
        """Remove at most `limit` sessions that are past their deadline or were evicted.

        Each is returned once. The lock is given up after every 500. With `idle_only` those stay that have no
        idle window, though their TTL be over.
        """
        places = _IDLE_PLACES if idle_only else _PLACES
        swept: list[Expired] = []
        while len(swept) < limit:
            chunk = min(_CHUNK, limit - len(swept))
            ended = self._sweep_chunk(chunk, places)
            swept += ended
            if len(ended) < chunk:
                break
        return swept

    def set_aside(self) -> list[Expired]:
        """Remove those that need not wait for a sweep: what followed them is in the map already."""
        return self._sweep_chunk(_MAX_UNREPORTED, ())

    def take_dropped_ends(self) -> int:
        """How many ends were dropped since this was last asked; for whoever keeps the books."""
        with self._lock:
            number, self._unbooked_count = self._unbooked_count, 0
        return number

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
        A session that ended here stays ended, unless the blob's conversation started later, or has a turn that
        did so, or `revive` says that activity elsewhere has overtaken the end. A full map evicts a session idler
        than this one, else refuses. Load in order of last access: each costs a step per loaded session accessed
        later.

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
                if (next_us := session_record.last_turn_start_us(record) or 0) <= ended_at_us:
                    return False
                session_record.begin_next(record, next_us)
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

    def count_live(self) -> int:
        """How many sessions are live now."""
        with self._lock:
            now = self._monotonic()
            return len(self._records) - sum(self._count_due(place, now) for place in _PLACES)

    def belongs_to_ended(self, session_id: str, start_us: int) -> bool:
        """Whether a turn that began at `start_us` belongs to a conversation that has ended here.

        Only an end by call stands: one that was inferred while the turn was under way is refuted by it.
        """
        with self._lock:
            ended_at_us = self._tombstones.get(session_id)
            return ended_at_us is not None and start_us <= ended_at_us and session_id not in self._inferred

    def origin_of_next(self, session_id: str) -> Origin:
        """The origin of the conversation that a turn opens in a session that is not live.

        An id of our form was made for a start by call. Unless somebody ended that conversation by a call, it may
        go on where others see life in it; there only a call or its time to live ends it, and one that would end
        idle here would never count.
        """
        with self._lock:
            if parse(session_id) is None or self._has_ended_for_good(session_id):
                return Origin.RECOGNISED
            return Origin.CALL

    def stats(self) -> dict[str, int | float]:
        """Counts, and for how many hours the sessions in the map have been idle (0.0 if there are none).

        `evicted_sessions` and `dropped_ends` count from the start; an end is dropped if no sweep returns it
        before 10,000 others have been evicted or opened anew.
        """
        with self._lock:
            now = self._monotonic()
            unreported = len(self._unreported)
            active = self.count_live()
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

        A thread of the parent that held the lock may have been half way through a change. What was dropped is
        the parent's to book.
        """
        self._unbooked_count = 0
        was_free = self._lock.acquire(blocking=False)
        self._lock = HotLock()
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

    def _sweep_chunk(self, limit: int, places: tuple[int, ...]) -> list[Expired]:
        with self._lock:
            now, wall_us = self._monotonic(), self._wall_us()
            swept = [self._unreported.popleft() for _ in range(min(limit, len(self._unreported)))]
            for place in places:
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

    def _has_ended_for_good(self, session_id: str) -> bool:
        """Whether the session ended by a call, or idle, and not by its time to live or by eviction."""
        record = self._records.get(session_id)
        if record is not None:
            return self._ending(record[_FLAGS_AT] & PLACE)[0] is EndedBy.IDLE
        ended = self._inferred.get(session_id, _BY_CALL)
        return session_id in self._tombstones and ended.ended_by not in (EndedBy.TTL, EndedBy.EVICTED)

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

    def _renew_if_begun_before(self, time_us: int, session_id: str, record: bytearray, now: float) -> bool:
        """Note an access to a record whose window had not passed at `time_us`, though it may have now."""
        session_record.settle(record, now, self._wall_us())
        place = record[_FLAGS_AT] & PLACE
        if time_us > _closed_us(record, self._windows[place]):
            return False
        self._renew(session_id, record, place, now, time_us)
        return True

    def _move(self, session_id: str, place: int, new_place: int) -> None:
        """Bring a session to the end of the order of its new place."""
        order = self._orders[new_place]
        if order is not self._orders[place]:
            del self._orders[place][session_id]
            order[session_id] = None
        order.move_to_end(session_id)

    def _enter(self, session_id: str, record: bytearray) -> None:
        self._tombstones.pop(session_id, None)
        self._inferred.pop(session_id, None)
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

    def _goes_on(self, session_id: str, record: bytearray, ended_at_us: int) -> bool:
        """Whether a turn has begun after an end that only now is known here; it opened the next conversation."""
        start_us = session_record.last_turn_start_us(record)
        if start_us is None or start_us <= ended_at_us or session_record.start_us(record) > ended_at_us:
            return False
        self._leave(session_id)
        session_record.begin_next(record, start_us)
        self._enter_loaded(session_id, record)
        self._changed[session_id] = None
        return True

    def _bury(self, session_id: str, ended_at_us: int, inferred: _Ended | None) -> None:
        self._tombstones[session_id] = ended_at_us
        self._inferred.pop(session_id, None)
        if inferred is not None:
            self._inferred[session_id] = inferred
        if len(self._tombstones) > _MAX_TOMBSTONES:
            oldest, _ = self._tombstones.popitem(last=False)
            self._inferred.pop(oldest, None)

    def _bury_unheld(self, session_id: str, ended_at_us: int, ended_by: str) -> None:
        """Know of an end elsewhere: of a later conversation, or by call of one that ended here by inference."""
        known_us, inferred = self._tombstones.get(session_id, 0), self._inferred.get(session_id)
        if ended_by != EndedBy.CALL:
            inferred = inferred or _Ended(ended_by)
        elif inferred is not None and inferred.start_us <= ended_at_us:
            inferred, ended_at_us = None, max(ended_at_us, known_us)
        if ended_at_us >= known_us:
            self._bury(session_id, ended_at_us, inferred)

    def _inferred_end(self, record: bytearray, ended_by: str) -> _Ended | None:
        """The end that another process told, as it looks from what is known here; None for one by call."""
        if ended_by == EndedBy.CALL:
            return None
        session_record.settle(record, self._monotonic(), self._wall_us())
        return _Ended.of(record, ended_by, _closed_us(record, self._windows[record[_FLAGS_AT] & PLACE]))

    def _is_full(self) -> bool:
        return len(self._records) >= self._max_sessions

    def _make_room(self, session_id: str, now: float) -> None:
        """Set aside the session's expired predecessor, or in a full map the idlest session, for a sweep."""
        if session_id in self._records:
            self._set_aside(session_id, *self._ending(self._place(session_id)), now)
        elif self._is_full():
            _, place, idlest = min(self._fronts())
            if self._is_due(idlest, place, now):
                self._set_aside(idlest, *self._ending(place), now)
            else:
                self._evicted_count += 1
                self._set_aside(idlest, EndedBy.EVICTED, self._ttl_seconds, now)

    def _set_aside(self, session_id: str, ended_by: EndedBy, window: float, now: float) -> None:
        """End a session ahead of the next sweep."""
        if len(self._unreported) >= _MAX_UNREPORTED:
            self._unreported.popleft()
            self._dropped_count += 1
            self._unbooked_count += 1
        self._unreported.append(self._end(session_id, ended_by, window, now, self._wall_us()))

    def _ending(self, place: int, ttl_seconds: float | None = None) -> tuple[EndedBy, float]:
        """What ends sessions at this place, and after how long; of two equal windows it is the TTL."""
        ttl = self._ttl_seconds if ttl_seconds is None else ttl_seconds
        if _may_idle_out(place) and self._idle_seconds < ttl:
            return EndedBy.IDLE, self._idle_seconds
        return EndedBy.TTL, ttl

    def _place(self, session_id: str) -> int:
        return self._records[session_id][_FLAGS_AT] & PLACE

    def _forget_unreported(self, session_id: str) -> bool:
        others = deque(one for one in self._unreported if one.session_id != session_id)
        was_there = len(others) < len(self._unreported)
        self._unreported = others
        return was_there

    def _end(self, session_id: str, ended_by: EndedBy, window: float, now: float, wall_us: int) -> Expired:
        record = self._leave(session_id)
        session_record.settle(record, now, wall_us)
        closed_us = min(_closed_us(record, window), wall_us)
        self._bury(session_id, closed_us, _Ended.of(record, ended_by, closed_us))
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


class _Ended(NamedTuple):
    """A conversation that ended by inference, at `closed_us`; it goes on if a turn began before that.

    What it takes to go on is unknown of one that this map never held: its `closed_us` is 0.
    """

    ended_by: str
    closed_us: int = 0
    start_us: int = 0
    record: bytearray | None = None

    @classmethod
    def of(cls, record: bytearray, ended_by: str, closed_us: int) -> _Ended:
        return cls(ended_by, closed_us, session_record.start_us(record), session_record.without_turns(record))


_BY_CALL = _Ended(EndedBy.CALL)


def _closed_us(record: bytearray, window: float) -> int:
    """When the window of a settled record has passed; what begins later is the next conversation."""
    return session_record.last_activity_us(record) + int(window * 1e6)


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
_IDLE_PLACES = tuple(place for place in _PLACES if _may_idle_out(place))
_CHUNK = 500  # records for which the lock is held
_MAX_TOMBSTONES = 100_000
_MAX_UNREPORTED = 10_000
