"""Rules of `sessions`: who is live, who ends, and that everyone ends once."""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from threading import Barrier, Event, Thread

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from otel_agent_tracker import sessions as sessions_module
from otel_agent_tracker.clock import Clock
from otel_agent_tracker.semconv import EndedBy, Origin, TurnStatus
from otel_agent_tracker.sessions import Expired, SessionMap

TTL, IDLE = 100.0, 10.0
START_US = 1_000_000_000


class FakeClock:
    """Two clocks that stand still until they are moved."""

    def __init__(self) -> None:
        self.wall_us = START_US
        self.seconds = 50.0
        self.within: Callable[[], None] | None = None
        self.clock = Clock(time_ns=lambda: self.wall_us * 1000, monotonic=self._monotonic)

    def step(self, seconds: float) -> None:
        """Let time pass on both clocks."""
        self.seconds += seconds
        self.wall_us += round(seconds * 1e6)

    def _monotonic(self) -> float:
        if (within := self.within) is not None:
            self.within = None
            within()
        return self.seconds


@pytest.fixture(name="time")
def _time() -> FakeClock:
    return FakeClock()


@pytest.fixture(name="sessions")
def _sessions(time: FakeClock) -> SessionMap:
    return map_of(time)


def map_of(time: FakeClock, max_sessions: int = 1_000) -> SessionMap:
    """An empty map with the windows of these tests."""
    return SessionMap(ttl_seconds=TTL, idle_seconds=IDLE, max_sessions=max_sessions, clock=time.clock)


def open_call(sessions: SessionMap, session_id: str, start_us: int = START_US) -> bool:
    """Open a session by call."""
    return sessions.open(session_id, "agent", start_us=start_us)


def open_recognised(sessions: SessionMap, session_id: str, start_us: int = START_US) -> bool:
    """Open a session that was found in other people's spans."""
    return sessions.open(session_id, "agent", origin=Origin.RECOGNISED, start_us=start_us)


def add_turn(
    sessions: SessionMap,
    session_id: str,
    turn_id: str = "t",
    status: TurnStatus = TurnStatus.OK,
    end_us: int = 0,
) -> bool:
    """A turn of one second."""
    return sessions.turn(session_id, turn_id=turn_id, seconds=1.0, status=status, end_us=end_us or START_US)


def told(expired: list[Expired]) -> list[tuple[str, EndedBy, float]]:
    """What a sweep says of each session."""
    return [(one.session.session_id, one.ended_by, one.window_seconds) for one in expired]


# --- windows --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [0, -1.0, math.nan, math.inf])
def test_windows_must_be_finite_and_above_0(time: FakeClock, sessions: SessionMap, seconds: float) -> None:
    """A window that makes no sense is refused, and the one there was stands."""
    with pytest.raises(ValueError, match="ttl_seconds"):
        sessions.ttl_seconds = seconds
    with pytest.raises(ValueError, match="idle_seconds"):
        sessions.idle_seconds = seconds
    with pytest.raises(ValueError, match="ttl_seconds"):
        SessionMap(ttl_seconds=seconds, idle_seconds=1, max_sessions=1, clock=time.clock)
    assert (sessions.ttl_seconds, sessions.idle_seconds) == (TTL, IDLE)


def test_a_map_holds_at_least_one_session(time: FakeClock) -> None:
    """A bound below 1 is refused."""
    with pytest.raises(ValueError, match="max_sessions"):
        map_of(time, max_sessions=0)


def test_a_session_lives_until_its_ttl_has_passed(time: FakeClock, sessions: SessionMap) -> None:
    """At the deadline it is expired for every reader; until it is swept it is in the map."""
    open_call(sessions, "s")
    time.step(TTL - 1)
    assert sessions.get("s") is not None
    time.step(1)
    assert sessions.get("s") is None
    assert not sessions.touch("s")
    assert not add_turn(sessions, "s")
    assert sessions.remaining_seconds("s") is None
    assert sessions.take("s") is None
    assert "s" in sessions
    assert told(sessions.sweep()) == [("s", EndedBy.TTL, TTL)]
    assert "s" not in sessions


@pytest.mark.parametrize(
    "access",
    [
        lambda sessions: sessions.touch("s"),
        lambda sessions: add_turn(sessions, "s"),
        lambda sessions: sessions.remaining_seconds("s"),
        lambda sessions: open_call(sessions, "s"),
    ],
)
def test_the_ttl_slides(
    time: FakeClock, sessions: SessionMap, access: Callable[[SessionMap], object]
) -> None:
    """A touch, a turn, the question for the time left and another start reset it."""
    open_call(sessions, "s")
    time.step(TTL - 1)
    access(sessions)
    time.step(TTL - 1)
    assert sessions.touch("s")


def test_a_look_does_not_reset_the_ttl(time: FakeClock, sessions: SessionMap) -> None:
    """`get` leaves the deadline where it is."""
    open_call(sessions, "s")
    time.step(TTL - 1)
    assert sessions.get("s") is not None
    time.step(1)
    assert sessions.get("s") is None


def test_the_time_left_is_that_before_its_own_reset(time: FakeClock, sessions: SessionMap) -> None:
    """`remaining_seconds` answers what was left of the TTL, for recognised ones too, then starts anew."""
    open_recognised(sessions, "s")
    time.step(4)
    assert sessions.remaining_seconds("s") == TTL - 4
    assert sessions.remaining_seconds("s") == TTL


def test_a_recognised_session_ends_when_idle(time: FakeClock, sessions: SessionMap) -> None:
    """Nobody will end it, so the idle window does."""
    open_recognised(sessions, "s")
    time.step(IDLE)
    assert told(sessions.sweep()) == [("s", EndedBy.IDLE, IDLE)]


