"""Delivery: rows of the outbox become requests, and answers become rows delivered, kept or dead-lettered."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import orjson

from otel_agent_tracker import forms
from otel_agent_tracker.channel import Channel, Dead, Done, Later
from otel_agent_tracker.client import Delivered, Misconfigured, NotOffered, Refused, Result, Retry
from otel_agent_tracker.clock import Clock
from otel_agent_tracker.lanes import Lanes
from otel_agent_tracker.rollup import RollUp
from otel_agent_tracker.semconv import Event
from otel_agent_tracker.state import OutboxRow, State
from otel_agent_tracker.wire import Capabilities

__all__ = ["Delivery", "OtlpSender", "Sender"]

LANES = 8
ROWS_PER_LANE = 16
MAX_BATCH_BYTES = 4 * 1024 * 1024
FEEDBACK_HOLD_US = 24 * 3600 * 1_000_000
HOLD_SECONDS = 60.0


class Sender(Protocol):
    """What sends: a `TrackerClient`, or what a test puts in its place."""

    def capabilities(self) -> Capabilities | Retry | Misconfigured: ...
    def send(self, path: str, body: bytes, *, event_id: str | None = None) -> Result: ...
    def send_batch(
        self, path: str, events: Sequence[bytes], event_ids: Sequence[str]
    ) -> Result | list[Result]: ...


@dataclass(frozen=True, slots=True)
class OtlpSender:
    """Sends encoded spans to an OTLP endpoint, as if it offered batches and everything else."""

    post: Callable[[bytes], Result]

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
    has_roll_up: bool = False


_Sent = list[tuple[_Parcel, Result]]


@dataclass(frozen=True, slots=True)
class _Batch:
    parcels: list[_Parcel]
    result: Result | list[Result]


_Finished = _Sent | _Batch | Capabilities | Retry | Misconfigured | None


class Delivery:
    """Delivers the outbox of `state` through `sender`; `step` never waits.

    Only the worker's thread may use it; `wake` is called from lanes when an answer has come.
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
        self._lanes: Lanes[_Finished] = Lanes(LANES, wake)
        self._batch_limit = 1 << 30
        self._held: dict[int, float] = {}
        self._sent_before = state.newest_pending_id()  # a process that died may have sent these

    def step(self) -> float | None:
        """Take in the answers that have come and send what may be sent.

        Returns the seconds after which to call again, None if only a new event or an answer makes a difference.
        """
        for finished in self._lanes.finished():
            self._settle(finished)
        while not self._lanes.in_flight:
            now = self._clock.monotonic()
            wait = self._channel.seconds_to_wait(now)
            if wait or not self._dispatch(now):
                return wait or self._seconds_to_held(now)
        return None

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

    # --- sending --------------------------------------------------------------------------------------------

    def _dispatch(self, now: float) -> bool:
        """Put requests under way, or settle rows that need none; False if nothing is to be done now."""
        rows = self._next_rows(now)
        if not rows:
            return False
        if self._channel.must_ask_capabilities(now):
            self._lanes.submit(self._sender.capabilities)
            return True
        parcels = self._parcels(rows)
        if parcels and self._batch is not None:
            self._send_batch(parcels)
        else:
            self._send_singly(parcels)
        return True

    @property
    def _batch(self) -> dict[str, Any] | None:
        return self._channel.capabilities.batch if self._channel.capabilities else None

    def _next_rows(self, now: float) -> list[OutboxRow]:
        self._held = {row_id: until for row_id, until in self._held.items() if until > now}
        limit = min(self._batch["max_events"], self._batch_limit) if self._batch else LANES * ROWS_PER_LANE
        paused = self._channel.paused_paths(now)
        found = self._state.pending(limit + len(self._held), without_paths=paused)
        rows = self._one_for_each_probed_path([row for row in found if row.id not in self._held])
        return rows[:1] if self._channel.probing and not self._batch else rows[:limit]

    def _one_for_each_probed_path(self, rows: list[OutboxRow]) -> list[OutboxRow]:
        """Of a path that was refused only one event goes: one that was not refused itself, if there is one."""
        for path in self._channel.probed_paths():
            tried = [row for row in rows if row.path == path]
            tried.sort(key=lambda row: (self._channel.is_suspect(row.event_id), row.id))
            left_out = {row.id for row in tried[1:]}
            rows = [row for row in rows if row.id not in left_out]
        return rows

    def _send_batch(self, parcels: list[_Parcel]) -> None:
        path = self._batch["path"] if self._batch else ""
        parcels = _up_to(MAX_BATCH_BYTES, parcels)
        events = [self._element(parcel) for parcel in parcels]
        ids = [parcel.row.event_id for parcel in parcels]
        self._lanes.submit(lambda: _Batch(parcels, self._sender.send_batch(path, events, ids)))

    def _element(self, parcel: _Parcel) -> bytes:
        return parcel.row.otlp if self._otlp else forms.batch_event(parcel.row, parcel.body)

    def _send_singly(self, parcels: list[_Parcel]) -> None:
        for lane in _shared_out(parcels):
            self._lanes.submit(lambda lane=lane: self._send_lane(lane))  # type: ignore[misc]  # a default binds the loop's value

    def _send_lane(self, parcels: list[_Parcel]) -> _Sent:
        """Send one after another, up to the first that has to be sent again."""
        sent: _Sent = []
        for parcel in parcels:
            result = self._sender.send(parcel.path, parcel.body, event_id=parcel.row.event_id)
            sent.append((parcel, result))
            if not isinstance(result, Delivered | Refused):
                break
        return sent

    def _send_heartbeat(self, path: str, body: bytes) -> None:
        self._sender.send(path, body)

    # --- forms ----------------------------------------------------------------------------------------------

    def _parcels(self, rows: Iterable[OutboxRow]) -> list[_Parcel]:
        """The rows in the form that this tracker takes; those that it takes in no form are settled here."""
        offered = self._channel.capabilities or Capabilities()
        if offered.turns and offered.feedback:
            return [_Parcel(row, row.path, row.body) for row in rows]
        with self._state.transaction():
            parcels = (self._parcel(row, offered) for row in rows)
            return [parcel for parcel in parcels if parcel is not None]

    def _parcel(self, row: OutboxRow, offered: Capabilities) -> _Parcel | None:
        match row.event:
            case Event.CONVERSATION_TURN if not offered.turns:
                self._roll_up(row)
                return None
            case Event.CONVERSATION_FEEDBACK if not offered.feedback:
                return self._feedback(row)
            case Event.CONVERSATION:
                return self._end(row, offered)
        return _Parcel(row, row.path, row.body)

    def _roll_up(self, row: OutboxRow) -> None:
        roll_up = self._state.roll_up(row.lane) or RollUp()
        roll_up.add(orjson.loads(row.body))
        self._state.put_roll_up(row.lane, roll_up)
        self._state.delivered([row.id])

    def _end(self, row: OutboxRow, offered: Capabilities) -> _Parcel:
        roll_up = None if offered.turns else self._state.roll_up(row.lane)
        given = [] if offered.feedback else self._state.pending_of(row.lane, Event.CONVERSATION_FEEDBACK)
        body = forms.end_with(
            row.body, roll_up=roll_up, feedback=[feedback.body for feedback in reversed(given)]
        )
        companions = tuple(feedback.id for feedback in given)
        return _Parcel(row, row.path, body, companions=companions, has_roll_up=roll_up is not None)

    def _feedback(self, row: OutboxRow) -> _Parcel | None:
        """With the end that is still to be sent, else as a second end, else it waits for one, for a day."""
        ended = self._state.tombstone(row.lane)
        if ended is not None and not self._state.pending_of(row.lane, Event.CONVERSATION):
            path, body = forms.second_end(row.body, ended)
            return _Parcel(row, path, body)
        if ended is None and self._clock.time_ns() // 1000 - row.time_us > FEEDBACK_HOLD_US:
            self._state.dead_letter(
                row.id, "the tracker takes no feedback and the conversation has no end yet"
            )
            return None
        self._held[row.id] = self._clock.monotonic() + HOLD_SECONDS
        return None

    def _seconds_to_held(self, now: float) -> float | None:
        paused = HOLD_SECONDS if self._channel.paused_paths(now) else None
        return min((until - now for until in self._held.values()), default=paused)

    # --- answers --------------------------------------------------------------------------------------------

    def _settle(self, finished: _Finished) -> None:
        match finished:
            case None:
                pass
            case Capabilities() | Retry() | Misconfigured():
                self._channel.answered_capabilities(finished, self._clock.monotonic())
            case _Batch(parcels, result):
                self._settle_batch(parcels, result)
            case sent:
                self._settle_parcels(sent)

    def _settle_batch(self, parcels: list[_Parcel], result: Result | list[Result]) -> None:
        """A batch that is refused as a whole is halved until the event to blame is alone."""
        now = self._clock.monotonic()
        match result:
            case list():
                self._batch_limit = min(self._batch_limit * 2, 1 << 30)
                self._settle_parcels(zip(parcels, result, strict=True))
            case Refused() if len(parcels) > 1:
                self._batch_limit = len(parcels) // 2
            case NotOffered(_, reason):
                self._channel.refuse_batches(reason, now)
            case Retry() | Misconfigured():
                self._channel.fail(result, now)
                with self._state.transaction():
                    self._state.note_attempts([parcel.row.id for parcel in parcels], result.reason)
            case _:
                self._batch_limit = min(self._batch_limit * 2, 1 << 30)
                self._settle_parcels((parcel, result) for parcel in parcels)

    def _settle_parcels(self, sent: Iterable[tuple[_Parcel, Result]]) -> None:
        now = self._clock.monotonic()
        delivered: list[int] = []
        with self._state.transaction():
            for parcel, result in sent:
                row = parcel.row
                sent_before = row.attempts > 0 or row.id <= self._sent_before
                match self._channel.judge(row.event_id, row.path, result, now, sent_before=sent_before):
                    case Done():
                        delivered += (row.id, *parcel.companions)
                        if parcel.has_roll_up:
                            self._state.drop_roll_up(row.lane)
                    case Later(reason, seconds):
                        self._state.note_attempts([row.id], reason)
                        if seconds:
                            self._held[row.id] = now + seconds
                    case Dead(reason):
                        self._state.dead_letter(row.id, reason)
            self._state.delivered(delivered)


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
