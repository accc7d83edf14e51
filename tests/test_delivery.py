"""Delivery: from the outbox to a tracker that may answer anything, and back into the books."""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from otel_agent_tracker import wire
from otel_agent_tracker.channel import Channel
from otel_agent_tracker.client import Delivered, Misconfigured, NotOffered, Refused, Result, Retry
from otel_agent_tracker.clock import Clock
from otel_agent_tracker.delivery import LANES, Delivery, OtlpSender, _Parcel, _shared_out
from otel_agent_tracker.rollup import RollUp
from otel_agent_tracker.semconv import Event
from otel_agent_tracker.state import NewRow, OutboxRow, SessionRow, State, Tombstone
from otel_agent_tracker.wire import Capabilities

START, TURN, END, FEEDBACK = (
    "/conversations/start",
    "/conversations/turn",
    "/conversations/end",
    "/conversations/feedback",
)
PATHS = {
    Event.CONVERSATION_START: START,
    Event.CONVERSATION_TURN: TURN,
    Event.CONVERSATION: END,
    Event.CONVERSATION_FEEDBACK: FEEDBACK,
}
PLAIN = Capabilities()
SINGLE = Capabilities(
    turns={"path": TURN}, feedback={"path": FEEDBACK}, heartbeat={"path": "/agents/heartbeat"}
)
BATCH = Capabilities(
    batch={"path": "/batch", "max_events": 500}, turns={"path": TURN}, feedback={"path": FEEDBACK}
)
UNKNOWN = NotOffered(404, "status 404")
NOON_US = 1_705_665_600_000_000
HOUR = 3600.0
TIMEOUT = 10.0

Answer = Callable[[str, dict[str, Any], str | None], Result]


@dataclass
class Tracker:
    """A tracker in the place of the network: it records requests and answers as it is told."""

    offers: Capabilities | Retry | Misconfigured = SINGLE
    answer: Answer = lambda path, body, event_id: Delivered()
    answer_batch: Callable[[list[str]], Result | None] = lambda event_ids: None
    requests: list[tuple[str, dict[str, Any], str | None]] = field(default_factory=list)
    batches: list[list[str]] = field(default_factory=list)
    asked: int = 0

    def capabilities(self) -> Capabilities | Retry | Misconfigured:
        self.asked += 1
        return self.offers

    def send(self, path: str, body: bytes, *, event_id: str | None = None) -> Result:
        request = (path, orjson.loads(body), event_id)
        self.requests.append(request)
        return self.answer(*request)

    def send_batch(
        self, path: str, events: Sequence[bytes], event_ids: Sequence[str]
    ) -> Result | list[Result]:
        self.batches.append(list(event_ids))
        refusal = self.answer_batch(list(event_ids))
        if refusal is not None:
            return refusal
        elements = map(orjson.loads, events)
        return [
            self.send(each["path"], orjson.dumps(each["body"]), event_id=each["event_id"])
            for each in elements
        ]

    def close(self) -> None: ...

    @property
    def event_ids(self) -> list[str | None]:
        return [event_id for _, _, event_id in self.requests]

    @property
    def last(self) -> tuple[str, dict[str, Any]]:
        path, body, _ = self.requests[-1]
        return path, body

    @property
    def total(self) -> int:
        return len(self.requests) + self.asked if not self.batches else len(self.batches) + self.asked


class Office:
    """An outbox, a delivery and a clock that stands still; everything is settled when a method returns."""

    def __init__(self, tracker: Tracker | None = None, *, otlp: OtlpSender | None = None) -> None:
        self.tracker = tracker or Tracker()
        self.now = 0.0
        self.clock = Clock(lambda: (NOON_US + int(self.now * 1e6)) * 1000, lambda: self.now)
        self.state = State(None, writer="a", max_bytes=1 << 24)
        self._otlp = otlp
        self._rung = threading.Semaphore(0)
        self.reopen()

    def reopen(self) -> None:
        """As the next process does."""
        self.delivery = Delivery(
            self.state,
            self._otlp or self.tracker,
            self.clock,
            self._rung.release,
            otlp=self._otlp is not None,
            channel=Channel(jitter=lambda most: most),
        )

    def close(self) -> None:
        self.delivery.close()
        self.delivery.join(TIMEOUT)
        self.state.close()

    def put(
        self, event_id: str, event: Event = Event.CONVERSATION_START, *, lane: str = "s", **body: Any
    ) -> None:
        """Accept an event of now."""
        time_us = int(NOON_US + self.now * 1e6)
        row = NewRow(
            event_id,
            event,
            PATHS[event],
            lane,
            orjson.dumps(body),
            b"null",
            b"<%b>" % event_id.encode(),
            time_us,
        )
        with self.state.transaction():
            self.state.accept([row])

    def turn(self, event_id: str, seconds: float = 1.0, *, lane: str = "s") -> None:
        self.put(event_id, Event.CONVERSATION_TURN, lane=lane, duration_seconds=seconds, status="ok")

    def feedback(self, event_id: str, score: int, *, lane: str = "s") -> None:
        self.put(event_id, Event.CONVERSATION_FEEDBACK, lane=lane, feedback_id=event_id, quality_score=score)

    def open(self, *, lane: str = "s") -> None:
        """The session is open from now on."""
        time_us = int(NOON_US + self.now * 1e6)
        with self.state.transaction():
            self.state.put_sessions([SessionRow(lane, "bot", time_us, time_us, b"", "", 0)])

    def end(self, event_id: str, *, lane: str = "s", start: float = 0.0, **body: Any) -> None:
        """The conversation that began at `start` ends now, and leaves its tombstone."""
        start_us, time_us = (int(NOON_US + seconds * 1e6) for seconds in (start, self.now))
        with self.state.transaction():
            self.state.end_sessions(
                [Tombstone(lane, "bot", start_us, time_us, "completed", "call", None, None)]
            )
        times = {"start_time": wire.format_time(start_us)}
        self.put(event_id, Event.CONVERSATION, lane=lane, status="completed", **times, **body)

    def deliver(self) -> float | None:
        """Send and settle until there is nothing to do now; in how many seconds there is."""
        while True:
            wait = self.delivery.step()
            if not self.delivery.in_flight:
                return wait
            assert self.rung()

    def rung(self) -> bool:
        """Wait for an answer."""
        return self._rung.acquire(timeout=TIMEOUT)

    def wait(self, seconds: float) -> None:
        """Let time pass, delivering whenever there is something to do."""
        end = self.now + seconds
        while (wait := self.deliver()) is not None and self.now + max(wait, 0.01) < end:
            self.now += max(wait, 0.01)
        self.now = end
        self.deliver()

    @property
    def pending(self) -> list[str]:
        return [row.event_id for row in self.state.pending(10_000)]

    @property
    def dead(self) -> dict[str, str | None]:
        return {row.event_id: row.reason for row in self.state.dead_letters(10_000)}


