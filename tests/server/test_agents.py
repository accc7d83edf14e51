"""Agents: who is there and what they do."""

from __future__ import annotations

from otel_agent_tracker import wire
from tests.server.world import Client, at, end, start

MINUTE = 60


def registered(agent_id: str, when: float = 0, **fields: object) -> wire.AgentRegistration:
    return wire.AgentRegistration(agent_id=agent_id, registration_time=at(when), **fields)  # type: ignore[arg-type] # test data


def status(agent_id: str, status: str, when: float = 0) -> wire.AgentStatusReport:
    return wire.AgentStatusReport(agent_id=agent_id, status=status, timestamp=at(when))  # type: ignore[arg-type] # test data


def activity(agent_id: str, action: str, when: float, **fields: object) -> wire.AgentActivity:
    return wire.AgentActivity(agent_id=agent_id, action=action, timestamp=at(when), **fields)  # type: ignore[arg-type] # test data


def test_a_registered_agent_is_active(client: Client) -> None:
    """Until it says otherwise; metadata of ours is not shown."""
    client.tell(
        registered("a", sdk_version="1.0", metadata={"team": "x", "agent_tracker": {"origin": "call"}})
    )
    answer = {
        "agent_id": "a",
        "status": "active",
        "last_seen": at(0),
        "silent": False,
        "sdk_version": "1.0",
        "registration_time": at(0),
        "metadata": {"team": "x"},
    }
    assert client.json("/agents/active") == {"agents": [answer], "total": 1, "next_cursor": None}
    assert client.json("/agents/a/status") == answer | {"instances": []}


def test_the_newest_status_counts(client: Client) -> None:
    """By its own time, whenever it arrives."""
    client.tell(registered("a"), status("a", "busy", 5), status("a", "error", 3))
    assert client.json("/agents/status", agent_id="a")["status"] == "busy"


def test_an_agent_that_only_converses_is_known(client: Client) -> None:
    """Any event shows it; last_seen is the newest of any kind."""
    client.tell(start("s1", agent_id="a"), end("s1", 30, agent_id="a"))
    answer = client.json("/agents/a/status")
    assert (answer["status"], answer["last_seen"], answer["registration_time"]) == ("active", at(30), None)


def test_an_offline_agent_is_not_active(client: Client) -> None:
    """It said that it goes."""
    client.tell(registered("a"), status("a", "offline", 1), registered("b"))
    assert [agent["agent_id"] for agent in client.json("/agents/active")["agents"]] == ["b"]
    assert client.json("/agents/a/status")["status"] == "offline"


def test_an_agent_unheard_of_for_15_minutes_is_silent(client: Client) -> None:
    """Not before, and not if it went offline."""
    client.tell(
        registered("on-time", -15 * MINUTE), registered("late", -15 * MINUTE - 1), registered("gone", -7200)
    )
    client.tell(status("gone", "offline", -7000))
    silent = {name: client.json(f"/agents/{name}/status")["silent"] for name in ("on-time", "late", "gone")}
    assert silent == {"on-time": False, "late": True, "gone": False}
    assert client.json("/operations/overview")["silent_agents"] == ["late"]


def test_activities_are_listed_newest_first(client: Client) -> None:
    """Of all agents or of one, page by page."""
    client.tell(*(activity("ab"[number % 2], f"step-{number}", number) for number in range(5)))
    first = client.json("/agents/activity", limit=3)
    rest = client.json("/agents/activity", limit=3, cursor=first["next_cursor"])
    assert [each["action"] for each in first["activities"]] == ["step-4", "step-3", "step-2"]
    assert [each["action"] for each in rest["activities"]] == ["step-1", "step-0"]
    assert (first["total"], rest["next_cursor"]) == (5, None)
    only_b = ["step-3", "step-1"]
    assert [each["action"] for each in client.json("/agents/b/activity")["activities"]] == only_b
    assert [each["action"] for each in client.json("/agents/activity", agent_id="b")["activities"]] == only_b


def test_an_activity_comes_back_as_it_went(client: Client) -> None:
    """Details may be any JSON."""
    client.tell(activity("a", "index", 3, details=[1, {"n": None}], duration=2.5))
    assert client.json("/agents/activity")["activities"] == [
        {"agent_id": "a", "action": "index", "timestamp": at(3), "details": [1, {"n": None}], "duration": 2.5}
    ]


def test_agents_are_paged(client: Client) -> None:
    """Last seen first."""
    client.tell(*(registered(f"agent-{number}", number) for number in range(5)))
    first = client.json("/agents/active", limit=4)
    rest = client.json("/agents/active", limit=4, cursor=first["next_cursor"])
    names = [agent["agent_id"] for page in (first, rest) for agent in page["agents"]]
    assert names == [f"agent-{number}" for number in (4, 3, 2, 1, 0)]


def test_the_overview_counts_agents_and_conversations(client: Client) -> None:
    """Every status is there, with its count."""
    client.tell(registered("a"), status("b", "busy"), status("c", "busy"), start("s1", agent_id="a"))
    client.tell(start("s2", agent_id="a"), end("s2", 5, agent_id="a"), activity("b", "deploy", 1, details={}))
    overview = client.json("/operations/overview")
    assert overview["agents_by_status"] == {
        "active": 1,
        "idle": 0,
        "busy": 2,
        "error": 0,
        "offline": 0,
        "initializing": 0,
    }
    assert overview["active_conversations"] == 1
    assert [each["action"] for each in overview["recent_activity"]] == ["deploy"]


def test_an_unknown_agent_is_404(client: Client) -> None:
    """By path and by query; it has done nothing."""
    assert client.get("/agents/nope/status").status_code == 404
    assert client.get("/agents/status", params={"agent_id": "nope"}).status_code == 404
    assert client.json("/agents/nope/activity")["activities"] == []
