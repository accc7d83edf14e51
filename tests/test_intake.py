"""Events of other processes: kept once, and the map of sessions follows."""

from __future__ import annotations

from typing import Any

import pytest

from otel_agent_tracker import semconv
from otel_agent_tracker.clock import SYSTEM_CLOCK
from otel_agent_tracker.entry import Entry
from otel_agent_tracker.intake import Intake
from otel_agent_tracker.redaction import Redactor
from otel_agent_tracker.semconv import Origin
from otel_agent_tracker.sessions import SessionMap
from tests.event_spans import START_US, foreign_span

IDS = {semconv.SESSION_ID: "thread-7", semconv.GEN_AI_AGENT_ID: "bot"}


class World:
    """An intake whose disk takes what comes, or refuses."""

    def __init__(self, redactor: Redactor | None = None) -> None:
        self.sessions = SessionMap(ttl_seconds=60, idle_seconds=60, max_sessions=10, clock=SYSTEM_CLOCK)
        self.kept: list[Entry] = []
        self.refuses = False
        self.intake = Intake(self.sessions, self._keep, redactor or Redactor())

    def take_in(self, event: str, **attributes: Any) -> bool:
        named = {key.replace("__", "."): value for key, value in attributes.items()}
        return self.intake.take_in(foreign_span(event, IDS | named))

    def _keep(self, entry: Entry) -> bool:
        if not self.refuses:
            self.kept.append(entry)
        return not self.refuses


@pytest.fixture
def world() -> World:
    return World()


def test_a_start_opens_and_an_end_closes(world: World) -> None:
    """As in the process that made them."""
    assert world.take_in("conversation.start", user__id="u1")
    live = world.sessions.get("thread-7")
    assert live is not None
    assert (live.agent_id, live.user_id, live.origin, live.start_us) == ("bot", "u1", Origin.CALL, START_US)
    assert world.take_in("conversation", agent_tracker__outcome="completed")
    assert world.sessions.get("thread-7") is None
    assert world.sessions.ended("thread-7")
    assert [entry.path for entry in world.kept] == ["/conversations/start", "/conversations/end"]


def test_a_turn_opens_what_was_started_elsewhere(world: World) -> None:
    """Its start went through another bridge: here too it will end when nothing comes any more."""
    assert world.take_in("conversation.turn")
    live = world.sessions.get("thread-7")
    assert live is not None
    assert (live.turns, live.origin) == (1, Origin.RECOGNISED)


def test_an_event_is_kept_once(world: World) -> None:
    """With an id of its own or one that is derived from its span."""
    for attributes in ({}, {"agent_tracker__event_id": "0" * 32}):
        assert world.take_in("conversation.turn", **attributes)
        assert world.take_in("conversation.turn", **attributes)
    assert len(world.kept) == 2


def test_what_is_not_kept_leaves_no_trace(world: World) -> None:
    """Its sender has it, and is heard again."""
    world.refuses = True
    assert not world.take_in("conversation.start")
    assert len(world.sessions) == 0
    world.refuses = False
    assert world.take_in("conversation.start")
    assert len(world.kept) == 1


def test_known_ids_are_bounded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest is forgotten first; a tracker knows it all the same."""
    monkeypatch.setattr("otel_agent_tracker.intake.MOST_KNOWN", 2)
    for number in (1, 2, 3, 3, 1):
        assert world.take_in("conversation.feedback", agent_tracker__event_id=f"{number:032x}")
    assert [int(entry.event_id, 16) for entry in world.kept] == [1, 2, 3, 1]


def test_other_spans_are_passed_over(world: World) -> None:
    """They are taken, and nothing is kept."""
    assert world.intake.take_in(foreign_span(None, IDS))
    assert world.kept == []


def test_texts_of_any_sender_are_bounded_and_redacted(world: World) -> None:
    """JSON stays JSON; what is none becomes some; plain text stays as it is."""
    world.take_in("conversation.start", agent_tracker__metadata='{"password": "x", "a": 1}')
    world.take_in("conversation", agent_tracker__metadata="no json", agent_tracker__feedback="x" * 100_000)
    world.take_in("conversation.feedback", agent_tracker__feedback__text="fine")
    start, end, feedback = (entry.body for entry in world.kept)
    assert {key: start["metadata"][key] for key in ("password", "a")} == {"password": "[redacted]", "a": 1}
    assert end["metadata"]["text"] == "no json"
    assert len(end["user_feedback"]) == 65_536
    assert feedback["user_feedback"] == "fine"


def test_the_users_function_sees_them_too() -> None:
    """As it sees every text that is to leave."""
    world = World(Redactor(extra=lambda text: text.replace("Ann", "<name>")))
    world.take_in("conversation.feedback", agent_tracker__feedback__text="Ann was here")
    assert world.kept[0].body["user_feedback"] == "<name> was here"