@pytest.fixture
def office() -> Iterator[Office]:
    office = Office()
    yield office
    office.close()


@contextmanager
def office_for(tracker: Tracker) -> Iterator[Office]:
    office = Office(tracker)
    try:
        yield office
    finally:
        office.close()


def refusing(result: Result, *event_ids: str) -> Answer:
    """An answer that is `result` for these events."""
    return lambda path, body, event_id: result if event_id in event_ids else Delivered()


def refusing_paths(result: Result, *paths: str) -> Answer:
    return lambda path, body, event_id: result if path in paths else Delivered()


def always(result: Result) -> Answer:
    return lambda path, body, event_id: result


# --- the answers table --------------------------------------------------------------------------------------


@pytest.mark.parametrize("offers", [SINGLE, BATCH])
def test_what_is_acknowledged_is_delivered(office: Office, offers: Capabilities) -> None:
    """2xx: gone from the outbox, and in the books."""
    office.tracker.offers = offers
    office.put("a", agent_id="bot")
    assert [office.deliver(), office.pending, office.state.counts().delivered] == [None, [], 1]
    assert office.tracker.requests == [(START, {"agent_id": "bot"}, "a")]


@pytest.mark.parametrize("offers", [SINGLE, BATCH])
@pytest.mark.parametrize(
    ("result", "wait"),
    [
        (Retry("status 503"), 1.0),
        (Retry("status 429", 90.0), 90.0),
        (Misconfigured("status 401"), 60.0),
        (UNKNOWN, 60.0),
    ],
)
def test_what_is_not_the_events_fault_keeps_it(
    office: Office, offers: Capabilities, result: Result, wait: float
) -> None:
    """Temporary trouble, misconfiguration, an unknown path: the event waits, with the reason."""
    office.tracker.offers, office.tracker.answer = offers, always(result)
    office.put("a")
    assert [office.deliver(), office.pending, office.dead] == [wait, ["a"], {}]
    (row,) = office.state.pending(9)
    assert row.attempts == 1
    assert "status" in str(row.reason)
    office.tracker.answer = always(Delivered())
    office.wait(wait)
    assert [office.pending, office.state.counts().delivered] == [[], 1]


@pytest.mark.parametrize("offers", [SINGLE, BATCH])
@pytest.mark.parametrize("status", [400, 409, 413, 422])
def test_a_refused_event_is_dead_lettered_and_the_others_go_on(
    office: Office, offers: Capabilities, status: int
) -> None:
    """With the reason; nothing is blocked by it."""
    office.tracker.offers, office.tracker.answer = offers, refusing(Refused(status, "no"), "b")
    for event_id in "abc":
        office.put(event_id)
    office.deliver()
    assert [office.pending, office.dead, office.state.counts().delivered] == [[], {"b": f"{status} no"}, 2]


@pytest.mark.parametrize("offers", [SINGLE, BATCH])
def test_a_conflict_after_a_lost_answer_is_a_delivery(office: Office, offers: Capabilities) -> None:
    """The tracker had committed before the connection broke."""
    office.tracker.offers, office.tracker.answer = offers, always(Retry("reset"))
    office.put("a")
    office.deliver()
    office.tracker.answer = always(Refused(409, "known"))
    office.wait(2.0)
    assert [office.pending, office.dead, office.state.counts().delivered] == [[], {}, 1]


def test_a_conflict_after_a_crash_is_a_delivery(office: Office) -> None:
    """Whatever was in the outbox at the start may have been sent by the process that died."""
    office.put("old")
    office.delivery.close()
    office.reopen()
    office.put("new")
    office.tracker.answer = always(Refused(409, "known"))
    office.deliver()
    assert [office.state.counts().delivered, office.dead] == [1, {"new": "409 known"}]


def test_a_senders_mistake_is_temporary_trouble(office: Office) -> None:
    """An exception neither loses the event nor stops delivery for ever."""

    def fail(path: str, body: dict[str, Any], event_id: str | None) -> Result:
        raise RuntimeError("broken")

    office.tracker.answer = fail
    office.put("a")
    assert [office.deliver(), office.pending] == [1.0, ["a"]]
    office.tracker.answer = always(Delivered())
    office.wait(1.0)
    assert office.pending == []


# --- the channel --------------------------------------------------------------------------------------------


