"""The crowd that benchmarks ask a tracker about: the tracker must count it as it was made."""

from __future__ import annotations

import asyncio
from pathlib import Path

from benchmarks.crowd import AGENTS, fill
from benchmarks.queries import QUERIES
from otel_agent_tracker.server.app import create_app
from otel_agent_tracker.server.database import Database
from otel_agent_tracker.server.store import Store
from tests.server.world import Client


def test_a_tracker_finds_what_was_written_by_sql(tmp_path: Path, runner: asyncio.Runner) -> None:
    """Every query is answered; figures, agents and activities are there in the numbers that the crowd is made in."""
    session = fill(path := tmp_path / "tracker.sqlite3", 2_000, lambda _: None)
    store = Store(Database(str(path)))
    try:
        client = Client(runner, create_app(store))
        for path_of in QUERIES.values():
            filled_in = path_of.format(agent="agent-07", session=session, week="2024-01-19")
            assert client.get(filled_in).status_code == 200, filled_in
        rates = client.json("/metrics/success-rates")
        counts = [rates[name] for name in ("total", "active", "failed", "expired", "idle_ended")]
        assert counts == [2_000, 2, 198, 200, 100]
        assert client.json("/metrics/response-times")["count"] == 4_000
        assert client.json("/metrics/quality")["rated"] == 800
        assert client.json("/agents/active")["total"] == AGENTS
        assert client.json("/agents/activity")["total"] == 200
        assert client.json(f"/conversations/{session}")["turns"] == 2
    finally:
        store.close()
