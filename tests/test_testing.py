"""The fixture for users' own tests."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta
from textwrap import dedent

import pytest

from otel_agent_tracker import (
    AgentOperationsTracker,
    AgentPerformanceTracker,
    AsyncAgentPerformanceTracker,
    TrackerUnavailable,
    testing,
)
from otel_agent_tracker.semconv import EndedBy, Outcome
from otel_agent_tracker.testing import FakeClock, RecordedConversation, RecordedConversations, recording


def test_a_conversation_is_told_in_full(recorded_conversations: RecordedConversations) -> None:
    """Everything that was said of a conversation is in its record, in public words."""
    with AgentPerformanceTracker("https://tracker.example.com", "a-key") as tracker:
        session_id = tracker.start_conversation("support-bot", user_id="u1", metadata={"channel": "web"})
        with tracker.turn(session_id) as turn:
            recorded_conversations.clock.advance(seconds=2)
        tracker.end_conversation(session_id, 4, "nice", message_count=6)
    (conversation,) = recorded_conversations.conversations
    (recorded_turn,) = conversation.turns
    assert conversation == RecordedConversation(
        session_id=session_id,
        number=1,
        agent_id="support-bot",
        user_id="u1",
        start_time=conversation.start_time,
        end_time=conversation.end_time,
        outcome=Outcome.COMPLETED,
        ended_by=EndedBy.CALL,
        quality=4.0,
        feedback="nice",
        error_type=None,
        error_message=None,
        message_count=6,
        metadata={"channel": "web"},
        turns=(recorded_turn,),
    )
    assert (recorded_turn.turn_id, recorded_turn.status) == (turn.turn_id, "ok")
    assert recorded_turn.duration_seconds == pytest.approx(2, abs=0.001)


def test_requests_are_what_a_tracker_would_get(recorded_conversations: RecordedConversations) -> None:
    """Requests come as path and body, those of agents too, whichever object made them."""
    AgentOperationsTracker().register_agent("bot", "1.2")
    tracker = AgentPerformanceTracker()
    tracker.end_conversation(tracker.start_conversation("bot"))
    assert [path for path, _ in recorded_conversations.requests] == [
        "/agents/register",
        "/conversations/start",
        "/conversations/end",
    ]
    assert recorded_conversations.requests[0].body["sdk_version"] == "1.2"


def test_advancing_the_clock_lets_sessions_expire(recorded_conversations: RecordedConversations) -> None:
    """Ten hours pass without waiting, and the sweep has been when `advance` returns."""
    tracker = AgentPerformanceTracker()
    tracker.start_conversation("bot")
    recorded_conversations.clock.advance(hours=9, minutes=59)
    assert [each.outcome for each in recorded_conversations.conversations] == ["active"]
    recorded_conversations.clock.advance(minutes=1)
    assert [each.outcome for each in recorded_conversations.conversations] == ["expired"]


def test_settings_are_those_of_the_test() -> None:
    """`recording` takes fields of the configuration; the code under test cannot change the destination."""
    with recording(session_ttl_hours=1.0) as recorded:
        AgentPerformanceTracker("https://elsewhere.example.com").start_conversation("bot")
        recorded.clock.advance(hours=1)
        assert [each.outcome for each in recorded.conversations] == ["expired"]


async def _converse() -> None:
    async with AsyncAgentPerformanceTracker() as tracker:
        session_id = await tracker.start_conversation("bot")
        await tracker.end_conversation(session_id)


def test_asynchronous_trackers_are_recorded_too(recorded_conversations: RecordedConversations) -> None:
    """The asyncio twin records like the other."""
    asyncio.run(_converse())
    assert [each.outcome for each in recorded_conversations.conversations] == ["completed"]


def test_tests_do_not_see_each_other() -> None:
    """Each recording begins empty, and objects of an earlier one do not reach it."""
    with recording():
        earlier = AgentPerformanceTracker()
        earlier.start_conversation("bot")
    with recording() as recorded:
        earlier.start_conversation("bot")
        assert recorded.requests == []


def test_a_question_to_the_tracker_reaches_no_network(recorded_conversations: RecordedConversations) -> None:
    """A question that only a tracker can answer raises, whatever the URL."""
    tracker = AgentPerformanceTracker("https://tracker.example.com")
    with pytest.raises(TrackerUnavailable, match="recorded"):
        tracker.get_session_info("bot_1_00000000")


def test_the_clock_stands_until_it_is_moved() -> None:
    """Time passes by `advance`, but for a microsecond a look, and never goes back."""
    clock = FakeClock(datetime(2024, 5, 1, tzinfo=UTC))
    before, monotonic = clock.clock.time_ns(), clock.clock.monotonic()
    clock.advance(hours=1, minutes=2, seconds=3)
    assert clock.now == datetime(2024, 5, 1, 1, 2, 3, 1, tzinfo=UTC)
    assert clock.clock.time_ns() - before == 3_723_000_001_000
    assert clock.clock.monotonic() - monotonic == 3723
    with pytest.raises(ValueError, match="time does not go back"):
        clock.advance(seconds=-1)
    assert clock.now - datetime(2024, 5, 1, 1, 2, 3, tzinfo=UTC) == timedelta(microseconds=2)


def test_a_test_run_that_records_nothing_imports_no_client() -> None:
    """The plugin itself brings neither SQLite nor the HTTP client into other people's test runs."""
    check = (
        "import otel_agent_tracker.testing, sys;"
        "print(sorted({'httpx', 'httpcore', 'sqlite3'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_the_fixture_is_found_by_name(pytester: pytest.Pytester) -> None:
    """The examples of the module's docstring run in a project that has the package installed."""
    _, _, rest = (testing.__doc__ or "").partition("::\n")
    examples = "\n".join(line for line in rest.splitlines() if line.startswith("    "))
    pytester.makepyfile("from otel_agent_tracker import AgentPerformanceTracker\n" + dedent(examples))
    pytester.runpytest_subprocess("-p", "no:cacheprovider", "-W", "error").assert_outcomes(passed=2)


@pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="no such signal here")
def test_a_signal_handler_may_look_at_the_clock_during_a_look() -> None:
    """The same thread, amid `time_ns`: it gets a later time, and hangs never."""
    clock, seen = FakeClock(), list[int]()
    before = signal.signal(signal.SIGALRM, lambda *_: seen.append(clock.clock.time_ns()))

    def interrupt(*_: object) -> None:
        signal.raise_signal(signal.SIGALRM)

    watchdog = threading.Timer(10, os._exit, (3,))
    watchdog.start()
    try:
        sys.setprofile(interrupt)
        seen.append(clock.clock.time_ns())
    finally:
        sys.setprofile(None)
        watchdog.cancel()
        watchdog.join()
        signal.signal(signal.SIGALRM, before)
    assert len(set(seen)) == len(seen) > 2