def test_nothing_is_sent_before_capabilities_are_answered(office: Office) -> None:
    """They are asked again with the channel's back-off."""
    office.tracker.offers = Retry("status 500")
    office.put("a")
    office.wait(2.5)
    assert [office.tracker.asked, office.tracker.requests] == [2, []]
    office.tracker.offers = PLAIN
    office.wait(1.0)
    assert office.tracker.event_ids == ["a"]


def test_an_empty_outbox_asks_nothing(office: Office) -> None:
    """A tracker hears from us when there is something to say."""
    assert [office.deliver(), office.tracker.asked] == [None, 0]


def test_after_a_failure_one_probe_goes_and_then_the_lanes_open(office: Office) -> None:
    """Eight sessions wait for the one that tries."""
    for number in range(8):
        office.put(f"e{number}", lane=f"s{number}")
    office.tracker.answer = always(Retry("down"))
    for wait in (1.0, 2.0, 4.0):
        assert office.deliver() == wait
        office.now += wait
    assert office.tracker.event_ids == ["e0", "e1", "e2"]
    office.tracker.answer = always(Delivered())
    office.deliver()
    assert office.tracker.event_ids[3] == "e3"
    assert [sorted(map(str, office.tracker.event_ids[4:])), office.pending] == [
        [f"e{n}" for n in (0, 1, 2, 4, 5, 6, 7)],
        [],
    ]


def test_an_event_that_always_fails_holds_up_its_own_session_only(office: Office) -> None:
    """Others are tried before it is tried again; what follows it in its session keeps its place."""
    for number in range(40):
        office.put(f"e{number}", lane="poisoned" if number < 2 else f"s{number}")
    office.tracker.answer = lambda path, body, event_id: Retry("500") if event_id == "e0" else Delivered()
    for _ in range(20):
        office.now += office.deliver() or 0.0
    assert office.pending == ["e0", "e1"]


def put_with_poison(office: Office, count: int) -> None:
    """The first two are of one session, and the tracker fails at every batch that holds the first."""
    office.tracker.offers = BATCH
    office.tracker.answer_batch = lambda ids: Retry("status 500") if "e0" in ids else None
    for number in range(count):
        office.put(f"e{number}", lane="poisoned" if number < 2 else f"s{number}")


def test_a_batch_that_always_fails_holds_up_one_session_only(office: Office) -> None:
    """The event to blame ends up alone; all others are delivered, and later ones at once, in few requests."""
    put_with_poison(office, 2_000)
    office.wait(600.0)
    assert [office.pending, office.dead] == [["e0", "e1"], {}]
    for hour in range(5):
        before = len(office.tracker.batches)
        for number in range(500):
            office.put(f"later{hour}-{number}", lane=f"later{number}")
        office.wait(60.0)
        assert [office.pending, len(office.tracker.batches) - before < 25] == [["e0", "e1"], True]
        office.wait(HOUR)
    before = len(office.tracker.batches)
    office.wait(HOUR)
    assert 0 < len(office.tracker.batches) - before < 20


def test_an_event_that_was_set_apart_stops_nothing_when_it_is_tried_again(
    office: Office, caplog: pytest.LogCaptureFixture
) -> None:
    """Each try fails, and what comes at that moment is sent at once; the log tells of it."""
    put_with_poison(office, 100)
    office.wait(HOUR)
    caplog.clear()
    for _ in range(3):
        before = len(office.tracker.batches)
        office.now += office.deliver() or 0.0
        office.deliver()
        assert office.tracker.batches[before:] == [["e0"]]
        office.put(f"later{office.now}", lane="later")
        office.deliver()
        assert office.pending == ["e0", "e1"]
    assert {record.msg for record in caplog.records} == {
        "the tracker takes other events, but not these, which are kept: %s"
    }


def test_an_event_that_was_set_apart_is_delivered_once_the_tracker_takes_it(office: Office) -> None:
    """And what followed it in its session comes behind it."""
    put_with_poison(office, 100)
    office.wait(HOUR)
    office.tracker.answer_batch = lambda ids: None
    office.wait(HOUR)
    assert [office.pending, office.tracker.event_ids[-2:]] == [[], ["e0", "e1"]]


def test_an_event_that_was_set_apart_may_be_refused(office: Office) -> None:
    """Then it is a dead letter, and its session goes on."""
    put_with_poison(office, 100)
    office.wait(HOUR)
    office.tracker.answer_batch = lambda ids: Refused(422, "poison") if "e0" in ids else None
    office.wait(HOUR)
    assert [office.pending, office.dead] == [[], {"e0": "422 poison"}]


@pytest.mark.parametrize("poisoned", [1, 200], ids=["one", "more than are looked at"])
def test_an_event_that_always_fails_is_found_after_an_outage_and_after_a_restart(
    office: Office, poisoned: int
) -> None:
    """Though it is the oldest, each session has failed alone by then, and its own fills the front of the outbox."""
    office.tracker.offers = BATCH
    office.tracker.answer_batch = lambda ids: Retry("connection refused")
    for number in range(poisoned):
        office.put(f"e{number}", lane="poisoned")
    for number in range(10):
        office.put(f"other{number}", lane=f"s{number}")
    office.wait(HOUR)
    office.tracker.answer_batch = lambda ids: Retry("status 500") if "e0" in ids else None
    office.wait(HOUR)
    assert len(office.pending) == poisoned
    office.delivery.close()
    office.delivery.join(TIMEOUT)
    office.reopen()
    office.put("later", lane="later")
    office.wait(HOUR)
    assert len(office.pending) == poisoned


