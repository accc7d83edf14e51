"""How conversations end that nobody ends by call: from a framework's spans to what a real tracker tells."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import Status, StatusCode

from otel_agent_tracker import auto, queries
from otel_agent_tracker.client import TrackerClient
from otel_agent_tracker.config import Config
from otel_agent_tracker.pipeline import Pipeline, substitute
from otel_agent_tracker.server.run import Server
from otel_agent_tracker.testing import FakeClock

SESSION = "thread-7"


class ModelError(Exception):
    """What an agent's model may raise."""


class GraphInterrupt(Exception):  # noqa: N818 - as LangGraph calls it
    """What a framework raises to ask a human."""


class Host:
    """An application whose agent shows its turns, and the time that passes for it."""

    def __init__(self, url: str, clock: FakeClock) -> None:
        self._clock, self._client = clock, TrackerClient(url)
        self._provider = TracerProvider(shutdown_on_exit=False)
        self._tracker = auto.install(self._provider)

    def answer(self, error: Exception | None = None) -> datetime:
        """One turn of a second; when it was over."""
        attributes = {
            "gen_ai.operation.name": "invoke_agent",
            "gen_ai.agent.name": "bot",
            "gen_ai.conversation.id": SESSION,
        }
        span = self._provider.get_tracer("some-agents").start_span(
            "invoke_agent bot", attributes=attributes, start_time=self._now_ns()
        )
        self._clock.advance(seconds=1)
        if error is not None:
            span.record_exception(error)
            span.set_status(Status(StatusCode.ERROR, str(error)))
        over = self._clock.now
        span.end(self._now_ns())
        return over

    def pass_time(self, **time: float) -> list[dict[str, Any]]:
        """The session's conversations as the tracker knows them when that time has passed, the oldest first."""
        self._clock.advance(**time)
        assert self._tracker.flush(10)
        found = self._client.get(*queries.session(SESSION))
        assert found is not None
        return sorted(found["episodes"], key=lambda each: str(each["start_time"]))

    def close(self) -> None:
        """Leave nothing behind."""
        self._client.close()
        self._tracker.close()

    def _now_ns(self) -> int:
        return (self._clock.now - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1) * 1000


@pytest.fixture
def host(tracker_server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    """It has installed the tracker, and nothing else of ours."""
    monkeypatch.setattr(auto, "_installed", None)
    clock = FakeClock()
    pipeline = Pipeline(Config(url=tracker_server.url, state_dir=tmp_path / "state"), clock=clock.clock)
    substitute(pipeline)
    host = Host(tracker_server.url, clock)
    yield host
    host.close()
    substitute(None)
    pipeline.close()


def ends(conversations: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    return [(each["status"], each["ended_by"], each["turns"]) for each in conversations]


def test_it_completes_half_an_hour_after_its_last_turn(host: Host) -> None:
    """At that turn's end, and without a quality, which nobody gave."""
    host.answer()
    assert ends(host.pass_time(minutes=29)) == [("active", None, 1)]
    over = host.answer()
    [ended] = host.pass_time(minutes=30)
    assert ends([ended]) == [("completed", "idle", 2)]
    assert ended["quality_score"] is None
    assert abs(datetime.fromisoformat(ended["end_time"]) - over) < timedelta(seconds=1)


def test_it_fails_with_the_error_of_its_last_turn(host: Host) -> None:
    """One that a later turn overcame is none of the conversation's."""
    host.answer(ModelError("no route to model"))
    host.answer()
    assert ends(host.pass_time(minutes=30)) == [("completed", "idle", 2)]
    host.pass_time(hours=1)
    host.answer()
    host.answer(ModelError("no route to model"))
    _, failed = host.pass_time(minutes=30)
    assert ends([failed]) == [("failed", "idle", 2)]
    assert failed["error_message"] == "no route to model"


def test_it_stays_open_while_a_human_is_asked(host: Host) -> None:
    """Until the answer, from when on it may be idle again; or until its time to live is over."""
    host.answer(GraphInterrupt("may I?"))
    assert ends(host.pass_time(hours=5)) == [("active", None, 1)]
    host.answer()
    assert ends(host.pass_time(minutes=30)) == [("completed", "idle", 2)]
    host.pass_time(hours=1)
    host.answer(GraphInterrupt("may I?"))
    assert ends(host.pass_time(hours=10)) == [("completed", "idle", 2), ("expired", "ttl", 1)]


def test_who_returns_the_next_day_begins_the_next_conversation(host: Host) -> None:
    """In the same thread, with turns and an outcome of its own; the first stays as it was."""
    host.answer()
    before = host.pass_time(hours=1)
    host.pass_time(hours=23)
    host.answer(ModelError("boom"))
    after = host.pass_time(minutes=30)
    assert ends(after) == [("completed", "idle", 1), ("failed", "idle", 1)]
    assert after[0] == before[0]