@pytest.mark.parametrize("idle", [TTL, TTL * 2])
def test_the_ttl_ends_a_recognised_session_if_it_is_not_longer(
    time: FakeClock, sessions: SessionMap, idle: float
) -> None:
    """Whichever window comes first ends the session; of two equal ones the TTL."""
    sessions.idle_seconds = idle
    open_recognised(sessions, "s")
    time.step(TTL)
    assert told(sessions.sweep()) == [("s", EndedBy.TTL, TTL)]


def test_waiting_suspends_idle_until_the_next_turn(time: FakeClock, sessions: SessionMap) -> None:
    """A human who was asked may take as long as the TTL."""
    open_recognised(sessions, "s")
    add_turn(sessions, "s", "1", TurnStatus.WAITING)
    time.step(IDLE * 2)
    assert sessions.touch("s")
    add_turn(sessions, "s", "2")
    time.step(IDLE)
    assert told(sessions.sweep()) == [("s", EndedBy.IDLE, IDLE)]


def test_the_ttl_runs_while_a_session_waits(time: FakeClock, sessions: SessionMap) -> None:
    """Waiting suspends the idle window alone."""
    open_recognised(sessions, "s")
    add_turn(sessions, "s", "1", TurnStatus.WAITING)
    time.step(TTL)
    assert told(sessions.sweep()) == [("s", EndedBy.TTL, TTL)]


def test_a_lower_ttl_holds_at_once(time: FakeClock, sessions: SessionMap) -> None:
    """Sessions that are there already obey the new window."""
    open_call(sessions, "s")
    time.step(5)
    sessions.ttl_seconds = 5
    assert sessions.get("s") is None
    assert told(sessions.sweep()) == [("s", EndedBy.TTL, 5)]


def test_a_jump_of_the_wall_clock_ends_nothing(time: FakeClock, sessions: SessionMap) -> None:
    """Deadlines are the monotonic clock's."""
    open_call(sessions, "s")
    time.wall_us += 10**15
    assert sessions.touch("s")
    time.wall_us -= 10**16
    assert sessions.touch("s")


# --- what a session holds -------------------------------------------------------------------------------


def test_a_touch_is_an_activity(time: FakeClock, sessions: SessionMap) -> None:
    """It moves the last activity to its own time, whenever that is asked for."""
    open_call(sessions, "s")
    time.step(3)
    sessions.touch("s")
    time.step(4)
    session = sessions.get("s")
    assert session is not None
    assert (session.last_activity_us, session.last_access) == (START_US + 3_000_000, time.seconds - 4)


def test_an_activity_does_not_step_back(time: FakeClock, sessions: SessionMap) -> None:
    """The wall clock may; then the latest activity stays."""
    sessions.open("s", "agent", start_us=START_US, last_activity_us=START_US + 1)
    time.wall_us -= 1_000_000
    sessions.touch("s")
    session = sessions.get("s")
    assert session is not None
    assert session.last_activity_us == START_US + 1


def test_a_turn_is_an_activity_until_its_end(sessions: SessionMap) -> None:
    """The last activity is the latest end of a turn, not its arrival."""
    open_call(sessions, "s")
    add_turn(sessions, "s", "1", end_us=START_US + 7)
    add_turn(sessions, "s", "2", end_us=START_US + 5)
    session = sessions.get("s")
    assert session is not None
    assert (session.last_activity_us, session.turns) == (START_US + 7, 2)


def test_a_repeated_turn_changes_nothing(time: FakeClock, sessions: SessionMap) -> None:
    """A span that comes twice is no sign of life."""
    open_call(sessions, "s")
    assert add_turn(sessions, "s")
    before = sessions.get("s")
    time.step(1)
    assert not add_turn(sessions, "s", status=TurnStatus.FAILED)
    assert sessions.get("s") == before


def test_an_unknown_session_is_not_made_up(sessions: SessionMap) -> None:
    """Only `open` and `load` make sessions."""
    assert sessions.get("s") is None
    assert not sessions.touch("s")
    assert not add_turn(sessions, "s")
    assert sessions.take("s") is None
    assert sessions.remaining_seconds("s") is None
    assert sessions.dump("s") is None
    assert len(sessions) == 0


def test_a_second_start_fills_in(sessions: SessionMap) -> None:
    """A start by call makes a recognised session one by call, with its start; the user is filled in."""
    open_recognised(sessions, "s")
    assert not sessions.open("s", "other", user_id="u", start_us=START_US + 5)
    session = sessions.get("s")
    assert session is not None
    assert (session.agent_id, session.user_id, session.origin) == ("agent", "u", Origin.CALL)
    assert session.start_us == START_US + 5


def test_a_start_by_call_is_not_undone(sessions: SessionMap) -> None:
    """Recognising a session that was started by call changes neither its origin nor its start."""
    open_call(sessions, "s")
    open_recognised(sessions, "s", START_US + 5)
    session = sessions.get("s")
    assert session is not None
    assert (session.origin, session.start_us) == (Origin.CALL, START_US)


# --- ends -----------------------------------------------------------------------------------------------


def test_one_caller_takes_a_session(sessions: SessionMap) -> None:
    """Who comes second gets nothing, and neither does a sweep."""
    open_call(sessions, "s")
    session = sessions.take("s")
    assert session is not None
    assert session.session_id == "s"
    assert sessions.take("s") is None
    assert sessions.sweep() == []


def test_an_end_of_before_its_start_does_not_take_a_session(sessions: SessionMap) -> None:
    """An end that comes late is not for the next conversation."""
    open_call(sessions, "s", START_US)
    assert sessions.take("s", started_by_us=START_US - 1) is None
    assert sessions.take("s", started_by_us=START_US) is not None