def test_an_event_that_fails_for_weeks_stops_nothing(office: Office) -> None:
    """However often it was tried."""
    put_with_poison(office, 10)
    office.wait(21 * 24 * HOUR)
    office.put("later", lane="later")
    office.wait(HOUR)
    assert office.pending == ["e0", "e1"]


def test_after_an_outage_all_is_delivered_at_once(office: Office) -> None:
    """Each probe was an event of another session; that all failed blames none of them for long."""
    office.tracker.offers = BATCH
    office.tracker.answer_batch = lambda ids: Retry("connection refused")
    for number in range(1_000):
        office.put(f"e{number}", lane=f"s{number}")
    office.wait(HOUR)
    office.tracker.answer_batch = lambda ids: None
    before = len(office.tracker.batches)
    office.wait(70.0)
    assert [office.pending, len(office.tracker.batches) - before < 150] == [[], True]


@pytest.mark.parametrize("offers", [SINGLE, BATCH])
@pytest.mark.parametrize("result", [Retry("connection refused"), Misconfigured("status 403"), UNKNOWN])
def test_an_hour_of_trouble_takes_few_requests(office: Office, offers: Capabilities, result: Result) -> None:
    """Fewer than 200 requests, a line a minute, and everything kept, in order."""
    office.tracker.offers, office.tracker.answer = offers, always(result)
    for number in range(60):
        office.put(f"e{number}", lane=f"s{number % 7}")
    for number, event in enumerate((Event.CONVERSATION_TURN, Event.CONVERSATION_FEEDBACK)):
        office.put(f"x{number}", event, lane="x")
    office.wait(HOUR)
    assert [office.tracker.total < 200, len(office.pending), office.dead] == [True, 62, {}]
    office.tracker.answer = always(Delivered())
    office.wait(200.0)
    assert office.pending == []


def test_trouble_is_told_once_a_minute(office: Office, caplog: pytest.LogCaptureFixture) -> None:
    """However many requests fail."""
    office.tracker.answer = always(UNKNOWN)
    for number in range(100):
        office.put(f"e{number}", lane=f"s{number}")
    with caplog.at_level(logging.WARNING):
        office.wait(119.0)
    assert len(caplog.records) == 2


# --- paths --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("offers", [SINGLE, BATCH])
def test_a_path_that_is_refused_waits_alone(office: Office, offers: Capabilities) -> None:
    """Events of other paths go on; of this one a single event is tried each minute."""
    office.tracker.offers, office.tracker.answer = offers, refusing_paths(UNKNOWN, TURN)
    office.put("start", lane="0")
    office.deliver()
    for number in range(5):
        office.turn(f"t{number}", lane="1")
        office.put(f"e{number}", lane="0")
    office.deliver()
    assert office.pending == [f"t{number}" for number in range(5)]
    tried = Counter(office.tracker.event_ids)
    office.wait(301.0)
    later = Counter(office.tracker.event_ids) - tried
    assert 3 <= sum(later.values()) <= 6
    office.tracker.answer = always(Delivered())
    office.wait(121.0)
    assert [office.pending, office.dead] == [[], {}]


def test_the_event_to_blame_is_dead_lettered_at_its_third_refusal(office: Office) -> None:
    """Others of its path succeeded in between."""
    office.tracker.answer = refusing(UNKNOWN, "bad")
    office.put("bad", lane="b")
    for number in range(6):
        office.put(f"e{number}", lane="e")
        office.wait(61.0)
    assert [office.dead, office.pending] == [{"bad": f"{START}: status 404"}, []]
    assert office.tracker.event_ids.count("bad") == 3


def test_where_every_path_is_refused_nothing_is_dead(office: Office) -> None:
    """A wrong URL loses nothing for as long as it stays wrong."""
    office.tracker.offers, office.tracker.answer = PLAIN, always(UNKNOWN)
    office.put("a")
    office.end("b")
    office.wait(5 * HOUR)
    assert [office.pending, office.dead] == [["a", "b"], {}]
    office.tracker.answer = always(Delivered())
    office.wait(130.0)
    assert office.pending == []


def test_one_path_that_stays_refused_does_not_hide_that_another_works_again(office: Office) -> None:
    """Probes take turns."""
    office.tracker.offers, office.tracker.answer = PLAIN, always(UNKNOWN)
    office.put("a")
    office.end("b")
    office.wait(120.0)
    office.tracker.answer = refusing_paths(UNKNOWN, START)
    office.wait(200.0)
    assert office.pending == ["a"]


def test_capabilities_are_asked_again_after_a_404(office: Office) -> None:
    """A path that is no longer offered falls back: here turns, to the roll-up that goes with the end."""
    office.put("start")
    office.deliver()
    office.tracker.offers, office.tracker.answer = PLAIN, refusing_paths(UNKNOWN, TURN)
    office.turn("t", 2.0)
    office.end("end")
    office.deliver()
    assert office.tracker.asked == 2
    mark = office.tracker.last[1]["metadata"]["agent_tracker"]
    assert [mark["turns"], mark["response_time_seconds"]["sum"], office.pending] == [1, 2.0, []]


# --- batches ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("poison", range(7))
def test_a_refused_batch_is_halved_until_the_event_to_blame_is_alone(office: Office, poison: int) -> None:
    """The poison is dead-lettered, the rest delivered, wherever it stands."""
    bad = f"e{poison}"
    office.tracker.offers = BATCH
    office.tracker.answer_batch = lambda ids: Refused(422, "poison") if bad in ids else None
    for number in range(7):
        office.put(f"e{number}", lane=f"s{number}")
    office.deliver()
    assert [office.dead, office.pending, office.state.counts().delivered] == [{bad: "422 poison"}, [], 6]
    assert len(office.tracker.batches) <= 10


