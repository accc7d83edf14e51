"""A process that is killed: nothing that it had accepted is lost or told twice."""

from __future__ import annotations

from typing import Any

import pytest

from otel_agent_tracker import AgentPerformanceTracker
from otel_agent_tracker.server.run import Server
from tests.conftest import MakeTracker
from tests.faults.processes import StartHost


def status_of(tracker: AgentPerformanceTracker, session: str) -> tuple[Any, ...]:
    info = tracker.get_session_info(session)
    assert info is not None
    return info["status"], info["ended_by"], info["quality_score"], len(info["episodes"]), info["turns"]


KILLED = """
while True:
    session = tracker.start_conversation("bot")
    if tracker.end_conversation(session, 3):
        say(session)
"""


@pytest.mark.parametrize("calls", [1, 40, 700])
def test_kill_9_right_after_accepted_calls_loses_nothing(
    tracker_database: str, make_tracker: MakeTracker, start_host: StartHost, calls: int
) -> None:
    """Accepted by a process that is killed at once, delivered by the next, once."""
    server = Server(port=0, database=tracker_database)  # its socket listens, nobody answers yet
    host = start_host(server.url, KILLED)
    accepted = [host.line() for _ in range(calls)]
    host.kill()
    accepted += host.end().lines
    with server:
        tracker = make_tracker(server.url)
        assert tracker.flush(30)
        rates = tracker.get_success_rates("bot")
        assert rates["total"] - rates["active"] == rates["completed"]
        assert len(accepted) <= rates["completed"] <= rates["total"] <= len(accepted) + 1
        for session in {accepted[0], accepted[len(accepted) // 2], accepted[-1]}:
            assert status_of(tracker, session) == ("completed", "call", 3, 1, 0)
        stats = tracker.delivery_stats()
        assert (stats["pending"], stats["dead_lettered"], stats["dropped"]) == (0, 0, 0)


def test_a_killed_process_s_open_session_goes_on_in_the_next(
    tracker_server: Server, make_tracker: MakeTracker, start_host: StartHost
) -> None:
    """After a crash open sessions are there: the next process holds them, and ends them once."""
    host = start_host(tracker_server.url, 'say(tracker.start_conversation("bot", "u1")); time.sleep(60)')
    session = host.line()
    host.kill()
    tracker = make_tracker(tracker_server.url)
    assert tracker.flush(10)
    info = tracker.get_live_session(session)
    assert info is not None
    assert (info.agent_id, info.user_id) == ("bot", "u1")
    assert tracker.end_conversation(session, 5)
    assert tracker.flush(10)
    assert status_of(tracker, session) == ("completed", "call", 5, 1, 0)
