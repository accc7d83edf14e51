"""What users' texts lose before anything is made of them: from the public API to every byte that leaves or stays."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from otel_agent_tracker import (
    AgentOperationsTracker,
    AgentPerformanceTracker,
    AgentStatus,
    AsyncAgentOperationsTracker,
    AsyncAgentPerformanceTracker,
    auto,
    install,
)
from otel_agent_tracker.config import resolve
from otel_agent_tracker.pipeline import Pipeline, substitute
from otel_agent_tracker.redaction import REDACTION_FAILED
from otel_agent_tracker.testing import RecordedConversations, recording
from tests.cli.terminal import NOWHERE, run
from tests.conftest import MakeTracker
from tests.hosts import host_provider, tracker_answer
from tests.scripted_server import ScriptedServer, json_reply, reply, respond

NAME, SECRET = "Jane Roe", "sk-canary0123456789abcdef"
TEXT = f"{NAME} pays with {SECRET}"
CLEAN = "<name> pays with [redacted]"

Trackers = tuple[AgentPerformanceTracker, AgentOperationsTracker]


def without_names(text: str) -> str:
    """A user's own redactor."""
    return text.replace(NAME, "<name>")


# --- every way in ---------------------------------------------------------------------------------------


def _raise_in_conversation(tracker: AgentPerformanceTracker) -> None:
    with suppress(ValueError), tracker.conversation("bot"):
        raise ValueError(TEXT)


def _raise_in_turn(tracker: AgentPerformanceTracker) -> None:
    with suppress(ValueError), tracker.turn("thread-1", agent_id="bot"):
        raise ValueError(TEXT)


def _fail_turn(tracker: AgentPerformanceTracker, message: str, error_type: str | None = None) -> None:
    with tracker.turn("thread-1", agent_id="bot") as turn:
        turn.fail(message, error_type=error_type)


def _fail_below(tracker: AgentPerformanceTracker) -> None:
    """An agent of another framework fails in a turn of ours."""
    with (
        tracker.turn("thread-1", agent_id="bot"),
        trace.get_tracer("framework").start_as_current_span("invoke_agent inner") as span,
    ):
        span.set_attributes({"gen_ai.operation.name": "invoke_agent", "error.type": TEXT})
        span.set_status(StatusCode.ERROR, TEXT)


def _ended(tracker: AgentPerformanceTracker, **said: Any) -> None:
    tracker.end_conversation(tracker.start_conversation("bot"), **said)


WAYS: dict[str, Callable[[AgentPerformanceTracker, AgentOperationsTracker], object]] = {
    "metadata of a start": lambda t, o: t.start_conversation("bot", metadata={"note": [{"deep": TEXT}]}),
    "metadata of an end": lambda t, o: _ended(t, metadata={"note": TEXT}),
    "feedback with an end": lambda t, o: _ended(t, quality_score=5, user_feedback=TEXT),
    "feedback": lambda t, o: t.record_feedback("thread-1", user_feedback=TEXT, agent_id="bot"),
    "name of feedback": lambda t, o: t.record_feedback("thread-1", 5, name=TEXT, agent_id="bot"),
    "error message": lambda t, o: t.record_failed_session(t.start_conversation("bot"), TEXT),
    "error type": lambda t, o: t.record_failed_session(t.start_conversation("bot"), "no", error_type=TEXT),
    "exception in a conversation": lambda t, o: _raise_in_conversation(t),
    "exception in a turn": lambda t, o: _raise_in_turn(t),
    "error of a turn": lambda t, o: _fail_turn(t, TEXT),
    "error type of a turn": lambda t, o: _fail_turn(t, "no", TEXT),
    "error of an agent below a turn": lambda t, o: _fail_below(t),
    "metadata of an agent": lambda t, o: o.register_agent("bot", metadata={"note": TEXT}),
    "version of an agent": lambda t, o: o.register_agent("bot", TEXT),
    "metadata of a status": lambda t, o: o.update_agent_status("bot", AgentStatus.IDLE, metadata={"x": TEXT}),
    "action": lambda t, o: o.log_activity("bot", TEXT),
    "details of an activity": lambda t, o: o.log_activity("bot", "look", {"found": [TEXT]}),
}


class Watched(Pipeline):
    """A pipeline whose event spans are kept as they were made."""

    spans: InMemorySpanExporter

    def _processors(self) -> list[SpanProcessor]:
        self.spans = InMemorySpanExporter()
        return [SimpleSpanProcessor(self.spans), *super()._processors()]