def test_a_half_that_fails_for_now_goes_again_before_the_other(office: Office) -> None:
    """What follows in the same session waits for it."""
    answers = iter([Refused(413, "large"), Retry("down"), None, None, None])
    office.tracker.offers, office.tracker.answer_batch = BATCH, lambda ids: next(answers)
    for number in range(4):
        office.put(f"e{number}")
    office.wait(60.0)
    assert office.tracker.batches == [
        *(["e0", "e1", "e2", "e3"], ["e0", "e1"]),
        *(["e0"], ["e1"], ["e2", "e3"]),
    ]
    assert office.pending == []


def test_batches_grow_again_after_a_refusal(office: Office) -> None:
    """One poison does not make delivery slow for ever."""
    office.tracker.offers = BATCH
    office.tracker.answer_batch = lambda ids: Refused(413, "large") if "e0" in ids else None
    for number in range(400):
        office.put(f"e{number}", lane=f"s{number}")
    office.deliver()
    assert [office.pending, len(office.tracker.batches) < 25] == [[], True]


def test_a_batch_that_takes_too_long_is_made_smaller(office: Office) -> None:
    """On a slow way one that never arrives in time would hold up everything for ever."""
    office.tracker.offers = BATCH
    office.tracker.answer_batch = lambda ids: Retry("timed out") if len(ids) > 10 else None
    for number in range(100):
        office.put(f"e{number}", lane=f"s{number}")
    for _ in range(30):
        office.deliver()
        office.now += 60.0
    assert [office.pending, office.state.counts().delivered] == [[], 100]


def test_each_result_of_a_batch_counts_for_its_event(office: Office) -> None:
    """Only what failed stays."""
    answers: dict[str | None, Result] = {"b": Refused(422, "no"), "c": Retry("status 503"), "d": UNKNOWN}
    office.tracker.offers = BATCH
    office.tracker.answer = lambda path, body, event_id: answers.get(event_id, Delivered())
    for event_id in "abcde":
        office.put(event_id, lane=event_id)
    office.deliver()
    assert [office.pending, office.dead, office.state.counts().delivered] == [["c", "d"], {"b": "422 no"}, 2]


def test_an_event_that_fails_in_a_batch_others_got_through_waits_by_itself(office: Office) -> None:
    """What follows in its session waits with it; others are sent at once, also while it is tried again and again."""
    office.tracker.offers = BATCH
    office.tracker.answer = refusing(Retry("status 503"), "bad")
    for event_id, lane in (("a", "a"), ("bad", "bad"), ("next", "bad"), ("b", "b")):
        office.put(event_id, lane=lane)
    assert [office.deliver(), office.pending] == [1.0, ["bad"]]
    office.put("after", lane="bad")
    office.put("c", lane="c")
    assert [office.deliver(), office.pending] == [1.0, ["bad", "after"]]
    tries = []
    for _ in range(9):
        office.now += office.deliver() or 0.0
        before = len(office.tracker.batches)
        office.deliver()
        office.put(f"d{office.now}", lane="d")
        tries.append(office.deliver())
        assert [len(office.tracker.batches) - before, office.pending[:2]] == [2, ["bad", "after"]]
    assert tries == [2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0, 60.0, 60.0]
    office.tracker.answer = always(Delivered())
    office.now += 60.0
    assert [office.deliver(), office.pending] == [None, []]
    assert office.tracker.event_ids[-2:] == ["bad", "after"]


@pytest.mark.parametrize(
    ("ill", "result", "wait"),
    [
        (3, Retry("status 503"), 1.0),
        (2, Retry("status 429", 90.0), 90.0),
        (499, Retry("status 503"), 1.0),
    ],
    ids=["all fail", "the tracker asks for time", "hundreds fail"],
)
def test_a_batch_in_which_the_tracker_fails_stops_everything(
    office: Office, ill: int, result: Result, wait: float
) -> None:
    """Where no other event got through, where the tracker itself says when, or where hundreds of events fail."""
    office.tracker.offers = BATCH
    office.tracker.answer = refusing(result, *(f"e{number}" for number in range(ill)))
    for number in range(3 if ill <= 3 else 500):
        office.put(f"e{number}", lane=f"s{number}")
    assert office.deliver() == wait
    office.put("later", lane="later")
    assert [office.deliver(), office.pending[-1]] == [wait, "later"]


def test_an_event_that_fails_in_batches_of_its_own_slows_others_once(office: Office) -> None:
    """Also in a process that finds nothing else to send: at first it may be the tracker that is ill, then no more."""
    office.tracker.offers = BATCH
    office.tracker.answer = refusing(Retry("status 503"), "bad")
    office.put("bad", lane="bad")
    for _ in range(2):
        assert office.deliver() == 1.0
        office.wait(HOUR)
        office.put("other", lane="other")
        office.deliver()
        assert [office.pending, len(office.tracker.batches) < 80] == [["bad"], True]
        office.tracker.batches.clear()
        office.delivery.close()
        office.delivery.join(TIMEOUT)
        office.reopen()


def test_one_event_of_a_batch_that_the_key_may_not_send_stops_no_other(office: Office) -> None:
    """The key suits the others; this one is tried again after a minute."""
    office.tracker.offers = BATCH
    office.tracker.answer = refusing(Misconfigured("status 403"), "b")
    for event_id in "abc":
        office.put(event_id, lane=event_id)
    assert [office.deliver(), office.pending] == [60.0, ["b"]]
    office.put("d", lane="d")
    assert [office.deliver(), office.pending] == [60.0, ["b"]]


