"""No tracker, nonsense for answers, no leak: what the host must never feel."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import signal
import threading
import traceback
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import context
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import otel_agent_tracker
from otel_agent_tracker import (
    AgentOperationsTracker,
    AgentPerformanceTracker,
    TrackerUnavailable,
    Turn,
    auto,
    session_id,
)
from otel_agent_tracker.testing import RecordedConversations, recording
from tests.conftest import MakeTracker
from tests.scripted_server import Action, ScriptedServer, hang, html, raw, reply, reset

Tracker = AgentPerformanceTracker
SECRET = "sk-7f3a9c1e5b2d8046-very-secret"


# --- disabled -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environment", "level"),
    [
        ({}, logging.INFO),
        (
            {"AGENT_TRACKER_ENABLED": "false", "AGENT_TRACKER_URL": "https://tracker.example.com"},
            logging.INFO,
        ),
        ({"OTEL_SDK_DISABLED": "true", "AGENT_TRACKER_URL": "https://tracker.example.com"}, logging.WARNING),
        ({"OTEL_SDK_DISABLED": "true"}, logging.INFO),
    ],
)
def test_disabled_everything_works_and_nothing_is_written(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
    environment: dict[str, str],
    level: int,
) -> None:
    """No URL, or switched off: ids are minted, sessions live, one line says why, no file and no thread appears."""
    caplog.set_level(logging.INFO, logger="otel_agent_tracker")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    threads = threading.active_count()
    with AgentPerformanceTracker(state_dir=tmp_path) as tracker:
        session = tracker.start_conversation("bot", "u1")
        assert session_id.parse(session)
        assert tracker.is_session_active(session)
        with tracker.turn(session):
            pass
        assert tracker.end_conversation(session, 5)
        assert not tracker.is_session_active(session)
        with tracker.conversation("bot") as conversation, conversation.turn():
            pass
        assert tracker.record_feedback(session, thumbs="up")
        assert tracker.flush(1)
        assert tracker.delivery_stats()["accepted"] == 0
        with AgentOperationsTracker(state_dir=tmp_path) as agents:
            agents.register_agent("bot")
            agents.heartbeat("bot")
        assert threading.active_count() == threads
    assert [(record.levelno, "agent tracking is off" in record.message) for record in caplog.records] == [
        (level, True)
    ]
    assert list(tmp_path.iterdir()) == []


# --- no tracker, or none that makes sense -------------------------------------------------------------------

NONSENSE: dict[str, Action] = {
    "a server error": reply(503),
    "a page": html(),
    "garbage": raw(b"\x00\x01 garbage \xff\r\n\r\n"),
    "silence": hang(),
    "a reset": reset(),
    "a redirect": reply(302, headers={"Location": "http://127.0.0.1:9/"}),
    "unauthorised": reply(401),
    "not found, ever": reply(404),
}


@pytest.mark.parametrize("answer", NONSENSE)
def test_a_tracker_that_answers_nonsense_loses_nothing(make_tracker: MakeTracker, answer: str) -> None:
    """Nothing is raised, everything is kept."""
    with ScriptedServer(NONSENSE[answer]) as server:
        tracker = make_tracker(server.url, timeout_seconds=0.3)
        session = tracker.start_conversation("bot")
        assert tracker.end_conversation(session, 5)
        server.wait_for_requests(1)
        assert not tracker.flush(0.3)
        stats = tracker.delivery_stats()
        assert (stats["accepted"], stats["pending"], stats["delivered"]) == (2, 2, 0)
        tracker.close()


def test_an_unreachable_tracker_loses_nothing(
    make_tracker: MakeTracker, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is raised, everything is kept, and one line tells of it."""
    with ScriptedServer(reply()) as server:
        url = server.url
    tracker = make_tracker(url)
    for _ in range(50):
        tracker.end_conversation(tracker.start_conversation("bot"))
    assert not tracker.flush(0.5)
    assert tracker.delivery_stats()["pending"] == 100
    assert len([record for record in caplog.records if "events are kept" in record.getMessage()]) == 1


# --- the key ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("answer", [reply(401), reply(503), raw(b"nonsense"), None])
def test_the_api_key_is_never_in_logs_reprs_exceptions_or_files(
    make_tracker: MakeTracker, tmp_path: Path, caplog: pytest.LogCaptureFixture, answer: Action | None
) -> None:
    """Whatever goes wrong, with every logger at its most talkative; the tracker alone gets the key."""
    caplog.set_level(logging.DEBUG)
    with ScriptedServer(answer or reply()) as server:
        if answer is None:
            server.close()
        tracker = make_tracker(server.url, api_key=SECRET, timeout_seconds=1)
        session = tracker.start_conversation("bot")
        with pytest.raises(TrackerUnavailable) as raised:
            tracker.get_session_info(session)
        tracker.end_conversation(session)
        tracker.flush(0.3)
        told = [
            repr(vars(tracker)),
            repr(tracker._config),
            str(tracker._config),
            *map(repr, vars(tracker).values()),
        ]
        sent = [request.headers["authorization"] for request in server.requests]
        tracker.close()
    told += ["".join(traceback.format_exception(raised.value)), caplog.text]
    assert not [text for text in told if SECRET in text]
    assert not [
        path for path in tmp_path.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()
    ]
    assert set(sent) <= {f"Bearer {SECRET}"}
    assert sent or answer is None


