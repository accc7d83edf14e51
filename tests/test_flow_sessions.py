"""Sessions from the public API to the requests: ids, sliding TTL, expiry, local questions."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import FrozenInstanceError
from datetime import UTC, datetime

import pytest

from otel_agent_tracker import AgentPerformanceTracker, AsyncAgentPerformanceTracker, session_id
from otel_agent_tracker.config import Config, Durability
from otel_agent_tracker.pipeline import Pipeline, substitute
from otel_agent_tracker.testing import (
    FakeClock,
    RecordedConversations,
    RecordedRequest,
    RecordingSender,
    recording,
)
from tests.waiting import wait_until

EXPIRED = "/conversations/expired"
END = "/conversations/end"


@pytest.fixture
def tracker(recorded_conversations: RecordedConversations) -> AgentPerformanceTracker:
    """A tracker whose requests are recorded."""
    return AgentPerformanceTracker("https://tracker.example.com")


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def unswept_tracker(clock: FakeClock) -> Iterator[AgentPerformanceTracker]:
    """A tracker on `clock` whose sessions nobody sweeps."""
    pipeline = Pipeline(Config(), clock=clock.clock)
    substitute(pipeline)
    try:
        yield AgentPerformanceTracker()
    finally:
        substitute(None)
        pipeline.close()


@contextmanager
def unflushed_tracker(
    clock: FakeClock, sender: RecordingSender, *, ttl_hours: float, cleanup_minutes: float
) -> Iterator[AgentPerformanceTracker]:
    """A tracker on `clock` whose worker has nobody to hurry it: a flush would sweep."""
    config = Config(
        session_ttl_hours=ttl_hours, cleanup_interval_minutes=cleanup_minutes, durability=Durability.MEMORY
    )
    pipeline = Pipeline(config, clock=clock.clock, sender=sender)
    substitute(pipeline)
    try:
        yield AgentPerformanceTracker()
    finally:
        substitute(None)
        pipeline.close()


def requests_to(recorded: RecordedConversations, path: str) -> list[RecordedRequest]:
    return [request for request in recorded.requests if request.path == path]


# --- ids ----------------------------------------------------------------------------------------------------

AGENT_IDS = (
    "agent_001",
    "sales_bot_eu",
    "über_机器人_🤖",
    "bot_7_42",
    "x_1674123456",
    "a_1674123456_a1b2c3d4",
)


@pytest.mark.parametrize("agent_id", [*AGENT_IDS, "a" * 256])
def test_session_ids_are_parsed_from_the_right(agent_id: str) -> None:
    """A minted id tells its agent and start to whoever never saw the session, and is accepted as an id."""
    with recording() as recorded:
        session = AgentPerformanceTracker().start_conversation(agent_id)
        assert AgentPerformanceTracker().end_conversation(session)
        assert [each.outcome for each in recorded.conversations] == ["completed"]
    assert re.fullmatch(rf"{re.escape(agent_id)}_1705665600_[0-9a-f]{{16}}", session)
    assert session_id.parse(session) == (agent_id, 1_705_665_600)


@pytest.mark.parametrize("agent_id", AGENT_IDS)
def test_an_unknown_session_of_our_form_ends_with_agent_and_start_from_its_id(agent_id: str) -> None:
    """Fallback when the session is unknown here: an id of our own form says enough."""
    with recording() as recorded:
        assert AgentPerformanceTracker().end_conversation(f"{agent_id}_1705662000_{'ab' * 8}", 4)
        ((path, body),) = recorded.requests
    assert (path, body["agent_id"], body["start_time"]) == (END, agent_id, "2024-01-19T11:00:00.000000Z")
    assert body["duration_seconds"] == pytest.approx(3600, abs=0.001)


def test_the_old_form_with_eight_digits_is_read(
    tracker: AgentPerformanceTracker, recorded_conversations: RecordedConversations
) -> None:
    """Ids that older clients made have 8 hex digits."""
    assert tracker.record_failed_session("agent_001_1674123456_a1b2c3d4", "boom")
    ((_, body),) = recorded_conversations.requests
    assert (body["agent_id"], body["start_time"]) == ("agent_001", "2023-01-19T10:17:36.000000Z")


def test_ids_are_only_generated_by_start_conversation(
    tracker: AgentPerformanceTracker, recorded_conversations: RecordedConversations
) -> None:
    """Every start has a new id; everything else uses the id it is given, to the letter."""
    assert tracker.start_conversation("bot", "u1") != tracker.start_conversation("bot", "u1")
    with tracker.turn("thread/7 ü", agent_id="bot"):
        pass
    tracker.record_feedback("thread/7 ü", 5)
    tracker.end_conversation("thread/7 ü")
    told = {body["session_id"] for path, body in recorded_conversations.requests if "start" not in path}
    assert told == {"thread/7 ü"}


def test_the_agent_is_taken_from_the_session(
    tracker: AgentPerformanceTracker, recorded_conversations: RecordedConversations
) -> None:
    """Nobody is asked again whose session it is, even if its id would say otherwise."""
    misleading = "other_1705662000_abababababababab"
    with tracker.turn("thread-7", agent_id="bot"), tracker.turn("thread-8", agent_id="bot"):
        pass
    with tracker.turn(misleading, agent_id="bot"):
        pass
    tracker.end_conversation("thread-7", 4)
    tracker.record_failed_session("thread-8", "boom")
    tracker.end_conversation(misleading)
    assert [each.agent_id for each in recorded_conversations.conversations] == ["bot"] * 3
    assert [body["agent_id"] for _, body in requests_to(recorded_conversations, END)] == ["bot"] * 3


@pytest.mark.parametrize("end", ["end_conversation", "record_failed_session"])
def test_an_unknown_session_of_another_form_needs_an_agent(
    tracker: AgentPerformanceTracker,
    recorded_conversations: RecordedConversations,
    caplog: pytest.LogCaptureFixture,
    end: str,
) -> None:
    """Fallback for ids of other tools: False and a log line that says what to pass; with it, accepted."""
    arguments = ("boom",) if end == "record_failed_session" else ()
    assert getattr(tracker, end)("thread-7", *arguments) is False
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "thread-7" in record.getMessage()
    assert "agent_id=" in record.getMessage()
    assert recorded_conversations.requests == []
    assert getattr(tracker, end)("thread-7", *arguments, agent_id="bot") is True
    assert [body["agent_id"] for _, body in recorded_conversations.requests] == ["bot"]


# --- the sliding TTL ----------------------------------------------------------------------------------------


def test_the_ttl_is_ten_hours_from_the_last_access(
    tracker: AgentPerformanceTracker, recorded_conversations: RecordedConversations
) -> None:
    """Not from creation: a session accessed after six hours lives until sixteen."""
    session = tracker.start_conversation("bot")
    recorded_conversations.clock.advance(hours=6)
    tracker.touch_session(session)
    recorded_conversations.clock.advance(hours=9, minutes=59)
    assert tracker.get_live_session(session) is not None
    recorded_conversations.clock.advance(minutes=1)
    assert tracker.get_live_session(session) is None
    assert [each.outcome for each in recorded_conversations.conversations] == ["expired"]


def span_with_the_id(tracker: AgentPerformanceTracker, session: str) -> None:
    with tracker.turn(session):
        pass


RESETS: dict[str, Callable[[AgentPerformanceTracker, str], object]] = {
    "touch_session": AgentPerformanceTracker.touch_session,
    "is_session_active": AgentPerformanceTracker.is_session_active,
    "get_session_ttl_remaining": AgentPerformanceTracker.get_session_ttl_remaining,
    "span_of_a_turn": span_with_the_id,
    "span_of_feedback": lambda tracker, session: tracker.record_feedback(session, 5),
}


@pytest.mark.parametrize("access", RESETS)
def test_each_access_resets_the_ttl(
    tracker: AgentPerformanceTracker, recorded_conversations: RecordedConversations, access: str
) -> None:
    """Nine hours, an access, nine hours: live; ten hours after the access: not."""
    session = tracker.start_conversation("bot")
    recorded_conversations.clock.advance(hours=9)
    RESETS[access](tracker, session)
    recorded_conversations.clock.advance(hours=9)
    assert tracker.get_live_session(session) is not None
    recorded_conversations.clock.advance(hours=1)
    assert tracker.get_live_session(session) is None


@pytest.mark.parametrize("end", ["end_conversation", "record_failed_session"])
def test_an_end_in_time_leaves_nothing_to_expire(
    tracker: AgentPerformanceTracker, recorded_conversations: RecordedConversations, end: str
) -> None:
    """An end just before the TTL is the outcome; the session does not expire after it."""
    session = tracker.start_conversation("bot")
    recorded_conversations.clock.advance(hours=9, minutes=59)
    assert getattr(tracker, end)(session, *(("boom",) if "failed" in end else ()))
    recorded_conversations.clock.advance(hours=20)
    assert len(requests_to(recorded_conversations, END)) == 1
    assert requests_to(recorded_conversations, EXPIRED) == []


def test_get_live_session_resets_nothing(
    tracker: AgentPerformanceTracker, recorded_conversations: RecordedConversations
) -> None:
    """Looking is not accessing: what it tells is the session as it is."""
    session = tracker.start_conversation("bot", "u1")
    with tracker.turn(session):
        pass
    recorded_conversations.clock.advance(hours=9)
    info = tracker.get_live_session(session)
    assert info is not None
    assert (info.session_id, info.agent_id, info.user_id, info.turns) == (session, "bot", "u1", 1)
    noon = datetime(2024, 1, 19, 12, tzinfo=UTC)
    assert abs((info.start_time - noon).total_seconds()) < 0.001
    assert abs((info.last_access_time - noon).total_seconds()) < 0.001
    with pytest.raises(FrozenInstanceError):
        info.turns = 2  # type: ignore[misc]  # that is what is tried
    recorded_conversations.clock.advance(hours=1)
    assert tracker.get_live_session(session) is None


def test_the_ttl_remaining_is_that_before_its_own_reset(
    tracker: AgentPerformanceTracker, recorded_conversations: RecordedConversations
) -> None:
    """In hours; the next question has the whole TTL again; None for a session that is not live."""
    session = tracker.start_conversation("bot")
    recorded_conversations.clock.advance(hours=3)
    assert tracker.get_session_ttl_remaining(session) == pytest.approx(7)
    assert tracker.get_session_ttl_remaining(session) == pytest.approx(10)
    tracker.end_conversation(session)
    assert tracker.get_session_ttl_remaining(session) is None


@pytest.mark.parametrize("session", ["thread-7", "bot_1705662000_abababababababab"])
def test_an_unknown_session_is_not_live(tracker: AgentPerformanceTracker, session: str) -> None:
    """Local questions about a session that nobody here has seen, ended or not."""
    assert not tracker.touch_session(session)
    assert not tracker.is_session_active(session)
    assert tracker.get_session_ttl_remaining(session) is None
    assert tracker.get_live_session(session) is None


@pytest.mark.parametrize(("hours", "outcomes"), [(1, ["expired"]), (20, ["active"])])
def test_the_ttl_can_be_set_at_run_time(
    tracker: AgentPerformanceTracker,
    recorded_conversations: RecordedConversations,
    hours: float,
    outcomes: list[str],
) -> None:
    """`set_session_ttl` holds for sessions that are live already."""
    session = tracker.start_conversation("bot")
    tracker.set_session_ttl(hours)
    assert tracker.get_session_ttl_remaining(session) == pytest.approx(hours)
    assert tracker.get_session_stats()["ttl_hours"] == hours
    recorded_conversations.clock.advance(hours=11)
    assert [each.outcome for each in recorded_conversations.conversations] == outcomes


def test_a_session_past_its_ttl_is_expired_before_any_sweep(
    unswept_tracker: AgentPerformanceTracker, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    """For every reader from that instant; an end comes too late."""
    session = unswept_tracker.start_conversation("bot")
    clock.advance(hours=10)
    assert unswept_tracker.get_session_stats()["expired_sessions_pending_cleanup"] == 1
    assert not unswept_tracker.is_session_active(session)
    assert not unswept_tracker.touch_session(session)
    assert unswept_tracker.get_live_session(session) is None
    assert not unswept_tracker.end_conversation(session)
    assert "has ended already" in caplog.text


# --- expiry -------------------------------------------------------------------------------------------------


def test_each_expired_session_is_reported_once_at_its_last_access(
    tracker: AgentPerformanceTracker, recorded_conversations: RecordedConversations
) -> None:
    """POST /conversations/expired for each, ended when it was last accessed, however often is swept."""
    first, second = tracker.start_conversation("bot"), tracker.start_conversation("bot")
    recorded_conversations.clock.advance(hours=2)
    tracker.touch_session(second)
    for _ in range(3):
        recorded_conversations.clock.advance(hours=10)
    told = {body["session_id"]: body for _, body in requests_to(recorded_conversations, EXPIRED)}
    assert len(requests_to(recorded_conversations, EXPIRED)) == len(told) == 2
    assert told[first]["duration_seconds"] == pytest.approx(0, abs=0.001)
    assert told[second]["duration_seconds"] == pytest.approx(7200, abs=0.001)
    assert {(body["status"], body["expiry_reason"]) for body in told.values()} == {("expired", "ttl_timeout")}
    ours = told[second]["metadata"]["agent_tracker"]
    assert (ours["ended_by"], ours["idle_seconds"]) == ("ttl", 36_000)
    assert ours["last_activity_time"] == told[second]["end_time"]


@pytest.mark.parametrize("minutes", [0.5, 30.0])
def test_the_worker_cleans_up_at_its_interval(clock: FakeClock, minutes: float) -> None:
    """In the background, without a call: not before the interval is over, and then by itself."""
    sender = RecordingSender()
    with unflushed_tracker(clock, sender, ttl_hours=1 / 360, cleanup_minutes=minutes) as tracker:
        tracker.start_conversation("bot")
        wait_until(lambda: len(sender.requests) == 1)
        clock.advance(minutes=minutes - 0.1)  # past the TTL, within the interval
        tracker.record_feedback("another", 5)
        wait_until(lambda: len(sender.requests) == 2)
        assert tracker.get_session_stats()["expired_sessions_pending_cleanup"] == 1
        clock.advance(minutes=0.1)
        wait_until(lambda: [request.path for request in sender.requests][2:] == [EXPIRED])


def test_idle_sessions_end_within_a_minute_however_long_the_interval_is(clock: FakeClock) -> None:
    """Nobody else ends a conversation that nobody started by a call."""
    sender = RecordingSender()
    with unflushed_tracker(clock, sender, ttl_hours=10, cleanup_minutes=600) as tracker:
        with tracker.turn("thread-7", agent_id="bot"):
            pass
        tracker.start_conversation("bot")
        wait_until(lambda: len(sender.requests) == 3)
        clock.advance(minutes=31)
        wait_until(lambda: [request.path for request in sender.requests][3:] == [END])


def test_eviction_ends_the_idlest_session() -> None:
    """Beyond `max_sessions` a new session takes the place of the one that was accessed longest ago."""
    with recording(max_sessions=2) as recorded:
        tracker = AgentPerformanceTracker()
        idlest, busy = tracker.start_conversation("bot"), tracker.start_conversation("bot")
        recorded.clock.advance(minutes=5)
        tracker.touch_session(busy)
        tracker.start_conversation("bot")
        assert not tracker.is_session_active(idlest)
        ((_, body),) = requests_to(recorded, EXPIRED)
        assert (body["session_id"], body["expiry_reason"]) == (idlest, "evicted")
        evicted, *others = recorded.conversations
        assert (evicted.outcome, evicted.ended_by) == ("expired", "evicted")
        assert [each.outcome for each in others] == ["active", "active"]
        assert tracker.get_session_stats()["evicted_sessions"] == 1


# --- local figures ------------------------------------------------------------------------------------------


def test_get_session_stats_has_every_key_and_the_right_numbers(
    unswept_tracker: AgentPerformanceTracker, clock: FakeClock
) -> None:
    """Three sessions, accessed 11, 4 and 1 hours ago; the first waits for its cleanup."""
    for pause in (7, 3, 1):
        unswept_tracker.start_conversation("bot")
        clock.advance(hours=pause)
    assert unswept_tracker.get_session_stats() == {
        "total_cached_sessions": 3,
        "active_sessions": 2,
        "expired_sessions_pending_cleanup": 1,
        "sliding_ttl_enabled": True,
        "ttl_hours": 10.0,
        "cleanup_interval_minutes": 30.0,
        "avg_idle_time_hours": pytest.approx(16 / 3),
        "longest_idle_time_hours": pytest.approx(11),
        "shortest_idle_time_hours": pytest.approx(1),
        "evicted_sessions": 0,
        "dropped_ends": 0,
    }


def test_the_stats_of_no_sessions_are_noughts(unswept_tracker: AgentPerformanceTracker) -> None:
    """Nothing is divided by nothing."""
    stats = unswept_tracker.get_session_stats()
    assert (stats["total_cached_sessions"], stats["avg_idle_time_hours"]) == (0, 0.0)


def test_the_asynchronous_twin_answers_the_same(recorded_conversations: RecordedConversations) -> None:
    """Every local question and reset of the asyncio tracker, in one story."""

    async def story() -> None:
        tracker = AsyncAgentPerformanceTracker()
        session = await tracker.start_conversation("bot", "u1")
        await asyncio.to_thread(recorded_conversations.clock.advance, hours=3)
        assert await tracker.get_session_ttl_remaining(session) == pytest.approx(7)
        assert await tracker.touch_session(session)
        assert await tracker.is_session_active(session)
        await tracker.set_session_ttl(2)
        assert (await tracker.get_session_stats())["ttl_hours"] == 2
        info = await tracker.get_live_session(session)
        assert info is not None
        assert info.user_id == "u1"
        assert await tracker.record_failed_session(session, "boom")
        assert not await tracker.end_conversation(session)
        assert await tracker.record_feedback(session, thumbs="down")
        assert await tracker.flush(5)
        assert (await tracker.delivery_stats())["pending"] == 0
        await tracker.close()

    asyncio.run(story())
    (conversation,) = recorded_conversations.conversations
    assert (conversation.outcome, conversation.error_message, conversation.quality) == ("failed", "boom", 1)