def test_an_ended_session_is_known_until_it_opens_anew(time: FakeClock, sessions: SessionMap) -> None:
    """Its end is kept, so that the next conversation can start later than that."""
    open_call(sessions, "s")
    assert not sessions.ended("s")
    sessions.take("s", ended_at_us=START_US + 9)
    assert sessions.ended("s")
    assert sessions.ended_at_us("s") == START_US + 9
    assert open_call(sessions, "s", START_US + 10)
    assert not sessions.ended("s")
    time.step(1)
    sessions.take("s")
    assert sessions.ended_at_us("s") == START_US + 1_000_000


def test_an_inferred_end_reaches_to_the_end_of_its_window(time: FakeClock, sessions: SessionMap) -> None:
    """A start within the window would contradict the end: the next must be later, but not in the future."""
    open_recognised(sessions, "s")
    time.step(IDLE * 3)
    sessions.sweep()
    assert sessions.ended_at_us("s") == START_US + round(IDLE * 1e6)
    open_recognised(sessions, "t", time.wall_us)
    time.step(IDLE)
    time.wall_us -= 5_000_000
    sessions.sweep()
    assert sessions.ended_at_us("t") == time.wall_us


def test_as_many_ended_sessions_are_known_as_fit(
    monkeypatch: pytest.MonkeyPatch, sessions: SessionMap
) -> None:
    """The oldest end is forgotten first."""
    monkeypatch.setattr(sessions_module, "_MAX_TOMBSTONES", 2)
    for session_id in ("1", "2", "3"):
        open_call(sessions, session_id)
        sessions.take(session_id)
    assert [sessions.ended(session_id) for session_id in ("1", "2", "3")] == [False, True, True]


def test_an_expired_session_makes_way_for_the_next(time: FakeClock, sessions: SessionMap) -> None:
    """It opens anew before the sweep has come, and the conversation that ended is told once."""
    open_call(sessions, "s")
    time.step(TTL)
    assert open_call(sessions, "s", time.wall_us)
    assert not sessions.ended("s")
    assert told(sessions.sweep()) == [("s", EndedBy.TTL, TTL)]
    assert sessions.touch("s")
    assert sessions.sweep() == []


@pytest.mark.parametrize("swept", [False, True])
def test_a_turn_that_began_in_time_goes_on_with_its_conversation(
    time: FakeClock, sessions: SessionMap, swept: bool
) -> None:
    """Though the window has passed meanwhile; one that began later does not, nor if somebody ended it."""
    sessions.open("s", "agent", user_id="u", start_us=START_US)
    time.step(TTL + 5)
    if swept:
        assert len(sessions.sweep()) == 1
    assert sessions.resume("s", turn_start_us=START_US + round(TTL * 1e6) + 1) is None
    assert sessions.get("s") is None
    resumed = sessions.resume("s", turn_start_us=START_US + round(TTL * 1e6))
    assert resumed is not None
    assert (resumed.agent_id, resumed.user_id, resumed.start_us) == ("agent", "u", START_US)
    assert sessions.touch("s")
    assert sessions.take("s") is not None
    assert sessions.resume("s", turn_start_us=START_US) is None


@pytest.mark.parametrize("by_inference", [False, True])
@pytest.mark.parametrize("known", [False, True])
def test_an_end_elsewhere_is_refuted_by_a_turn_only_if_it_was_inferred(
    time: FakeClock, sessions: SessionMap, known: bool, by_inference: bool
) -> None:
    """Whether it was known here or had ended here too; an end by call stands."""
    open_call(sessions, "s")
    if not known:
        time.step(TTL)
        sessions.sweep()
    ended_by = EndedBy.TTL if by_inference else EndedBy.CALL
    sessions.forget("s", ended_at_us=START_US + 1, ended_by=ended_by)
    assert (sessions.resume("s", turn_start_us=START_US) is not None) == by_inference


def test_a_full_map_evicts_the_idlest(time: FakeClock) -> None:
    """Of all orders; its end is told once by a sweep, with the TTL as its window."""
    sessions = map_of(time, max_sessions=2)
    open_recognised(sessions, "1")
    time.step(1)
    open_call(sessions, "2")
    time.step(1)
    open_call(sessions, "3")
    assert sessions.get("1") is None
    assert told(sessions.sweep()) == [("1", EndedBy.EVICTED, TTL)]
    assert sessions.sweep() == []
    assert sessions.stats()["evicted_sessions"] == 1


def test_a_full_map_lets_an_expired_session_go_as_such(time: FakeClock) -> None:
    """Its deadline had ended it already."""
    sessions = map_of(time, max_sessions=1)
    open_recognised(sessions, "1")
    time.step(IDLE)
    open_call(sessions, "2")
    assert told(sessions.sweep()) == [("1", EndedBy.IDLE, IDLE)]


def test_ends_that_nobody_sweeps_are_bounded_and_counted(
    monkeypatch: pytest.MonkeyPatch, time: FakeClock
) -> None:
    """The oldest is dropped first."""
    monkeypatch.setattr(sessions_module, "_MAX_UNREPORTED", 2)
    sessions = map_of(time, max_sessions=1)
    for session_id in ("1", "2", "3", "4"):
        open_call(sessions, session_id)
    assert [one.session_id for one in sessions.sweep()] == ["2", "3"]
    assert sessions.stats()["dropped_ends"] == 1
    assert [sessions.take_dropped_ends(), sessions.take_dropped_ends()] == [1, 0]


