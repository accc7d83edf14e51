"""Both tracker objects and their asyncio twins against a plain tracker: all that they tell, all that they ask."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest

from otel_agent_tracker import (
    AgentOperationsTracker,
    AgentPerformanceTracker,
    AgentStatus,
    AsyncAgentOperationsTracker,
    AsyncAgentPerformanceTracker,
    session,
)
from tests.plain_tracker import END, EXPIRED, START, plain_tracker, told
from tests.scripted_server import ScriptedServer

Json = dict[str, Any]
KEY = "key-of-the-plain-tracker"


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with plain_tracker() as server:
        yield server


# --- what is told -------------------------------------------------------------------------------------------


def tell(url: str, state_dir: Path) -> Json:
    """One conversation of each kind, the agent named after the kind; the delivery counts after all."""
    with (
        AgentPerformanceTracker(url, state_dir=state_dir) as tracker,
        AgentPerformanceTracker(url, state_dir=state_dir / "hasty", session_ttl_hours=1e-9) as hasty,
        AgentOperationsTracker(url, state_dir=state_dir) as agents,
    ):
        with tracker.conversation("rated", user_id="u1", metadata={"plan": "pro"}) as conversation:
            with conversation.turn():
                pass
            conversation.rate(4, "fine")
            conversation.set_message_count(2)
        with pytest.raises(KeyError), tracker.conversation("raising") as conversation, conversation.turn():
            raise KeyError("boom")
        with tracker.conversation("failing") as conversation:
            conversation.fail("no answer")
        with tracker.conversation("streaming") as conversation:
            with conversation.turn() as turn:
                chunks = turn.stream(iter("abc"))
            assert "".join(chunks) == "abc"
        with tracker.conversation("breaking off") as conversation:
            with conversation.turn() as turn:
                chunks = turn.stream(iter("abc"))
            assert next(chunks) == "a"
            del chunks
        with tracker.conversation("of all turns") as conversation:
            with conversation.turn() as turn:
                turn.fail("late")
            with conversation.turn() as turn:
                turn.cancel()
            with conversation.turn() as turn:
                turn.wait()
        called = tracker.start_conversation("by call", "u1")
        with tracker.turn(called):
            pass
        assert tracker.touch_session(called)
        assert tracker.is_session_active(called)
        assert tracker.get_session_ttl_remaining(called) == pytest.approx(10, abs=0.01)
        assert (tracker.get_live_session(called) or conversation).session_id == called
        assert tracker.get_session_stats()["active_sessions"] == 1
        tracker.record_feedback(called, thumbs="up", user_feedback="thanks")
        assert tracker.end_conversation(called, message_count=3, metadata={"channel": "web"})
        assert not tracker.end_conversation(called)
        failed = tracker.start_conversation("failed by call")
        assert tracker.record_failed_session(failed, "boom", error_type="Timeout")
        hasty.start_conversation("abandoned")
        with session("thread-7", user_id="u2", agent_id="in a session"), tracker.turn("thread-7"):
            pass
        assert tracker.end_conversation("thread-7", 5)
        agents.register_agent("bot", "1.0", {"team": "x"})
        agents.update_agent_status("bot", AgentStatus.BUSY, AgentStatus.IDLE, {"load": 3})
        agents.log_activity("bot", "indexing", {"documents": 7}, 1.5)
        agents.heartbeat("bot")
        assert hasty.flush(10)
        assert agents.flush(10)
        return tracker.delivery_stats()


async def tell_with_twins(url: str, state_dir: Path) -> Json:
    """The same, in the same order, by the asyncio twins."""
    async with (
        AsyncAgentPerformanceTracker(url, state_dir=state_dir) as tracker,
        AsyncAgentPerformanceTracker(url, state_dir=state_dir / "hasty", session_ttl_hours=1e-9) as hasty,
        AsyncAgentOperationsTracker(url, state_dir=state_dir) as agents,
    ):
        async with tracker.conversation("rated", user_id="u1", metadata={"plan": "pro"}) as conversation:
            async with conversation.turn():
                pass
            conversation.rate(4, "fine")
            conversation.set_message_count(2)
        with pytest.raises(KeyError):
            async with tracker.conversation("raising") as conversation, conversation.turn():
                raise KeyError("boom")
        async with tracker.conversation("failing") as conversation:
            conversation.fail("no answer")
        async with tracker.conversation("streaming") as conversation:
            async with conversation.turn() as turn:
                chunks = turn.stream(letters())
            assert "".join([chunk async for chunk in chunks]) == "abc"
        async with tracker.conversation("breaking off") as conversation:
            async with conversation.turn() as turn:
                chunks = turn.stream(letters())
            assert await anext(chunks) == "a"
            await chunks.aclose()  # type: ignore[attr-defined] # an AsyncIterator that can do more
        async with tracker.conversation("of all turns") as conversation:
            async with conversation.turn() as turn:
                turn.fail("late")
            async with conversation.turn() as turn:
                turn.cancel()
            async with conversation.turn() as turn:
                turn.wait()
        called = await tracker.start_conversation("by call", "u1")
        async with tracker.turn(called):
            pass
        assert await tracker.touch_session(called)
        assert await tracker.is_session_active(called)
        assert await tracker.get_session_ttl_remaining(called) == pytest.approx(10, abs=0.01)
        assert (await tracker.get_live_session(called) or conversation).session_id == called
        assert (await tracker.get_session_stats())["active_sessions"] == 1
        await tracker.record_feedback(called, thumbs="up", user_feedback="thanks")
        assert await tracker.end_conversation(called, message_count=3, metadata={"channel": "web"})
        assert not await tracker.end_conversation(called)
        failed = await tracker.start_conversation("failed by call")
        assert await tracker.record_failed_session(failed, "boom", error_type="Timeout")
        await hasty.start_conversation("abandoned")
        async with session("thread-7", user_id="u2", agent_id="in a session"), tracker.turn("thread-7"):
            pass
        assert await tracker.end_conversation("thread-7", 5)
        await agents.register_agent("bot", "1.0", {"team": "x"})
        await agents.update_agent_status("bot", AgentStatus.BUSY, AgentStatus.IDLE, {"load": 3})
        await agents.log_activity("bot", "indexing", {"documents": 7}, 1.5)
        await agents.heartbeat("bot")
        assert await hasty.flush(10)
        assert await agents.flush(10)
        return await tracker.delivery_stats()


async def letters() -> AsyncIterator[str]:
    for letter in "abc":
        yield letter


def ended(status: str, turns: int | None = None, failed_turns: int = 0, **more: Any) -> tuple[str, Json]:
    """What an end says beside ids and times, with the roll-up of its turns."""
    rolled_up = {} if turns is None else {"turns": turns, "failed_turns": failed_turns, "timed": turns}
    return END, {"status": status, "ended_by": "call", **rolled_up, **more}


TOLD: dict[str, list[tuple[str, Json]]] = {
    "rated": [
        (START, {"user_id": "u1", "plan": "pro"}),
        ended("completed", 1, quality_score=4, user_feedback="fine", message_count=2),
    ],
    "raising": [(START, {}), ended("failed", 1, 1, error_message="'boom'", error_type="KeyError")],
    "failing": [(START, {}), ended("failed", error_message="no answer")],
    "streaming": [(START, {}), ended("completed", 1)],
    "breaking off": [(START, {}), ended("completed", 1)],
    "of all turns": [(START, {}), ended("completed", 3, 1)],
    "by call": [
        (START, {"user_id": "u1"}),
        ended(
            "completed", 1, quality_score=5, user_feedback="thanks", message_count=3, channel="web",
        ),
    ],
    "failed by call": [(START, {}), ended("failed", error_message="boom", error_type="Timeout")],
    "abandoned": [(START, {}), (EXPIRED, {"status": "expired", "expiry_reason": "ttl_timeout", "ended_by": "ttl"})],
    "in a session": [(START, {"user_id": "u2"}), ended("completed", 1, quality_score=5)],
    "bot": [
        ("/agents/register", {"sdk_version": "1.0", "team": "x"}),
        ("/agents/status", {"status": "busy", "previous_status": "idle", "load": 3}),
        ("/agents/activity", {"action": "indexing", "details": {"documents": 7}, "duration": 1.5}),
    ],
}  # fmt: skip
VOLATILE = {"session_id", "agent_id", "metadata", "duration_seconds"}


def essence(body: Json) -> Json:
    """A body without ids and times, and with its metadata, the user's and ours, beside its other fields."""
    said = {name: value for name, value in body.items() if name not in VOLATILE and "time" not in name}
    users = dict(body.get("metadata", {}))
    ours = users.pop("agent_tracker", {})
    kept = {name: ours[name] for name in ("ended_by", "turns", "failed_turns", "error_type") if name in ours}
    if "response_time_seconds" in ours:
        kept["timed"] = ours["response_time_seconds"]["count"]
    return said | users | kept


