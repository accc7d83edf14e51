"""`DELETE /conversations/{session_id}`: a session as if it had never been."""

from __future__ import annotations

import pytest
from fastapi import FastAPI

from otel_agent_tracker.server.store import Store
from tests.server.conftest import new_project
from tests.server.world import Client, at, end, feedback, start, turn


def tell_all(client: Client, session_id: str, agent_id: str = "support-bot") -> None:
    client.tell(
        start(session_id, agent_id=agent_id),
        turn(session_id, 1, agent_id=agent_id),
        end(session_id, 60, agent_id=agent_id, quality_score=4),
        feedback(session_id, 70, quality_score=5),
    )


def test_a_deleted_session_is_unknown(client: Client) -> None:
    """It is in no answer and no figure any more; a second deletion finds nothing."""
    tell_all(client, "s1")
    answer = client.request("DELETE", "/conversations/s1")
    assert (answer.status_code, answer.content) == (204, b"")
    assert client.get("/conversations/s1").status_code == 404
    assert client.json("/conversations")["total"] == 0
    assert client.json("/metrics/success-rates")["total"] == 0
    assert client.json("/metrics/response-times")["count"] == 0
    assert client.json("/metrics/quality")["rated"] == 0
    assert client.request("DELETE", "/conversations/s1").status_code == 404


def test_other_sessions_and_projects_stay(client: Client, shared_store: Store, shared_app: FastAPI) -> None:
    """Only the one session, and only in the project of the key."""
    other_project = new_project(shared_store, shared_app, client.runner)
    for each in (client, other_project):
        tell_all(each, "s1")
    tell_all(client, "s2")
    assert client.request("DELETE", "/conversations/s1").status_code == 204
    assert client.json("/conversations/s2")["turns"] == 1
    assert other_project.json("/conversations/s1")["quality_score"] == 5
    assert client.json("/metrics/response-times")["count"] == 1


def test_an_agent_of_which_nothing_is_left_goes_too(client: Client) -> None:
    """So a probe leaves no agent behind that is silent for ever."""
    tell_all(client, "s1", agent_id="probe")
    tell_all(client, "s2", agent_id="worker")
    tell_all(client, "s3", agent_id="worker")
    for session_id in ("s1", "s2"):
        client.request("DELETE", f"/conversations/{session_id}")
    assert [agent["agent_id"] for agent in client.json("/agents/active")["agents"]] == ["worker"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/agents/register", {"registration_time": at(0)}),
        ("/agents/status", {"status": "idle", "timestamp": at(0)}),
        ("/agents/activity", {"action": "sweep", "timestamp": at(0), "details": {}}),
        ("/agents/heartbeat", {"timestamp": at(0), "instance": "pod-1", "delivery": {}}),
    ],
)
def test_an_agent_that_reported_itself_stays(client: Client, path: str, body: dict[str, object]) -> None:
    """Whatever it reported."""
    tell_all(client, "s1", agent_id="probe")
    assert client.post(path, {"agent_id": "probe"} | body).status_code == 200
    client.request("DELETE", "/conversations/s1")
    assert client.json("/agents/probe/status")["agent_id"] == "probe"


@pytest.mark.parametrize("session_id", ["a/b", "..", "é🤖", "active"])
def test_ids_that_no_path_can_carry_go_by_query(client: Client, session_id: str) -> None:
    """As they do when they are asked for."""
    tell_all(client, session_id)
    answer = client.request("DELETE", "/conversations", params={"session_id": session_id})
    assert answer.status_code == 204
    assert client.get("/conversations", params={"session_id": session_id}).status_code == 404


def test_all_sessions_at_once_cannot_be_deleted(client: Client) -> None:
    """Without an id nothing is deleted."""
    tell_all(client, "s1")
    assert client.request("DELETE", "/conversations").status_code == 422
    assert client.json("/conversations")["total"] == 1


def test_what_arrives_later_is_kept_again(client: Client) -> None:
    """A deletion is no ban."""
    tell_all(client, "s1")
    client.request("DELETE", "/conversations/s1")
    tell_all(client, "s1")
    assert client.json("/conversations/s1")["status"] == "completed"