def test_what_a_parent_dropped_is_not_its_child_s_to_book(
    monkeypatch: pytest.MonkeyPatch, time: FakeClock
) -> None:
    """The parent does."""
    monkeypatch.setattr(sessions_module, "_MAX_UNREPORTED", 1)
    sessions = map_of(time, max_sessions=1)
    for session_id in ("1", "2", "3"):
        open_call(sessions, session_id)
    sessions.after_fork_in_child()
    assert sessions.take_dropped_ends() == 0


def test_a_sweep_returns_no_more_than_asked(time: FakeClock, sessions: SessionMap) -> None:
    """What is left stays due, for the next sweep; one of many chunks returns all."""
    for number in range(1_000):
        (open_call if number % 2 else open_recognised)(sessions, str(number))
    time.step(TTL)
    first, second, third = sessions.sweep(3), sessions.sweep(), sessions.sweep(10_000)
    assert [len(first), len(second), len(third)] == [3, 500, 497]
    assert len({one.session_id for one in first + second + third}) == 1_000


def test_a_sweep_of_idle_sessions_leaves_those_whose_ttl_is_over(
    time: FakeClock, sessions: SessionMap
) -> None:
    """Recognised ones alone are ended, and a waiting one stays until all are swept."""
    open_call(sessions, "call")
    open_recognised(sessions, "recognised")
    open_recognised(sessions, "waiting")
    add_turn(sessions, "waiting", "1", TurnStatus.WAITING)
    time.step(TTL)
    assert [one.session_id for one in sessions.sweep(idle_only=True)] == ["recognised"]
    assert {one.session_id for one in sessions.sweep()} == {"call", "waiting"}


def test_a_session_whose_window_is_heard_to_have_passed_has_ended(
    time: FakeClock, sessions: SessionMap
) -> None:
    """Though by this clock it is live; a window that another process had decides."""
    second_us = 1_000_000
    open_recognised(sessions, "idle")
    open_call(sessions, "call")
    idle_us, hour_us = START_US + int(IDLE) * second_us, START_US + 3600 * second_us
    assert not sessions.lapse("idle", by_us=idle_us)
    assert not sessions.lapse("call", by_us=hour_us, ttl_seconds=3600)
    assert not sessions.lapse("unknown", by_us=hour_us)
    assert sessions.set_aside() == []
    assert sessions.lapse("idle", by_us=idle_us + 1)
    assert sessions.lapse("call", by_us=idle_us, ttl_seconds=IDLE / 2)
    assert len(sessions) == 0
    assert told(sessions.set_aside()) == [("idle", EndedBy.IDLE, IDLE), ("call", EndedBy.TTL, IDLE / 2)]
    assert sessions.sweep() == []


def test_what_is_set_aside_is_told_before_a_sweep(time: FakeClock, sessions: SessionMap) -> None:
    """A session that is over and opened anew; what is only over waits for the sweep."""
    for session_id in ("1", "2"):
        open_recognised(sessions, session_id)
    time.step(IDLE)
    open_recognised(sessions, "1")
    assert told(sessions.set_aside()) == [("1", EndedBy.IDLE, IDLE)]
    assert told(sessions.sweep()) == [("2", EndedBy.IDLE, IDLE)]


# --- other processes ------------------------------------------------------------------------------------


def test_a_session_goes_on_in_another_process(time: FakeClock, sessions: SessionMap) -> None:
    """All of it, with its deadline."""
    sessions.open("s", "agent", user_id="u", origin=Origin.RECOGNISED, start_us=START_US)
    add_turn(sessions, "s", status=TurnStatus.WAITING)
    time.step(3)
    sessions.touch("s")
    time.step(3)
    blob, other = sessions.dump("s"), map_of(time)
    assert blob is not None
    assert other.read("s", blob) == sessions.get("s")
    assert other.load("s", blob)
    assert other.get("s") == sessions.get("s")
    assert not other.load("s", blob)
    assert other.remaining_seconds("s") == TTL - 3


def test_an_access_known_in_time_of_the_boot_beats_the_wall_clock(
    time: FakeClock, sessions: SessionMap
) -> None:
    """A wall clock that jumped does not move the deadline then. No access is yet to come."""
    open_call(sessions, "s")
    blob, other = sessions.dump("s"), map_of(time)
    assert blob is not None
    time.step(5)
    time.wall_us += 10**13
    other.load("s", blob, last_access=time.seconds - 5)
    other.load("t", blob, last_access=time.seconds + 5)
    assert other.remaining_seconds("s") == TTL - 5
    assert other.remaining_seconds("t") == TTL
    assert other.load("u", blob)
    assert other.get("u") is None


def test_what_expired_while_nobody_ran_expires_once(time: FakeClock, sessions: SessionMap) -> None:
    """A session that is loaded after its deadline is swept, and not live before."""
    open_call(sessions, "s")
    blob, other = sessions.dump("s"), map_of(time)
    assert blob is not None
    time.step(TTL)
    other.load("s", blob)
    assert other.get("s") is None
    assert told(other.sweep()) == [("s", EndedBy.TTL, TTL)]
    assert not other.load("s", blob)


def test_loaded_sessions_are_ordered_by_their_access(time: FakeClock, sessions: SessionMap) -> None:
    """In whatever order they come, the idlest is due first; an access here counts from then on."""
    for session_id in ("1", "2", "3"):
        open_call(sessions, session_id)
        time.step(1)
    other = map_of(time)
    open_call(other, "own")
    for session_id in ("2", "3", "1"):
        blob = sessions.dump(session_id)
        assert blob is not None
        other.load(session_id, blob)
    assert other.touch("2")
    time.step(TTL - 3)
    assert [one.session_id for one in other.sweep()] == ["1"]
    time.step(2)
    assert [one.session_id for one in other.sweep()] == ["3"]


