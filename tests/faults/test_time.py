"""Clocks that jump, machines that sleep, processes that begin anew, and a TTL that changes."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from otel_agent_tracker import AgentPerformanceTracker
from otel_agent_tracker.client import TrackerClient
from otel_agent_tracker.clock import SYSTEM_CLOCK, Clock
from otel_agent_tracker.config import Config
from otel_agent_tracker.pipeline import Pipeline, substitute
from otel_agent_tracker.queries import session as question
from otel_agent_tracker.server.run import Server
from otel_agent_tracker.testing import RecordingSender
from tests.conftest import MakeTracker
from tests.faults.lives import Clocks, Life, on_one_thread

HOUR, DAY = 3600.0, 86_400.0
EXPIRED = "/conversations/expired"

Begin = Callable[..., AgentPerformanceTracker]


@pytest.fixture
def clocks() -> Clocks:
    return Clocks()


@pytest.fixture
def begin(tracker_server: Server, tmp_path: Path, clocks: Clocks) -> Iterator[Begin]:
    """Begins a process on one state folder, a real tracker and clocks of the test; the one before has ended."""
    with ExitStack() as stack:

        def begin(clock: Clock = clocks.clock, **options: Any) -> AgentPerformanceTracker:
            stack.close()
            config = Config(
                url=tracker_server.url, state_dir=tmp_path, **{"flush_timeout_seconds": 0.1, **options}
            )
            pipeline = Pipeline(config, clock=clock)
            stack.callback(pipeline.close)
            stack.callback(substitute, None)
            substitute(pipeline)
            return stack.enter_context(AgentPerformanceTracker())

        yield begin


@pytest.fixture
def told(tracker_server: Server) -> Iterator[Callable[[str], dict[str, Any]]]:
    """What the tracker tells of a session."""
    client = TrackerClient(tracker_server.url)
    yield lambda session: client.get(*question(session)) or {}
    client.close()


Told = Callable[[str], dict[str, Any]]


def outcome_of(told: dict[str, Any]) -> tuple[Any, ...]:
    return told["status"], told["ended_by"], len(told["episodes"]), told["turns"]


@pytest.fixture
def _one_thread() -> Iterator[None]:
    with on_one_thread():
        yield


# --- clocks -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("days", [-1, 1])
def test_fault_34_a_wall_clock_that_jumps_ends_nothing_early_and_nothing_late(
    begin: Begin, told: Told, clocks: Clocks, days: int
) -> None:
    """A session that was open when the wall clock was set lives for its TTL, no less and no longer. What is said
    afterwards has the time that the wall clock shows, but no end is before its start; and it belongs to the
    conversation in which it was said."""
    tracker = begin()
    left, ended = tracker.start_conversation("bot"), tracker.start_conversation("bot")
    assert tracker.flush()
    clocks.set_wall(days * DAY)
    with tracker.turn(ended):
        pass
    clocks.advance(9 * HOUR)
    assert tracker.flush()
    assert [tracker.get_live_session(session) is not None for session in (left, ended)] == [True, True]
    assert tracker.end_conversation(ended, 5)
    clocks.advance(2 * HOUR)
    assert tracker.flush()
    assert outcome_of(told(left)) == ("expired", "ttl", 1, 0)
    assert outcome_of(told(ended)) == ("completed", "call", 1, 1)
    times = told(ended)["start_time"], told(ended)["end_time"]
    assert times[0] <= times[1]
    assert [time[:10] for time in times] == ["2024-01-19", "2024-01-19" if days < 0 else "2024-01-21"]


@pytest.mark.parametrize("counts_sleep", [True, False])
def test_fault_35_a_machine_that_sleeps_expires_a_session_once(
    begin: Begin, told: Told, clocks: Clocks, counts_sleep: bool
) -> None:
    """Linux's boot-time clock counts sleep: a session whose TTL is over when the machine wakes has expired. Where
    the system's clock stops during sleep, sessions live on for what they had left. They expire once either way."""
    tracker = begin(session_ttl_hours=1)
    session = tracker.start_conversation("bot")
    assert tracker.flush()
    if counts_sleep:
        clocks.advance(2 * HOUR)
    else:
        clocks.set_wall(2 * HOUR)
    assert tracker.is_session_active(session) is not counts_sleep
    for _ in range(3):
        assert tracker.flush()
        clocks.advance(0.9 * HOUR)
    assert outcome_of(told(session)) == ("expired", "ttl", 1, 0)
    stats = tracker.delivery_stats()
    assert (stats["accepted"], stats["delivered"]) == (2, 2)


# --- restarts -----------------------------------------------------------------------------------------------