@pytest.mark.parametrize(
    "story",
    [tell, lambda url, state_dir: asyncio.run(tell_with_twins(url, state_dir))],
    ids=["sync", "async"],
)
def test_everything_that_is_told_arrives(
    server: ScriptedServer, tmp_path: Path, story: Callable[[str, Path], Json]
) -> None:
    """By calls, blocks and streams: the plain requests, each once, turns summed up in their ends."""
    stats = story(server.url, tmp_path)

    by_agent: dict[str, list[tuple[str, Json]]] = {}
    for path, body in told(server):
        by_agent.setdefault(body["agent_id"], []).append((path, essence(body)))
    assert by_agent == TOLD
    assert (stats["pending"], stats["dead_lettered"], stats["dropped"]) == (0, 0, 0)
    assert stats["accepted"] == stats["delivered"]


# --- what is asked ------------------------------------------------------------------------------------------

FROM, TO = date(2024, 1, 1), datetime(2024, 1, 31, 12, tzinfo=UTC)
PERIOD = "agent_id=bot&start_date=2024-01-01&end_date=2024-01-31T12%3A00%3A00%2B00%3A00"
QUESTIONS: dict[str, tuple[tuple[Any, ...], str]] = {
    "get_session_info": (("s 1?",), "/conversations/s%201%3F"),
    "get_active_conversations": (("bot",), "/conversations/active?agent_id=bot"),
    "get_success_rates": (("bot", FROM, TO), f"/metrics/success-rates?{PERIOD}"),
    "get_response_times": (("bot", FROM, TO), f"/metrics/response-times?{PERIOD}"),
    "get_conversation_quality": (("bot", FROM, TO), f"/metrics/quality?{PERIOD}"),
    "get_failed_sessions": (("bot", FROM, TO), f"/metrics/failures?{PERIOD}"),
    "get_performance_overview": (("bot",), "/metrics/overview?agent_id=bot"),
    "get_active_agents": ((), "/agents/active"),
    "get_agent_status": (("bot",), "/agents/bot/status"),
    "get_recent_activity": ((7, "bot"), "/agents/bot/activity?limit=7"),
    "get_operations_overview": ((), "/operations/overview"),
}
LOCAL = {"get_session_ttl_remaining", "get_session_stats", "get_live_session"}
"""Answered by the session map of this process."""


