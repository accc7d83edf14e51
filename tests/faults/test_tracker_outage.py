"""The tracker is away, overloaded or ill: everything waits, and goes when it is back."""

from __future__ import annotations

import threading
import time
from email.utils import formatdate
from itertools import pairwise
from pathlib import Path

import pytest

from tests.conftest import MakeTracker
from tests.faults.trackers import (
    IN_ORDER,
    Scripted,
    books,
    converse,
    free_port,
    is_event,
    on_clock,
    pass_until,
    paths_by_session,
    well,
)
from tests.hosts import StandingClock
from tests.scripted_server import Action, ReceivedRequest, ScriptedServer, reply, respond
from tests.waiting import wait_until

# --- away ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batches", [True, False])
def test_fault_01_events_wait_for_a_tracker_that_comes_later(tmp_path: Path, batches: bool) -> None:
    """Without a tracker the application starts and works; when one is there, all events arrive, once, in order
    within each session."""
    port, clock, scripted = free_port(), StandingClock(), Scripted(batches=batches)
    with on_clock(clock, f"http://127.0.0.1:{port}", tmp_path) as tracker:
        sessions = converse(tracker, 334)
        assert not tracker.flush(0.2)
        assert books(tracker) == (1002, 0, 1002, 0, 0)
        with ScriptedServer(respond(scripted.answer), port=port):
            pass_until(clock, lambda: tracker.flush(1))
        assert books(tracker) == (1002, 1002, 0, 0, 0)
    assert paths_by_session(scripted.accepted) == dict.fromkeys(sessions, IN_ORDER)


class WatchedClock(StandingClock):
    """A clock that says when the worker has looked at it."""

    def __init__(self) -> None:
        super().__init__()
        self.looked = threading.Event()
        tell = self.clock.monotonic

        def monotonic() -> float:
            if threading.current_thread().name == "otel-agent-tracker":
                self.looked.set()
            return tell()

        self.clock = type(self.clock)(time_ns=self.clock.time_ns, monotonic=monotonic)


