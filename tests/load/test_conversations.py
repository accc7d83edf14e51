"""Many conversations at once, each delivered once."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from otel_agent_tracker import AgentPerformanceTracker, AsyncAgentPerformanceTracker
from otel_agent_tracker.config import Config
from otel_agent_tracker.pipeline import Pipeline, substitute
from otel_agent_tracker.server.run import Server
from otel_agent_tracker.testing import RecordingSender
from tests.conftest import MakeTracker

CONVERSATIONS = 10_000
THREADS = 8
TASKS = 200
PATIENCE = 300.0  # seconds: what arrives is the point here, not when


@pytest.fixture
def sender(tmp_path: Path) -> Iterator[RecordingSender]:
    """Gets what goes through a pipeline with a journal on disk."""
    sender = RecordingSender()
    config = Config(url="https://tracker.example.com", state_dir=tmp_path, flush_timeout_seconds=0.1)
    pipeline = Pipeline(config, sender=sender)
    substitute(pipeline)
    yield sender
    substitute(None)
    pipeline.close()


def converse(tracker: AgentPerformanceTracker, conversations: int) -> list[str]:
    """Start and end as many conversations; their ids."""
    sessions = []
    for number in range(conversations):
        session = tracker.start_conversation("bot")
        assert tracker.end_conversation(session, number % 5 + 1)
        sessions.append(session)
    return sessions


async def converse_in_tasks() -> list[str]:
    tracker = AsyncAgentPerformanceTracker()

    async def one_task() -> list[str]:
        sessions = []
        for number in range(CONVERSATIONS // TASKS):
            session = await tracker.start_conversation("bot")
            await asyncio.sleep(0)
            assert await tracker.end_conversation(session, number % 5 + 1)
            sessions.append(session)
        return sessions

    lists = await asyncio.gather(*(one_task() for _ in range(TASKS)))
    assert await tracker.flush(PATIENCE)
    stats = await tracker.delivery_stats()
    assert (stats["accepted"], stats["delivered"], stats["pending"]) == (
        2 * CONVERSATIONS,
        2 * CONVERSATIONS,
        0,
    )
    await tracker.close()
    return [session for sessions in lists for session in sessions]


def assert_each_was_delivered_once(sender: RecordingSender, sessions: list[str]) -> None:
    """A start and then an end of each, and nothing else."""
    assert len(sessions) == len(set(sessions)) == CONVERSATIONS
    assert len({event_id for event_id, _ in sender.with_ids()}) == len(sender.requests) == 2 * CONVERSATIONS
    for path in ("/conversations/start", "/conversations/end"):
        told = Counter(request.body["session_id"] for request in sender.requests if request.path == path)
        assert told == Counter(sessions)
    order = {request.body["session_id"]: request.path for request in reversed(sender.requests)}
    assert set(order.values()) == {"/conversations/start"}


def test_10_000_conversations_from_200_asyncio_tasks(sender: RecordingSender) -> None:
    """Interleaved in one event loop: each arrives once, its start before its end."""
    assert_each_was_delivered_once(sender, asyncio.run(converse_in_tasks()))


def test_10_000_conversations_from_8_threads(make_tracker: MakeTracker, sender: RecordingSender) -> None:
    """Each arrives once, its start before its end."""
    tracker = make_tracker("https://tracker.example.com")
    with ThreadPoolExecutor(THREADS) as pool:
        lists = pool.map(lambda _: converse(tracker, CONVERSATIONS // THREADS), range(THREADS))
        sessions = [session for sessions in lists for session in sessions]
    assert tracker.flush(PATIENCE)
    assert tracker.delivery_stats()["delivered"] == 2 * CONVERSATIONS
    assert_each_was_delivered_once(sender, sessions)


def test_a_real_tracker_counts_every_conversation_of_8_threads(
    tracker_server: Server, make_tracker: MakeTracker
) -> None:
    """Over HTTP, with their outcomes and qualities."""
    tracker = make_tracker(tracker_server.url)
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(lambda _: converse(tracker, 250), range(THREADS)))
    assert tracker.flush(PATIENCE)
    rates = tracker.get_success_rates("bot")
    assert (rates["total"], rates["completed"], rates["active"]) == (2000, 2000, 0)
    quality = tracker.get_conversation_quality("bot")
    assert quality["distribution"] == dict.fromkeys("12345", 400)