# --- contexts -----------------------------------------------------------------------------------------------


def test_leaving_a_block_in_another_task_neither_logs_nor_leaks(
    recorded_conversations: RecordedConversations, caplog: pytest.LogCaptureFixture
) -> None:
    """An async generator that is finished by another task than began it: Contexts are as they were."""
    tracker = AgentPerformanceTracker()

    async def answers() -> AsyncIterator[Turn]:
        with (
            otel_agent_tracker.session("thread-7"),
            tracker.conversation("bot") as conversation,
            conversation.turn() as turn,
        ):
            yield turn

    async def story() -> None:
        before = context.get_current()
        generator = answers()
        await asyncio.create_task(anext(generator))  # type: ignore[arg-type]  # a coroutine at run time
        assert context.get_current() == before
        await asyncio.create_task(generator.aclose())  # type: ignore[attr-defined]  # a generator at run time
        assert context.get_current() == before

    asyncio.run(story())
    assert caplog.records == []
    (conversation,) = recorded_conversations.conversations
    assert len(conversation.turns) == 1


@pytest.mark.parametrize("order", [*itertools.permutations(range(3))])
def test_blocks_left_in_any_order_leak_nothing(
    recorded_conversations: RecordedConversations, order: tuple[int, ...]
) -> None:
    """Interleaved generators in one task: with the last block left, the Context is as before the first."""
    tracker = AgentPerformanceTracker()
    before = context.get_current()
    blocks = [tracker.conversation("bot"), otel_agent_tracker.session("thread-7"), tracker.turn("thread-8")]
    for block in blocks:
        block.__enter__()
    for number in order:
        blocks[number].__exit__(None, None, None)
    assert context.get_current() == before
    assert recorded_conversations.conversations[0].outcome == "completed"


# --- session ------------------------------------------------------------------------------------------------


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A host's provider that is watched, with what it exports."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(auto, "_installed", None)
    with recording() as recorded:
        otel_agent_tracker.install(provider).close()
        yield provider.get_tracer("another library"), exporter
        assert recorded.requests == []
    provider.shutdown()


def use_block(work: Callable[[], None]) -> None:
    with otel_agent_tracker.session("thread-7", "u1"):
        work()


def use_decorator(work: Callable[[], None]) -> None:
    otel_agent_tracker.session("thread-7", "u1")(work)()


def use_async_block(work: Callable[[], None]) -> None:
    async def run() -> None:
        async with otel_agent_tracker.session("thread-7", "u1"):
            await asyncio.sleep(0)
            work()

    asyncio.run(run())


def use_async_decorator(work: Callable[[], None]) -> None:
    @otel_agent_tracker.session("thread-7", "u1")
    async def run() -> str:
        await asyncio.sleep(0)
        work()
        return "result"

    assert asyncio.run(run()) == "result"
    assert run.__name__ == "run"


@pytest.mark.parametrize("use", [use_block, use_decorator, use_async_block, use_async_decorator])
def test_session_stamps_the_spans_of_other_libraries(
    host: Any, use: Callable[[Callable[[], None]], None]
) -> None:
    """Inside it every span of every library gets session.id, outside none; a span's own id stays."""
    tracer, exporter = host

    def work() -> None:
        with tracer.start_as_current_span("outer"), tracer.start_as_current_span("inner"):
            pass
        tracer.start_span("own", attributes={"session.id": "its own"}).end()

    use(work)
    tracer.start_span("outside").end()
    stamped = {span.name: dict(span.attributes or {}) for span in exporter.get_finished_spans()}
    ids = {"session.id": "thread-7"}
    assert stamped == {
        "outer": ids, "inner": ids, "own": ids | {"session.id": "its own"}, "outside": {},
    }  # fmt: skip


@pytest.mark.parametrize("session", ["", "a\nb", "s" * 321])
def test_session_refuses_wrong_ids(session: str) -> None:
    """When it is made, not when it is entered."""
    with pytest.raises(ValueError, match="session_id must"):
        otel_agent_tracker.session(session)


# --- forks --------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_asks_over_its_own_connection(make_tracker: MakeTracker) -> None:
    """The parent's client stays the parent's, open and usable."""
    with ScriptedServer(reply(404)) as server:
        tracker = make_tracker(server.url)
        tracker.get_session_info("thread-7")
        before = tracker._client
        if (child := os.fork()) == 0:
            signal.alarm(10)
            tracker.get_session_info("thread-7")
            os._exit(0 if tracker._client is not before else 1)
        _, status = os.waitpid(child, 0)
        assert status == 0
        tracker.get_session_info("thread-7")
        assert tracker._client is before
