"""The tracker ends what nobody ends."""

from __future__ import annotations

import asyncio

import pytest

from otel_agent_tracker import wire
from otel_agent_tracker.semconv import Event
from otel_agent_tracker.server.app import create_app
from otel_agent_tracker.server.selection import Page
from otel_agent_tracker.server.store import Store
from otel_agent_tracker.session_id import derived_event_id
from tests.server.world import NOW_US, SECOND, Client, Clock, Json, at, end, start, turn

DAY_OF_SILENCE = 20 * 3600


def told(client: Client) -> tuple[str, str | None, str | None]:
    answer = client.json("/conversations/s1")
    return answer["status"], answer["ended_by"], answer["end_time"]


def ttl(seconds: float) -> Json:
    return {"agent_tracker": {"ttl_seconds": seconds}}


def test_20_hours_of_silence_end_a_conversation(open_client: Client, store: Store, clock: Clock) -> None:
    """At its last activity, not a moment before they are over."""
    open_client.tell(start("s1"), turn("s1", 5, seconds=5))
    assert store.end_silent(NOW_US + DAY_OF_SILENCE * SECOND) == 0
    clock.advance(DAY_OF_SILENCE + 11)
    assert store.end_silent() == 1
    assert told(open_client) == ("expired", "server", at(10))
    assert store.end_silent() == 0


def test_twice_the_time_to_live_if_that_is_longer(open_client: Client, store: Store, clock: Clock) -> None:
    """What the start said of its time to live."""
    open_client.tell(start("s1", metadata=ttl(DAY_OF_SILENCE)))
    clock.advance(2 * DAY_OF_SILENCE - 1)
    assert store.end_silent() == 0
    clock.advance(2)
    assert store.end_silent() == 1
    assert told(open_client) == ("expired", "server", at(0))


def test_a_short_time_to_live_waits_20_hours(open_client: Client, store: Store, clock: Clock) -> None:
    """Its host may be late in saying how it ended."""
    open_client.tell(start("s1", metadata=ttl(60)))
    clock.advance(DAY_OF_SILENCE - 1)
    assert store.end_silent() == 0


def test_a_waiting_conversation_ends_too(open_client: Client, store: Store, clock: Clock) -> None:
    """Nobody came back."""
    open_client.tell(start("s1"), turn("s1", 5, status="waiting"))
    clock.advance(DAY_OF_SILENCE + 7)
    assert store.end_silent() == 1


def test_what_arrives_late_shows_that_its_sender_lives(
    open_client: Client, store: Store, clock: Clock
) -> None:
    """An outbox that is emptied after days tells of conversations long past; they are not ended at once."""
    clock.advance(30 * DAY_OF_SILENCE)
    open_client.tell(start("s1"))
    assert store.end_silent() == 0
    clock.advance(DAY_OF_SILENCE + 1)
    assert store.end_silent() == 1


def test_an_ended_conversation_is_let_be(open_client: Client, store: Store, clock: Clock) -> None:
    """It has its outcome."""
    open_client.tell(start("s1"), end("s1", 5))
    clock.advance(10 * DAY_OF_SILENCE)
    assert store.end_silent() == 0


def test_the_end_is_an_event_like_any_other(open_client: Client, store: Store, clock: Clock) -> None:
    """Its id is derived, so that a sender which infers the same end tells the same event."""
    open_client.tell(start("s1"))
    clock.advance(DAY_OF_SILENCE + 1)
    store.end_silent()
    event_id = derived_event_id(Event.CONVERSATION, "s1", NOW_US)
    other = wire.to_json(start("s2"))
    answer = open_client.post("/conversations/start", other, headers={"Idempotency-Key": event_id})
    assert answer.status_code == 422  # taken


@pytest.mark.parametrize(
    ("late", "expected"),
    [
        (turn("s1", 3600), ("active", None, None)),
        (start("s1", 3600), ("active", None, None)),
        (end("s1", 3600), ("completed", "call", at(3600))),
        (end("s1", 3600, status="failed"), ("failed", "call", at(3600))),
    ],
)
def test_a_late_event_corrects_the_end(
    open_client: Client,
    store: Store,
    clock: Clock,
    late: wire.Request,
    expected: tuple[str, str | None, str | None],
) -> None:
    """A turn or start within the silence refutes it, an end by call beats it: still one conversation."""
    open_client.tell(start("s1"))
    clock.advance(DAY_OF_SILENCE + 1)
    store.end_silent()
    open_client.tell(late)
    assert told(open_client) == expected
    assert len(open_client.json("/conversations/s1")["episodes"]) == 1


def test_a_corrected_conversation_can_fall_silent_again(
    open_client: Client, store: Store, clock: Clock
) -> None:
    """Its next end is another event."""
    open_client.tell(start("s1"))
    clock.advance(DAY_OF_SILENCE + 1)
    store.end_silent()
    open_client.tell(turn("s1", 3600))
    clock.advance(DAY_OF_SILENCE + 1)
    assert store.end_silent() == 1
    assert told(open_client) == ("expired", "server", at(3601))


def test_many_end_in_one_go(store: Store, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several transactions, none left over."""
    from otel_agent_tracker.server import arrivals
    from otel_agent_tracker.server import store as module

    monkeypatch.setattr(module, "SWEEP_CHUNK", 4)
    store.ingest(store.default_project, [arrivals.arrive(start(f"s{number}"), None) for number in range(10)])
    clock.advance(DAY_OF_SILENCE + 1)
    assert store.end_silent() == 10


def test_the_application_ends_them_by_itself(
    open_client: Client, store: Store, clock: Clock, runner: asyncio.Runner
) -> None:
    """From its start on, until it stops."""
    open_client.tell(start("s1"))
    clock.advance(DAY_OF_SILENCE + 1)
    app = create_app(store, sweep_interval_seconds=0.01)

    async def live() -> None:
        async with asyncio.timeout(10), app.router.lifespan_context(app):
            while store.conversations.active(store.default_project, None, Page()).total:
                await asyncio.sleep(0.01)

    runner.run(live())
    assert told(open_client)[0] == "expired"
