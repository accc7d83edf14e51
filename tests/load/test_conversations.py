"""Many conversations at once, over HTTP into a real tracker: each is delivered once and known as it was held."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from otel_agent_tracker import AgentPerformanceTracker, AsyncAgentPerformanceTracker
from otel_agent_tracker.server.arrivals import Arrival
from otel_agent_tracker.server.run import Server
from otel_agent_tracker.server.selection import Page, Selection

CONVERSATIONS = 10_000
THREADS = 8
TASKS = 200
PATIENCE = 120.0  # seconds, for each answer too: one that is too late would be asked for again
PAGE = 500

Held = dict[str, int]
"""The quality of each conversation, by its session."""


class Listener:
    """A tracker, and every event that it took in, in the order of arrival."""

    def __init__(self, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
        self.url = server.url
        self.arrived: list[Arrival] = []
        self._store = server.store
        ingest = self._store.ingest

        def listen(project_id: int, arrived: Sequence[Arrival]) -> list[str | None]:
            refusals = ingest(project_id, arrived)
            self.arrived.extend(arrived)
            return refusals

        monkeypatch.setattr(self._store, "ingest", listen)

    def known(self) -> Iterator[tuple[str, int, str, float | None]]:
        """Session, number, outcome and quality of every conversation that the tracker knows."""
        cursor = None
        while True:
            page = self._store.conversations.page(1, Selection(), Page(limit=PAGE, cursor=cursor))
            for each in page.conversations:
                yield each.session_id, each.number, each.status, each.quality_score
            cursor = page.next_cursor
            if cursor is None:
                return


@pytest.fixture
def listener(tracker_server: Server, monkeypatch: pytest.MonkeyPatch) -> Listener:
    return Listener(tracker_server, monkeypatch)


def assert_each_was_delivered_once(listener: Listener, held: Held, stats: dict[str, int]) -> None:
    """A start and then an end of each, nothing else, nothing twice; and the books say so."""
    assert len(held) == CONVERSATIONS
    paths: dict[str | None, list[str]] = {}
    for arrival in listener.arrived:
        paths.setdefault(arrival.session_id, []).append(arrival.path)
    assert paths == {session: ["/conversations/start", "/conversations/end"] for session in held}
    assert len({arrival.event_id for arrival in listener.arrived}) == 2 * CONVERSATIONS
    known = sorted(listener.known())
    assert known == sorted((session, 1, "completed", quality) for session, quality in held.items())
    counts = [stats[name] for name in ("accepted", "delivered", "pending", "dead_lettered", "dropped")]
    assert counts == [2 * CONVERSATIONS, 2 * CONVERSATIONS, 0, 0, 0]


def test_10_000_conversations_from_8_threads(listener: Listener, tmp_path: Path) -> None:
    """That share one tracker object."""
    held: Held = {}
    with AgentPerformanceTracker(
        listener.url, state_dir=tmp_path / "state", timeout_seconds=PATIENCE
    ) as tracker:

        def converse(thread: int) -> Held:
            held: Held = {}
            for number in range(CONVERSATIONS // THREADS):
                session, quality = tracker.start_conversation(f"bot-{thread}"), number % 5 + 1
                assert tracker.end_conversation(session, quality)
                held[session] = quality
            return held

        with ThreadPoolExecutor(THREADS) as pool:
            for of_one in pool.map(converse, range(THREADS)):
                held |= of_one
        assert tracker.flush(PATIENCE)
        stats = tracker.delivery_stats()
        rates = [tracker.get_success_rates(f"bot-{thread}") for thread in range(THREADS)]
    assert_each_was_delivered_once(listener, held, stats)
    assert [each["completed"] for each in rates] == [CONVERSATIONS // THREADS] * THREADS


def test_10_000_conversations_from_200_asyncio_tasks(listener: Listener, tmp_path: Path) -> None:
    """Interleaved in one event loop, a conversation of each task open at a time."""

    async def converse(tracker: AsyncAgentPerformanceTracker, task: int) -> Held:
        held: Held = {}
        for number in range(CONVERSATIONS // TASKS):
            session, quality = await tracker.start_conversation(f"bot-{task % 4}"), number % 5 + 1
            await asyncio.sleep(0)  # everybody else's turn
            assert await tracker.end_conversation(session, quality)
            held[session] = quality
        return held

    async def converse_in_tasks() -> tuple[Held, dict[str, int], int]:
        async with AsyncAgentPerformanceTracker(
            listener.url, state_dir=tmp_path / "state", timeout_seconds=PATIENCE
        ) as tracker:
            lists = await asyncio.gather(*(converse(tracker, task) for task in range(TASKS)))
            assert await tracker.flush(PATIENCE)
            rates = await tracker.get_success_rates()
            held = {session: quality for of_one in lists for session, quality in of_one.items()}
            return held, await tracker.delivery_stats(), rates["completed"]

    held, stats, completed = asyncio.run(converse_in_tasks())
    assert_each_was_delivered_once(listener, held, stats)
    assert completed == CONVERSATIONS
