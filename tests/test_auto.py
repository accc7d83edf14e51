"""`install`, and the functions that speak to the installed pipeline."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider

import otel_agent_tracker
from otel_agent_tracker import AgentPerformanceTracker, auto
from otel_agent_tracker.server.run import Server


@pytest.fixture(autouse=True)
def nothing_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Each test begins as a new process does, with a state folder of its own."""
    monkeypatch.setenv("AGENT_TRACKER_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setattr(auto, "_installed", None)
    yield
    if auto._installed is not None:
        auto._installed.close()


def told(tracker: AgentPerformanceTracker, session_id: str) -> dict[str, Any]:
    """What the tracker knows once everything has arrived."""
    assert tracker.flush(10.0)
    found = tracker.get_session_info(session_id)
    assert found is not None
    return found


def test_the_functions_reach_the_installed_tracker(tracker_server: Server) -> None:
    """A conversation is ended and rated without a tracker object in hand."""
    tracker = otel_agent_tracker.install(base_url=tracker_server.url)
    session_id = tracker.start_conversation("bot")
    assert otel_agent_tracker.end_conversation(session_id, 4, "fine", 7, {"a": 1})
    ended = told(tracker, session_id)
    assert [
        ended[name] for name in ("status", "quality_score", "user_feedback", "message_count", "metadata")
    ] == [
        "completed",
        4.0,
        "fine",
        7,
        {"a": 1},
    ]
    assert otel_agent_tracker.record_feedback(
        session_id, thumbs="down", user_feedback="no", source="operator"
    )
    rated = told(tracker, session_id)
    assert (rated["quality_score"], rated["user_feedback"]) == (1.0, "no")


def test_without_install_the_environment_names_the_tracker(
    tracker_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first call installs."""
    monkeypatch.setenv("AGENT_TRACKER_URL", tracker_server.url)
    assert otel_agent_tracker.end_conversation("thread-7", 3, agent_id="bot")
    installed = auto._installed
    assert installed is not None
    assert told(installed, "thread-7")["quality_score"] == 3.0


def test_installing_again_changes_nothing(tracker_server: Server) -> None:
    """The pipeline is the same, and a provider is watched once."""
    provider = TracerProvider(shutdown_on_exit=False)
    before = len(provider._active_span_processor._span_processors)
    first = otel_agent_tracker.install(provider, base_url=tracker_server.url)
    session_id = first.start_conversation("bot")
    second = otel_agent_tracker.install(provider, base_url=tracker_server.url)
    assert otel_agent_tracker.end_conversation(session_id, 5)
    assert told(second, session_id)["status"] == "completed"
    assert len(provider._active_span_processor._span_processors) == before + 1


def test_what_is_no_provider_is_refused_before_anything_changes(tracker_server: Server) -> None:
    """A URL in its place would otherwise switch tracking off."""
    tracker = otel_agent_tracker.install(base_url=tracker_server.url)
    wrong: Any = tracker_server.url
    with pytest.raises(TypeError, match="base_url="):
        otel_agent_tracker.install(wrong)
    session_id = tracker.start_conversation("bot")
    assert otel_agent_tracker.end_conversation(session_id, 5)
    assert told(tracker, session_id)["quality_score"] == 5.0