def ask(name: str, url: str, state_dir: Path, *arguments: Any) -> Any:
    kind = AgentPerformanceTracker if hasattr(AgentPerformanceTracker, name) else AgentOperationsTracker
    with kind(url, KEY, state_dir=state_dir) as tracker:
        return getattr(tracker, name)(*arguments)


def ask_twin(name: str, url: str, state_dir: Path, *arguments: Any) -> Any:
    is_performance = hasattr(AsyncAgentPerformanceTracker, name)
    kind = AsyncAgentPerformanceTracker if is_performance else AsyncAgentOperationsTracker

    async def question() -> Any:
        async with kind(url, KEY, state_dir=state_dir) as tracker:
            return await getattr(tracker, name)(*arguments)

    return asyncio.run(question())


BOTH = pytest.mark.parametrize("ask", [ask, ask_twin], ids=["sync", "async"])


@BOTH
@pytest.mark.parametrize("name", QUESTIONS)
def test_every_question_is_one_plain_request(
    server: ScriptedServer, tmp_path: Path, ask: Callable[..., Any], name: str
) -> None:
    """With the key, and without asking first what the tracker offers; its JSON is handed on as it is."""
    arguments, target = QUESTIONS[name]
    assert ask(name, server.url, tmp_path, *arguments) == {"asked": target}
    assert [(each.method, each.target, each.body) for each in server.requests] == [("GET", target, b"")]
    assert server.requests[0].headers["authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize(
    "kind",
    [
        AgentPerformanceTracker,
        AgentOperationsTracker,
        AsyncAgentPerformanceTracker,
        AsyncAgentOperationsTracker,
    ],
)
def test_every_question_is_asked_here(kind: type[Any]) -> None:
    """Whatever begins with `get_` and is not answered in this process."""
    questions = {name for name in dir(kind) if name.startswith("get_")} - LOCAL
    assert questions <= QUESTIONS.keys()
    assert questions


@BOTH
@pytest.mark.parametrize("name", ["get_session_info", "get_agent_status"])
def test_what_the_tracker_does_not_know_is_none(
    server: ScriptedServer, tmp_path: Path, ask: Callable[..., Any], name: str
) -> None:
    """Its 404 is an answer."""
    assert ask(name, server.url, tmp_path, "nobody") is None


@BOTH
@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("get_session_info", "/conversations?session_id=a%2Fb"),
        ("get_agent_status", "/agents/status?agent_id=a%2Fb"),
    ],
)
def test_an_id_that_no_path_can_carry_is_unknown_to_it(
    server: ScriptedServer, tmp_path: Path, ask: Callable[..., Any], name: str, target: str
) -> None:
    """The way around is ours; a plain tracker says 404, and nothing raises."""
    assert ask(name, server.url, tmp_path, "a/b") is None
    assert [request.target for request in server.requests] == [target]
