"""What a real tracker knows after calls to the public API, asked through the public API, sync and async."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from textwrap import dedent
from typing import Any, NamedTuple

import pytest

from otel_agent_tracker import (
    AgentOperationsTracker,
    AgentPerformanceTracker,
    AgentStatus,
    AsyncAgentOperationsTracker,
    AsyncAgentPerformanceTracker,
    TrackerUnavailable,
)
from otel_agent_tracker.server.run import Server
from tests.scripted_server import ScriptedServer, json_reply
from tests.waiting import wait_until

Json = dict[str, Any]
Ask = Callable[..., Any]


def ask_sync(url: str, state_dir: Path, name: str, *arguments: Any, **options: Any) -> Any:
    """The answer of a sync tracker object."""
    kind = AgentPerformanceTracker if hasattr(AgentPerformanceTracker, name) else AgentOperationsTracker
    with kind(url, state_dir=state_dir, timeout_seconds=5) as tracker:
        return getattr(tracker, name)(*arguments, **options)


def ask_async(url: str, state_dir: Path, name: str, *arguments: Any, **options: Any) -> Any:
    """The answer of its asyncio twin."""
    sync = hasattr(AsyncAgentPerformanceTracker, name)
    kind = AsyncAgentPerformanceTracker if sync else AsyncAgentOperationsTracker

    async def ask() -> Any:
        async with kind(url, state_dir=state_dir, timeout_seconds=5) as tracker:
            return await getattr(tracker, name)(*arguments, **options)

    return asyncio.run(ask())


BOTH = pytest.mark.parametrize("ask", [ask_sync, ask_async], ids=["sync", "async"])


class Known(NamedTuple):
    """A tracker, and the sessions of `bot` that it knows."""

    url: str
    state_dir: Path
    sessions: list[str]


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory, migrated_database: Path) -> Iterator[Known]:
    """Of `bot` two completed sessions, rated 5 and 4, a failed one and two open ones; one of `other`."""
    folder = tmp_path_factory.mktemp("known")
    database, state_dir = str(shutil.copy(migrated_database, folder / "tracker.sqlite3")), folder / "state"
    with (
        Server(port=0, database=database) as server,
        AgentPerformanceTracker(server.url, state_dir=state_dir) as tracker,
    ):
        ids = [tracker.start_conversation("bot", f"u{number}") for number in range(5)]
        with tracker.turn(ids[0]):
            pass
        tracker.end_conversation(ids[0], 5, "great", message_count=2)
        tracker.end_conversation(ids[1], 4)
        tracker.record_failed_session(ids[2], "boom", error_type="ValueError")
        tracker.end_conversation(tracker.start_conversation("other"), 1)
        assert tracker.flush(5)
        yield Known(server.url, state_dir, ids)


@BOTH
def test_get_session_info(known: Known, ask: Ask) -> None:
    """All that is known of one session's newest conversation, with its episodes."""
    url, state_dir, sessions = known
    info = ask(url, state_dir, "get_session_info", sessions[0])
    fields = ("session_id", "agent_id", "user_id", "status", "ended_by", "quality_score", "turns")
    assert [info[name] for name in fields] == [sessions[0], "bot", "u0", "completed", "call", 5, 1]
    assert (info["user_feedback"], info["message_count"], len(info["episodes"])) == ("great", 2, 1)


@BOTH
def test_an_unknown_session_is_none(known: Known, ask: Ask) -> None:
    """The tracker's 404 is an answer, not an error."""
    assert ask(known.url, known.state_dir, "get_session_info", "nobody's") is None


@BOTH
def test_get_active_conversations(known: Known, ask: Ask) -> None:
    """The open ones, of all agents or of one."""
    url, state_dir, sessions = known
    for arguments in ((), ("bot",)):
        answer = ask(url, state_dir, "get_active_conversations", *arguments)
        assert {sessions[3], sessions[4]} <= {each["session_id"] for each in answer["conversations"]}
    assert ask(url, state_dir, "get_active_conversations", "other")["conversations"] == []


METRICS: dict[str, Callable[[Json], object]] = {
    "get_success_rates": lambda answer: (answer["total"], answer["completed"], answer["failed"]),
    "get_response_times": lambda answer: answer["count"],
    "get_conversation_quality": lambda answer: (answer["rated"], answer["mean"]),
    "get_failed_sessions": lambda answer: [
        (each["error_type"], each["error_message"]) for each in answer["failures"]
    ],
}
OF_BOT = {
    "get_success_rates": (5, 2, 1),
    "get_response_times": 1,
    "get_conversation_quality": (2, 4.5),
    "get_failed_sessions": [("ValueError", "boom")],
}
OF_NOBODY = {
    "get_success_rates": (0, 0, 0),
    "get_response_times": 0,
    "get_conversation_quality": (0, None),
    "get_failed_sessions": [],
}