KILLED = """
import os, signal, sys
from otel_agent_tracker import AgentPerformanceTracker
tracker = AgentPerformanceTracker(sys.argv[1], state_dir=sys.argv[2])
print(*[tracker.start_conversation("bot") for _ in range(20)], flush=True)
assert tracker.flush(20)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize(("hours", "outcome"), [(1, ("active", None, 1, 0)), (11, ("expired", "ttl", 1, 0))])
def test_fault_36_sessions_outlive_a_killed_process_and_expire_once(
    begin: Begin, told: Told, tracker_server: Server, tmp_path: Path, hours: int, outcome: tuple[Any, ...]
) -> None:
    """Sessions that were live when the process was killed are live in the next one, with the time they had left.
    Those whose TTL ran out while no process ran are told to have expired, once."""
    command = [sys.executable, "-c", KILLED, tracker_server.url, str(tmp_path)]
    killed = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    sessions = killed.stdout.split()
    assert (killed.returncode, len(sessions)) == (-9, 20), killed.stderr
    later = Clock(
        time_ns=lambda: SYSTEM_CLOCK.time_ns() + hours * 3600 * 10**9,
        monotonic=lambda: SYSTEM_CLOCK.monotonic() + hours * HOUR,
    )
    for _ in range(2):
        tracker = begin(later)
        tracker.start_conversation("bot")
        assert tracker.flush()
        assert {outcome_of(told(session)) for session in sessions} == {outcome}
        live = [tracker.get_live_session(session) is not None for session in sessions]
        assert live == [hours < 10] * 20
    assert tracker.delivery_stats()["accepted"] == 22 + 20 * (hours > 10)


@pytest.fixture
def lives(tmp_path: Path, clocks: Clocks, _one_thread: None) -> Iterator[Callable[[], Life]]:
    """Gives birth to processes: each finds what the one before had on disk when it was killed."""
    numbers, born, sender = count(), list[Life](), RecordingSender()

    def next_life() -> Life:
        folder = tmp_path / str(next(numbers))
        if born:
            born[-1].die(folder)
        born.append(Life(folder, clocks, sender))
        return born[-1]

    yield next_life
    born[-1].bury()


def test_fault_36_a_turn_that_only_the_journal_holds_counts_after_a_kill(
    lives: Callable[[], Life], clocks: Clocks
) -> None:
    """A process that is killed just after a turn has shown life: in the next process the session lives for its TTL
    from then on, and its end is one that the tracker counts."""
    life = lives()
    session = life.tracker.start_conversation("bot")
    life.step()
    clocks.advance(9 * HOUR)
    with life.tracker.turn(session):
        pass
    life = lives()
    life.step()
    clocks.advance(9 * HOUR)
    life.step()
    info = life.tracker.get_live_session(session)
    assert info is not None
    assert info.turns == 1


def test_fault_36_41_an_end_that_only_the_journal_holds_is_known_after_a_kill(
    lives: Callable[[], Life],
) -> None:
    """A conversation ended just before a kill has ended for the next process too: it ends it no second time."""
    life = lives()
    session = life.tracker.start_conversation("bot")
    life.step()
    assert life.tracker.end_conversation(session, 5)
    life = lives()
    life.step()
    assert not life.tracker.record_failed_session(session, "too late")


# --- the TTL ------------------------------------------------------------------------------------------------


def test_fault_37_a_changed_ttl_holds_for_sessions_that_are_open(
    begin: Begin, told: Told, clocks: Clocks
) -> None:
    """A TTL that is lowered ends what is idle for longer, at the next look; one that is raised lets it live on."""
    tracker = begin()
    idle, busy = tracker.start_conversation("bot"), tracker.start_conversation("bot")
    clocks.advance(5 * HOUR)
    assert tracker.is_session_active(busy)
    tracker.set_session_ttl(4.5)
    assert tracker.flush()
    assert (outcome_of(told(idle))[0], outcome_of(told(busy))[0]) == ("expired", "active")
    tracker.set_session_ttl(100)
    clocks.advance(99 * HOUR)
    assert tracker.is_session_active(busy)


@pytest.mark.parametrize("hours", [0, -1, math.nan, math.inf, -math.inf, 10**400])
def test_fault_37_a_ttl_that_is_none_is_refused(
    make_tracker: MakeTracker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, hours: float
) -> None:
    """Zero, a negative number, NaN or infinity raises in code and changes nothing. From the environment it is one
    line in the log that names the variable, and the default holds."""
    with pytest.raises(ValueError, match="hours"):
        make_tracker(session_ttl_hours=hours)
    monkeypatch.setenv("AGENT_TRACKER_SESSION_TTL_HOURS", str(hours) if hours != 10**400 else "1e400")
    tracker = make_tracker()
    with pytest.raises(ValueError, match="hours"):
        tracker.set_session_ttl(hours)
    assert tracker.get_session_stats()["ttl_hours"] == 10.0
    errors = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert len(errors) == 1
    assert "AGENT_TRACKER_SESSION_TTL_HOURS" in errors[0]