def test_the_newer_activity_wins(time: FakeClock, sessions: SessionMap) -> None:
    """An old blob changes nothing; a new one replaces the session, turns included."""
    open_call(sessions, "s")
    old, other = sessions.dump("s"), map_of(time)
    time.step(1)
    add_turn(sessions, "s", end_us=time.wall_us)
    new = sessions.dump("s")
    assert old is not None
    assert new is not None
    other.load("s", old)
    assert other.load("s", new)
    assert other.get("s") == sessions.get("s")
    assert not other.load("s", old)
    assert other.get("s") == sessions.get("s")


def test_a_merge_is_a_change_only_if_the_other_lacks_it(time: FakeClock, sessions: SessionMap) -> None:
    """What came from the state file is not written back; what only we knew is."""
    open_call(sessions, "s")
    other = map_of(time)
    other.open("s", "agent", user_id="u", start_us=START_US)
    other.changed(10)
    time.step(1)
    sessions.touch("s")
    blob = sessions.dump("s")
    assert blob is not None
    assert other.load("s", blob)
    assert other.changed(10) == ["s"]
    blob = other.dump("s")
    assert blob is not None
    sessions.changed(10)
    assert not sessions.touch("unknown")
    time.step(1)
    other.touch("s")
    blob = other.dump("s")
    assert blob is not None
    assert sessions.load("s", blob)
    assert sessions.changed(10) == []


def test_an_ended_session_is_not_loaded_again(time: FakeClock, sessions: SessionMap) -> None:
    """Unless its blob is of a later conversation, or the end was overtaken by activity elsewhere."""
    open_call(sessions, "s")
    blob = sessions.dump("s")
    assert blob is not None
    sessions.take("s")
    assert not sessions.load("s", blob)
    assert sessions.load("s", blob, revive=True)
    sessions.take("s")
    time.step(1)
    other = map_of(time)
    open_call(other, "s", time.wall_us)
    later = other.dump("s")
    assert later is not None
    assert sessions.load("s", later)


def test_a_session_that_went_on_elsewhere_after_its_end_is_loaded(time: FakeClock) -> None:
    """A turn began after the end, in a process that had not heard of it: that is the next conversation."""
    ours, theirs = map_of(time), map_of(time)
    for sessions in (ours, theirs):
        open_call(sessions, "s")
    ours.take("s", ended_at_us=START_US + 4_000_000)
    add_turn(theirs, "s", end_us=START_US + 5_000_000)
    assert not ours.load("s", theirs.dump("s") or b"")
    add_turn(theirs, "s", "t2", end_us=START_US + 5_000_001)
    assert ours.load("s", theirs.dump("s") or b"")
    live = ours.get("s")
    assert live is not None
    assert (live.start_us, live.origin) == (START_US + 4_000_001, Origin.RECOGNISED)


def test_a_full_map_loads_only_what_is_less_idle(time: FakeClock, sessions: SessionMap) -> None:
    """The idlest goes, be it the one that knocks."""
    open_call(sessions, "old")
    time.step(1)
    other = map_of(time, max_sessions=1)
    open_call(other, "own")
    time.step(1)
    open_call(sessions, "new")
    old, new = sessions.dump("old"), sessions.dump("new")
    assert old is not None
    assert new is not None
    assert not other.load("old", old)
    assert other.load("new", new)
    assert [one.session_id for one in other.sweep()] == ["own"]


def test_a_session_that_ended_elsewhere_is_forgotten(time: FakeClock) -> None:
    """Live, expired, evicted or unknown: no sweep reports it, and it is known as ended."""
    sessions = map_of(time, max_sessions=2)
    for session_id in ("evicted", "expired", "live"):
        open_call(sessions, session_id)
        time.step(TTL / 2)
    found = [sessions.forget(one, ended_at_us=7) for one in ("live", "expired", "evicted", "unknown")]
    assert found == [True, True, True, False]
    assert sessions.sweep() == []
    assert len(sessions) == 0
    assert sessions.ended_at_us("unknown") == 7


def test_the_later_of_two_ends_is_remembered(sessions: SessionMap) -> None:
    """An older end from elsewhere does not let the next conversation start too early."""
    open_call(sessions, "s")
    sessions.take("s", ended_at_us=START_US)
    sessions.forget("s", ended_at_us=7)
    assert sessions.ended_at_us("s") == START_US


def test_an_end_elsewhere_is_that_of_the_conversation_which_had_started(
    time: FakeClock, sessions: SessionMap
) -> None:
    """The next conversation stays; its predecessor, which waits to be swept, is what had ended."""
    open_call(sessions, "s")
    time.step(TTL)
    open_call(sessions, "s", time.wall_us)
    assert sessions.forget("s", ended_at_us=START_US, started_by_us=START_US)
    assert sessions.sweep() == []
    assert sessions.touch("s")
    assert not sessions.ended("s")


@pytest.mark.parametrize("is_taken", [True, False])
def test_a_turn_that_began_after_an_end_elsewhere_has_opened_the_next_conversation(
    time: FakeClock, sessions: SessionMap, is_taken: bool
) -> None:
    """The end is learned of afterwards; the session stays, recognised, from that turn on, and ends idle."""
    open_call(sessions, "s")
    time.step(5)
    add_turn(sessions, "s", end_us=START_US + 5_000_000)
    ended_us = START_US + 3_999_999  # one microsecond before that turn
    if is_taken:
        assert sessions.take("s", started_by_us=ended_us, ended_at_us=ended_us) is None
    else:
        assert not sessions.forget("s", started_by_us=ended_us, ended_at_us=ended_us)
    live = sessions.get("s")
    assert live is not None
    assert (live.start_us, live.origin, sessions.ended("s")) == (
        START_US + 4_000_000,
        Origin.RECOGNISED,
        False,
    )
    assert sessions.changed(5) == ["s"]
    time.step(IDLE)
    assert told(sessions.sweep()) == [("s", EndedBy.IDLE, IDLE)]


