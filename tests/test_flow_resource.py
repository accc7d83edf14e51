"""Service, version, environment and instance: from an OpenTelemetry resource to columns of the tracker."""

from __future__ import annotations

import os
import socket
import sqlite3
from contextlib import closing
from typing import Any

import pytest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider

from otel_agent_tracker import AgentOperationsTracker, AgentPerformanceTracker
from otel_agent_tracker.server.run import Server
from otel_agent_tracker.wire import Capabilities
from tests.conftest import MakeTracker
from tests.hosts import host_provider
from tests.waiting import wait_until

COLUMNS = "service, version, environment"
SHOP = ("shop", "1.2.3", "staging")


def rows(database: str, query: str) -> list[tuple[Any, ...]]:
    """What the tracker's database holds."""
    with closing(sqlite3.connect(database)) as connection:
        return connection.execute(query).fetchall()


def tell(tracker: AgentPerformanceTracker, operations: AgentOperationsTracker) -> None:
    """Each kind of event, but a heartbeat."""
    operations.register_agent("bot")
    operations.update_agent_status("bot", "idle")
    operations.log_activity("bot", "look")
    session = tracker.start_conversation("bot")
    with tracker.turn(session):
        pass
    tracker.record_feedback(session, 5)
    tracker.end_conversation(session)
    tracker.record_failed_session(tracker.start_conversation("bot"), "no route")
    with tracker.turn("thread-1", agent_id="bot"):
        pass


@pytest.mark.parametrize(
    "attributes",
    [
        "service.name=shop,service.version=1.2.3,deployment.environment.name=staging,service.instance.id=shop-1",
        "service.name=shop,service.version=1.2.3,deployment.environment=staging,service.instance.id=shop-1",
    ],
    ids=["the name of today", "the name before"],
)
def test_the_environment_s_resource_becomes_columns(
    make_tracker: MakeTracker,
    tracker_server: Server,
    tracker_database: str,
    monkeypatch: pytest.MonkeyPatch,
    attributes: str,
) -> None:
    """Of every event, conversation and instance that the service tells of."""
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", attributes)
    tracker = make_tracker(tracker_server.url)
    with AgentOperationsTracker(
        tracker_server.url, state_dir=tracker._config.state_dir, flush_timeout_seconds=0.1
    ) as operations:
        tell(tracker, operations)
        assert tracker.flush(10)
        operations.heartbeat("bot")
        wait_until(lambda: rows(tracker_database, "SELECT * FROM instances"))
    assert rows(tracker_database, f"SELECT DISTINCT {COLUMNS}, instance FROM events") == [(*SHOP, "shop-1")]
    assert rows(tracker_database, "SELECT count(DISTINCT path) FROM events") == [(7,)]
    assert rows(tracker_database, f"SELECT status, {COLUMNS} FROM conversations ORDER BY 1") == [
        ("active", *SHOP),
        ("completed", *SHOP),
        ("failed", *SHOP),
    ]  # fmt: skip
    assert rows(tracker_database, f"SELECT agent_id, instance, {COLUMNS} FROM instances") == [
        ("bot", "shop-1", *SHOP)
    ]


def test_the_host_s_own_resource_counts(
    make_tracker: MakeTracker, tracker_server: Server, tracker_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The resource of the provider that the application has set is the one of its conversations, turns included."""
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "service.name=another,deployment.environment.name=another")
    resource = Resource(
        {"service.name": "shop", "service.version": "1.2.3", "deployment.environment.name": "staging"}
    )
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    with host_provider(provider):
        tracker = make_tracker(tracker_server.url)
        with tracker.conversation("bot") as conversation, conversation.turn():
            pass
        assert tracker.flush(10)
    assert rows(tracker_database, f"SELECT {COLUMNS} FROM conversations") == [SHOP]
    assert rows(tracker_database, f"SELECT DISTINCT {COLUMNS} FROM events") == [SHOP]


def test_a_resource_without_an_instance_gets_one(
    make_tracker: MakeTracker, tracker_server: Server, tracker_database: str
) -> None:
    """Events and heartbeats of the process tell the same."""
    provider = TracerProvider(resource=Resource({"service.name": "shop"}), shutdown_on_exit=False)
    with host_provider(provider):
        tracker = make_tracker(tracker_server.url)
        tracker.start_conversation("bot")
        with AgentOperationsTracker(tracker_server.url, state_dir=tracker._config.state_dir) as operations:
            assert tracker.flush(10)
            operations.heartbeat("bot")
            wait_until(lambda: rows(tracker_database, "SELECT * FROM instances"))
    ((told,),) = rows(tracker_database, "SELECT DISTINCT instance FROM events")
    assert told == f"{socket.gethostname()}-{os.getpid()}"
    assert rows(tracker_database, "SELECT instance FROM instances") == [(told,)]


def test_it_arrives_without_batches_too(
    make_tracker: MakeTracker, tracker_server: Server, tracker_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A single request carries it in its metadata, or as a field of its own."""
    monkeypatch.setenv(
        "OTEL_RESOURCE_ATTRIBUTES",
        "service.name=shop,service.version=1.2.3,deployment.environment.name=staging",
    )
    offered = Capabilities(
        batch=None, turns={"path": "/conversations/turn"}, feedback={"path": "/conversations/feedback"}
    )
    monkeypatch.setattr("otel_agent_tracker.client.TrackerClient.capabilities", lambda _: offered)
    tracker = make_tracker(tracker_server.url)
    with tracker.conversation("bot") as conversation, conversation.turn():
        pass
    assert tracker.flush(10)
    assert rows(tracker_database, f"SELECT {COLUMNS} FROM conversations") == [SHOP]
    assert rows(tracker_database, f"SELECT path, {COLUMNS} FROM events ORDER BY path") == [
        (f"/conversations/{event}", *SHOP) for event in ("end", "start", "turn")
    ]


def test_two_services_of_one_tracker_are_told_apart(
    tracker_server: Server, tracker_database: str, make_tracker: MakeTracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each conversation shows who told of it, over REST as well; what is not known is empty."""
    for name in ("shop", "desk"):
        monkeypatch.setenv("OTEL_SERVICE_NAME", name)
        with AgentPerformanceTracker(
            tracker_server.url, state_dir=make_tracker()._config.state_dir
        ) as tracker:
            session = tracker.start_conversation("bot")
            assert tracker.flush(10)
            told = tracker.get_session_info(session)
        assert told is not None
        assert (told["service"], told["version"], told["environment"]) == (name, None, None)
    assert sorted(rows(tracker_database, f"SELECT {COLUMNS} FROM conversations")) == [
        ("desk", None, None),
        ("shop", None, None),
    ]
