"""Rules of `processor`: event spans keep the map of live sessions."""

from __future__ import annotations

import pytest

from otel_agent_tracker import semconv
from otel_agent_tracker.clock import Clock
from otel_agent_tracker.processor import SessionSpanProcessor
from otel_agent_tracker.semconv import Event, Origin
from otel_agent_tracker.sessions import SessionMap
from tests.event_spans import END_US, START_US, foreign_span

SESSION = {semconv.SESSION_ID: "thread-7", semconv.GEN_AI_AGENT_ID: "bot"}


class Keeper:
    """A processor, its map, and the clock they stand on."""

    def __init__(self) -> None:
        self.seconds = 0.0
        clock = Clock(time_ns=lambda: END_US * 1000, monotonic=lambda: self.seconds)
        self.sessions = SessionMap(ttl_seconds=100, idle_seconds=10, max_sessions=10, clock=clock)
        self.processor = SessionSpanProcessor(self.sessions)

    def see(self, event: str | None, **more: object) -> None:
        """A span of thread-7 ends."""
        attributes = {getattr(semconv, name.upper()): value for name, value in more.items()}
        self.processor.on_end(foreign_span(event, {**SESSION, **attributes}))


@pytest.fixture(name="keeper")
def _keeper() -> Keeper:
    return Keeper()


def test_a_start_opens_the_session(keeper: Keeper) -> None:
    """With agent, user, origin and start."""
    keeper.see(Event.CONVERSATION_START, user_id="u1", origin="recognised")
    live = keeper.sessions.get("thread-7")
    assert live is not None
    assert (live.agent_id, live.user_id, live.origin) == ("bot", "u1", Origin.RECOGNISED)
    assert live.start_us == START_US


@pytest.mark.parametrize("origin", [None, "call", "unheard of"])
def test_a_start_is_by_call_unless_it_says_otherwise(keeper: Keeper, origin: str | None) -> None:
    """A sender without our library starts conversations, too."""
    keeper.see(Event.CONVERSATION_START, **({} if origin is None else {"origin": origin}))
    live = keeper.sessions.get("thread-7")
    assert live is not None
    assert live.origin is Origin.CALL


def test_a_turn_is_counted(keeper: Keeper) -> None:
    """With its duration, tokens and error; once, however often it comes."""
    keeper.see(Event.CONVERSATION_START)
    for _ in range(2):
        keeper.see(
            Event.CONVERSATION_TURN,
            turn_id="t1",
            turn_status="failed",
            error_type="OSError",
            error_message="no route",
            gen_ai_input_tokens=3,
        )
    live = keeper.sessions.get("thread-7")
    assert live is not None
    assert (live.turns, live.failed_turns, live.last_turn_failed) == (1, 1, True)
    assert (live.error_type, live.error_message) == ("OSError", "no route")
    assert live.last_activity_us == END_US


def test_an_end_lets_go(keeper: Keeper) -> None:
    """And the session is known as ended, at the span's end."""
    keeper.see(Event.CONVERSATION_START)
    keeper.see(Event.CONVERSATION)
    assert "thread-7" not in keeper.sessions
    assert keeper.sessions.ended_at_us("thread-7") == END_US


@pytest.mark.parametrize("event", [Event.CONVERSATION_FEEDBACK, None, "gen_ai.something"])
def test_any_other_span_of_the_session_touches_it(keeper: Keeper, event: str | None) -> None:
    """Whatever carries the id resets the TTL."""
    keeper.see(Event.CONVERSATION_START)
    keeper.seconds = 60.0
    keeper.see(event)
    assert keeper.sessions.remaining_seconds("thread-7") == 100.0


def test_a_span_without_a_session_is_passed_over(keeper: Keeper) -> None:
    """Agents' events and everything else."""
    keeper.processor.on_end(foreign_span(Event.AGENT_STATUS, {semconv.GEN_AI_AGENT_ID: "bot"}))
    keeper.processor.on_end(foreign_span(None, {semconv.SESSION_ID: 7}))
    assert len(keeper.sessions) == 0


def test_it_keeps_the_map_after_shutdown(keeper: Keeper) -> None:
    """Local questions are answered until the end."""
    keeper.processor.shutdown()
    keeper.see(Event.CONVERSATION_START)
    assert "thread-7" in keeper.sessions