def test_a_batch_holds_no_more_than_the_tracker_takes(office: Office) -> None:
    """By number, and by bytes."""
    office.tracker.offers = Capabilities(
        batch={"path": "/batch", "max_events": 3}, turns={}, feedback={"path": ""}
    )
    for number in range(7):
        office.put(f"e{number}")
    office.deliver()
    assert [len(batch) for batch in office.tracker.batches] == [3, 3, 1]
    for number in range(3):
        office.put(f"large{number}", text="x" * 3_000_000)
    office.deliver()
    assert [len(batch) for batch in office.tracker.batches[3:]] == [1, 1, 1]


def test_a_batch_path_that_is_gone_makes_events_go_singly_at_once(office: Office) -> None:
    """Without a pause; batches are tried again after a minute if they are still offered."""
    office.tracker.offers, office.tracker.answer_batch = BATCH, lambda ids: UNKNOWN
    office.put("a")
    assert [office.deliver(), office.pending, office.tracker.asked] == [None, [], 2]
    office.tracker.answer_batch = lambda ids: None
    office.now += 61.0
    office.put("b")
    office.deliver()
    assert office.tracker.batches == [["a"], ["b"]]


# --- order and lanes ----------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 11), max_size=60), st.sets(st.integers(0, 59), max_size=8))
def test_each_session_is_delivered_in_order(sessions: list[int], hiccups: set[int]) -> None:
    """On eight lanes, with requests that fail at first."""
    failed: set[str | None] = set()

    def answer(path: str, body: dict[str, Any], event_id: str | None) -> Result:
        if body["n"] in hiccups and event_id not in failed:
            failed.add(event_id)
            return Retry("hiccup")
        return Delivered()

    with office_for(Tracker(answer=answer)) as office:
        for number, session in enumerate(sessions):
            office.put(f"e{number}", lane=str(session), n=number, session=session)
        office.wait(1000.0)
        delivered: dict[int, list[int]] = {}
        for _, body, _ in office.tracker.requests:
            numbers = delivered.setdefault(body["session"], [])
            if body["n"] not in numbers:
                numbers.append(body["n"])
        assert all(numbers == sorted(numbers) for numbers in delivered.values())
        assert [office.pending, office.state.counts().delivered] == [[], len(sessions)]


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.integers(0, 11), max_size=60),
    st.sets(st.integers(0, 59), max_size=3),
    st.sets(st.integers(0, 20), max_size=4),
)
def test_each_session_is_delivered_in_order_in_batches(
    sessions: list[int], poisons: set[int], hiccups: set[int]
) -> None:
    """Whatever is refused, fails at first, or comes while others wait."""
    tracker = Tracker(
        Capabilities(batch={"path": "/batch", "max_events": 5}, turns={}, feedback={"path": ""})
    )
    poisoned = {f"e{number}" for number in poisons}

    def answer_batch(event_ids: list[str]) -> Result | None:
        if len(tracker.batches) - 1 in hiccups:
            return Retry("hiccup")
        return None if poisoned.isdisjoint(event_ids) else Refused(422, "poison")

    tracker.answer_batch = answer_batch
    with office_for(tracker) as office:
        for number, session in enumerate(sessions):
            office.put(f"e{number}", lane=str(session), n=number, session=session)
            if number % 4 == 3 and number > 20:
                office.delivery.step()
        office.wait(1000.0)
        delivered: dict[int, list[int]] = {}
        for _, body, _ in tracker.requests:
            delivered.setdefault(body["session"], []).append(body["n"])
        assert all(numbers == sorted(numbers) for numbers in delivered.values())
        assert [office.pending, len(tracker.requests)] == [[], len(sessions) - len(office.dead)]
        assert office.dead.keys() == {f"e{number}" for number in poisons if number < len(sessions)}


@pytest.mark.parametrize("offers", [SINGLE, BATCH])
def test_new_sessions_do_not_wait_for_a_backlog(office: Office, offers: Capabilities) -> None:
    """What is new goes with one of the next few rounds, and what its session had waiting goes first."""
    for number in range(5_000):
        office.put(f"old{number}", lane=f"s{number}")
    office.tracker.offers = offers
    office.delivery.step()
    while len(office.tracker.requests) < 600:
        assert office.rung()
        office.delivery.step()
    office.put("new", lane="new")
    office.put("more", lane="s2000")
    office.put("newest", Event.CONVERSATION, lane="new")
    before = len(office.tracker.requests)
    office.deliver()
    place = {event_id: place for place, event_id in enumerate(office.tracker.event_ids)}
    assert place["old2000"] < place["more"]
    assert place["new"] < place["newest"]
    assert max(place["more"], place["newest"]) < before + 2_001
    assert [office.pending, len(place), len(office.tracker.event_ids)] == [[], 5_003, 5_003]


def test_a_refused_event_among_new_ones_is_found_at_once(office: Office) -> None:
    """While a backlog is delivered too, a poison costs a few requests and holds nothing up."""
    office.tracker.offers = BATCH
    office.tracker.answer_batch = lambda ids: Refused(422, "poison") if "e4990" in ids else None
    for number in range(5_000):
        office.put(f"e{number}", lane=f"s{number}")
    office.deliver()
    assert [office.pending, list(office.dead), len(office.tracker.batches) < 35] == [[], ["e4990"], True]