class World(NamedTuple):
    """Two trackers on a watched pipeline, and all that leaves it or stays of it."""

    tracker: AgentPerformanceTracker
    operations: AgentOperationsTracker
    places: Callable[[], dict[str, bytes]]


@contextmanager
def world(state_dir: Path, caplog: pytest.LogCaptureFixture) -> Iterator[World]:
    """A tracker, a backend for copies with content, a host with a provider, a state folder, a log."""
    host_spans, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(host_spans))
    with (
        ScriptedServer(respond(tracker_answer)) as server,
        ScriptedServer(reply(200)) as backend,
        pytest.MonkeyPatch.context() as environment,
        host_provider(provider),
        caplog.at_level(logging.DEBUG),
    ):
        environment.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", backend.url)
        config = {"url": server.url, "state_dir": state_dir, "otlp": True, "otlp_content": True}
        pipeline = Watched(resolve(config | {"redactor": without_names}))
        substitute(pipeline)

        def places() -> dict[str, bytes]:
            assert pipeline.flush(10)
            assert pipeline._copying is not None
            pipeline._copying.force_flush()
            ours = [
                span for span in host_spans.get_finished_spans() if span.name != "invoke_agent inner"
            ]  # which is the framework's own
            return {
                "tracker": b"".join(request.body for request in server.requests),
                "disk": b"".join(path.read_bytes() for path in state_dir.rglob("*") if path.is_file()),
                "copies": b"".join(request.body for request in backend.requests),
                "spans": "".join(span.to_json() for span in pipeline.spans.get_finished_spans()).encode(),
                "host": "".join(span.to_json() for span in ours).encode(),
                "log": caplog.text.encode(),
            }

        try:
            with AgentPerformanceTracker() as tracker, AgentOperationsTracker() as operations:
                yield World(tracker, operations, places)
        finally:
            substitute(None)
            pipeline.close()


@pytest.mark.parametrize("way", WAYS)
def test_no_text_leaves_or_stays_as_it_was(
    way: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Secrets and what the user's redactor takes out are in no event span, no byte on disk, no request, no copy,
    no span of the host's and no line of the log; what is left of the text is where it belongs.
    """
    with world(tmp_path, caplog) as given:
        WAYS[way](given.tracker, given.operations)
        found = given.places()
    assert [place for place, text in found.items() if b"canary" in text or NAME.encode() in text] == []
    assert {"tracker", "disk", "spans"} <= {place for place, text in found.items() if CLEAN.encode() in text}


def test_ids_are_left_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Two ids must not become one: sessions, agents and users go as they are."""
    with world(tmp_path, caplog) as given:
        with given.tracker.turn(f"{NAME} thread", agent_id=f"{NAME} bot", user_id=f"{NAME} user"):
            pass
        found = given.places()
    for id_ in ("thread", "bot", "user"):
        assert f"{NAME} {id_}".encode() in found["tracker"]


# --- a user's function ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "redactor",
    [
        lambda text: text[99_999],
        lambda text: None,
        lambda text: b"bytes",
        lambda text: "\ud800",
        lambda text: text * 10_000,
        lambda text: 1 / 0,
    ],
    ids=["raises", "nothing", "bytes", "surrogate", "endless", "divides"],
)
def test_a_redactor_that_fails_lets_nothing_through(
    recorded_conversations: RecordedConversations, redactor: Any
) -> None:
    """The text is withheld, the event is kept, and the caller notices nothing."""
    tracker = AgentPerformanceTracker(redactor=redactor)
    session = tracker.start_conversation("bot", metadata={"note": TEXT, "n": 1})
    tracker.end_conversation(session, 5, TEXT)
    start, end = recorded_conversations.requests
    assert start.body["metadata"] | {"agent_tracker": 0} == {
        "note": REDACTION_FAILED,
        "n": 1,
        "agent_tracker": 0,
    }
    assert end.body["user_feedback"] == REDACTION_FAILED


def test_it_works_where_ours_is_off() -> None:
    """`redact=False` turns off what we look for, not what the user does."""
    with recording(redact=False) as recorded:
        AgentOperationsTracker(redactor=without_names).log_activity("bot", TEXT)
        assert [request.body["action"] for request in recorded.requests] == [f"<name> pays with {SECRET}"]


