"""Delivery: rows of the outbox become requests, and answers become rows delivered, kept or dead-lettered."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import orjson

from otel_agent_tracker import forms, wire
from otel_agent_tracker.channel import Channel, Dead, Done, Later, Verdict
from otel_agent_tracker.client import Delivered, Misconfigured, NotOffered, Refused, Result, Retry
from otel_agent_tracker.clock import Clock
from otel_agent_tracker.lanes import Lanes
from otel_agent_tracker.rollup import RollUp
from otel_agent_tracker.semconv import EndedBy, Event
from otel_agent_tracker.state import OutboxRow, State
from otel_agent_tracker.stragglers import Stragglers
from otel_agent_tracker.suspects import Suspects
from otel_agent_tracker.wire import Capabilities

__all__ = ["Delivery", "OtlpSender", "Sender"]

LANES = 8
ROWS_PER_LANE = 16
UNLIMITED = 1 << 30
MAX_BATCH_BYTES = 4 * 1024 * 1024
NEWEST_EVERY = 4  # rounds of a backlog
FEEDBACK_HOLD_US = 24 * 3600 * 1_000_000
HOLD_SECONDS = 60.0


class Sender(Protocol):
    """What sends: a `TrackerClient`, or what a test puts in its place."""

    def capabilities(self) -> Capabilities | Retry | Misconfigured: ...
    def send(self, path: str, body: bytes, *, event_id: str | None = None) -> Result: ...
    def send_batch(
        self, path: str, events: Sequence[bytes], event_ids: Sequence[str]
    ) -> Result | list[Result]: ...
    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class OtlpSender:
    """Sends encoded spans to an OTLP endpoint, as if it offered batches and everything else."""

    post: Callable[[bytes], Result]
    close: Callable[[], None] = lambda: None

    def capabilities(self) -> Capabilities:
        """Everything: an OTLP endpoint takes any span."""
        path = {"path": ""}
        return Capabilities(batch={"path": "", "max_events": 500}, turns=path, feedback=path)

    def send(self, path: str, body: bytes, *, event_id: str | None = None) -> Result:
        """Post one encoded request."""
        return self.post(body)

    def send_batch(self, path: str, events: Sequence[bytes], event_ids: Sequence[str]) -> Result:
        """Post many encoded requests as one: protobuf messages are joined by joining their bytes."""
        return self.post(b"".join(events))


@dataclass(frozen=True, slots=True)
class _Parcel:
    """A row in the form it is sent in, with the rows that are delivered with it."""

    row: OutboxRow
    path: str
    body: bytes
    companions: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class _LeftOut:
    """What is not to be sent in a round: events of these paths and sessions, of some sessions all but the first."""

    paths: list[str]
    lanes: set[str]
    but_first: set[str]

    @property
    def whole(self) -> _LeftOut:
        """For rows of which none need be the first of its session."""
        return _LeftOut(self.paths, self.lanes | self.but_first, set())


_Sent = list[tuple[_Parcel, Result]]


@dataclass(frozen=True, slots=True)
class _Batch:
    path: str
    parcels: list[_Parcel]
    result: Result | list[Result]


_Finished = _Sent | _Batch | Capabilities | Retry | Misconfigured | None


class Delivery:
    """Delivers the outbox of `state` through `sender`; `step` never waits.

    Only the worker's thread may use it; `wake` is called from lanes when an answer has come. An answer is kept
    until it is noted in `state`, and nothing else is sent before: a disk that is full repeats no delivery.
    """

    def __init__(
        self,
        state: State,
        sender: Sender,
        clock: Clock,
        wake: Callable[[], None],
        *,
        otlp: bool = False,
        channel: Channel | None = None,
    ) -> None:
        self._state = state
        self._sender = sender
        self._clock = clock
        self._otlp = otlp
        self._channel = channel or Channel()
        self._lanes: Lanes[_Finished] = Lanes(LANES, wake, _failed)
        self._answers: deque[_Finished] = deque()
        self._halves: list[list[int]] = []  # rows of a batch that was refused, the first half last
        self._rounds = 0
        self._most_at_once = UNLIMITED  # in a batch; fewer after one that failed
        self._held: dict[int, float] = {}
        self._suspects = Suspects()
        self._stragglers = Stragglers()
        self._has_roll_ups = state.has_roll_ups()
        self._sent_before = state.newest_pending_id()  # a process that died may have sent these

    @property
    def in_flight(self) -> bool:
        """Whether an answer is awaited, or has not been noted."""
        return bool(self._lanes.in_flight or self._answers)

    def step(self) -> float | None:
        """Take in the answers that have come and send what may be sent.

        Returns the seconds after which to call again, None if only a new event or an answer makes a difference.
        Raises sqlite3.Error if the state file refuses; then nothing is lost, and the next step tries again.
        """
        self.settle()
        while not self._lanes.in_flight:
            now = self._clock.monotonic()
            wait = self._channel.seconds_to_wait(now)
            if wait or not self._dispatch(now):
                return wait or self._seconds_to_held(now)
        return None

    def settle(self) -> None:
        """Take in the answers that have come, and send nothing. Raises as `step` does."""
        self._answers += self._lanes.finished()
        while self._answers:
            self._settle(self._answers[0])
            self._answers.popleft()

    def send_heartbeats(self, heartbeats: Iterable[bytes]) -> None:
        """Send these now if the channel is open and the tracker wants them; else they are forgotten."""
        offered = self._channel.capabilities and self._channel.capabilities.heartbeat
        if not offered or not self._channel.is_open(self._clock.monotonic()):
            return
        for body in heartbeats:
            self._lanes.submit(lambda body=body: self._send_heartbeat(offered["path"], body))  # type: ignore[misc]  # a default binds the loop's value

    def close(self) -> None:
        """Send nothing more; what is under way is sent again by whoever delivers next."""
        self._lanes.close()

    def join(self, timeout_seconds: float) -> None:
        """After `close`: wait until nothing is under way, `timeout_seconds` for each lane at most."""
        self._lanes.join(timeout_seconds)

    # --- sending --------------------------------------------------------------------------------------------

    def _dispatch(self, now: float) -> bool:
        """Put requests under way, or settle rows that need none; False if nothing is to be done now."""
        batch, must_ask = self._channel.batch(now), self._channel.must_ask_capabilities(now)
        if batch is None or must_ask:
            self._halves.clear()
        if batch is None:
            self._suspects = Suspects()  # single requests go on with other sessions by themselves
        rows = self._next_rows(now, min(batch["max_events"], self._most_at_once) if batch else None)
        if not rows:
            return False
        if must_ask:
            self._lanes.submit(self._sender.capabilities)
            return True
        parcels = self._parcels(rows)
        if batch is not None:
            self._send_batch(batch["path"], parcels)
        else:
            self._send_singly(parcels)
        return True

    def _next_rows(self, now: float, batch_size: int | None) -> list[OutboxRow]:
        self._held = {row_id: until for row_id, until in self._held.items() if until > now}
        paused = self._channel.paused_paths(now)
        alone = self._to_send_alone(now, paused)
        waiting, trying = self._stragglers.lanes(now)
        left_out = _LeftOut(paused, {*self._suspects.lanes(), *waiting}, trying)
        while self._halves:
            if rows := self._sendable(self._left_of(self._halves.pop(), paused), left_out.whole):
                return rows
        if alone and not self._channel.probing:
            return alone
        if self._channel.probing and batch_size == 1:
            rows = self._to_send_alone_first(left_out)
        else:
            most = LANES * ROWS_PER_LANE if batch_size is None else batch_size
            rows = self._sendable(self._waiting(most + len(self._held), left_out), left_out)[:most]
            if rows and self._channel.probing and batch_size is None:
                rows = self._to_probe(rows)
        return rows or alone

    def _to_send_alone(self, now: float, paused: list[str]) -> list[OutboxRow]:
        """The event for whose sake a session is set apart, if its time has come."""
        while (row_id := self._suspects.due(now)) is not None:
            if rows := [row for row in self._left_of([row_id], paused) if row.id not in self._held]:
                return rows
            self._suspects.forget(row_id)
        return []

    def _waiting(self, most: int, left_out: _LeftOut) -> list[OutboxRow]:
        """The oldest events; of a backlog, now and then those of the newest sessions before, lest they wait for it."""
        without = {"without_paths": left_out.paths, "without_lanes": tuple(left_out.lanes)}
        oldest = self._state.pending(most, **without)
        if len(oldest) < most or self._channel.probing:
            return oldest
        self._rounds += 1
        if self._rounds % NEWEST_EVERY:
            return oldest
        newest = self._state.newest(most, of_each_lane=ROWS_PER_LANE, **without)
        return list({row.id: row for row in newest + oldest}.values())

    def _left_of(self, ids: list[int], paused: list[str]) -> list[OutboxRow]:
        """Those of the rows that are still to be delivered, and now."""
        found = filter(None, map(self._state.row, ids))
        return [row for row, is_dead in found if not is_dead and row.path not in paused]

    def _sendable(self, rows: list[OutboxRow], left_out: _LeftOut) -> list[OutboxRow]:
        rows = [row for row in rows if row.id not in self._held and row.lane not in left_out.lanes]
        return self._one_for_each_probed_path(_first_of(left_out.but_first, rows))

    def _one_for_each_probed_path(self, rows: list[OutboxRow]) -> list[OutboxRow]:
        """Of a path that was refused only one event goes: one that was not refused itself, if there is one."""
        for path in self._channel.probed_paths():
            tried = [row for row in rows if row.path == path]
            tried.sort(key=lambda row: (self._channel.is_suspect(row.event_id), row.id))
            left_out = {row.id for row in tried[1:]}
            rows = [row for row in rows if row.id not in left_out]
        return rows

    def _to_probe(self, rows: list[OutboxRow]) -> list[OutboxRow]:
        """The first of a session that was tried least: one event that always fails holds up its own session only."""
        refused_until = self._channel.refused_until
        firsts = {(row.lane, refused_until(row.path)): row for row in reversed(rows)}.values()
        return [min(firsts, key=lambda row: (refused_until(row.path), row.attempts, row.id))]

    def _to_send_alone_first(self, left_out: _LeftOut) -> list[OutboxRow]:
        """The oldest event of a session of which none has failed alone: the one to blame is found by that.

        Once each has, it is an outage, and they take turns: one that always fails would keep all others from telling.
        """
        most = LANES * ROWS_PER_LANE + len(self._held)
        known = {*left_out.lanes, *self._suspects.known_lanes()}
        untried = self._state.pending(most, without_paths=left_out.paths, without_lanes=tuple(known))
        if rows := self._sendable(untried, left_out):
            return rows[:1]
        tried = self._sendable(self._left_of(self._suspects.known(), left_out.paths), left_out.whole)
        if tried:
            return self._to_probe(tried)
        return self._sendable(self._waiting(most, left_out), left_out)[:1]

    def _send_batch(self, path: str, parcels: list[_Parcel]) -> None:
        if not parcels:
            return
        parcels = _up_to(MAX_BATCH_BYTES, parcels)
        events = [self._element(parcel) for parcel in parcels]
        ids = [parcel.row.event_id for parcel in parcels]
        self._lanes.submit(lambda: _Batch(path, parcels, self._sender.send_batch(path, events, ids)))

    def _element(self, parcel: _Parcel) -> bytes:
        return parcel.row.otlp if self._otlp else forms.batch_event(parcel.row, parcel.path, parcel.body)

    def _send_singly(self, parcels: list[_Parcel]) -> None:
        for lane in _shared_out(parcels):
            self._lanes.submit(lambda lane=lane: self._send_lane(lane))  # type: ignore[misc]  # a default binds the loop's value

    def _send_lane(self, parcels: list[_Parcel]) -> _Sent:
        """Send one after another, up to the first that has to be sent again."""
        sent: _Sent = []
        for parcel in parcels:
            if self._lanes.closed:
                break
            result = self._sender.send(parcel.path, self._single(parcel), event_id=parcel.row.event_id)
            sent.append((parcel, result))
            if not isinstance(result, Delivered | Refused):
                break
        return sent

    def _single(self, parcel: _Parcel) -> bytes:
        return parcel.row.otlp if self._otlp else parcel.body

    def _send_heartbeat(self, path: str, body: bytes) -> None:
        self._sender.send(path, body)

    # --- forms ----------------------------------------------------------------------------------------------

    def _parcels(self, rows: Iterable[OutboxRow]) -> list[_Parcel]:
        """The rows in the form that this tracker takes; those that it takes in no form are settled here."""
        offered = self._channel.capabilities or Capabilities()
        if offered.turns and offered.feedback and not self._has_roll_ups:
            return [_Parcel(row, row.path, row.body) for row in rows]
        with self._state.transaction():
            parcels = [self._readable_parcel(row, offered) for row in rows]
        return [parcel for parcel in parcels if parcel is not None]

    def _readable_parcel(self, row: OutboxRow, offered: Capabilities) -> _Parcel | None:
        """`_parcel`, unless an earlier or later release wrote the row in a way that this one cannot read."""
        try:
            return self._parcel(row, offered)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            self._state.dead_letter(row.id, f"the event cannot be read: {error!r}")
            return None

    def _parcel(self, row: OutboxRow, offered: Capabilities) -> _Parcel | None:
        match row.event:
            case Event.CONVERSATION_TURN if not offered.turns:
                self._roll_up(row)
                return None
            case Event.CONVERSATION_FEEDBACK if not offered.feedback:
                return self._feedback(row)
            case Event.CONVERSATION if offered == _NOTHING and self._is_second_end(row):
                self._state.delivered([row.id])
                return None
            case Event.CONVERSATION:
                return self._end(row, offered)
        return _Parcel(row, row.path, row.body)

    def _roll_up(self, row: OutboxRow) -> None:
        self._has_roll_ups = True
        roll_up = self._state.roll_up(row.lane) or RollUp()
        roll_up.add(orjson.loads(row.body))
        self._state.put_roll_up(row.lane, roll_up)
        self._state.delivered([row.id])

    def _end(self, row: OutboxRow, offered: Capabilities) -> _Parcel:
        """The roll-up moves into the row for good: turns that come now are the next conversation's."""
        roll_up = self._state.roll_up(row.lane)
        if roll_up is not None:
            row = row._replace(body=forms.end_with_roll_up(row.body, roll_up))
            self._state.rewrite(row.id, row.body)
            self._state.drop_roll_up(row.lane)
        if offered.feedback:
            return _Parcel(row, row.path, row.body)
        given = [one for one in self._waiting_feedback(row.lane) if one.time_us <= row.time_us]
        body = forms.end_with_feedback(row.body, [one.body for one in given])
        return _Parcel(row, row.path, body, companions=tuple(one.id for one in given))

    def _is_second_end(self, row: OutboxRow) -> bool:
        """Whether another process ended the conversation by call before: then a plain tracker must not hear it.

        It knows no outcome rules, and would take the later end for the outcome.
        """
        ended = self._state.tombstone(row.lane)
        if ended is None or ended.ended_by != EndedBy.CALL or row.time_us <= ended.end_us:
            return False
        return wire.parse_time(orjson.loads(row.body)["start_time"]) <= ended.end_us

    def _feedback(self, row: OutboxRow) -> _Parcel | None:
        """With the end that is still to come or to be sent, else as a second end, else it waits, for a day."""
        live, ended = self._state.session(row.lane), self._state.tombstone(row.lane)
        is_open = live is not None and live.start_us <= row.time_us
        if ended is not None and not is_open and not self._state.pending_of(row.lane, Event.CONVERSATION):
            path, body = forms.second_end(row, ended)
            return _Parcel(row, path, body)
        now_us = self._clock.time_ns() // 1000
        if ended is None and not is_open and now_us - row.time_us > FEEDBACK_HOLD_US:
            self._state.dead_letter(
                row.id, "the tracker takes no feedback and the conversation has no end yet"
            )
            return None
        self._held[row.id] = self._clock.monotonic() + HOLD_SECONDS
        return None

    def _waiting_feedback(self, lane: str) -> list[OutboxRow]:
        return self._state.pending_of(lane, Event.CONVERSATION_FEEDBACK)

    def _seconds_to_held(self, now: float) -> float | None:
        paused = HOLD_SECONDS if self._channel.paused_paths(now) else None
        held = min((until - now for until in self._held.values()), default=paused)
        found = (held, self._suspects.seconds_to_next(now), self._stragglers.seconds_to_next(now))
        return min((seconds for seconds in found if seconds is not None), default=None)

    # --- answers --------------------------------------------------------------------------------------------

    def _settle(self, finished: _Finished) -> None:
        match finished:
            case None:
                pass
            case Capabilities() | Retry() | Misconfigured():
                if self._channel.answered_capabilities(finished, self._clock.monotonic()):
                    self._held.clear()
            case _Batch(path, parcels, result):
                self._settle_batch(path, parcels, result)
            case sent:
                self._settle_parcels(sent)

    def _settle_batch(self, path: str, parcels: list[_Parcel], result: Result | list[Result]) -> None:
        """A batch that is refused as a whole is halved until the event to blame is alone."""
        now = self._clock.monotonic()
        ids = [parcel.row.id for parcel in parcels]
        match result:
            case list():
                others_succeeded = any(isinstance(one, Delivered) for one in result)
                self._settle_parcels(zip(parcels, result, strict=True), others_succeeded=others_succeeded)
                self._most_at_once = min(2 * self._most_at_once, UNLIMITED)
            case Refused() if len(parcels) > 1:
                self._halve(ids)
            case NotOffered(_, reason):
                self._channel.refuse_batches(path, reason, now)
            case Retry() | Misconfigured():
                with self._state.transaction():
                    self._state.note_attempts(ids, result.reason)
                self._keep_halves(ids)
                if len(parcels) > 1:
                    self._most_at_once = len(parcels) // 2  # there may be no time for so many
                elif self._suspects.failed_alone(ids[0], parcels[0].row.lane, now) and not _asks(result):
                    self._channel.blame_event(result, now)  # others do not wait for it
                    return
                self._channel.fail(result, now)
            case _:
                self._settle_parcels((parcel, result) for parcel in parcels)
                self._most_at_once = min(2 * self._most_at_once, UNLIMITED)

    def _keep_halves(self, failed: list[int]) -> None:
        """Of a refused batch a part has failed: it goes first again, for the rest may hold what comes after it."""
        if len(failed) == 1:
            self._halves.clear()  # it may always fail, and the rest must not wait for that
        elif self._halves:
            self._halve(failed)

    def _halve(self, ids: list[int]) -> None:
        middle = len(ids) // 2
        self._halves += (ids[middle:], ids[:middle])

    def _settle_parcels(
        self, sent: Iterable[tuple[_Parcel, Result]], *, others_succeeded: bool | None = None
    ) -> None:
        """`others_succeeded` is None unless the tracker answered for each event of a batch."""
        now = self._clock.monotonic()
        with self._state.transaction():
            delivered: list[int] = []
            for parcel, result in sent:
                row = parcel.row
                match self._judge(parcel, result, now, others_succeeded=others_succeeded):
                    case Done():
                        delivered += (row.id, *parcel.companions)
                        self._forget_failures(row.id)
                        self._release_feedback(row)
                    case Later(reason, seconds):
                        self._state.note_attempts([row.id], reason)
                        if seconds:
                            self._held[row.id] = now + seconds
                    case Dead(reason):
                        self._forget_failures(row.id)
                        self._state.note_attempts([row.id], reason)
                        self._state.dead_letter(row.id, reason)
            self._state.delivered(delivered)
        if delivered:
            self._suspects.others_succeeded()

    def _judge(
        self, parcel: _Parcel, result: Result, now: float, *, others_succeeded: bool | None
    ) -> Verdict:
        row = parcel.row
        if isinstance(result, Retry | Misconfigured) and others_succeeded is not None and not _asks(result):
            if row.id in self._stragglers or (others_succeeded and self._stragglers.has_room):
                later = self._channel.hold_back(result, row.attempts, now)
                self._stragglers.add(row.id, row.lane, now + later.seconds)
                return later
            self._stragglers.add(row.id, row.lane, now)
        sent_before = row.attempts > 0 or row.id <= self._sent_before
        return self._channel.judge(row.event_id, parcel.path, result, now, sent_before=sent_before)

    def _forget_failures(self, row_id: int) -> None:
        self._suspects.forget(row_id)
        self._stragglers.forget(row_id)

    def _release_feedback(self, row: OutboxRow) -> None:
        """Feedback that waited for this end need wait no longer."""
        if row.event == Event.CONVERSATION and self._held:
            for feedback in self._waiting_feedback(row.lane):
                self._held.pop(feedback.id, None)


