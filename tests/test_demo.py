"""The demo: it plays, it tells the truth, and it notices when a tracker does not."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from otel_agent_tracker import AgentStatus, demo
from otel_agent_tracker.demo.ledger import Held, Ledger, TurnTime, differences
from otel_agent_tracker.demo.script import Script
from otel_agent_tracker.demo.stopwatch import SLACK_SECONDS, Bounds
from otel_agent_tracker.semconv import Outcome
from otel_agent_tracker.server.run import Server


@pytest.fixture
def ledger() -> Ledger:
    """Five conversations of one agent and one of another."""
    held = [
        Held(session_id="1", agent_id="bot", outcome=Outcome.COMPLETED, quality=5),
        Held(session_id="2", agent_id="bot", outcome=Outcome.COMPLETED, quality=2),
        Held(session_id="3", agent_id="bot", outcome=Outcome.COMPLETED, idle=True),
        Held(session_id="4", agent_id="bot", outcome=Outcome.FAILED, error_type="E", error_message="no"),
        Held(session_id="5", agent_id="bot", outcome=Outcome.EXPIRED),
        Held(session_id="6", agent_id="other", outcome=Outcome.ACTIVE),
    ]
    turns = [TurnTime("bot", Bounds(seconds, seconds + 0.1)) for seconds in (1.0, 3.0, 2.0, 4.0)]
    return Ledger(conversations=held, turns=turns, statuses={"bot": AgentStatus.IDLE}, activities=1)


def _told() -> dict[str, Any]:
    """What a tracker that knows exactly that says of the agent."""
    return {
        "success_rates": {
            "total": 5,
            "completed": 3,
            "failed": 1,
            "expired": 1,
            "idle_ended": 1,
            "active": 0,
            "success_rate": 0.75,
        },
        "response_times": {"count": 4, "mean": 2.55, "p50": 2.05, "p95": 4.05, "p99": 4.05},
        "quality": {
            "rated": 2,
            "total": 5,
            "share": 0.4,
            "mean": 3.5,
            "distribution": {"1": 0, "2": 1, "3": 0, "4": 0, "5": 1},
        },
        "failures": {
            "count": 1,
            "by_session": {"4": {"agent_id": "bot", "error_type": "E", "error_message": "no"}},
        },
    }


def test_a_true_answer_has_no_difference(ledger: Ledger) -> None:
    """What the tracker says of one agent agrees, whatever it says beyond what is expected."""
    assert differences(ledger.performance("bot"), _told()) == []


@pytest.mark.parametrize(
    ("section", "figure", "value"),
    [
        *(("success_rates", name, 7) for name in _told()["success_rates"]),
        ("success_rates", "success_rate", None),
        ("response_times", "count", 3),
        ("response_times", "mean", 2.61),
        ("response_times", "p50", 3.05),
        ("response_times", "p95", None),
        ("response_times", "p99", 4.2),
        ("quality", "rated", 3),
        ("quality", "share", 0.5),
        ("quality", "mean", 3.4),
        ("quality", "distribution", {"1": 0, "2": 1, "3": 0, "4": 1, "5": 0}),
        ("failures", "count", 0),
        ("failures", "by_session", {}),
    ],
)
def test_every_wrong_figure_is_found(ledger: Ledger, section: str, figure: str, value: object) -> None:
    """A figure that is wrong is named with both values."""
    told = _told()
    told[section][figure] = value

    found = differences(ledger.performance("bot"), told)

    assert found
    assert all(line.startswith(f"/{section}/{figure}") for line in found)


def test_an_agent_without_turns_has_no_response_times(ledger: Ledger) -> None:
    """Nothing to measure is None, as the tracker says it."""
    expected = ledger.performance("other")["response_times"]
    assert expected == {"count": 0, "mean": None, "p50": None, "p95": None, "p99": None}


def test_bounds_allow_what_lies_between_them() -> None:
    """A duration is allowed from least to most, with some slack for the difference of two clocks."""
    bounds = Bounds(1.0, 2.0)
    allowed = (1.0, 1.5, 2.0, 1.0 - SLACK_SECONDS / 2, 2.0 + SLACK_SECONDS / 2)
    assert all(bounds.allow(seconds) for seconds in allowed)
    assert not any(bounds.allow(seconds) for seconds in (None, 0.9, 2.1))


def test_the_tracker_knows_what_the_demo_did(capsys: pytest.CaptureFixture[str]) -> None:
    """The whole demo: at least twelve conversations, every figure asked over REST agrees, exit code 0."""
    code = demo.run(leave=True, port=0)

    told = capsys.readouterr().out
    assert "Every figure agrees" in told
    assert code == 0


def test_a_difference_is_told_and_is_the_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """When the tracker knows other than what the script says it did, the demo fails and says where."""

    class Boasting(Script):
        """Claims a conversation that was never held."""

        def _all_scenes(self) -> list[Any]:
            return []

        async def play(self) -> None:
            await super().play()
            claim = Held(session_id="never", agent_id="support-bot", outcome=Outcome.COMPLETED, quality=5)
            self.ledger.conversations.append(claim)

    monkeypatch.setattr(demo, "Script", Boasting)

    code = demo.run(leave=True, port=0)

    assert "support-bot/success_rates/completed: expected 1, the tracker says 0" in capsys.readouterr().out
    assert code == 1


# --- the story ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def told_story(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The database of a tracker that has heard the whole story."""
    folder = tmp_path_factory.mktemp("story")
    database = folder / "tracker.sqlite3"
    with Server(port=0, database=str(database)) as server:
        asyncio.run(Script(server.url, folder / "state", lambda: None).play())
    return database


