"""The worker: the one thread that carries events from the journal to the state file to the tracker.

It also ends what is idle, shares sessions with other processes through the state file, and says which agents
are alive. It never waits for the network: lanes do. This module is imported by that thread, so that no caller
pays for SQLite and the client.
"""

from __future__ import annotations

import logging
import os
import socket
import sqlite3
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import orjson

from otel_agent_tracker import mapping, wire
from otel_agent_tracker.clock import Clock
from otel_agent_tracker.delivery import Delivery, Sender
from otel_agent_tracker.entry import Entry
from otel_agent_tracker.handle import FlushRequest, Snapshot, WorkerHandle
from otel_agent_tracker.journal import MemoryJournal, Segment
from otel_agent_tracker.semconv import EndedBy, Event, Origin, TurnStatus
from otel_agent_tracker.sender_lock import SenderLock
from otel_agent_tracker.session_record import last_access_us, loaded
from otel_agent_tracker.sessions import Expired, SessionMap
from otel_agent_tracker.state import Counts, NewRow, SessionRow, State, Tombstone

__all__ = ["Worker", "open_state"]

SHARE_INTERVAL = 1.0  # seconds
IDLE_SWEEP_INTERVAL = 60.0
HEARTBEAT_INTERVAL = 60.0
PRUNE_INTERVAL = 3600.0
PUBLISH_INTERVAL = 0.25
LINGER = 0.05  # events come in bursts; storing them together is cheaper for the host too
FLUSH_POLL = 0.02
TROUBLE_INTERVAL = 1.0
MAX_AGENTS = 1000

_logger = logging.getLogger(__name__)