@given(st.lists(st.integers(0, 30), max_size=120))
def test_lanes_are_about_even(sessions: list[int]) -> None:
    """No lane is longer than the shortest by more than the longest session."""
    parcels = [_parcel(number, f"s{session}") for number, session in enumerate(sessions)]
    shared = _shared_out(parcels)
    lengths = [len(lane) for lane in shared] + [0] * (LANES - len(shared))
    longest = max(Counter(sessions).values(), default=0)
    assert [sum(lengths), len(lengths)] == [len(sessions), LANES]
    assert max(lengths) - min(lengths) <= longest
    for session in {parcel.row.lane for parcel in parcels}:
        holding = [lane for lane in shared if any(parcel.row.lane == session for parcel in lane)]
        assert len(holding) == 1
        ids = [parcel.row.id for parcel in holding[0] if parcel.row.lane == session]
        assert ids == sorted(ids)


def _parcel(number: int, lane: str) -> _Parcel:
    return _Parcel(OutboxRow(number, "e", "x", "/x", lane, b"", b"", b"", 0, 0, None), "/x", b"")


def test_close_lets_a_lane_finish_only_the_request_it_is_at(office: Office) -> None:
    """The rest of its session waits for whoever delivers next."""
    asked, go_on = threading.Event(), threading.Event()

    def answer(path: str, body: dict[str, Any], event_id: str | None) -> Result:
        if event_id == "first":
            return Delivered()
        asked.set()
        go_on.wait(TIMEOUT)
        return Delivered()

    office.tracker.answer = answer
    office.put("first")
    office.deliver()
    for number in range(5):
        office.put(f"e{number}")
    office.delivery.step()
    assert asked.wait(TIMEOUT)
    office.delivery.close()
    go_on.set()
    office.delivery.join(TIMEOUT)
    assert [office.tracker.event_ids, len(office.pending)] == [["first", "e0"], 5]


# --- a disk that refuses ------------------------------------------------------------------------------------