def _query(database: Path, query: str) -> list[Any]:
    with closing(sqlite3.connect(database)) as connection:
        return connection.execute(query).fetchall()


def test_the_story_has_conversations_of_every_kind(told_story: Path) -> None:
    """A dozen at the least; most end with a quality, some fail, some are abandoned, one is still open."""
    query = "SELECT status, ended_by, quality IS NOT NULL FROM conversations"
    kinds = Counter(_query(told_story, query))
    assert sum(kinds.values()) >= 12
    assert kinds["completed", "call", True] > sum(kinds.values()) / 2
    assert kinds["failed", "call", False] >= 2
    assert kinds["expired", "ttl", False] >= 2
    assert kinds["completed", "idle", False] >= 1
    assert kinds["active", None, False] >= 1


def test_failures_of_the_story_are_real_exceptions(told_story: Path) -> None:
    """Of a tool that breaks, and of the framework that gives up on one."""
    failures = _query(
        told_story, "SELECT error_type, error_message FROM conversations WHERE status = 'failed'"
    )
    assert {kind for kind, _ in failures} == {
        "otel_agent_tracker.demo.agents.WarehouseError",
        "pydantic_ai.exceptions.UnexpectedModelBehavior",
    }
    assert all(message for _, message in failures)


def test_one_session_of_the_story_has_two_conversations(told_story: Path) -> None:
    """Its user came back after the first was over."""
    query = "SELECT count(*) FROM conversations GROUP BY session_id HAVING count(*) > 1"
    assert _query(told_story, query) == [(2,)]


def test_one_conversation_of_the_story_is_ended_by_a_second_process(told_story: Path) -> None:
    """Which takes one of its turns as well."""
    query = """
        SELECT group_concat(path) FROM (SELECT * FROM events WHERE session_id IS NOT NULL ORDER BY time_us)
        GROUP BY instance ORDER BY count(*)
    """
    (second,), _ = _query(told_story, query)
    assert second == "/conversations/turn,/conversations/end"


def test_one_conversation_of_the_story_gets_a_thumbs_up_after_its_end(told_story: Path) -> None:
    """And by that its quality."""
    query = """
        SELECT feedback.body, feedback.time_us > end_us, quality FROM events AS feedback
        JOIN conversations USING (session_id) WHERE path = '/conversations/feedback'
    """
    ((body, is_after, quality),) = _query(told_story, query)
    assert (json.loads(body)["thumbs"], is_after, quality) == ("up", True, 5)


def test_one_turn_of_the_story_is_a_stream(told_story: Path) -> None:
    """Its first word came before its last."""
    turns = [
        json.loads(body)
        for (body,) in _query(told_story, "SELECT body FROM events WHERE path = '/conversations/turn'")
    ]
    [streamed] = [turn for turn in turns if "time_to_first_token" in turn]
    assert 0 < streamed["time_to_first_token"] < streamed["duration_seconds"]