def test_a_text_goes_through_it_once_for_each_event() -> None:
    """The end of a silent conversation repeats what its last turn said, and does not change it again."""
    with recording() as recorded:
        tracker = AgentPerformanceTracker(redactor=lambda text: f"({text})")
        _fail_turn(tracker, "no route", "OSError")
        recorded.clock.advance(minutes=31)
        (conversation,) = recorded.conversations
    assert (conversation.error_message, conversation.error_type) == ("(no route)", "(OSError)")
    assert conversation.turns[0].error_message == "(no route)"


def test_an_error_type_that_is_no_text_is_refused(recorded_conversations: RecordedConversations) -> None:
    """At the call that brings it, before anything changes."""
    with (
        AgentPerformanceTracker().turn("thread-1", agent_id="bot") as turn,
        pytest.raises(TypeError, match="error_type must be a str"),
    ):
        turn.fail("no", error_type=OSError)  # type: ignore[arg-type]  # the point
    (conversation,) = recorded_conversations.conversations
    assert conversation.turns[0].status == "ok"


def test_an_error_type_of_a_framework_that_is_no_text_is_none(
    recorded_conversations: RecordedConversations,
) -> None:
    """Attributes of other people's spans may be anything."""
    with (
        host_provider(TracerProvider()),
        AgentPerformanceTracker().turn("thread-1", agent_id="bot"),
        trace.get_tracer("framework").start_as_current_span("invoke_agent inner") as span,
    ):
        span.set_attributes({"gen_ai.operation.name": "invoke_agent", "error.type": 500})
        span.set_status(StatusCode.ERROR, "down")
    (conversation,) = recorded_conversations.conversations
    (turn,) = conversation.turns
    assert (turn.status, turn.error_type, turn.error_message) == ("failed", None, "down")


async def _tell_asynchronously() -> None:
    tracker = AsyncAgentPerformanceTracker(redactor=without_names)
    operations = AsyncAgentOperationsTracker(redactor=without_names)
    await tracker.end_conversation(await tracker.start_conversation("bot"), 5, TEXT)
    await operations.log_activity("bot", TEXT)


def test_asyncio_s_objects_take_it_too(recorded_conversations: RecordedConversations) -> None:
    """The twins have the same keyword."""
    asyncio.run(_tell_asynchronously())
    _, end, activity = recorded_conversations.requests
    assert (end.body["user_feedback"], activity.body["action"]) == (CLEAN, CLEAN)


def test_install_takes_it(make_tracker: MakeTracker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And it joins in where a tracker object without one is there already."""
    monkeypatch.setenv("AGENT_TRACKER_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setattr(auto, "_installed", None)
    with ScriptedServer(json_reply({})) as server:
        tracker = make_tracker(server.url)
        installed = install(base_url=server.url, redactor=without_names)
        tracker.end_conversation(tracker.start_conversation("bot"), 5, TEXT)
        assert tracker.flush(10)
        installed.close()
        sent = b"".join(request.body for request in server.requests)
    assert CLEAN.encode() in sent
    assert NAME.encode() not in sent


def test_a_second_redactor_is_refused(make_tracker: MakeTracker) -> None:
    """Neither may be left out without a word; the same one, or none, is welcome."""
    make_tracker(NOWHERE, redactor=without_names)
    make_tracker(NOWHERE, redactor=without_names)
    make_tracker(NOWHERE)
    with pytest.raises(ValueError, match="another redactor is in use"):
        make_tracker(NOWHERE, redactor=str.upper)
    make_tracker("http://127.0.0.1:10", redactor=str.upper)


async def _asynchronous(text: str) -> str:
    return text


@pytest.mark.parametrize("redactor", ["Jane", 7, {"Jane": "<name>"}, _asynchronous])
def test_what_is_no_redactor_is_refused(make_tracker: MakeTracker, redactor: object) -> None:
    """At once, with what is accepted."""
    with pytest.raises(TypeError, match="redactor must be a function that takes a str"):
        make_tracker(NOWHERE, redactor=redactor)


def test_a_variable_is_no_redactor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It has no effect, and `doctor` says so; what it says of the setting is that an application may give one."""
    monkeypatch.setenv("AGENT_TRACKER_REDACTOR", "myapp.redact")
    monkeypatch.setenv("AGENT_TRACKER_STATE_DIR", str(tmp_path))
    assert resolve({}).redactor is None

    told = run("doctor").stdout
    assert "AGENT_TRACKER_REDACTOR is no setting and has no effect" in " ".join(told.split())
    assert "an argument of the application, if any" in told
