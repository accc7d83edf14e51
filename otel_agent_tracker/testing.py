"""For your own tests: what your code would have told a tracker, without one.

Installed with the package, pytest finds the fixture by itself::

    def test_a_question_is_answered(recorded_conversations):
        tracker = AgentPerformanceTracker("https://tracker.example.com")  # any URL: nothing is sent
        session_id = tracker.start_conversation("support-bot", user_id="u1")
        tracker.end_conversation(session_id, quality_score=5)

        (conversation,) = recorded_conversations.conversations
        assert (conversation.outcome, conversation.quality) == ("completed", 5)

    def test_an_abandoned_conversation_expires(recorded_conversations):
        AgentPerformanceTracker().start_conversation("support-bot")
        recorded_conversations.clock.advance(hours=11)

        (conversation,) = recorded_conversations.conversations
        assert conversation.outcome == "expired"

Elsewhere, ``with recording() as recorded:`` does the same.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta
from itertools import count
from threading import RLock
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from otel_agent_tracker import outcome, wire
from otel_agent_tracker.clock import Clock
from otel_agent_tracker.semconv import EndedBy, Outcome, TurnStatus

if TYPE_CHECKING:  # a test run that records nothing does not pay for the client
    from otel_agent_tracker.client import Delivered
    from otel_agent_tracker.pipeline import Pipeline

__all__ = [
    "FakeClock",
    "RecordedConversation",
    "RecordedConversations",
    "RecordedRequest",
    "RecordedTurn",
    "RecordingSender",
    "recorded_conversations",
    "recording",
]

Json = dict[str, Any]

SETTLE_SECONDS = 10.0


class FakeClock:
    """A clock that stands until `advance` moves it.

    `clock` is what our parts read. Each look at the wall clock takes a microsecond, so that what happens
    later has a later time.
    """

    def __init__(self, now: datetime | None = None) -> None:
        start = now or datetime(2024, 1, 19, 12, tzinfo=UTC)
        self._moved_us = (start - _EPOCH) // timedelta(microseconds=1)
        self._looks = count(1)  # takes no lock: a signal handler that looks may interrupt a look
        self._looked = 0
        self._monotonic = 1000.0
        self._lock = RLock()
        self._after: list[Callable[[], object]] = []
        self.clock = Clock(time_ns=self._look_ns, monotonic=lambda: self._monotonic)

    @property
    def now(self) -> datetime:
        """What time it is, in UTC."""
        return _EPOCH + timedelta(microseconds=self._moved_us + self._looked)

    def advance(self, *, hours: float = 0.0, minutes: float = 0.0, seconds: float = 0.0) -> None:
        """Let time pass; what is due when it has passed is done before this returns.

        Raises ValueError for time that would go back.
        """
        step = timedelta(hours=hours, minutes=minutes, seconds=seconds)
        if step < timedelta(0):
            raise ValueError(f"time does not go back, not even by {-step}")
        with self._lock:
            self._moved_us += step // timedelta(microseconds=1)
            self._monotonic += step.total_seconds()
        for settle in self._after:
            settle()

    def after_advance(self, settle: Callable[[], object]) -> None:
        """Call `settle` at the end of each `advance`."""
        self._after.append(settle)

    def _look_ns(self) -> int:
        self._looked = looked = next(self._looks)
        return (self._moved_us + looked) * 1000


class RecordedRequest(NamedTuple):
    """A request that a tracker would have got."""

    path: str
    body: Json


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedTurn:
    """One request to the agent and its answer."""

    turn_id: str
    start_time: datetime
    duration_seconds: float
    status: TurnStatus
    error_type: str | None
    error_message: str | None
    input_tokens: int | None
    output_tokens: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedConversation:
    """A conversation as a tracker would tell it; `end_time` and `ended_by` are None while it is active.

    `number` counts from 1 within the session; `quality` is fractional where only turns were rated.
    """

    session_id: str
    number: int
    agent_id: str
    user_id: str | None
    start_time: datetime
    end_time: datetime | None
    outcome: Outcome
    ended_by: EndedBy | None
    quality: float | None
    feedback: str | None
    error_type: str | None
    error_message: str | None
    message_count: int | None
    metadata: Json | None
    turns: tuple[RecordedTurn, ...]


class RecordingSender:
    """A `delivery.Sender` that keeps every request and says that it was delivered."""

    def __init__(self) -> None:
        self._requests: list[tuple[str | None, RecordedRequest]] = []

    @property
    def requests(self) -> list[RecordedRequest]:
        """Every request so far, in the order of arrival."""
        return [request for _, request in self._requests]

    def with_ids(self) -> list[tuple[str, RecordedRequest]]:
        """Every request that has an event id, with it."""
        return [(event_id, request) for event_id, request in self._requests if event_id is not None]

    def capabilities(self) -> wire.Capabilities:
        """Everything that a tracker can offer but heartbeats, which come at any time."""
        batch = {"path": wire.BatchRequest.PATH, "max_events": 500}
        turns, feedback = {"path": wire.ConversationTurn.PATH}, {"path": wire.ConversationFeedback.PATH}
        return wire.Capabilities(batch=batch, turns=turns, feedback=feedback)

    def send(self, path: str, body: bytes, *, event_id: str | None = None) -> Delivered:
        """Keep one request."""
        from otel_agent_tracker.client import Delivered

        self._requests.append((event_id, RecordedRequest(path, json.loads(body))))
        return Delivered()

    def send_batch(self, path: str, events: Sequence[bytes], event_ids: Sequence[str]) -> list[Any]:
        """Keep each event of a batch as the request that it stands for."""
        from otel_agent_tracker.client import Delivered

        for event in map(json.loads, events):
            self._requests.append((event["event_id"], RecordedRequest(event["path"], event["body"])))
        return [Delivered()] * len(events)

    def close(self) -> None:
        """Nothing is open."""


class RecordedConversations:
    """What was recorded; each look waits until the events accepted so far have arrived."""

    def __init__(self, pipeline: Pipeline, sender: RecordingSender, clock: FakeClock) -> None:
        self.clock = clock
        self._pipeline = pipeline
        self._sender = sender
        clock.after_advance(self.settle)

    @property
    def requests(self) -> list[RecordedRequest]:
        """The requests that a tracker would have got, as (path, body), in the order of arrival."""
        self.settle()
        return self._sender.requests

    @property
    def conversations(self) -> list[RecordedConversation]:
        """The conversations that a tracker would tell of, sessions in order of their first event."""
        self.settle()
        by_session: dict[str, list[outcome.Event]] = {}
        for event_id, request in self._sender.with_ids():
            kind = _CONVERSATION_REQUESTS.get(request.path)
            if kind is not None:
                read = outcome.read_event(_parsed(kind, request.body), event_id)
                by_session.setdefault(request.body["session_id"], []).append(read)
        return [
            _recorded(session_id, conversation)
            for session_id, events in by_session.items()
            for conversation in outcome.conversations(events)
        ]

    def settle(self) -> None:
        """Let everything happen that is due: sessions expire, requests arrive.

        Raises TimeoutError if that takes more than ten seconds.
        """
        if not self._pipeline.flush(SETTLE_SECONDS):
            raise TimeoutError(f"not everything was recorded within {SETTLE_SECONDS:.0f} s")


@contextmanager
def recording(*, clock: FakeClock | None = None, **options: Any) -> Iterator[RecordedConversations]:
    """Every tracker object made inside the block records, whatever its URL and settings.

    Events touch neither disk nor network, and time passes by `clock` alone. `options` are fields of the
    configuration, for example ``session_ttl_hours=1``. Objects made before go on as they were.
    """
    from otel_agent_tracker import pipeline
    from otel_agent_tracker.config import Config, Durability

    sender, fake = RecordingSender(), clock or FakeClock()
    config = Config(url="https://recorded.invalid", durability=Durability.MEMORY, **options)
    recorder = pipeline.Pipeline(config, clock=fake.clock, sender=sender)
    recorder.holders += 1  # ours: it stays open when the code under test closes its trackers
    pipeline.substitute(recorder)
    try:
        yield RecordedConversations(recorder, sender, fake)
    finally:
        pipeline.substitute(None)
        recorder.close()


@pytest.fixture
def recorded_conversations() -> Iterator[RecordedConversations]:
    """What trackers made during the test would have told their tracker; see `otel_agent_tracker.testing`."""
    with recording() as recorded:
        yield recorded


def _parsed(kind: type[Any], body: Json) -> Any:
    known = {field.name for field in fields(kind)}
    return kind(**{name: value for name, value in body.items() if name in known})


def _recorded(session_id: str, conversation: outcome.Conversation) -> RecordedConversation:
    end_us = conversation.end_us
    return RecordedConversation(
        session_id=session_id,
        number=conversation.number,
        agent_id=conversation.agent_id,
        user_id=conversation.user_id,
        start_time=_time(conversation.start_us),
        end_time=None if end_us is None else _time(end_us),
        outcome=conversation.outcome,
        ended_by=conversation.ended_by,
        quality=conversation.quality,
        feedback=conversation.feedback,
        error_type=conversation.error_type,
        error_message=conversation.error_message,
        message_count=conversation.message_count,
        metadata=conversation.metadata,
        turns=tuple(map(_recorded_turn, conversation.turns)),
    )


def _recorded_turn(turn: outcome.Turn) -> RecordedTurn:
    return RecordedTurn(
        turn_id=turn.turn_id,
        start_time=_time(turn.start_us),
        duration_seconds=(turn.end_us - turn.start_us) / 1e6,
        status=turn.status,
        error_type=turn.error_type,
        error_message=turn.error_message,
        input_tokens=turn.input_tokens,
        output_tokens=turn.output_tokens,
    )


def _time(time_us: int) -> datetime:
    return _EPOCH + timedelta(microseconds=time_us)


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_CONVERSATION_REQUESTS: dict[str, type[Any]] = {
    request.PATH: request
    for request in (
        wire.ConversationStart,
        wire.ConversationTurn,
        wire.ConversationEnd,
        wire.ConversationExpired,
        wire.ConversationFeedback,
    )
}
