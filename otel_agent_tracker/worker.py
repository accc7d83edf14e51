"""The worker: the one thread that carries events from the journal to the state file to the tracker.

It also ends what is idle, shares sessions with other processes through the state file, and says which agents
are alive. It never waits for the network: lanes do. This module is imported by that thread, so that no caller
pays for SQLite and the client.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterable
from itertools import takewhile
from math import inf
from pathlib import Path
from typing import Any, TypeVar

import orjson

from otel_agent_tracker import mapping, wire
from otel_agent_tracker.clock import Clock
from otel_agent_tracker.delivery import Delivery, Sender
from otel_agent_tracker.elsewhere import still_unread, unread_elsewhere
from otel_agent_tracker.entry import Entry
from otel_agent_tracker.handle import FlushRequest, Snapshot, WorkerHandle
from otel_agent_tracker.journal import MemoryJournal, Segment
from otel_agent_tracker.log import Log, SparingLog
from otel_agent_tracker.provider import this_instance
from otel_agent_tracker.replay import replay
from otel_agent_tracker.semconv import EndedBy, Event
from otel_agent_tracker.sender_lock import SenderLock
from otel_agent_tracker.session_record import last_access_us, loaded
from otel_agent_tracker.sessions import Expired, Session, SessionMap
from otel_agent_tracker.state import Counts, DamagedState, NewRow, SessionRow, State, Tombstone
from otel_agent_tracker.state_file import StateFile, is_damage

__all__ = ["Worker"]

SHARE_INTERVAL = 1.0  # seconds
IDLE_SWEEP_INTERVAL = 60.0
HEARTBEAT_INTERVAL = 60.0
PRUNE_INTERVAL = 3600.0
PUBLISH_REST = 20  # how many times as long as counting takes
READ_BYTES = 1024 * 1024  # of the journal, for one transaction
READ_BYTES_BESIDE_FORKS = 64 * 1024  # each fork waits for a transaction to end; smaller ones cost more in all
LINGER = 0.05  # events come in bursts; storing them together is cheaper for the host too
FLUSH_POLL = 0.02
TROUBLE_INTERVAL = 1.0
LAST_WORDS = 0.1  # for lanes to end once their connections are closed
MAX_AGENTS = 1000

_Item = TypeVar("_Item")
_Read = TypeVar("_Read")

_logger = Log(__name__)


class Worker:
    """Runs on the thread that makes it, until `handle.stopping` is set; whatever fails is tried again.

    `expire` ends a session that the sweep found; `limit_bytes` tells for a state file of so many bytes how large
    it may become; `folder` None keeps everything in memory. `sender` is closed at the end. `tick` is called in each
    cycle, at least once a second. `folder_unusable` is why this process may never open the state file.
    """

    def __init__(
        self,
        handle: WorkerHandle,
        journal: MemoryJournal,
        sessions: SessionMap,
        expire: Callable[[Expired], None],
        sender: Sender,
        clock: Clock,
        lock: SenderLock | None,
        *,
        folder: Path | None,
        otlp: bool,
        limit_bytes: Callable[[int], int],
        cleanup_interval: Callable[[], float],
        exit_flush_seconds: float,
        tick: Callable[[], None] = lambda: None,
        folder_unusable: str | None = None,
    ) -> None:
        self._handle = handle
        self._journal = journal
        self._sessions = sessions
        self._expire = expire
        self._sender = sender
        self._clock = clock
        self._lock = lock
        self._folder = folder
        self._otlp = otlp
        self._limit_bytes = limit_bytes
        self._cleanup_interval = cleanup_interval
        self._exit_flush_seconds = exit_flush_seconds
        self._tick = tick
        self._boot_id = _boot_id()
        self._skipped_told = 0
        writer = f"{os.getpid()}-{time.time_ns()}"
        self._file = StateFile(
            folder,
            writer=writer,
            limit_bytes=limit_bytes(0),
            tally=handle.tally,
            unusable=folder_unusable,
        )
        self._damage: sqlite3.Error | None = None
        self._delivery: Delivery | None = None
        self._is_changing = False
        self._seconds_to_send: float | None = None
        self._flushing: list[FlushRequest] = []
        self._offsets: dict[str, int] = {}
        self._frames: dict[str, int] = {}  # of our own segments: how many frames are among the absorbed
        self._absorbed = 0
        self._not_durable = 0
        self._booked: Counter[str] = Counter()
        self._unsaved: set[str] = set()
        self._ended: list[Tombstone] = []
        self._seen_seq = 0
        self._data_version = -1
        self._agents: dict[str, dict[str, Any]] = {}  # with the service of each
        self._next_share = self._next_publish = 0.0  # on the real clock: other processes keep no other
        self._next_sweep = self._next_idle_sweep = self._next_prune = 0.0
        self._next_heartbeat = clock.monotonic() + HEARTBEAT_INTERVAL
        self._log = SparingLog(_logger)
        handle.suspend = self._suspend

    def run(self) -> None:
        """Work until stopped."""
        while not self._handle.stopping.is_set():
            came = self._journal.wait(self._guarded(self._cycle))
            if came and not self._handle.urgent.is_set():
                self._handle.urgent.wait(LINGER)
            self._handle.urgent.clear()
        self._finish()

    def _guarded(self, step: Callable[[], float]) -> float:
        """The boundary at which trouble of the disk, or a mistake of ours, ends; returns how long to sleep."""
        try:
            with self._handle.stepping:
                return step()
        except Exception as error:  # noqa: BLE001 - the thread must go on, and whatever was not stored is kept
            self._tell_trouble(error)
            self._journal.save_ring()
            if isinstance(error, sqlite3.Error) and is_damage(error):
                self._damage = error
            return TROUBLE_INTERVAL

    def _cycle(self) -> float:
        """Everything that is due; returns how many seconds to sleep."""
        now = self._clock.monotonic()
        self._journal.prepare()
        state = self._current_state(now)
        try:
            self._take_in(state, now)
        except sqlite3.OperationalError as error:
            if is_damage(error):
                raise
            self._tell_trouble(error)  # full, or busy: what is stored can be delivered all the same
            self._journal.save_ring()
        self._seconds_to_send = self._deliver(state)
        self._send_heartbeats(now)
        self._answer_flushes(state)
        if time.monotonic() >= self._next_publish:
            self._publish(state)
        return self._sleep_seconds(now)

    def _take_in(self, state: State, now: float) -> None:
        """From the journal, and from other processes, into the state and the map; what is idle ends."""
        while self._handle.flushes and self._handle.flushes[0].abandoned:  # nobody waits for it any more
            self._handle.flushes.popleft()
        asked = len(self._handle.flushes)  # one that comes later is begun by the next cycle
        self._tick()
        if asked or time.monotonic() >= self._next_share:
            self._next_share = time.monotonic() + SHARE_INTERVAL
            self._share(state)  # first: what the dead left goes on from what they had stored
            while self._file.on_disk and self._journal.adopt():  # only the file tells how far they were read
                self._absorb(state)
        self._absorb(state)
        if asked or now >= min(self._next_sweep, self._next_idle_sweep):
            self._sweep(state, now, idle_only=not asked and now < self._next_sweep)
        if now >= self._next_prune:
            self._next_prune = now + PRUNE_INTERVAL
            with state.transaction():
                state.prune_tombstones(self._clock.time_ns() // 1000)
        self._begin_flushes(state, asked)

    def _sleep_seconds(self, now: float) -> float:
        if self._flushing or self._handle.flushes:
            return FLUSH_POLL
        until_sweep = max(0.0, min(self._next_sweep, self._next_idle_sweep) - now)
        until_send = SHARE_INTERVAL if self._seconds_to_send is None else self._seconds_to_send
        until_share = max(0.0, self._next_share - time.monotonic())
        return min(SHARE_INTERVAL, until_share, until_sweep, until_send) + 0.001

    # --- the state file -------------------------------------------------------------------------------------

    def _current_state(self, now: float) -> State:
        """The state; it changes, as when its file was deleted, while no answer is awaited."""
        self._abandon_damaged()
        state = self._file.state
        self._is_changing = self._file.must_change(now)
        if state is not None and not self._is_changing:
            return state
        if self._delivery is not None:
            self._delivery.settle()
            if state is not None and self._delivery.in_flight:
                return state
        changed = self._file.change(now)
        self._is_changing = False
        if changed is not state:
            self._begin_with(changed)
        return changed

    def _suspend(self) -> None:
        """Close the state file until the next use; by a thread that is about to fork, between two cycles."""
        if self._file.state is not None:
            self._file.state.suspend()

    def _abandon_damaged(self) -> None:
        if self._damage is not None:
            damage, self._damage = self._damage, None
            self._stop_delivery()
            self._file.abandon_damaged(damage)

    def _begin_with(self, state: State) -> None:
        """A state that knows less of our journal than the one before has our frames read, and counted, again."""
        offsets = state.offsets()
        for name in [name for name in self._frames if offsets.get(name, 0) < self._offsets.get(name, 0)]:
            self._absorbed -= self._frames.pop(name)
        self._offsets = {name: offsets.get(name, 0) for name in self._frames}
        self._seen_seq = 0
        self._data_version = -1
        for request in self._flushing:
            request.target = None
        self._stop_delivery()

    # --- journal to state -----------------------------------------------------------------------------------

    def _absorb(self, state: State) -> None:
        """Store every readable frame, each segment's offset together with the rows made from it."""
        with self._journal.moving:  # what is on its way to disk comes with what follows it there
            not_durable = self._journal.counters.not_durable
            for segment in self._journal.readable():
                self._absorb_segment(state, segment)
            while waiting := self._waiting_since(not_durable)[:1000]:
                self._store(state, waiting, (), is_own=True)
                self._journal.drain_ring(len(waiting))
                self._handle.give_way()
        self._book_losses(state)
        self._not_durable = not_durable

    def _absorb_segment(self, state: State, segment: Segment) -> None:
        name, is_own = segment.name, self._journal.is_own(segment)
        if name not in self._offsets:  # a dead process had got somewhere with it, maybe only just now
            self._offsets[name] = state.offsets().get(name, 0)
        while True:
            start = self._offsets[name]
            most = READ_BYTES_BESIDE_FORKS if self._handle.is_forked else READ_BYTES
            read = segment.read(start, most)
            if read.payloads:
                waiting = self._waiting_before(read.payloads) if is_own else []
                self._store(state, read.payloads + waiting, [(name, read.offset)], is_own=is_own)
                self._journal.drain_ring(len(waiting))
                if is_own:
                    self._frames[name] = self._frames.get(name, 0) + len(read.payloads)
            self._offsets[name] = read.offset
            if read.offset == start:
                break
            self._handle.give_way()
        if segment.done and self._is_safe(state) and segment.retire():
            self._offsets.pop(name, None)
            self._frames.pop(name, None)
            with state.transaction():
                state.forget_segments([name])

    def _waiting_before(self, payloads: list[bytes]) -> list[bytes]:
        """What waits in memory and came before any of these, which were read from the journal.

        Memory is looked at after the journal, so that whatever came before is there by now. What came later
        follows with later frames: it may be the end of what they start.
        """
        waiting = self._journal.read_ring()
        if not waiting:
            return []
        latest = max(map(_position, payloads))
        return list(takewhile(lambda payload: _position(payload) <= latest, waiting))

    def _waiting_since(self, not_durable: int) -> list[bytes]:
        """What waited in memory when so many had; later ones may follow frames that are not yet read."""
        waiting = self._journal.read_ring()
        return waiting[: max(0, len(waiting) - (self._journal.counters.not_durable - not_durable))]

    def _is_safe(self, state: State) -> bool:
        """Whether what is stored needs the journal no longer."""
        return not state.is_private or self._folder is None or state.oldest_pending_id() is None

    def _store(
        self, state: State, payloads: list[bytes], offsets: Iterable[tuple[str, int]], *, is_own: bool
    ) -> None:
        entries = self._readable(Entry.decode, payloads)
        if is_own and self._journal.counters.not_durable != self._not_durable:
            entries.sort(key=_order)  # what waited in memory was overtaken by what did not
        if not is_own:
            self._readable(lambda entry: replay(entry, self._sessions), entries)
        self._ended.clear()  # of a transaction that failed
        with state.transaction():
            rows = self._readable(lambda entry: self._admitted(state, entry), entries)
            self._note_ends(state)
            self._save_sessions(state)  # after the ends: what is open by now may be the next conversation
            state.accept([row for row in rows if row is not None])
            state.count_dropped({"unreadable": len(payloads) - len(rows)})
            state.set_offsets(offsets)
        self._unsaved.clear()
        if is_own:
            self._absorbed += len(payloads)
            for entry in entries:
                self._see_agent(entry)

    def _readable(self, read: Callable[[_Item], _Read], items: Iterable[_Item]) -> list[_Read]:
        """What `read` makes of each item; those that another release wrote otherwise are passed over."""
        found = []
        for item in items:
            try:
                found.append(read(item))
            except (AttributeError, KeyError, TypeError, ValueError) as error:
                self._warn("an event cannot be read and is passed over: %s", type(error).__name__)
        return found

    def _admitted(self, state: State, entry: Entry) -> NewRow | None:
        """The outbox row of an entry; None for an inferred end that life or another end has overtaken."""
        if entry.event is Event.CONVERSATION and entry.session_id is not None:
            if entry.lacks or mapping.ended_by(entry) != EndedBy.CALL:
                self._note_ends(state)
                row = state.session(entry.session_id)
                if row is not None and row.start_us > entry.time_us:
                    row = None  # that is the next conversation already
                if self._is_overtaken(state, entry, row):
                    return None
                if entry.lacks and row is not None:
                    entry = mapping.complete(entry, agent_id=row.agent_id, start_us=row.start_us)
            self._ended.append(_tombstone(entry))
        return NewRow(
            event_id=entry.event_id,
            event=entry.event,
            path=entry.path,
            lane=entry.lane,
            body=orjson.dumps(entry.body),
            service=orjson.dumps(entry.service),
            otlp=entry.otlp,
            time_us=entry.time_us,
        )

    def _note_ends(self, state: State) -> None:
        """Write the ends admitted so far, together: one statement for each would be half of all the work."""
        state.end_sessions(self._ended)
        self._ended.clear()

    def _is_overtaken(self, state: State, entry: Entry, row: SessionRow | None) -> bool:
        if mapping.ended_by(entry) == EndedBy.CALL or entry.session_id is None:
            return False
        if row is not None and row.last_activity_us > entry.time_us:
            self._load(row, revive=True)  # another process has seen life in it
            return True
        ended = state.tombstone(entry.session_id)
        return row is None and ended is not None and ended.start_us <= entry.time_us <= ended.end_us

    def _book_losses(self, state: State) -> None:
        """What this process could not keep goes into the folder's books too."""
        if dropped := self._sessions.take_dropped_ends():
            self._journal.refuse(Event.CONVERSATION, dropped)
        lost = self._journal.counters.lost()
        if new := lost - self._booked:
            with state.transaction():
                state.count_dropped(new)
            self._booked = lost

    # --- sessions -------------------------------------------------------------------------------------------

    def _save_sessions(self, state: State) -> None:
        """Write what changed here, within a transaction; over nothing of others that was not read before."""
        self._read_sessions(state)
        while changed := self._sessions.changed(500):
            self._unsaved.update(changed)
        rows = [row for row in map(self._row, self._unsaved) if row is not None]
        for expired in self._sessions.set_aside():  # in the journal before its successor takes its row
            self._expire(expired)
        if rows:
            state.put_sessions(rows)

    def _row(self, session_id: str) -> SessionRow | None:
        # one that is over, too, until a sweep has told so: only its row tells of it when the process is killed
        session, record = self._sessions.find(session_id), self._sessions.dump(session_id)
        if session is None or record is None:
            return None
        return SessionRow(
            session_id=session_id,
            agent_id=session.agent_id,
            start_us=session.start_us,
            last_activity_us=session.last_activity_us,
            record=record,
            boot_id=self._boot_id,
            wall_less_monotonic_us=self._wall_less_monotonic_us(),
            last_turn_us=session.last_turn_us or 0,
        )

    def _share(self, state: State) -> None:
        """Take over what changed elsewhere, write what changed here."""
        with state.transaction():
            self._save_sessions(state)
        self._unsaved.clear()

    def _read_sessions(self, state: State) -> None:
        """Take over what changed elsewhere."""
        version = state.data_version()
        if version == self._data_version:
            return
        newest, rows, ended = state.changes_of_others(self._seen_seq)
        for row in rows:
            self._load(row, revive=_has_outlived(row, state.tombstone(row.session_id)))
        for tombstone in ended:
            if not _has_outlived(self._sessions.get(tombstone.session_id), tombstone):
                self._sessions.forget(
                    tombstone.session_id,
                    started_by_us=tombstone.end_us,
                    ended_at_us=tombstone.end_us,
                    ended_by=tombstone.ended_by,
                )
        self._seen_seq, self._data_version = newest, version

    def _load(self, row: SessionRow, *, revive: bool = False) -> None:
        try:
            last_access = None
            if self._boot_id and row.boot_id == self._boot_id:
                last_access = (last_access_us(loaded(row.record)) - row.wall_less_monotonic_us) / 1e6
            self._sessions.load(row.session_id, row.record, last_access=last_access, revive=revive)
        except ValueError as error:
            _logger.debug("a session of another release is left to it: %s", error)

    def _sweep(self, state: State, now: float, *, idle_only: bool) -> None:
        """End what is over; idle sessions more often than those whose TTL is, since nobody else ends them.

        Some at a time: the journal need not hold the ends of all.
        """
        while swept := self._sessions.sweep(idle_only=idle_only):
            for expired in swept:
                self._expire(expired)
            self._absorb(state)
        interval = self._cleanup_interval()
        self._next_idle_sweep = now + min(interval, IDLE_SWEEP_INTERVAL)
        if not idle_only:
            self._next_sweep = now + interval

    def _wall_less_monotonic_us(self) -> int:
        return self._clock.time_ns() // 1000 - int(self._clock.monotonic() * 1e6)

    # --- delivery -------------------------------------------------------------------------------------------

    def _deliver(self, state: State) -> float | None:
        if self._is_changing:
            return None
        if not self._may_send(state):
            self._stop_delivery()
            return None
        if self._delivery is None:
            self._delivery = Delivery(state, self._sender, self._clock, self._journal.wake, otlp=self._otlp)
        return self._delivery.step()

    def _may_send(self, state: State) -> bool:
        """Whether no other process sends from this state; from a deleted file goes on whoever did."""
        if state.is_private or self._lock is None:
            return True
        return self._lock.acquire() if self._file.on_disk else self._delivery is not None

    def _stop_delivery(self) -> None:
        if self._delivery is not None:
            self._delivery.close()
            self._delivery = None

    def _see_agent(self, entry: Entry) -> None:
        if len(self._agents) < MAX_AGENTS:
            self._agents[entry.agent_id] = entry.service or {}

    def _send_heartbeats(self, now: float) -> None:
        asked = []
        while self._handle.heartbeats:
            asked.append(self._handle.heartbeats.popleft())
        if now >= self._next_heartbeat:
            self._next_heartbeat = now + HEARTBEAT_INTERVAL
            asked = [*self._agents, *asked]
        if asked and self._delivery is not None and not self._is_changing:
            self._delivery.send_heartbeats([self._heartbeat(agent_id) for agent_id in dict.fromkeys(asked)])

    def _heartbeat(self, agent_id: str) -> bytes:
        snapshot = self._handle.snapshot
        counts = snapshot.counts if snapshot else Counts()
        service = self._agents.get(agent_id, {})
        heartbeat = wire.AgentHeartbeat(
            agent_id=agent_id,
            timestamp=wire.format_time(self._clock.time_ns() // 1000),
            instance=service.get("instance") or this_instance(),
            delivery={
                "accepted": counts.accepted,
                "delivered": counts.delivered,
                "pending": counts.pending,
                "dead_lettered": counts.dead_lettered,
                "dropped": counts.dropped,
            },
            service=service or None,
        )
        return orjson.dumps(wire.to_json(heartbeat))

    # --- flush, books, trouble, end -------------------------------------------------------------------------

    def _begin_flushes(self, state: State, asked: int) -> None:
        """Everything that this process had accepted when it was asked is stored by now."""
        for _ in range(asked):
            request = self._handle.flushes[0]  # it stays the first, should the disk refuse
            if self._folder is not None and self._file.on_disk:
                ours = [segment.name for segment in self._journal.readable()]
                request.elsewhere = unread_elsewhere(self._folder, ours=ours, read_to=state.offsets())
            self._flushing.append(self._handle.flushes.popleft())

    def _answer_flushes(self, state: State) -> None:
        for request in self._flushing:
            if self._is_flushed(state, request):
                self._publish(state)
                request.done.set()
        self._flushing = [one for one in self._flushing if not (one.abandoned or one.done.is_set())]

    def _is_flushed(self, state: State, request: FlushRequest) -> bool:
        if request.elsewhere and self._folder is not None:
            request.elsewhere = still_unread(self._folder, request.elsewhere, state.offsets())
            if request.elsewhere:
                return False
        if request.target is None:
            request.target = state.newest_pending_id()
        oldest = state.oldest_pending_id()
        return oldest is None or oldest > request.target

    def _publish(self, state: State) -> None:
        """Tell the books; the longer the outbox is, the longer counting takes, and the rarer it is done."""
        began = time.monotonic()
        self._tell_skipped()
        used, counts = state.bytes_used(), state.counts()
        if self._file.on_disk and not counts.add_up:
            raise DamagedState("its books do not add up")
        limit = state.max_bytes = self._limit_bytes(used)
        self._handle.publish(Snapshot(counts, self._absorbed, self._booked, used / limit))
        now = time.monotonic()
        self._next_publish = now + PUBLISH_REST * (now - began)

    def _tell_trouble(self, error: Exception) -> None:
        is_disk = isinstance(error, OSError | sqlite3.Error)
        self._warn("events wait, the state folder refuses: %s", error, trace=None if is_disk else error)

    def _tell_skipped(self) -> None:
        skipped = self._journal.counters.skipped_bytes
        if skipped > self._skipped_told and self._warn(
            "the journal is damaged: %d bytes could not be read and were passed over", skipped
        ):
            self._skipped_told = skipped

    def _warn(self, message: str, detail: object, *, trace: Exception | None = None) -> bool:
        return self._log.warning(self._clock.monotonic(), message, detail, exc_info=trace)

    def _finish(self) -> None:
        """Deliver what can be delivered in the time there is; the rest stays on disk."""
        self._journal.save_ring()  # what waits in memory would end with the process
        deadline = time.monotonic() + self._exit_flush_seconds
        while time.monotonic() < deadline:
            wait = self._guarded(lambda: self._last_cycle(deadline))
            if wait == inf:
                break
            self._journal.wait(min(wait, FLUSH_POLL))
        self._guarded(self._close)

    def _last_cycle(self, deadline: float) -> float:
        """One cycle; infinity when another could do no more until the deadline."""
        wait = self._cycle()
        state, delivery = self._file.state, self._delivery
        if state is None or self._is_changing:
            return wait
        if delivery is None or state.oldest_pending_id() is None:
            return inf  # stored, and another process delivers; or delivered
        until_send = self._seconds_to_send
        waits = not delivery.in_flight and (until_send is None or until_send > deadline - time.monotonic())
        return inf if waits else wait

    def _close(self) -> float:
        delivery = self._delivery
        self._stop_delivery()
        self._sender.close()  # what is under way ends now, and is sent again by whoever delivers next
        if delivery is not None:
            delivery.join(LAST_WORDS)
        self._file.close()
        if self._lock is not None:
            self._lock.release()
        return inf


def _order(entry: Entry) -> tuple[int, int]:
    """By time, and of what happened at one time the start first and the end last."""
    return entry.time_us, _RANKS.get(entry.event, 1)


def _position(payload: bytes) -> tuple[int, int]:
    """The order of what is in a frame; what cannot be read comes first, to be passed over."""
    try:
        return _order(Entry.decode(payload))
    except (AttributeError, KeyError, TypeError, ValueError):
        return 0, 0


def _has_outlived(session: Session | SessionRow | None, ended: Tombstone | None) -> bool:
    """Whether activity has overtaken an inferred end of the conversation."""
    return (
        session is not None
        and ended is not None
        and ended.ended_by != EndedBy.CALL
        and session.start_us <= ended.end_us < session.last_activity_us
    )


def _tombstone(entry: Entry) -> Tombstone:
    body = entry.body
    return Tombstone(
        session_id=body["session_id"],
        agent_id=body["agent_id"],
        start_us=wire.parse_time(body["start_time"]),
        end_us=entry.time_us,
        outcome=body["status"],
        ended_by=mapping.ended_by(entry),
        quality=body.get("quality_score"),
        error_message=body.get("error_message"),
    )


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    except OSError:
        return ""


_RANKS = {Event.CONVERSATION_START: 0, Event.CONVERSATION: 2}