def test_a_turn_under_way_at_an_end_elsewhere_belongs_to_what_ended(sessions: SessionMap) -> None:
    """It began before: the session is over."""
    open_call(sessions, "s")
    add_turn(sessions, "s", end_us=START_US + 5_000_000)
    ended_us = START_US + 4_000_000
    assert sessions.forget("s", started_by_us=ended_us, ended_at_us=ended_us)
    assert "s" not in sessions


OURS = "bot_1705681000_a1b2c3d4"


@pytest.mark.parametrize(
    ("session_id", "ended_by", "origin"),
    [
        (OURS, None, Origin.CALL),
        (OURS, EndedBy.TTL, Origin.CALL),
        (OURS, EndedBy.EVICTED, Origin.CALL),
        (OURS, EndedBy.CALL, Origin.RECOGNISED),
        (OURS, EndedBy.IDLE, Origin.RECOGNISED),
        ("thread-7", None, Origin.RECOGNISED),
        ("thread-7", EndedBy.TTL, Origin.RECOGNISED),
    ],
)
def test_whose_a_conversation_is_that_a_turn_opens(
    sessions: SessionMap, session_id: str, ended_by: EndedBy | None, origin: Origin
) -> None:
    """One of ours that no call has ended may go on elsewhere, started by a call; others have nobody to end them."""
    if ended_by is not None:
        sessions.forget(session_id, ended_at_us=START_US, ended_by=ended_by)
    assert sessions.origin_of_next(session_id) is origin


@pytest.mark.parametrize("origin", list(Origin))
def test_what_is_past_its_deadline_is_taken_for_ended(
    time: FakeClock, sessions: SessionMap, origin: Origin
) -> None:
    """Swept or not: after its time to live a session of ours goes on as started by call, after idleness not."""
    sessions.open(OURS, "bot", origin=origin, start_us=START_US)
    time.step(TTL if origin is Origin.CALL else IDLE)
    assert sessions.origin_of_next(OURS) is origin
    sessions.sweep()
    assert sessions.origin_of_next(OURS) is origin


@pytest.mark.parametrize("ended_by", [EndedBy.CALL, EndedBy.TTL, EndedBy.IDLE])
def test_only_an_end_by_call_keeps_the_turns_that_began_before_it(
    sessions: SessionMap, ended_by: EndedBy
) -> None:
    """What was inferred while a turn was under way is refuted by it."""
    sessions.forget("s", ended_at_us=START_US, ended_by=ended_by)
    assert sessions.belongs_to_ended("s", START_US) is (ended_by is EndedBy.CALL)
    assert not sessions.belongs_to_ended("s", START_US + 1)
    assert not sessions.belongs_to_ended("unknown", START_US)


def test_an_end_elsewhere_leaves_the_predecessor_to_the_sweep(time: FakeClock, sessions: SessionMap) -> None:
    """It ended here by its deadline, and nobody else tells that."""
    open_call(sessions, "s")
    time.step(TTL)
    open_call(sessions, "s", time.wall_us)
    assert sessions.forget("s", ended_at_us=time.wall_us)
    assert told(sessions.sweep()) == [("s", EndedBy.TTL, TTL)]
    assert sessions.ended("s")


def test_changes_are_told_once(sessions: SessionMap) -> None:
    """At most as many as asked for; sessions that ended are not among them."""
    for session_id in ("1", "2", "3"):
        open_call(sessions, session_id)
    sessions.take("3")
    assert len(first := sessions.changed(1)) == 1
    assert sorted(first + sessions.changed(5)) == ["1", "2"]
    assert sessions.changed(5) == []
    sessions.touch("1")
    sessions.touch("1")
    assert sessions.changed(5) == ["1"]
    add_turn(sessions, "2")
    assert sessions.changed(5) == ["2"]


# --- figures --------------------------------------------------------------------------------------------


def test_an_empty_map_has_no_idle_times(sessions: SessionMap) -> None:
    """Every figure is 0."""
    assert set(sessions.stats().values()) == {0}


def test_stats_count_live_and_expired(time: FakeClock, sessions: SessionMap) -> None:
    """Hours are of sessions in the map; expired ones are counted apart, however many there are."""
    for number in range(600):
        open_recognised(sessions, str(number))
    time.step(IDLE / 2)
    open_recognised(sessions, "live")
    time.step(IDLE / 2)
    open_recognised(sessions, "0", time.wall_us)
    assert sessions.count_live() == 2
    assert sessions.stats() == {
        "total_cached_sessions": 602,
        "active_sessions": 2,
        "expired_sessions_pending_cleanup": 600,
        "avg_idle_time_hours": pytest.approx((599 * IDLE + IDLE / 2) / 601 / 3600),
        "longest_idle_time_hours": IDLE / 3600,
        "shortest_idle_time_hours": 0.0,
        "evicted_sessions": 0,
        "dropped_ends": 0,
    }


# --- threads and forks ----------------------------------------------------------------------------------


def test_a_call_within_a_call_does_not_wait_for_itself(time: FakeClock, sessions: SessionMap) -> None:
    """A signal handler that ends the session its thread is touching neither hangs nor breaks the map."""
    open_call(sessions, "s")

    def end() -> None:
        assert sessions.take("s") is not None

    time.within = end
    assert not sessions.touch("s")
    assert sessions.ended("s")
    assert len(sessions) == 0