@BOTH
@pytest.mark.parametrize("name", METRICS)
def test_metric_queries(known: Known, name: str, ask: Ask) -> None:
    """Each figure by agent and by period, whose last day is included."""
    now = datetime.now(UTC)

    def figure(*arguments: Any) -> object:
        return METRICS[name](ask(known.url, known.state_dir, name, *arguments))

    assert figure("bot") == OF_BOT[name]
    assert figure("bot", now - timedelta(hours=1), now + timedelta(hours=1)) == OF_BOT[name]
    assert (
        figure("bot", (now - timedelta(days=1)).date(), f"{now + timedelta(days=1):%Y-%m-%d}") == OF_BOT[name]
    )
    assert figure("bot", None, date(2024, 1, 19)) == OF_NOBODY[name]
    assert figure("nobody") == OF_NOBODY[name]


@BOTH
def test_get_performance_overview(known: Known, ask: Ask) -> None:
    """The four figures by name."""
    answer = ask(known.url, known.state_dir, "get_performance_overview", "bot")
    assert {
        f"get_{name}": METRICS[f"get_{name}"](answer[key])
        for name, key in (
            ("success_rates", "success_rates"),
            ("response_times", "response_times"),
            ("conversation_quality", "quality"),
            ("failed_sessions", "failures"),
        )
    } == OF_BOT


ODD_IDS = ("a/b", "..", "ü 🤖", "a?b=c&d#e", "100%2F", "active", "+a+b", 'quo"te', "semi;colon,comma")


@pytest.fixture(scope="module")
def known_oddly(known: Known) -> dict[str, str]:
    """A failed session of each agent with an odd id, and an open one whose id is odd too."""
    with (
        AgentPerformanceTracker(known.url, state_dir=known.state_dir) as tracker,
        AgentOperationsTracker(known.url, state_dir=known.state_dir) as agents,
    ):
        sessions = {agent_id: tracker.start_conversation(agent_id) for agent_id in ODD_IDS}
        for agent_id, session in sessions.items():
            with tracker.turn(f"{agent_id}:thread", agent_id=agent_id):
                pass
            tracker.record_failed_session(session, "boom")
            agents.log_activity(agent_id, "look")
        assert tracker.flush(5)
    return sessions


@BOTH
@pytest.mark.parametrize("agent_id", ODD_IDS)
def test_ids_are_escaped(known: Known, known_oddly: dict[str, str], agent_id: str, ask: Ask) -> None:
    """Ids of agents and sessions come back to the letter, in paths and in queries."""
    url, state_dir, _ = known
    session = known_oddly[agent_id]
    assert ask(url, state_dir, "get_session_info", session)["session_id"] == session
    assert ask(url, state_dir, "get_session_info", f"{agent_id}:thread")["agent_id"] == agent_id
    assert ask(url, state_dir, "get_active_conversations", agent_id)["total"] == 1
    assert ask(url, state_dir, "get_failed_sessions", agent_id)["failures"][0]["agent_id"] == agent_id
    assert ask(url, state_dir, "get_agent_status", agent_id)["agent_id"] == agent_id
    (activity,) = ask(url, state_dir, "get_recent_activity", 5, agent_id)["activities"]
    assert activity["agent_id"] == agent_id


@BOTH
def test_dates_are_escaped(tmp_path: Path, ask: Ask) -> None:
    """A zone's plus sign does not become a space, and a prefix of the base URL stays."""
    with ScriptedServer(json_reply({})) as server:
        ask(
            f"{server.url}/tracker/v1/", tmp_path, "get_success_rates", "a b",
            "2024-01-19T10:00:00+02:00", datetime(2024, 1, 20, tzinfo=UTC),
        )  # fmt: skip
        (request,) = server.requests
    assert request.path == "/tracker/v1/metrics/success-rates"
    assert request.query == {
        "agent_id": ["a b"],
        "start_date": ["2024-01-19T10:00:00+02:00"],
        "end_date": ["2024-01-20T00:00:00+00:00"],
    }


@BOTH
@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("get_session_info", ("",)),
        ("get_session_info", (7,)),
        ("get_active_conversations", ("a\nb",)),
        ("get_success_rates", (None, "yesterday")),
        ("get_failed_sessions", (None, None, 20240119)),
        ("get_recent_activity", (-1,)),
    ],
)
def test_wrong_questions_are_not_asked(
    tmp_path: Path, ask: Ask, name: str, arguments: tuple[Any, ...]
) -> None:
    """They raise before anything is sent."""
    with ScriptedServer(json_reply({})) as server:
        with pytest.raises((ValueError, TypeError)):
            ask(server.url, tmp_path, name, *arguments)
        assert server.requests == []


@BOTH
def test_a_question_without_a_tracker_raises(tmp_path: Path, ask: Ask) -> None:
    """No URL, nobody there: TrackerUnavailable, the one thing that waits and raises."""
    with pytest.raises(TrackerUnavailable, match="AGENT_TRACKER_URL"):
        ask(None, tmp_path, "get_session_info", "s1")
    with ScriptedServer(json_reply({})) as server:
        url = server.url
    with pytest.raises(TrackerUnavailable):
        ask(url, tmp_path, "get_operations_overview")


# --- agents -------------------------------------------------------------------------------------------------


