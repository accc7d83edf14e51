"""What tests of the whole river share: a tracker, objects that speak to it, a clean environment."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from otel_agent_tracker import AgentPerformanceTracker
from otel_agent_tracker.server.database import Database
from otel_agent_tracker.server.run import Server
from otel_agent_tracker.server.store import Store

# pytest parses our modules when they are imported, and Python 3.11 does not bear two threads that parse at once.
import_module("otel_agent_tracker.worker")

# Whoever runs the tests in the background has them ignore Ctrl-C, and the processes that they start would too.
signal.signal(signal.SIGINT, signal.default_int_handler)

pytest_plugins = ["pytester", "tests.parts", "tests.faults.processes", "tests.serving"]

# A machine that is busy makes no property false: no limits on time. The rest is as Hypothesis has it, in CI too.
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")

MakeTracker = Callable[..., AgentPerformanceTracker]


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting of whoever runs the tests reaches them."""
    for name in os.environ:
        if name.startswith(("AGENT_TRACKER_", "OTEL_")):
            monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def migrated_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty tracker database whose schema is up to date, to be copied."""
    path = tmp_path_factory.mktemp("tracker") / "empty.sqlite3"
    Store(Database(str(path))).close()
    return path


@pytest.fixture
def tracker_database(tmp_path: Path, migrated_database: Path) -> str:
    """A tracker database of the test's own."""
    return str(shutil.copy(migrated_database, tmp_path / "tracker.sqlite3"))


@pytest.fixture
def tracker_server(tracker_database: str) -> Iterator[Server]:
    """A real tracker on loopback that knows nothing yet."""
    with Server(port=0, database=tracker_database) as server:
        yield server


@pytest.fixture
def make_tracker(tmp_path: Path) -> Iterator[MakeTracker]:
    """Makes tracker objects for a URL, with a state folder of the test's own; all are closed at its end."""
    with ExitStack() as stack:

        def make(base_url: str | None = None, **options: Any) -> AgentPerformanceTracker:
            settings: dict[str, Any] = {
                "state_dir": tmp_path / "state",
                "flush_timeout_seconds": 0.1,
            } | options
            return stack.enter_context(AgentPerformanceTracker(base_url, **settings))

        yield make