def test_a_fork_amid_a_change_leaves_the_child_a_usable_map(time: FakeClock, sessions: SessionMap) -> None:
    """The lock that a thread of the parent held is replaced, and the order made good."""
    open_call(sessions, "2")
    open_recognised(sessions, "idle")
    time.step(1)
    open_call(sessions, "1")
    holding, release = Event(), Event()

    def hold() -> None:
        holding.set()
        release.wait(10)

    time.within = hold
    holder = Thread(target=sessions.touch, args=("2",))
    holder.start()
    holding.wait(10)
    sessions.after_fork_in_child()
    assert sessions.touch("1")
    time.step(IDLE - 1)
    assert [one.session_id for one in sessions.sweep()] == ["idle"]
    time.step(TTL - IDLE)
    assert [one.session_id for one in sessions.sweep()] == ["2"]
    release.set()
    holder.join()


def test_a_fork_between_changes_leaves_the_map_as_it_is(sessions: SessionMap) -> None:
    """Nobody held the lock: only that is new."""
    open_call(sessions, "s")
    sessions.after_fork_in_child()
    assert sessions.take("s") is not None


@pytest.fixture
def _hasty_threads() -> Iterator[None]:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.usefixtures("_hasty_threads")
def test_every_session_ends_exactly_once(time: FakeClock) -> None:
    """However touches, takes, turns, evictions, sweeps and the deadline race."""
    sessions, count, ended = map_of(time, max_sessions=900), 1_500, Counter[str]()
    start, opened = Barrier(5), Event()
    collected: list[list[str]] = []

    def opens() -> None:
        start.wait()
        for number in range(count):
            sessions.open(
                str(number),
                "agent",
                origin=list(Origin)[number % 2],
                start_us=START_US,
                last_activity_us=number,
            )
            time.step(0.01)
        opened.set()

    def takes(stride: int) -> None:
        start.wait()
        mine: list[str] = []
        while not opened.is_set():
            for number in range(0, count, stride):
                sessions.touch(str(number + 1))
                add_turn(sessions, str(number + 2), str(len(mine)))
                mine += [str(number)] if sessions.take(str(number)) else []
        collected.append(mine)

    def sweeps() -> None:
        start.wait()
        mine: list[str] = []
        while not opened.is_set():
            mine += [one.session_id for one in sessions.sweep(7)]
        collected.append(mine)

    threads = [Thread(target=opens), Thread(target=takes, args=(3,)), Thread(target=takes, args=(5,))]
    threads += [Thread(target=sweeps), Thread(target=sweeps)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    time.step(TTL)
    collected.append([one.session_id for one in sessions.sweep(count)])
    for ids in collected:
        ended.update(ids)
    assert ended == Counter({str(number): 1 for number in range(count)})
    assert len(sessions) == 0


# --- any sequence of calls, against a plain model -------------------------------------------------------


@dataclass
class Known:
    """What the model knows of one conversation."""

    serial: int
    origin: Origin
    start_us: int
    access: float
    activity_us: int
    user_id: str | None = None
    waiting: bool = False
    turns: list[str] = field(default_factory=list)


IDS = st.sampled_from([f"s{number}" for number in range(8)])
SECONDS = st.sampled_from([1.0, 5.0, 30.0])
MAX_SESSIONS = 5


class MapMachine(RuleBasedStateMachine):
    """The map beside a dict of plain objects."""

    @initialize()
    def begin(self) -> None:
        """An empty map."""
        self.time = FakeClock()
        self.map = map_of(self.time, MAX_SESSIONS)
        self.known: dict[str, Known] = {}
        self.unreported: Counter[tuple[str, int]] = Counter()
        self.ended: dict[str, int] = {}
        self.serials = 0

    def window(self, known: Known) -> float:
        """How long the conversation may go without an access."""
        return min(self.map.ttl_seconds, self.map.idle_seconds) if self.idles(known) else self.map.ttl_seconds

    def idles(self, known: Known) -> bool:
        """Whether the idle window counts too."""
        return known.origin is Origin.RECOGNISED and not known.waiting

    def due(self, session_id: str) -> bool:
        """Whether the deadline has passed."""
        known = self.known[session_id]
        return self.time.seconds - known.access >= self.window(known)

    def live(self, session_id: str) -> Known | None:
        """The conversation if it is live."""
        return self.known[session_id] if session_id in self.known and not self.due(session_id) else None

    def access(self, known: Known, activity_us: int) -> None:
        """Reset the deadline."""
        known.access = self.time.seconds
        known.activity_us = max(known.activity_us, activity_us)

    def make_room(self, session_id: str) -> None:
        """Set aside whoever the map has set aside; it must be one of the idlest."""
        if session_id in self.known:
            leaver = session_id
        elif len(self.known) == MAX_SESSIONS:
            (leaver,) = [one for one in self.known if one not in self.map]
            assert self.known[leaver].access == min(known.access for known in self.known.values())
        else:
            return
        self.end(leaver)
        self.unreported[leaver, self.ended[leaver]] += 1

    def end(self, session_id: str) -> Known:
        """Remove a conversation."""
        known = self.known.pop(session_id)
        self.ended[session_id] = known.serial
        return known

    @rule(session_id=IDS, origin=st.sampled_from(Origin), user_id=st.sampled_from([None, "u", "v"]))
    def open(self, session_id: str, origin: Origin, user_id: str | None) -> None:
        """A start, or one more."""
        wall_us, live = self.time.wall_us, self.live(session_id)
        is_new = self.map.open(session_id, "agent", user_id=user_id, origin=origin, start_us=wall_us)
        assert is_new == (live is None)
        if live is None:
            self.make_room(session_id)
            self.serials += 1
            live = Known(self.serials, origin, wall_us, self.time.seconds, wall_us, user_id)
            self.known[session_id] = live
            self.ended.pop(session_id, None)
        if origin is Origin.CALL and live.origin is Origin.RECOGNISED:
            live.origin, live.start_us = origin, wall_us
        live.user_id = live.user_id or user_id
        self.access(live, wall_us)

    @rule(session_id=IDS, turn_id=st.sampled_from("abc"), status=st.sampled_from(TurnStatus))
    def turn(self, session_id: str, turn_id: str, status: TurnStatus) -> None:
        """A turn that ends now, perhaps one that was seen."""
        live, end_us = self.live(session_id), self.time.wall_us
        counted = add_turn(self.map, session_id, turn_id, status, end_us)
        assert counted == (live is not None and turn_id not in live.turns)
        if live is not None and counted:
            live.turns.append(turn_id)
            live.waiting = status is TurnStatus.WAITING
            self.access(live, end_us)

    @rule(session_id=IDS)
    def touch(self, session_id: str) -> None:
        """A sign of life."""
        live = self.live(session_id)
        assert self.map.touch(session_id) == (live is not None)
        if live is not None:
            self.access(live, self.time.wall_us)

    @rule(session_id=IDS)
    def remaining(self, session_id: str) -> None:
        """The question for the time left."""
        live = self.live(session_id)
        left = None if live is None else self.map.ttl_seconds - (self.time.seconds - live.access)
        assert self.map.remaining_seconds(session_id) == left
        if live is not None:
            self.access(live, self.time.wall_us)

    @rule(session_id=IDS)
    def take(self, session_id: str) -> None:
        """An end by call."""
        live = self.live(session_id)
        taken = self.map.take(session_id)
        assert (taken is None) == (live is None)
        if taken is not None:
            known = self.end(session_id)
            assert (taken.start_us, taken.turns) == (known.start_us, len(known.turns))

    @rule(limit=st.sampled_from([1, 2, 500]), idle_only=st.booleans())
    def sweep(self, limit: int, idle_only: bool) -> None:
        """Ends are told once, as many as asked for."""
        candidates = [one for one, known in self.known.items() if not idle_only or self.idles(known)]
        expected = self.unreported.total() + sum(map(self.due, candidates))
        swept = self.map.sweep(limit, idle_only=idle_only)
        assert len(swept) == min(limit, expected)
        for one in swept:
            waiting = [key for key in self.unreported if key[0] == one.session_id]
            if waiting and self.unreported[min(waiting)]:
                self.unreported -= Counter([min(waiting)])
                continue
            assert self.due(one.session_id)
            known = self.end(one.session_id)
            assert one.window_seconds == self.window(known)
            assert one.session.last_activity_us == known.activity_us
            assert (one.ended_by is EndedBy.IDLE) == (self.window(known) < self.map.ttl_seconds)

    @rule(session_id=IDS, age=SECONDS)
    def load(self, session_id: str, age: float) -> None:
        """What another process knows of a session that was accessed some time ago."""
        start_us = self.time.wall_us - round(age * 1e6)
        other_time = FakeClock()
        other_time.wall_us = start_us
        other = map_of(other_time)
        other.open(session_id, "agent", origin=Origin.RECOGNISED, start_us=start_us)
        blob, known = other.dump(session_id), self.known.get(session_id)
        assert blob is not None
        was_full = len(self.known) == MAX_SESSIONS
        access = self.time.seconds - age
        admitted = known is not None or (
            (self.map.ended_at_us(session_id) or 0) < start_us
            and not (was_full and min(one.access for one in self.known.values()) >= access)
        )
        newer = known is None or start_us > known.activity_us
        changed = self.map.load(session_id, blob)
        if known is not None:
            if newer:
                known.origin, known.waiting, known.turns = Origin.RECOGNISED, False, []
                known.start_us, known.activity_us, known.user_id = start_us, start_us, None
            assert changed == (newer or access > known.access)
            known.access = max(known.access, access)
            return
        assert changed == admitted
        if admitted:
            self.make_room(session_id)
            self.serials += 1
            self.known[session_id] = Known(self.serials, Origin.RECOGNISED, start_us, access, start_us)
            self.ended.pop(session_id, None)

    @rule(seconds=SECONDS)
    def step(self, seconds: float) -> None:
        """Time passes."""
        self.time.step(seconds)

    @rule(seconds=st.sampled_from([3.0, 20.0, 100.0]))
    def change_ttl(self, seconds: float) -> None:
        """The TTL changes."""
        self.map.ttl_seconds = seconds

    @rule(seconds=st.sampled_from([2.0, 10.0, 50.0]))
    def change_idle(self, seconds: float) -> None:
        """The idle window changes."""
        self.map.idle_seconds = seconds

    @invariant()
    def agrees(self) -> None:
        """What can be read is what the model says."""
        assert len(self.map) == len(self.known)
        for number in range(8):
            self.agrees_on(f"s{number}")
        due = sum(map(self.due, self.known)) + self.unreported.total()
        assert self.map.stats()["expired_sessions_pending_cleanup"] == due
        assert self.map.stats()["active_sessions"] == len(self.known) - due + self.unreported.total()

    def agrees_on(self, session_id: str) -> None:
        """What can be read of one session is what the model says."""
        live, session = self.live(session_id), self.map.get(session_id)
        assert (session_id in self.map) == (session_id in self.known)
        assert self.map.ended(session_id) == (session_id in self.ended)
        assert (session is None) == (live is None)
        if live is not None and session is not None:
            assert (session.origin, session.waiting, session.user_id) == (
                live.origin,
                live.waiting,
                live.user_id,
            )
            assert (session.start_us, session.turns) == (live.start_us, len(live.turns))
            assert (session.last_access, session.last_activity_us) == (live.access, live.activity_us)


TestMapMachine = MapMachine.TestCase
TestMapMachine.settings = settings(max_examples=60, stateful_step_count=40)
