"""Batches: each event is answered for itself."""

from __future__ import annotations

import gzip
import json

import pytest

from otel_agent_tracker import wire
from tests.server.world import Client, Json, at, batch_event, end, start, turn

SERVICE = {"name": "shop", "version": "1.2", "environment": "prod", "instance": "pod-1"}


def post(client: Client, *events: object) -> list[Json]:
    answer = client.post("/batch", {"events": list(events)})
    assert answer.status_code == 200, answer.text
    results: list[Json] = answer.json()["results"]
    return results


def test_a_batch_does_what_its_requests_would(client: Client) -> None:
    """A result for each event, in order."""
    results = post(
        client,
        batch_event(start("s1"), "e1", SERVICE),
        batch_event(turn("s1", 1), "e2", SERVICE),
        batch_event(end("s1", 9, quality_score=5), "e3", SERVICE),
    )
    assert results == [{"event_id": f"e{number}", "status": 200} for number in (1, 2, 3)]
    answer = client.json("/conversations/s1")
    assert (answer["status"], answer["turns"], answer["service"]) == ("completed", 1, "shop")


def test_one_bad_event_spoils_no_other(client: Client) -> None:
    """Each gets the status that its single request would get, with the reason."""
    bad = batch_event(end("s1", 9), "e2")
    bad["body"]["quality_score"] = 7
    results = post(
        client,
        batch_event(start("s1"), "e1"),
        bad,
        {"event_id": "e3", "path": "/conversations/pause", "body": {}},
        {"event_id": "e4", "path": "/conversations/start", "body": {"session_id": "s9"}},
        {"event_id": "e5", "path": "/conversations/start", "body": []},
        {"event_id": 6, "path": "/conversations/start", "body": {}},
        "nonsense",
        batch_event(turn("s1", 1), "e8"),
    )
    assert [each["status"] for each in results] == [200, 422, 404, 422, 422, 422, 422, 200]
    assert [each["event_id"] for each in results] == ["e1", "e2", "e3", "e4", "e5", "", "", "e8"]
    assert all(each["error"] for each in results if each["status"] != 200)
    assert client.json("/conversations/s1")["turns"] == 1


def test_an_event_id_belongs_to_one_event(client: Client) -> None:
    """What else comes under it is refused, within a batch and later."""
    first, other = batch_event(start("s1"), "e1"), batch_event(start("s2"), "e1")
    assert [each["status"] for each in post(client, first, other)] == [200, 422]
    assert [each["status"] for each in post(client, batch_event(end("s1", 5), "e1"))] == [422]
    assert client.json("/conversations")["total"] == 1


def test_a_batch_holds_at_most_500_events(client: Client) -> None:
    """One more and it is refused whole."""
    events = [batch_event(start(f"s{number}"), f"e{number}") for number in range(501)]
    assert client.post("/batch", {"events": events}).status_code == 413
    assert client.json("/conversations")["total"] == 0
    assert len(post(client, *events[:500])) == 500
    assert client.json("/conversations")["total"] == 500


def test_an_empty_batch_is_answered(client: Client) -> None:
    """With no results."""
    assert post(client) == []


def test_a_batch_may_be_packed(client: Client) -> None:
    """With gzip."""
    body = gzip.compress(json.dumps({"events": [batch_event(start("s1"), "e1")]}).encode())
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    assert client.request("POST", "/batch", content=body, headers=headers).status_code == 200
    assert client.json("/conversations/s1")["status"] == "active"


@pytest.mark.parametrize("events", [{}, None, "no", 5])
def test_a_batch_without_a_list_is_refused(client: Client, events: object) -> None:
    """There is no event to answer for."""
    assert client.post("/batch", {"events": events}).status_code == 422


def test_heartbeats_are_no_events(client: Client) -> None:
    """They say which processes live, the newest of each, and nothing else is kept of them."""
    newest = wire.AgentHeartbeat(agent_id="a", timestamp=at(60), instance="pod-1", delivery={"pending": 0})
    older = wire.AgentHeartbeat(agent_id="a", timestamp=at(0), instance="pod-1", delivery={"pending": 7})
    other = wire.AgentHeartbeat(agent_id="a", timestamp=at(30), instance="pod-2", delivery={})
    post(client, batch_event(newest, "h1", SERVICE), batch_event(older, "h2"), batch_event(other, "h3"))
    client.tell(older)
    answer = client.json("/agents/a/status")
    assert answer["last_seen"] == at(60)
    assert answer["instances"] == [
        {
            "instance": "pod-1",
            "last_seen": at(60),
            "service": "shop",
            "version": "1.2",
            "environment": "prod",
            "delivery": {"pending": 0},
        },
        {
            "instance": "pod-2",
            "last_seen": at(30),
            "service": None,
            "version": None,
            "environment": None,
            "delivery": {},
        },
    ]