def test_an_answer_that_cannot_be_noted_is_noted_later_and_nothing_is_sent_again(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk makes no duplicates."""

    def refuse() -> AbstractContextManager[None]:
        raise sqlite3.OperationalError("database or disk is full")

    office.put("a")
    with monkeypatch.context() as disk:
        disk.setattr(office.state, "transaction", refuse)
        for _ in range(3):
            with pytest.raises(sqlite3.OperationalError):
                office.deliver()
        assert office.delivery.in_flight
    office.deliver()
    assert [office.tracker.event_ids, office.pending, office.state.counts().delivered] == [["a"], [], 1]


def test_a_row_that_cannot_be_read_is_dead_lettered(office: Office) -> None:
    """Another release wrote it; delivery goes on."""
    office.tracker.offers = PLAIN
    office.put("odd", Event.CONVERSATION_TURN)
    office.put("a")
    office.deliver()
    assert [list(office.dead), "KeyError" in str(office.dead["odd"]), office.pending] == [["odd"], True, []]


# --- trackers that take no turns ----------------------------------------------------------------------------


@pytest.fixture
def plain(office: Office) -> Office:
    """An office for a tracker that offers nothing."""
    office.tracker.offers = PLAIN
    return office


def test_turns_go_with_the_end_of_their_session(plain: Office) -> None:
    """Each is delivered once it is in the roll-up."""
    for number in range(3):
        plain.turn(f"t{number}")
    plain.turn("other", lane="other")
    plain.deliver()
    assert [plain.tracker.requests, plain.state.counts().delivered] == [[], 4]
    plain.end("end")
    plain.deliver()
    path, body = plain.tracker.last
    assert [path, body["metadata"]["agent_tracker"]["turns"]] == [END, 3]
    assert [plain.state.roll_up("s"), plain.state.roll_up("other")] == [None, RollUp.from_json(_one_turn())]


def _one_turn() -> dict[str, Any]:
    roll_up = RollUp()
    roll_up.add({"duration_seconds": 1.0, "status": "ok"})
    return roll_up.to_json()


def test_turns_that_come_while_the_end_is_under_way_are_the_next_ends(plain: Office) -> None:
    """A new conversation of the session is not robbed of its turns by the delivery of the last one's end."""
    plain.tracker.answer = refusing(Retry("down"), "end1")
    plain.turn("t1")
    plain.end("end1")
    plain.turn("t2")
    plain.turn("t3")
    plain.deliver()
    plain.wait(1.0)
    plain.tracker.answer = always(Delivered())
    plain.wait(10.0)
    plain.end("end2", start=1.0)
    plain.deliver()
    turns = {
        event_id: body["metadata"]["agent_tracker"]["turns"] for _, body, event_id in plain.tracker.requests
    }
    assert turns == {"end1": 1, "end2": 2}


def test_a_roll_up_goes_with_the_end_also_when_turns_are_offered_by_then(plain: Office) -> None:
    """What was rolled up before the tracker's upgrade is not lost, nor after a restart."""
    plain.turn("t1")
    plain.deliver()
    plain.delivery.close()
    plain.tracker.offers = SINGLE
    plain.reopen()
    plain.turn("t2")
    plain.end("end")
    plain.deliver()
    assert plain.tracker.event_ids == ["t2", "end"]
    assert plain.tracker.last[1]["metadata"]["agent_tracker"]["turns"] == 1


def test_the_form_is_chosen_again_when_capabilities_change(plain: Office) -> None:
    """Asked every ten minutes, a tracker that was upgraded gets turns as turns."""
    plain.turn("t1")
    plain.deliver()
    plain.tracker.offers = BATCH
    plain.now += 601.0
    plain.turn("t2")
    plain.deliver()
    assert plain.tracker.event_ids == ["t2"]


# --- trackers that take no feedback -------------------------------------------------------------------------


def test_feedback_before_the_end_goes_with_the_end(plain: Office) -> None:
    """It waits for as long as the session is open, and is delivered when the end is."""
    plain.open()
    plain.feedback("f", 4)
    plain.wait(30 * HOUR)
    assert [plain.pending, plain.tracker.requests] == [["f"], []]
    plain.end("end")
    plain.deliver()
    assert [plain.tracker.event_ids, plain.tracker.last[1]["quality_score"], plain.pending] == [
        ["end"],
        4,
        [],
    ]
    assert plain.state.counts().delivered == 2


def test_feedback_stays_if_its_end_is_refused_for_now(plain: Office) -> None:
    """Both go when the end goes."""
    plain.tracker.answer = always(Retry("down"))
    plain.feedback("f", 4)
    plain.end("end")
    plain.deliver()
    assert plain.pending == ["f", "end"]
    plain.tracker.answer = always(Delivered())
    plain.wait(10.0)
    assert [plain.pending, plain.tracker.last[1]["quality_score"]] == [[], 4]


def test_feedback_after_the_end_is_a_second_end(plain: Office) -> None:
    """With the original outcome and times."""
    plain.now = 60.0
    plain.end("end")
    plain.deliver()
    plain.now = 90.0
    plain.feedback("f", 2)
    plain.deliver()
    path, body = plain.tracker.last
    assert [plain.tracker.event_ids, path, body["quality_score"]] == [["end", "f"], END, 2]
    assert [body["status"], body["end_time"]] == ["completed", "2024-01-19T12:01:00.000000Z"]


@pytest.mark.parametrize("offers", [PLAIN, Capabilities(batch=BATCH.batch)])
def test_feedback_after_an_end_that_is_not_sent_yet_follows_it(office: Office, offers: Capabilities) -> None:
    """Whoever rates after the end has the last word, as soon as the end is there."""
    office.tracker.offers = offers
    office.end("end", quality_score=5)
    office.now = 10.0
    office.feedback("f", 2)
    office.deliver()
    sent = [(path, event_id, body["quality_score"]) for path, body, event_id in office.tracker.requests]
    assert [sent, office.pending] == [[(END, "end", 5), (END, "f", 2)], []]


def test_feedback_for_the_next_conversation_waits_for_its_end(plain: Office) -> None:
    """It does not end the one before a second time."""
    plain.end("end1")
    plain.deliver()
    plain.now = 100.0
    plain.open()
    plain.feedback("f", 3)
    plain.wait(100.0)
    assert [plain.pending, plain.tracker.event_ids] == [["f"], ["end1"]]
    plain.end("end2", start=100.0)
    plain.deliver()
    assert [plain.tracker.event_ids, plain.tracker.last[1]["quality_score"]] == [["end1", "end2"], 3]


def test_a_second_end_by_call_is_not_sent_to_a_tracker_without_rules(plain: Office) -> None:
    """Two processes ended a conversation; the later end has no effect, and is done with."""
    plain.end("first")
    plain.now = 1.0
    plain.end("second")
    plain.deliver()
    assert [plain.tracker.event_ids, plain.pending, plain.state.counts().delivered] == [["first"], [], 2]


def test_a_second_end_by_call_is_sent_to_a_tracker_that_has_the_rules(office: Office) -> None:
    """It decides, and may know what lies between."""
    office.tracker.offers = SINGLE
    office.end("first")
    office.now = 1.0
    office.end("second")
    office.deliver()
    assert office.tracker.event_ids == ["first", "second"]


def test_feedback_for_a_session_that_nobody_knows_waits_for_a_day(plain: Office) -> None:
    """Then it is a dead letter."""
    plain.feedback("f", 3)
    plain.wait(23.9 * HOUR)
    assert [plain.pending, plain.dead] == [["f"], {}]
    plain.wait(0.2 * HOUR)
    assert [plain.pending, list(plain.dead)] == [[], ["f"]]


def test_waiting_feedback_does_not_hold_up_others(plain: Office) -> None:
    """However much of it there is."""
    for number in range(300):
        plain.feedback(f"f{number}", 3, lane=f"s{number}")
    plain.put("a")
    plain.deliver()
    assert plain.tracker.event_ids == ["a"]


# --- heartbeats and OTLP ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("offers", "sent"), [(SINGLE, 1), (PLAIN, 0)])
def test_heartbeats_are_sent_where_they_are_wanted(office: Office, offers: Capabilities, sent: int) -> None:
    """And are never kept."""
    office.tracker.offers = offers
    office.put("a")
    office.deliver()
    office.delivery.send_heartbeats([b"{}"])
    office.deliver()
    assert [path for path, *_ in office.tracker.requests].count("/agents/heartbeat") == sent
    assert office.state.counts().accepted == 1


def test_no_heartbeat_goes_while_the_channel_is_closed(office: Office) -> None:
    """Before the first event, and while trouble lasts."""
    office.delivery.send_heartbeats([b"{}"])
    office.put("a")
    office.tracker.answer = always(Retry("down"))
    office.deliver()
    office.delivery.send_heartbeats([b"{}"])
    assert [path for path, *_ in office.tracker.requests] == [START]


def test_an_otlp_endpoint_gets_encoded_spans_joined() -> None:
    """One post for many events, by the same rules."""
    posts: list[bytes] = []
    closed: list[bool] = []

    def post(body: bytes) -> Result:
        posts.append(body)
        return Refused(400, "bad") if b"<b>" in body else Delivered()

    office = Office(otlp=OtlpSender(post, lambda: closed.append(True)))
    for event_id in "abc":
        office.put(event_id)
    office.deliver()
    assert [posts, office.dead] == [[b"<a><b><c>", b"<a>", b"<b><c>", b"<b>", b"<c>"], {"b": "400 bad"}]
    office.close()
    OtlpSender(post, lambda: closed.append(True)).close()
    assert closed == [True]
