"""Everything against a tracker that knows only the plain protocol, and answers 404 to all else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from otel_agent_tracker import AgentOperationsTracker, AgentPerformanceTracker, AgentStatus, Turn
from otel_agent_tracker.events import Ending
from otel_agent_tracker.pipeline import Pipeline
from otel_agent_tracker.semconv import Outcome
from tests.conftest import MakeTracker
from tests.plain_tracker import END, EXPIRED, POSTS, START, plain_tracker, told
from tests.scripted_server import ScriptedServer
from tests.waiting import wait_until

Json = dict[str, Any]


@pytest.fixture
def plain_server() -> Iterator[ScriptedServer]:
    """A tracker that takes the six plain posts, answers the plain questions and knows nothing else."""
    with plain_tracker() as server:
        yield server


@pytest.fixture
def tracker(plain_server: ScriptedServer, make_tracker: MakeTracker) -> AgentPerformanceTracker:
    return make_tracker(plain_server.url)


def take_turn(tracker: AgentPerformanceTracker, session: str, *, fails: bool = False) -> Turn:
    with tracker.turn(session, agent_id="bot") as turn:
        if fails:
            turn.fail("boom")
    return turn


def test_every_plain_request_arrives_once(
    plain_server: ScriptedServer, tracker: AgentPerformanceTracker, tmp_path: Path
) -> None:
    """Start, end, failure, expiry and what agents report, with the fields of the protocol."""
    completed = tracker.start_conversation("bot", "u1", {"channel": "web"})
    tracker.end_conversation(completed, 4, "nice", 3)
    failed = tracker.start_conversation("bot")
    tracker.record_failed_session(failed, "boom")
    with AgentOperationsTracker(plain_server.url, state_dir=tmp_path / "state") as agents:
        agents.register_agent("bot", "1.0")
        agents.update_agent_status("bot", AgentStatus.BUSY, AgentStatus.IDLE)
        agents.log_activity("bot", "indexing", {"documents": 7}, 1.5)
        agents.heartbeat("bot")
        assert agents.flush(5)
    expired = tracker.start_conversation("bot")
    tracker.set_session_ttl(1e-9)
    assert tracker.flush(5)
    by_path: dict[str, list[Json]] = {}
    for path, body in told(plain_server):
        by_path.setdefault(path, []).append(body)
    assert {path: len(bodies) for path, bodies in by_path.items()} == dict.fromkeys(POSTS, 1) | {
        START: 3,
        END: 2,
    }
    assert by_path[EXPIRED][0]["session_id"] == expired
    ends = {body["session_id"]: body for body in by_path[END]}
    assert (ends[completed]["quality_score"], ends[completed]["message_count"]) == (4, 3)
    assert (ends[failed]["status"], ends[failed]["error_message"]) == ("failed", "boom")
    assert tracker.delivery_stats()["dead_lettered"] == 0


def test_turns_go_as_a_roll_up_with_the_end(
    plain_server: ScriptedServer, tracker: AgentPerformanceTracker
) -> None:
    """In metadata.agent_tracker: counts, response times and tokens."""
    session = tracker.start_conversation("bot")
    for number in range(3):
        take_turn(tracker, session, fails=number == 1)
    tracker.end_conversation(session)
    assert tracker.flush(5)
    (_, _), (path, end) = told(plain_server)
    assert path == END
    ours = end["metadata"]["agent_tracker"]
    times = ours["response_time_seconds"]
    assert (ours["turns"], ours["failed_turns"], times["count"]) == (3, 1, 3)
    assert 0 <= times["min"] <= times["p50"] <= times["p95"] <= times["max"] <= times["sum"] < 5
    assert ours["tokens"] == {"input": 0, "output": 0}


def test_turns_count_as_delivered_when_they_are_rolled_up(
    plain_server: ScriptedServer, tracker: AgentPerformanceTracker
) -> None:
    """A session that is still open keeps nothing in the outbox."""
    session = tracker.start_conversation("bot")
    take_turn(tracker, session)
    assert tracker.flush(5)
    stats = tracker.delivery_stats()
    assert (stats["accepted"], stats["delivered"], stats["pending"]) == (2, 2, 0)
    assert [path for path, _ in told(plain_server)] == [START]


def test_the_next_conversation_has_a_roll_up_of_its_own(
    plain_server: ScriptedServer, tracker: AgentPerformanceTracker
) -> None:
    """Turns of the first are not counted again in the second."""
    for turns in (2, 1):
        for _ in range(turns):
            take_turn(tracker, "thread-7")
        tracker.end_conversation("thread-7")
    assert tracker.flush(5)
    ends = [body for path, body in told(plain_server) if path == END]
    assert [end["metadata"]["agent_tracker"]["turns"] for end in ends] == [2, 1]


def test_feedback_before_the_end_goes_with_it(
    plain_server: ScriptedServer, tracker: AgentPerformanceTracker
) -> None:
    """As its quality and its text, unless the end says so itself."""
    silent, outspoken = tracker.start_conversation("bot"), tracker.start_conversation("bot")
    for session in (silent, outspoken):
        tracker.record_feedback(session, thumbs="down", user_feedback="too slow")
    tracker.end_conversation(silent)
    tracker.end_conversation(outspoken, 3)
    assert tracker.flush(5)
    ends = {body["session_id"]: body for path, body in told(plain_server) if path == END}
    assert len(told(plain_server)) == 4
    assert (ends[silent]["quality_score"], ends[silent]["user_feedback"]) == (1, "too slow")
    assert (ends[outspoken]["quality_score"], ends[outspoken]["user_feedback"]) == (3, "too slow")
    assert tracker.delivery_stats()["pending"] == 0


@pytest.mark.parametrize("outcome", ["completed", "failed"])
def test_feedback_after_the_end_goes_as_a_second_end(
    plain_server: ScriptedServer, tracker: AgentPerformanceTracker, outcome: str
) -> None:
    """With the original outcome and times, so that a tracker that replaces ends only learns the rating."""
    session = tracker.start_conversation("bot")
    if outcome == "completed":
        tracker.end_conversation(session, 2)
    else:
        tracker.record_failed_session(session, "boom")
    assert tracker.flush(5)
    tracker.record_feedback(session, 5, "after all")
    assert tracker.flush(5)
    first, second = (body for path, body in told(plain_server) if path == END)
    same = ("session_id", "agent_id", "start_time", "end_time", "duration_seconds", "status")
    assert [second[name] for name in same] == [first[name] for name in same]
    assert second.get("error_message") == first.get("error_message")
    assert (second["quality_score"], second["user_feedback"]) == (5, "after all")
    assert second["metadata"]["agent_tracker"]["event_id"] != first["metadata"]["agent_tracker"]["event_id"]


def test_feedback_without_any_end_waits(
    plain_server: ScriptedServer, tracker: AgentPerformanceTracker
) -> None:
    """It is neither lost nor dead: it goes with the end that comes later."""
    session = tracker.start_conversation("bot")
    tracker.record_feedback(session, 5)
    assert not tracker.flush(0.3)
    assert tracker.delivery_stats()["pending"] == 1
    tracker.end_conversation(session)
    assert tracker.flush(5)
    assert told(plain_server)[-1][1]["quality_score"] == 5


@pytest.mark.parametrize("first_is_other", [True, False])
def test_of_two_ends_it_is_left_with_the_first(
    plain_server: ScriptedServer, tracker: AgentPerformanceTracker, first_is_other: bool
) -> None:
    """Two processes end a conversation before they know of each other: a tracker without rules gets one outcome."""
    session = tracker.start_conversation("bot")
    assert tracker.flush(5)
    other = Pipeline(tracker._config)  # what another process has on the same state folder
    try:
        pipelines = [tracker._pipeline, other]
        first, second = reversed(pipelines) if first_is_other else pipelines
        assert first.events.end(session, Ending(Outcome.COMPLETED, quality=5))
        assert second.events.end(session, Ending(Outcome.FAILED, error_message="timeout"))
        assert other.flush(5)
        assert tracker.flush(5)
    finally:
        other.close()
    assert [body["status"] for path, body in told(plain_server) if path == END][-1] == "completed"
    stats = tracker.delivery_stats()
    assert (stats["delivered"], stats["pending"], stats["dead_lettered"]) == (3, 0, 0)


def test_an_idle_conversation_ends_there_too(plain_server: ScriptedServer, make_tracker: MakeTracker) -> None:
    """What was inferred is told with the plain end, failed or completed, and its turns."""
    tracker = make_tracker(plain_server.url, idle_minutes=0.003)
    take_turn(tracker, "thread-7", fails=True)
    wait_until(lambda: tracker.flush(5) and END in [path for path, _ in told(plain_server)])
    end = told(plain_server)[-1][1]
    assert (end["status"], end["error_message"]) == ("failed", "boom")
    assert end["metadata"]["agent_tracker"]["ended_by"] == "idle"
    assert end["metadata"]["agent_tracker"]["turns"] == 1