class Worker:
    """Runs on the thread that makes it, until `handle.stopping` is set; whatever fails is tried again.

    `expire` ends a session that the sweep found; `limit_bytes` bounds the state file; `folder` None keeps
    everything in memory.
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
        limit_bytes: int,
        cleanup_interval: Callable[[], float],
        exit_flush_seconds: float,
    ) -> None:
        self._handle = handle
        self._journal = journal
        self._sessions = sessions
        self._expire = expire
        self._sender = sender
        self._clock = clock
        self._folder = folder
        self._otlp = otlp
        self._limit_bytes = limit_bytes
        self._cleanup_interval = cleanup_interval
        self._exit_flush_seconds = exit_flush_seconds
        self._writer = f"{os.getpid()}-{time.time_ns()}"
        self._boot_id = _boot_id()
        self._lock = lock
        self._state: State | None = None
        self._delivery: Delivery | None = None
        self._forget_state()

    def _forget_state(self) -> None:
        self._offsets: dict[str, int] = {}
        self._unsaved: set[str] = set()
        self._seen_seq = 0
        self._data_version = -1
        self._absorbed = 0
        self._dropped = 0
        self._agents: dict[str, str] = {}
        self._next_share = self._next_sweep = self._next_publish = self._next_prune = 0.0
        self._next_heartbeat = self._clock.monotonic() + HEARTBEAT_INTERVAL
        self._trouble_told = -60.0

    def run(self) -> None:
        """Work until stopped."""
        while not self._handle.stopping.is_set():
            came = self._journal.wait(self._guarded_cycle())
            if came and not self._handle.urgent.is_set():
                self._handle.urgent.wait(LINGER)
            self._handle.urgent.clear()
        self._finish()

    def _guarded_cycle(self) -> float:
        """One cycle; the boundary at which trouble of the disk, or a mistake of ours, ends."""
        try:
            return self._cycle()
        except Exception as error:  # noqa: BLE001 - nothing may end this thread but its own stop
            self._tell_trouble(error)
            self._reopen_later()
            return TROUBLE_INTERVAL

    def _cycle(self) -> float:
        """Everything that is due; returns how many seconds to sleep."""
        now = self._clock.monotonic()
        self._journal.prepare()
        state = self._state or self._open()
        if now >= self._next_share:
            self._next_share = now + SHARE_INTERVAL
            self._journal.adopt()
            self._share(state)
        self._absorb(state)
        flushing = self._begin_flushes()
        if now >= self._next_sweep or flushing:
            self._next_sweep = now + min(self._cleanup_interval(), IDLE_SWEEP_INTERVAL)
            self._sweep()
            self._absorb(state)
        wait = self._deliver(state)
        self._send_heartbeats(now)
        if now >= self._next_prune:
            self._next_prune = now + PRUNE_INTERVAL
            with state.transaction():
                state.prune_tombstones(self._clock.time_ns() // 1000)
        self._answer_flushes(state)
        if now >= self._next_publish or not self._handle.flushes:
            self._publish(state, now)
        return self._sleep_seconds(now, wait)

    def _sleep_seconds(self, now: float, wait: float | None) -> float:
        if self._handle.flushes:
            return FLUSH_POLL
        sweep = max(0.0, self._next_sweep - now)
        return min(SHARE_INTERVAL, sweep + 0.001, SHARE_INTERVAL if wait is None else wait + 0.001)

    # --- journal to state -----------------------------------------------------------------------------------

    def _absorb(self, state: State) -> None:
        """Store every readable frame, each segment's offset together with the rows made from it."""
        for segment in self._journal.readable():
            self._absorb_segment(state, segment)
        while waiting := self._journal.read_ring()[:1000]:
            self._store(state, waiting, (), replay=False)
            self._journal.drain_ring(len(waiting))
        self._count_dropped(state)

    def _absorb_segment(self, state: State, segment: Segment) -> None:
        while True:
            start = self._offsets.get(segment.name, 0)
            read = segment.read(start)
            if read.payloads:
                self._store(
                    state,
                    read.payloads,
                    [(segment.name, read.offset)],
                    replay=not self._journal.is_own(segment),
                )
            self._offsets[segment.name] = read.offset
            if read.offset == start:
                break
        if segment.done and segment.retire():
            self._offsets.pop(segment.name, None)
            with state.transaction():
                state.forget_segments([segment.name])

    def _store(
        self, state: State, payloads: list[bytes], offsets: Iterable[tuple[str, int]], *, replay: bool
    ) -> None:
        entries = [entry for entry in map(_decoded, payloads) if entry is not None]
        if replay:
            for entry in entries:
                self._replay(entry)
        with state.transaction():
            self._save_sessions(state)
            state.accept(
                [row for row in (self._admitted(state, entry) for entry in entries) if row is not None]
            )
            state.set_offsets(offsets)
        self._unsaved.clear()
        if not replay:
            self._absorbed += len(payloads)
            for entry in entries:
                self._see_agent(entry)

    def _admitted(self, state: State, entry: Entry) -> NewRow | None:
        """The outbox row of an entry; None for an inferred end that life or another end has overtaken."""
        if entry.event is Event.CONVERSATION and entry.session_id is not None:
            row = state.session(entry.session_id)
            if self._is_overtaken(state, entry, row):
                return None
            if entry.lacks and row is not None:
                entry = mapping.complete(entry, agent_id=row.agent_id, start_us=row.start_us)
            state.end_session(_tombstone(entry))
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

    def _is_overtaken(self, state: State, entry: Entry, row: SessionRow | None) -> bool:
        if _ended_by(entry) == EndedBy.CALL or entry.session_id is None:
            return False
        if row is not None:
            if row.last_activity_us <= entry.time_us:
                return False
            self._load(row, revive=True)  # another process has seen life in it
            return True
        ended = state.tombstone(entry.session_id)
        return ended is not None and ended.end_us >= entry.time_us

    def _replay(self, entry: Entry) -> None:
        """What a dead process accepted, into our map: its open sessions are ours now."""
        if entry.session_id is None:
            return
        body, sessions = entry.body, self._sessions
        match entry.event:
            case Event.CONVERSATION_START:
                mark = body.get("metadata", {}).get(mapping.MARK, {})
                sessions.open(
                    entry.session_id,
                    entry.agent_id,
                    user_id=body.get("user_id"),
                    origin=Origin(mark.get("origin", Origin.CALL)),
                    start_us=entry.time_us,
                )
            case Event.CONVERSATION_TURN:
                sessions.turn(
                    entry.session_id,
                    turn_id=body["turn_id"],
                    seconds=body["duration_seconds"],
                    status=TurnStatus(body["status"]),
                    end_us=wire.parse_time(body["end_time"]),
                    error_type=body.get("error_type"),
                    error_message=body.get("error_message"),
                    input_tokens=body.get("input_tokens"),
                    output_tokens=body.get("output_tokens"),
                )
            case Event.CONVERSATION:
                sessions.take(entry.session_id, started_by_us=entry.time_us, ended_at_us=entry.time_us)

    def _count_dropped(self, state: State) -> None:
        dropped = self._journal.counters.dropped
        if dropped > self._dropped:
            with state.transaction():
                state.count_dropped({"journal": dropped - self._dropped})
            self._dropped = dropped

    # --- sessions -------------------------------------------------------------------------------------------

    def _save_sessions(self, state: State) -> None:
        while changed := self._sessions.changed(500):
            self._unsaved.update(changed)
        rows = [row for row in map(self._row, self._unsaved) if row is not None]
        if rows:
            state.put_sessions(rows)

    def _row(self, session_id: str) -> SessionRow | None:
        session, record = self._sessions.get(session_id), self._sessions.dump(session_id)
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
        )

    def _share(self, state: State) -> None:
        """Write what changed here, take over what changed elsewhere."""
        with state.transaction():
            self._save_sessions(state)
        self._unsaved.clear()
        version = state.data_version()
        if version == self._data_version:
            return
        self._data_version = version
        self._seen_seq, rows, ended = state.changes_of_others(self._seen_seq)
        for row in sorted(rows, key=lambda row: row.last_activity_us):
            self._load(row)
        for session_id, end_us in ended:
            self._sessions.forget(session_id, started_by_us=end_us, ended_at_us=end_us)

    def _load(self, row: SessionRow, *, revive: bool = False) -> None:
        last_access = None
        if row.boot_id == self._boot_id:
            last_access = (last_access_us(loaded(row.record)) - row.wall_less_monotonic_us) / 1e6
        self._sessions.load(row.session_id, row.record, last_access=last_access, revive=revive)

    def _sweep(self) -> None:
        while swept := self._sessions.sweep():
            for expired in swept:
                self._expire(expired)

    def _wall_less_monotonic_us(self) -> int:
        return self._clock.time_ns() // 1000 - int(self._clock.monotonic() * 1e6)

    # --- delivery -------------------------------------------------------------------------------------------

    def _deliver(self, state: State) -> float | None:
        if self._delivery is None:
            if self._lock is not None and not self._lock.acquire():
                return None  # another process sends for this state folder
            self._delivery = Delivery(state, self._sender, self._clock, self._journal.wake, otlp=self._otlp)
        return self._delivery.step()

    def _see_agent(self, entry: Entry) -> None:
        if len(self._agents) < MAX_AGENTS:
            self._agents[entry.agent_id] = (entry.service or {}).get("instance", "")

    def _send_heartbeats(self, now: float) -> None:
        asked = []
        while self._handle.heartbeats:
            asked.append(self._handle.heartbeats.popleft())
        if now >= self._next_heartbeat:
            self._next_heartbeat = now + HEARTBEAT_INTERVAL
            asked = [*self._agents, *asked]
        if asked and self._delivery is not None:
            self._delivery.send_heartbeats([self._heartbeat(agent_id) for agent_id in dict.fromkeys(asked)])

    def _heartbeat(self, agent_id: str) -> bytes:
        snapshot = self._handle.snapshot
        counts = snapshot.counts if snapshot else Counts()
        heartbeat = wire.AgentHeartbeat(
            agent_id=agent_id,
            timestamp=wire.format_time(self._clock.time_ns() // 1000),
            instance=self._agents.get(agent_id) or f"{socket.gethostname()}-{os.getpid()}",
            delivery={
                "accepted": counts.accepted,
                "delivered": counts.delivered,
                "pending": counts.pending,
                "dead_lettered": counts.dead_lettered,
                "dropped": counts.dropped,
            },
        )
        return orjson.dumps(wire.to_json(heartbeat))

    # --- flush, books, trouble, end -------------------------------------------------------------------------

    def _begin_flushes(self) -> bool:
        """Whether somebody has asked for a flush that was not begun."""
        if any(request.target is None for request in self._handle.flushes):
            self._journal.adopt()
            return True
        return False

    def _answer_flushes(self, state: State) -> None:
        open_requests: list[FlushRequest] = []
        while self._handle.flushes:
            request = self._handle.flushes.popleft()
            if request.target is None:
                request.target = state.newest_pending_id()
            oldest = state.oldest_pending_id()
            if oldest is None or oldest > request.target:
                self._publish(state, self._clock.monotonic())
                request.done.set()
            else:
                open_requests.append(request)
        self._handle.flushes.extend(open_requests)

    def _publish(self, state: State, now: float) -> None:
        self._next_publish = now + PUBLISH_INTERVAL
        pressure = state.bytes_used() / self._limit_bytes
        self._handle.publish(Snapshot(state.counts(), self._absorbed, self._dropped, pressure))

    def _open(self) -> State:
        self._state = open_state(self._folder, writer=self._writer, limit_bytes=self._limit_bytes)
        self._offsets = self._state.offsets()
        self._seen_seq = 0
        self._data_version = -1
        return self._state

    def _reopen_later(self) -> None:
        """After trouble with the state file nothing of it is trusted; the journal still has what was not stored."""
        if self._delivery is not None:
            self._delivery.close()
            self._delivery = None
        if self._state is not None and self._folder is not None:
            self._state.close()
            self._state = None

    def _tell_trouble(self, error: Exception) -> None:
        now = self._clock.monotonic()
        if now >= self._trouble_told + 60.0:
            self._trouble_told = now
            is_disk = isinstance(error, OSError | sqlite3.Error)
            _logger.warning(
                "events wait, the state folder refuses: %s", error, exc_info=None if is_disk else error
            )

    def _finish(self) -> None:
        """Deliver what can be delivered in the time there is; the rest stays on disk."""
        deadline = time.monotonic() + self._exit_flush_seconds
        while time.monotonic() < deadline:
            wait = self._guarded_cycle()
            if self._is_done() or wait > deadline - time.monotonic():
                break
            self._journal.wait(min(wait, FLUSH_POLL))
        if self._delivery is not None:
            self._delivery.close()
        if self._state is not None:
            self._state.close()
        if self._lock is not None:
            self._lock.release()

    def _is_done(self) -> bool:
        return (
            self._state is not None and self._delivery is not None and self._state.oldest_pending_id() is None
        )


def open_state(folder: Path | None, *, writer: str, limit_bytes: int) -> State:
    """The state file of `folder`; one that cannot be read is set aside. Raises OSError or sqlite3.Error."""
    if folder is None:
        return State(None, writer=writer, max_bytes=limit_bytes)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = folder / "state.sqlite3"
    try:
        return State(path, writer=writer, max_bytes=limit_bytes)
    except sqlite3.OperationalError:
        raise
    except sqlite3.DatabaseError as error:
        aside = path.with_suffix(f".corrupt-{time.time_ns()}")
        _logger.error("the state file cannot be read and is set aside as %s: %s", aside.name, error)  # noqa: TRY400 - the message says it
        for suffix in ("", "-wal", "-shm"):
            found = path.with_name(path.name + suffix)
            if found.exists():
                found.rename(aside.with_name(aside.name + suffix))
        return State(path, writer=writer, max_bytes=limit_bytes)


def _decoded(payload: bytes) -> Entry | None:
    try:
        return Entry.decode(payload)
    except ValueError:
        _logger.warning("an entry of the journal cannot be read and is passed over")
        return None


def _ended_by(entry: Entry) -> str:
    mark = entry.body.get("metadata", {}).get(mapping.MARK, {})
    return str(mark.get("ended_by", EndedBy.CALL))


def _tombstone(entry: Entry) -> Tombstone:
    body = entry.body
    return Tombstone(
        session_id=body["session_id"],
        agent_id=body["agent_id"],
        start_us=wire.parse_time(body["start_time"]),
        end_us=entry.time_us,
        outcome=body["status"],
        ended_by=_ended_by(entry),
        quality=body.get("quality_score"),
        error_message=body.get("error_message"),
    )


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""