def test_fault_02_an_hour_of_outage_costs_few_requests(tmp_path: Path) -> None:
    """A process tries fewer than 200 times an hour, at random moments, however much waits and comes."""
    clock, tried = WatchedClock(), list[int]()

    def refuse(request: ReceivedRequest) -> Action:
        tried.append(clock.time_us // 1_000_000)
        return reply(503)

    with ScriptedServer(respond(refuse)) as server, on_clock(clock, server.url, tmp_path) as tracker:
        for second in range(0, 3600, 2):
            clock.time_us += 2_000_000
            if second % 200 == 0:
                converse(tracker, 1)
            clock.looked.clear()
            tracker.flush(0.001)
            assert clock.looked.wait(10)
        assert books(tracker) == (54, 0, 54, 0, 0)
    assert 40 <= len(tried) < 200
    assert len({after - before for before, after in pairwise(tried)}) > 8


@pytest.mark.parametrize("hours", [1, 72])
def test_fault_02_nothing_is_given_up_for_its_age(tmp_path: Path, hours: int) -> None:
    """However long the tracker is away, what was accepted arrives within two minutes of its return, each event
    once."""
    clock, port, scripted = StandingClock(), free_port(), Scripted()
    with on_clock(clock, f"http://127.0.0.1:{port}", tmp_path, session_ttl_hours=100) as tracker:
        sessions = converse(tracker, 5)
        for _ in range(18):
            clock.time_us += hours * 200 * 1_000_000
            sessions += converse(tracker, 1)
            assert not tracker.flush(0.03)
        assert books(tracker) == (69, 0, 69, 0, 0)
        assert tracker.delivery_stats()["oldest_pending_seconds"] >= hours * 3600
        with ScriptedServer(respond(scripted.answer), port=port):
            back_us = clock.time_us
            pass_until(clock, lambda: tracker.flush(5), step_seconds=60)
            assert clock.time_us - back_us <= 120 * 1_000_000
        assert books(tracker) == (69, 69, 0, 0, 0)
    assert paths_by_session(scripted.accepted) == dict.fromkeys(sessions, IN_ORDER)


def test_fault_02_new_events_do_not_wait_for_the_end_of_the_backlog(tmp_path: Path) -> None:
    """After an outage the backlog is delivered in full batches; what is accepted meanwhile is delivered within a few
    requests, not after it."""
    clock, port, scripted = StandingClock(), free_port(), Scripted(max_events=100)
    accepted_at: dict[str, int] = {}

    def call_meanwhile(request: ReceivedRequest) -> None:
        if request.path == "/batch" and len(scripted.accepted) in (400, 800):
            (session,) = converse(tracker, 1)
            accepted_at[session] = len(scripted.accepted)

    scripted.trouble = call_meanwhile
    with on_clock(clock, f"http://127.0.0.1:{port}", tmp_path) as tracker:
        sessions = converse(tracker, 1_000)
        assert not tracker.flush(0.2)
        with ScriptedServer(respond(scripted.answer), port=port) as server:
            pass_until(clock, lambda: tracker.flush(20))
            batches = [request for request in server.requests if is_event(request)]
    assert len(accepted_at) == 2
    for session, before in accepted_at.items():
        places = [place for place, event in enumerate(scripted.accepted) if event.session == session]
        assert max(places) < before + 1_000
    assert len(batches) <= 3_006 // 100 + 2
    assert paths_by_session(scripted.accepted) == dict.fromkeys([*sessions, *accepted_at], IN_ORDER)


# --- ill ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batches", [True, False])
@pytest.mark.parametrize("status", [500, 502, 503, 504, 408, 425])
def test_fault_03_trouble_that_passes_is_waited_out(tmp_path: Path, status: int, batches: bool) -> None:
    """Answers that say "later" lose nothing, however often they come; the first answer that is well ends the wait."""
    clock, scripted = StandingClock(), Scripted(batches=batches)
    scripted.trouble = lambda request: reply(status) if is_event(request) else None
    with ScriptedServer(respond(scripted.answer)) as server, on_clock(clock, server.url, tmp_path) as tracker:
        sessions = converse(tracker, 2)
        pass_until(clock, lambda: tracker.flush(0.01) or len(server.requests) > 12, step_seconds=3600)
        assert books(tracker) == (6, 0, 6, 0, 0)
        scripted.trouble = well
        pass_until(clock, lambda: tracker.flush(0.5))
        assert books(tracker) == (6, 6, 0, 0, 0)
    assert paths_by_session(scripted.accepted) == dict.fromkeys(sessions, IN_ORDER)


OWN_BACK_OFF = 0.0


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("7", 7),
        ("120", 120),
        ("3600", 3600),
        ("3601", 3600),
        ("1000000000", 3600),
        ("9" * 400, 3600),
        ("in 90 s", 90),
        ("in a year", 3600),
        ("a minute ago", OWN_BACK_OFF),
        ("-5", OWN_BACK_OFF),
        ("abc", OWN_BACK_OFF),
        ("1.5", OWN_BACK_OFF),
        ("", OWN_BACK_OFF),
        ("Fri, 99 Foo 2024 99:99:99 GMT", OWN_BACK_OFF),
    ],
)
def test_fault_04_the_tracker_says_how_long_to_wait(tmp_path: Path, value: str, seconds: float) -> None:
    """`Retry-After` holds for the whole channel, up to an hour; nonsense in its place is a failure like others. New
    events are accepted meanwhile."""
    dates = {"in 90 s": 90, "in a year": 365 * 86400, "a minute ago": -60}
    header = formatdate(time.time() + dates[value], usegmt=True) if value in dates else value
    clock, scripted = StandingClock(), Scripted(batches=False)
    scripted.trouble = lambda request: (
        reply(429, headers={"Retry-After": header}) if is_event(request) else None
    )
    with ScriptedServer(respond(scripted.answer)) as server, on_clock(clock, server.url, tmp_path) as tracker:
        sessions = converse(tracker, 1)
        server.wait_for_requests(2)
        wait_until(lambda: not tracker.flush(0.05))
        scripted.trouble = well
        clock.time_us += int(seconds * 0.9 * 1e6)
        sessions += converse(tracker, 1)
        if seconds:
            assert not tracker.flush(0.1)
            assert len(server.requests) == 2
        clock.time_us += int((seconds * 0.1 + 1.1) * 1e6)
        assert tracker.flush(10)
        assert books(tracker) == (6, 6, 0, 0, 0)
    assert paths_by_session(scripted.accepted) == dict.fromkeys(sessions, IN_ORDER)


def test_fault_04_each_session_waits_when_one_is_told_to(make_tracker: MakeTracker) -> None:
    """Eight requests are under way at most; once one of them is answered 429, no other follows."""
    scripted = Scripted(batches=False)

    def busy(request: ReceivedRequest) -> Action | None:
        return reply(429, headers={"Retry-After": "3600"}) if len(server.requests) > 20 else None

    scripted.trouble = busy
    with ScriptedServer(respond(scripted.answer)) as server:
        tracker = make_tracker(server.url)
        converse(tracker, 100)
        assert not tracker.flush(0.5)
        server.wait_for_requests(21)
        assert not tracker.flush(0.5)
        assert len(server.requests) <= 20 + 8
        converse(tracker, 1)
        stats = tracker.delivery_stats()
        assert (stats["accepted"], stats["dead_lettered"], stats["dropped"]) == (303, 0, 0)
