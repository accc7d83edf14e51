"""Trackers that are well, or ill as a test says, and tracker objects on a clock that a test moves.

tracker = Scripted()
tracker.trouble = lambda request: reply(503)
with ScriptedServer(respond(tracker.answer)) as server:
    ...
    tracker.trouble = well
"""

from __future__ import annotations

import http.client
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from otel_agent_tracker import AgentPerformanceTracker
from otel_agent_tracker.config import resolve
from otel_agent_tracker.pipeline import Pipeline, substitute
from tests.hosts import StandingClock
from tests.scripted_server import Action, ReceivedRequest, ScriptedServer, json_reply, reply
from tests.waiting import wait_until

__all__ = [
    "IN_ORDER",
    "Event",
    "Scripted",
    "acknowledgement",
    "books",
    "converse",
    "events_of",
    "forward",
    "free_port",
    "is_event",
    "on_clock",
    "pass_until",
    "paths_by_session",
    "told",
    "well",
]

IN_ORDER = ["/conversations/start", "/conversations/turn", "/conversations/end"]
"""What one of the conversations that `converse` makes sends."""

OFFERS = {"turns": {"path": "/conversations/turn"}, "feedback": {"path": "/conversations/feedback"}}


class Event(NamedTuple):
    """An event as it came, in a batch or alone."""

    event_id: str
    path: str
    body: dict[str, Any]

    @property
    def session(self) -> str:
        """The session it is of."""
        return str(self.body["session_id"])


Trouble = Callable[[ReceivedRequest], Action | None]


def well(request: ReceivedRequest) -> None:
    """No trouble."""


@dataclass
class Scripted:
    """A tracker that acknowledges everything, unless `trouble` has another answer to the request."""

    trouble: Trouble = well
    batches: bool = True
    max_events: int = 500
    accepted: list[Event] = field(default_factory=list)

    def answer(self, request: ReceivedRequest) -> Action:
        """What `respond` wants."""
        if (action := self.trouble(request)) is not None:
            return action
        if request.path == "/capabilities":
            batch = {"path": "/batch", "max_events": self.max_events}
            return json_reply(OFFERS | ({"batch": batch} if self.batches else {}))
        if request.path == "/batch" and not self.batches:
            return reply(404)
        events = events_of(request)
        self.accepted += events
        return acknowledgement(request, events)


def acknowledgement(request: ReceivedRequest, events: Iterable[Event], status: int = 201) -> Action:
    """The answer that takes, or with another `status` does not take, these events."""
    if request.path != "/batch":
        return json_reply({}, status)
    return json_reply({"results": [{"event_id": event.event_id, "status": status} for event in events]})


def is_event(request: ReceivedRequest) -> bool:
    """Whether the request brings events."""
    return request.method == "POST"


def events_of(request: ReceivedRequest) -> list[Event]:
    """The events that the request brings."""
    body: Any = request.json()
    if request.path != "/batch":
        return [Event(request.headers["idempotency-key"], request.path, body)]
    return [Event(each["event_id"], each["path"], each["body"]) for each in body["events"]]


def told(requests: Iterable[ReceivedRequest]) -> list[Event]:
    """All events that came, as often as they came."""
    return [event for request in requests if is_event(request) for event in events_of(request)]


def forward(url: str, request: ReceivedRequest) -> Action:
    """The answer of the real tracker at `url`: what the request asked for is done when this returns."""
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=30)
    try:
        passed_on = {
            name: value
            for name, value in request.headers.items()
            if name in ("authorization", "content-type", "idempotency-key")
        }
        connection.request(request.method, request.target, request.body or None, passed_on)
        answer = connection.getresponse()
        return reply(answer.status, answer.read())
    finally:
        connection.close()


@contextmanager
def on_clock(
    clock: StandingClock, url: str, state_dir: Path, **options: Any
) -> Iterator[AgentPerformanceTracker]:
    """A tracker object whose time is that of `clock`."""
    settings = {"url": url, "state_dir": state_dir, "flush_timeout_seconds": 0.1} | options
    substitute(Pipeline(resolve(settings), clock=clock.clock))
    try:
        with AgentPerformanceTracker(url, state_dir=state_dir) as tracker:
            yield tracker
    finally:
        substitute(None)


def pass_until(
    clock: StandingClock,
    is_so: Callable[[], object],
    *,
    step_seconds: float = 5.0,
    most_seconds: float = 30.0,
) -> None:
    """Let time pass in steps until `is_so()`; raises TimeoutError after `most_seconds` of real time."""

    def step() -> object:
        clock.time_us += int(step_seconds * 1e6)
        return is_so()

    wait_until(step, most_seconds)


def converse(tracker: AgentPerformanceTracker, conversations: int) -> list[str]:
    """So many conversations of three events each; their sessions."""
    sessions = []
    for _ in range(conversations):
        session = tracker.start_conversation("bot", "u1")
        with tracker.turn(session):
            pass
        assert tracker.end_conversation(session, 4)
        sessions.append(session)
    return sessions


def paths_by_session(events: Iterable[Event]) -> dict[str, list[str]]:
    """What came of each session, in order."""
    paths: defaultdict[str, list[str]] = defaultdict(list)
    for event in events:
        paths[event.session].append(event.path)
    return dict(paths)


def free_port() -> int:
    """A port on which nobody listens."""
    with ScriptedServer(reply()) as server:
        return server.port


def books(tracker: AgentPerformanceTracker) -> tuple[int, ...]:
    """Accepted, delivered, pending, dead-lettered and dropped."""
    stats = tracker.delivery_stats()
    names = ("accepted", "delivered", "pending", "dead_lettered", "dropped")
    return tuple(stats[name] for name in names)
