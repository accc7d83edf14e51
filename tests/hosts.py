"""Hosts for tests: applications with a provider of their own, and what they do to spans.

    with host_provider(provider):
        ...  # `provider` is the global one

`Life` is what an application tells a tracker, always the same: any two runs of it send the same bytes, but for
the ids of turns, which are those of the host's spans.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from random import Random
from typing import Any

import pytest
from opentelemetry import trace

from otel_agent_tracker import (
    AgentOperationsTracker,
    AgentPerformanceTracker,
    AgentStatus,
    session_id,
)
from otel_agent_tracker.clock import Clock
from otel_agent_tracker.config import resolve
from otel_agent_tracker.pipeline import Pipeline, substitute
from tests.scripted_server import Action, ReceivedRequest, ScriptedServer, json_reply, respond

__all__ = ["FREE_TEXT", "Life", "Sent", "known_environment", "host_provider", "live", "tracker_answer"]

Sent = list[tuple[str, str, bytes]]
"""Path, Idempotency-Key and body of each request, sorted."""

START_US = 1_705_681_056_000_001
LONG = "thread-" + "x" * 64
FREE_TEXT = ("sehr gut, danke", "the cat is on the mat", "disk is full of cats", "meow meow")
"""Words of users that the life below hands in: a rating's, metadata's, an error's and an activity's."""


class StandingClock:
    """Two clocks that move together, and only when they are told."""

    def __init__(self) -> None:
        self.time_us = START_US
        self.clock = Clock(
            time_ns=lambda: self.time_us * 1000, monotonic=lambda: (self.time_us - START_US) / 1e6
        )


@dataclass
class Life:
    """What an application tells its trackers, step by step; `turn_ids` are those of its turns so far."""

    tracker: AgentPerformanceTracker
    operations: AgentOperationsTracker
    turn_ids: list[str] = field(default_factory=list)

    def steps(self) -> Iterator[None]:
        """Each event there is at least once, in steps."""
        rating, metadata, error, details = FREE_TEXT
        tracker = self.tracker
        self.operations.register_agent("support_bot", "1.2.3", {"note": metadata})
        yield
        rated = tracker.start_conversation(
            "support_bot", "user-" + "u" * 80, {f"k{i}": i for i in range(200)}
        )
        yield
        tracker.record_feedback(rated, thumbs="up", user_feedback=rating)
        yield
        tracker.end_conversation(rated, 5, rating, 3, {"note": metadata})
        yield
        failed = tracker.start_conversation("support_bot")
        yield
        tracker.record_failed_session(failed, error, error_type="OSError")
        yield
        for number in ("1", "2"):
            self._turn(LONG + number)
            yield
        for number in ("1", "2"):
            tracker.end_conversation(LONG + number)
            yield
        self.operations.log_activity("support_bot", "purr", {"said": details}, 1.5)
        yield
        self.operations.update_agent_status("support_bot", AgentStatus.IDLE, AgentStatus.BUSY)
        yield

    def _turn(self, session: str) -> None:
        with self.tracker.turn(session, agent_id="support_bot", user_id="u1") as turn:
            self.turn_ids.append(turn.turn_id)


@contextmanager
def directly(url: str) -> Iterator[dict[str, str]]:
    """The settings of a life that calls the tracker itself."""
    yield {"url": url}


def live(
    state_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    disturb: Callable[[int], None] = lambda _: None,
    way: Callable[[str], AbstractContextManager[dict[str, str]]] = directly,
    least: int = 0,
) -> Sent:
    """Live the life against a tracker on loopback; `disturb` is called before each step. What arrived.

    `way` gives the settings that lead to the tracker at a URL; `least` is how many requests are waited for.
    """
    clock = StandingClock()
    monkeypatch.setattr(session_id, "_random", Random("before the first step"))
    with ScriptedServer(respond(tracker_answer)) as server, way(server.url) as settings:
        config = resolve({**settings, "state_dir": state_dir})
        substitute(Pipeline(config, clock=clock.clock))
        try:
            with (
                AgentPerformanceTracker(server.url) as tracker,
                AgentOperationsTracker(server.url) as operations,
            ):
                life = Life(tracker, operations)
                for number, _ in enumerate(life.steps()):
                    clock.time_us += 1_000_001
                    session_id._random.seed(number)
                    disturb(number)
                assert tracker.flush(5.0)
            server.wait_for_requests(least)
        finally:
            substitute(None)
        return _as_sent(server.requests, life.turn_ids)


def tracker_answer(request: ReceivedRequest) -> Action:
    """What a tracker without batches answers."""
    if request.path == "/capabilities":
        return json_reply(
            {"turns": {"path": "/conversations/turn"}, "feedback": {"path": "/conversations/feedback"}}
        )
    return json_reply({})


@contextmanager
def host_provider(provider: trace.TracerProvider) -> Iterator[None]:
    """Make `provider` the global one for a while; the API's own setter works once a process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trace, "_TRACER_PROVIDER", provider)
        yield


def known_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No variable of this machine, and a service whose attributes are known."""
    for name in [name for name in os.environ if name.startswith(("OTEL_", "AGENT_TRACKER_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "service.name=shop,service.instance.id=shop-1")


def _as_sent(requests: list[ReceivedRequest], turn_ids: list[str]) -> Sent:
    posted = [request for request in requests if request.method == "POST"]
    return sorted(
        (request.path, _named(request.headers["idempotency-key"], turn_ids), _named(request.body, turn_ids))
        for request in posted
    )


def _named(text: Any, turn_ids: list[str]) -> Any:
    """The text with a name in place of each turn's ids."""
    for number, turn_id in enumerate(turn_ids):
        event_id = sha256(turn_id.encode()).hexdigest()[:32]
        for known, name in ((turn_id, f"<turn {number}>"), (event_id, f"<event of turn {number}>")):
            text = (
                text.replace(known.encode(), name.encode())
                if isinstance(text, bytes)
                else text.replace(known, name)
            )
    return text
