"""Neither order, nor repetition, nor the way in of events changes what is answered."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from fastapi import FastAPI
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from otel_agent_tracker import wire
from otel_agent_tracker.server.store import Store
from tests.server.conftest import new_project
from tests.server.world import Client, Json, at, batch_event, end, expired, feedback, start, turn


def test_an_exact_retry_counts_once(client: Client) -> None:
    """A client that knows no event ids repeats a request whose answer was lost."""
    requests = (start("s1"), turn("s1", 1), end("s1", 9), end("s1", 9))
    client.tell(*requests, *requests)
    assert len(client.json("/conversations/s1")["episodes"]) == 1
    assert client.json("/metrics/response-times")["count"] == 1


def test_a_repeated_event_adds_what_was_lacking_and_changes_nothing(client: Client) -> None:
    """Fields that the stored event has stay as they are."""
    first = end("s1", 9, quality_score=4)
    again = end("s1", 50, quality_score=1, user_feedback="late", message_count=3)
    for request in (first, again):
        headers = {"Idempotency-Key": "e1"}
        assert client.post(request.PATH, wire.to_json(request), headers=headers).status_code == 200
    answer = client.json("/conversations/s1")
    assert (answer["end_time"], answer["quality_score"]) == (at(9), 4.0)
    assert (answer["user_feedback"], answer["message_count"]) == ("late", 3)


def test_one_event_by_two_ways_counts_once(client: Client) -> None:
    """The id is the event's, alone or in a batch."""
    client.post("/conversations/start", wire.to_json(start("s1")), headers={"Idempotency-Key": "e1"})
    client.post("/batch", {"events": [batch_event(start("s1"), "e1"), batch_event(end("s1", 5), "e2")]})
    client.post("/conversations/end", wire.to_json(end("s1", 5)), headers={"Idempotency-Key": "e2"})
    assert len(client.json("/conversations/s1")["episodes"]) == 1


def test_a_repeated_event_adds_the_process_that_it_names(client: Client) -> None:
    """The first report did not know it."""
    for service in (None, {"name": "shop"}, {"name": "other", "version": "2"}):
        client.post("/batch", {"events": [batch_event(start("s1"), "e1", service)]})
    answer = client.json("/conversations/s1")
    assert (answer["service"], answer["version"]) == ("shop", "2")


def test_projects_do_not_meet(client: Client, shared_store: Store, shared_app: FastAPI) -> None:
    """The same event id and session id in two projects are two."""
    other = new_project(shared_store, shared_app, client.runner)
    for each, seconds in ((client, 5), (other, 7)):
        each.post("/batch", {"events": [batch_event(end("s1", seconds), "e1")]})
    assert client.json("/conversations/s1")["end_time"] == at(5)
    assert other.json("/conversations/s1")["end_time"] == at(7)


def _requests() -> list[wire.Request]:
    """Two sessions of several episodes, with ends of every kind, late ones and refuted ones, and an agent."""
    idle = {"agent_tracker": {"ended_by": "idle", "last_activity_time": at(130), "idle_seconds": 1800}}
    return [
        start("s1", 0, user_id="u1", metadata={"agent_tracker": {"service": {"name": "shop"}}}),
        turn("s1", 10, status="failed", error_type="Timeout"),
        feedback("s1", 15, quality_score=2, turn_id="s1-10"),
        end("s1", 60, quality_score=4),
        end("s1", 70, since=0, status="failed", error_message="again"),
        feedback("s1", 80, source="operator", thumbs="down", user_feedback="no"),
        turn("s1", 120, seconds=10),
        end("s1", 130, since=120, metadata=idle),
        start("s1", 5000),
        expired("s2", 20),
        turn("s2", 15, seconds=10),
        turn("s2", 40, status="waiting", service={"name": "b", "version": "2"}),
        wire.AgentRegistration(agent_id="support-bot", registration_time=at(-5), sdk_version="1"),
        wire.AgentRegistration(agent_id="support-bot", registration_time=at(5), sdk_version="2"),
        wire.AgentStatusReport(agent_id="support-bot", status="busy", timestamp=at(7)),
        wire.AgentStatusReport(agent_id="support-bot", status="idle", timestamp=at(6)),
        wire.AgentActivity(agent_id="support-bot", action="deploy", timestamp=at(8), details={"to": "prod"}),
    ]


def _answers(client: Client) -> list[Json]:
    paths = (
        *("/conversations/s1", "/conversations/s2", "/conversations", "/conversations/active"),
        *("/agents/active", "/agents/support-bot/status", "/agents/activity", "/operations/overview"),
        "/metrics/overview",
    )
    return [client.json(path) for path in paths]


@st.composite
def _deliveries(draw: st.DrawFn) -> list[list[Any]]:
    """All requests at least once, in any order, cut into batches anywhere."""
    count = len(_requests())
    order = draw(st.permutations(range(count)))
    repeated = draw(st.lists(st.integers(0, count - 1), max_size=5))
    numbers = [*order, *repeated]
    cuts = sorted(draw(st.sets(st.integers(1, len(numbers) - 1), max_size=4)))
    return [numbers[start:stop] for start, stop in zip([0, *cuts], [*cuts, None], strict=True)]


def _events() -> list[Json]:
    return [batch_event(request, f"e{number:02}") for number, request in enumerate(_requests())]


@pytest.fixture
def plain_answers(client: Client) -> list[Json]:
    """What is answered after all requests at once, in order."""
    client.post("/batch", {"events": _events()})
    return _answers(client)


@settings(
    max_examples=25,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(deliveries=_deliveries())
def test_order_split_and_repetition_change_no_answer(
    shared_store: Store,
    shared_app: FastAPI,
    runner: asyncio.Runner,
    plain_answers: list[Json],
    deliveries: list[list[int]],
) -> None:
    """Any order, split and repetition of a set of requests gives the answers of the plain one."""
    shuffled, events = new_project(shared_store, shared_app, runner), _events()
    for numbers in deliveries:
        shuffled.post("/batch", {"events": [events[number] for number in numbers]})
    assert _answers(shuffled) == plain_answers