@BOTH
def test_register_status_activity_and_overview(tracker_server: Server, tmp_path: Path, ask: Ask) -> None:
    """What agents report is what the tracker tells of them."""
    url, state = tracker_server.url, tmp_path / "state"
    with AgentOperationsTracker(url, state_dir=state) as agents:
        agents.register_agent("bot", "1.2.3", {"model": "small"})
        agents.update_agent_status("bot", AgentStatus.BUSY, AgentStatus.IDLE)
        agents.update_agent_status("gone", "offline")
        agents.log_activity("bot", "indexing", {"documents": 7}, 1.5)
        assert agents.flush(5)
    status = ask(url, state, "get_agent_status", "bot")
    assert (status["status"], status["sdk_version"], status["silent"]) == ("busy", "1.2.3", False)
    assert status["metadata"]["model"] == "small"
    active = ask(url, state, "get_active_agents")
    assert [each["agent_id"] for each in active["agents"]] == ["bot"]
    (activity,) = ask(url, state, "get_recent_activity", 10)["activities"]
    assert (activity["action"], activity["details"], activity["duration"]) == (
        "indexing", {"documents": 7}, 1.5,
    )  # fmt: skip
    overview = ask(url, state, "get_operations_overview")
    counts = {status: count for status, count in overview["agents_by_status"].items() if count}
    assert counts == {"busy": 1, "offline": 1}
    assert ask(url, state, "get_agent_status", "nobody") is None


@pytest.mark.parametrize("status", AgentStatus)
def test_each_status_is_told_as_it_was_reported(
    tracker_server: Server, tmp_path: Path, status: AgentStatus
) -> None:
    """None is lost between the call and the answer."""
    with AgentOperationsTracker(tracker_server.url, state_dir=tmp_path / "state") as agents:
        agents.update_agent_status("bot", status)
        assert agents.flush(5)
        told = agents.get_agent_status("bot")
    assert told is not None
    assert told["status"] == status


def test_the_asynchronous_twin_reports_the_same(tracker_server: Server, tmp_path: Path) -> None:
    """Every report of the asyncio operations tracker."""

    async def story() -> Json:
        async with AsyncAgentOperationsTracker(tracker_server.url, state_dir=tmp_path / "state") as agents:
            await agents.register_agent("bot", "1.2.3")
            await agents.update_agent_status("bot", AgentStatus.ERROR)
            await agents.log_activity("bot", "indexing", duration=2)
            await agents.heartbeat("bot")
            assert await agents.flush(5)
            assert (await agents.delivery_stats())["delivered"] == 3
            status = await agents.get_agent_status("bot")
            assert status is not None
            return status

    status = asyncio.run(story())
    assert (status["status"], status["sdk_version"]) == ("error", "1.2.3")


def test_heartbeat(tracker_server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sign of life at once, with the process and what it has delivered; it is never kept."""
    monkeypatch.setenv("OTEL_SERVICE_NAME", "shop")
    attributes = "service.version=1.2,deployment.environment.name=prod,service.instance.id=pod-1"
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", attributes)
    with AgentOperationsTracker(tracker_server.url, state_dir=tmp_path / "state") as agents:
        agents.register_agent("bot")
        assert agents.flush(5)
        agents.heartbeat("bot")

        def instances() -> list[Json]:
            return list((agents.get_agent_status("bot") or {})["instances"])

        wait_until(instances)
        (found,) = instances()
        assert found["delivery"]["delivered"] == 1
        told = [found[name] for name in ("instance", "service", "version", "environment")]
        assert told == ["pod-1", "shop", "1.2", "prod"]
        assert agents.delivery_stats()["accepted"] == 1


def run_script(script: str, url: str, state_dir: Path) -> str:
    """What a script wrote to standard error that had `tracker`, and warned of what is left open."""
    made = "import os, sys; from otel_agent_tracker import AgentPerformanceTracker\n"
    made += "tracker = AgentPerformanceTracker(sys.argv[1], state_dir=sys.argv[2])\n"
    warned = ("-W", "always::ResourceWarning", "-W", "ignore:This process:DeprecationWarning")
    command = [sys.executable, *warned, "-c", made + dedent(script), url, str(state_dir)]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stderr


def test_a_script_that_closes_nothing_leaves_nothing_open(tracker_server: Server, tmp_path: Path) -> None:
    """Neither the connection that delivers nor the one that asks."""
    script = """
    tracker.end_conversation(tracker.start_conversation("bot"), 5)
    assert tracker.flush()
    assert tracker.get_success_rates("bot")["completed"] == 1
    """
    assert run_script(script, tracker_server.url, tmp_path) == ""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform does not fork")
def test_a_forked_child_asks_over_its_own_connection(tmp_path: Path) -> None:
    """Answers to parent and child would mix on one; and the parent's stays open when the child ends."""
    script = """
    tracker.get_success_rates()
    child = os.fork()
    tracker.get_success_rates()
    if child:
        assert os.waitpid(child, 0)[1] == 0
        tracker.get_success_rates()
    """
    with ScriptedServer(json_reply({})) as server:
        run_script(script, server.url, tmp_path)
        assert (server.connection_count, len(server.requests)) == (2, 4)
