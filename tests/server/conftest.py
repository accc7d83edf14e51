"""Stores on real SQLite files, and clients of the real application over them."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest
from fastapi import FastAPI

from otel_agent_tracker.server.app import create_app
from otel_agent_tracker.server.database import Database
from otel_agent_tracker.server.store import Store
from tests.server.world import Client, Clock

_projects = count(1)


@pytest.fixture(scope="session")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database whose schema is up to date, to be copied."""
    path = tmp_path_factory.mktemp("server") / "empty.sqlite3"
    Store(Database(str(path)), Clock()).close()
    return path


@pytest.fixture(scope="session")
def shared_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    store = Store(Database(str(tmp_path_factory.mktemp("shared") / "tracker.sqlite3")), Clock())
    yield store
    store.close()


@pytest.fixture(scope="session")
def shared_app(shared_store: Store) -> FastAPI:
    return create_app(shared_store)


@pytest.fixture
def client(shared_store: Store, shared_app: FastAPI, runner: asyncio.Runner) -> Client:
    """A client with a project of its own, which nothing is known in; the clock stands."""
    return new_project(shared_store, shared_app, runner)


def new_project(store: Store, app: FastAPI, runner: asyncio.Runner) -> Client:
    key = store.keys.create(f"project-{next(_projects)}")
    return Client(runner, app, {"Authorization": f"Bearer {key}"})


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def database_path(tmp_path: Path, empty_database: Path) -> Path:
    return Path(shutil.copy(empty_database, tmp_path / "tracker.sqlite3"))


@pytest.fixture
def store(database_path: Path, clock: Clock) -> Iterator[Store]:
    """A store of the test's own."""
    store = Store(Database(str(database_path), busy_timeout_seconds=0.05), clock)
    yield store
    store.close()


@pytest.fixture
def open_client(store: Store, runner: asyncio.Runner) -> Client:
    """A client of a tracker of the test's own, on which no key was ever made."""
    return Client(runner, create_app(store))