_NOTHING = Capabilities()


def _failed(error: Exception) -> Retry:
    """A sender's mistake is nobody's event's."""
    return Retry(f"the request could not be made: {type(error).__name__}")


def _first_of(lanes: Collection[str], rows: list[OutboxRow]) -> list[OutboxRow]:
    """The rows, but of these sessions the oldest only."""
    if not lanes:
        return rows
    firsts = {row.lane: row.id for row in sorted(rows, key=lambda row: row.id, reverse=True)}
    return [row for row in rows if row.lane not in lanes or row.id == firsts[row.lane]]


def _asks(failure: Retry | Misconfigured) -> bool:
    """Whether the tracker itself said how long to wait: that holds for everything."""
    return isinstance(failure, Retry) and bool(failure.after_seconds)


def _up_to(most_bytes: int, parcels: list[_Parcel]) -> list[_Parcel]:
    """As many from the front as fit, but one at least."""
    total = 0
    for index, parcel in enumerate(parcels):
        total += len(parcel.body) + len(parcel.row.otlp)
        if total > most_bytes and index:
            return parcels[:index]
    return parcels


def _shared_out(parcels: Iterable[_Parcel]) -> list[list[_Parcel]]:
    """Parcels for each lane: those of one session in order on one lane, lanes about equally long."""
    by_lane: dict[str, list[_Parcel]] = {}
    for parcel in parcels:
        by_lane.setdefault(parcel.row.lane, []).append(parcel)
    lanes: list[list[_Parcel]] = [[] for _ in range(LANES)]
    for ordered in sorted(by_lane.values(), key=len, reverse=True):
        min(lanes, key=len).extend(ordered)
    return [lane for lane in lanes if lane]
