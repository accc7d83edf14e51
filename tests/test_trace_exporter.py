"""`OTEL_TRACES_EXPORTER=agent_tracker`: agents are seen in what a provider exports, beside the hook or without it."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExportResult

from otel_agent_tracker import auto
from otel_agent_tracker.gathering import WAIT_FOR_LATE
from otel_agent_tracker.semconv import Outcome
from otel_agent_tracker.server.run import Server
from otel_agent_tracker.testing import RecordedConversations
from otel_agent_tracker.trace_exporter import AgentTrackerSpanExporter
from tests.conftest import MakeTracker

AGENT = """
import sys
from opentelemetry import trace
def talk():
    tracer = trace.get_tracer("some-agents")
    for number in range(3):
        with tracer.start_as_current_span("invoke_agent bot") as span:
            span.set_attribute("gen_ai.operation.name", "invoke_agent")
            span.set_attribute("gen_ai.agent.name", "bot")
            span.set_attribute("gen_ai.conversation.id", "thread-1")
            with tracer.start_as_current_span("chat") as below:
                below.set_attribute("gen_ai.operation.name", "chat")
                below.set_attribute("gen_ai.usage.input_tokens", 7)
"""
CONFIGURED = """
from opentelemetry.sdk._configuration import _OTelSDKConfigurator
_OTelSDKConfigurator().configure()
"""  # what a distro does, and no hook of ours
SETTINGS = {
    "OTEL_TRACES_EXPORTER": "agent_tracker",
    "OTEL_METRICS_EXPORTER": "none",
    "OTEL_LOGS_EXPORTER": "none",
    "OTEL_SERVICE_NAME": "shop",
}


def run(command: list[str], folder: Path, url: str, **environ: str) -> str:
    """What a process that ends well writes to its stderr."""
    settings = {"AGENT_TRACKER_URL": url, "AGENT_TRACKER_STATE_DIR": str(folder / "state")} | SETTINGS
    ran = subprocess.run(
        command, capture_output=True, text=True, timeout=60, env=os.environ | settings | environ, cwd=folder
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stderr


@pytest.mark.parametrize("with_hook", [True, False], ids=["with the hook", "without it"])
def test_agents_are_seen_in_what_is_exported(
    tmp_path: Path, tracker_server: Server, make_tracker: MakeTracker, with_hook: bool
) -> None:
    """Each turn once, with its tokens, also where the processor saw the same spans, and delivered when it ends."""
    script = tmp_path / "app.py"
    script.write_text(AGENT + ("" if with_hook else CONFIGURED) + "talk()\n", encoding="utf-8")
    instrument = str(Path(sys.executable).with_name("opentelemetry-instrument"))
    stderr = run(
        [*([instrument] if with_hook else []), sys.executable, str(script)], tmp_path, tracker_server.url
    )
    assert stderr == ""
    tracker = make_tracker(tracker_server.url)
    info = tracker.get_session_info("thread-1")
    assert info is not None
    assert (info["agent_id"], info["turns"]) == ("bot", 3)
    assert tracker.get_response_times("bot")["count"] == 3


def test_without_a_destination_nothing_happens(tmp_path: Path) -> None:
    """The provider exports as ever; nothing is written."""
    script = tmp_path / "app.py"
    script.write_text(AGENT + CONFIGURED + "talk()\n", encoding="utf-8")
    assert run([sys.executable, str(script)], tmp_path, "") == ""
    assert not (tmp_path / "state").exists()


def test_the_entry_point_is_the_exporter() -> None:
    """OpenTelemetry finds it by its name."""
    (found,) = entry_points(group="opentelemetry_traces_exporter", name="agent_tracker")
    assert found.load() is AgentTrackerSpanExporter


def agent_spans(exporter: AgentTrackerSpanExporter, *conversations: str) -> None:
    """An agent's span of each conversation, exported as it ends."""
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    for conversation in conversations:
        attributes = {"gen_ai.operation.name": "invoke_agent", "gen_ai.conversation.id": conversation}
        provider.get_tracer("some-agents").start_span("invoke_agent bot", attributes=attributes).end()


def test_a_turn_is_told_while_the_process_runs(recorded_conversations: RecordedConversations) -> None:
    """By the worker's clock, with no other span to come."""
    exporter = AgentTrackerSpanExporter()
    agent_spans(exporter, "thread-1")
    assert recorded_conversations.conversations == []
    recorded_conversations.clock.advance(seconds=WAIT_FOR_LATE)
    (conversation,) = recorded_conversations.conversations
    assert (conversation.session_id, len(conversation.turns)) == ("thread-1", 1)
    exporter.shutdown()


def test_a_span_with_its_id_keeps_a_session_alive(recorded_conversations: RecordedConversations) -> None:
    """Any span that is exported, an agent's or not."""
    exporter = AgentTrackerSpanExporter()
    agent_spans(exporter, "thread-1")
    exporter.force_flush()
    for _ in range(3):
        recorded_conversations.clock.advance(minutes=20)
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        provider.get_tracer("web").start_span("GET", attributes={"session.id": "thread-1"}).end()
    (conversation,) = recorded_conversations.conversations
    assert conversation.outcome is Outcome.ACTIVE
    exporter.shutdown()


def test_after_its_shutdown_it_refuses_spans(recorded_conversations: RecordedConversations) -> None:
    """As every exporter does; shutting down again changes nothing."""
    exporter = AgentTrackerSpanExporter()
    exporter.shutdown()
    exporter.shutdown()
    assert exporter.export([]) is SpanExportResult.FAILURE
    agent_spans(exporter, "thread-1")
    assert recorded_conversations.conversations == []


def test_what_cannot_be_read_stops_no_export(
    recorded_conversations: RecordedConversations, caplog: pytest.LogCaptureFixture
) -> None:
    """The host's batch is accepted, and the log says once what is wrong."""
    exporter = AgentTrackerSpanExporter()
    broken: list[ReadableSpan] = [None]  # type: ignore[list-item]  # on purpose
    assert exporter.export(broken) is SpanExportResult.SUCCESS
    assert "spans could not be read" in caplog.text
    exporter.shutdown()


def test_it_stands_back_where_the_same_spans_are_watched(
    recorded_conversations: RecordedConversations, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then the processor tells the turns, with what only it can see."""
    provider = TracerProvider(shutdown_on_exit=False)
    monkeypatch.setattr("opentelemetry.trace.get_tracer_provider", lambda: provider)
    monkeypatch.setattr(auto, "_installed", None)
    tracker = auto.install()
    exporter = AgentTrackerSpanExporter()
    agent_spans(exporter, "not watched, and not told")
    exporter.force_flush()
    assert recorded_conversations.conversations == []
    exporter.shutdown()
    tracker.close()
