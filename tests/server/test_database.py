"""The database: its schema, its transactions, and what happens when it cannot answer."""

from __future__ import annotations

import sqlite3
import stat
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from sqlalchemy import create_engine, func, select, text
from sqlalchemy.exc import IntegrityError, OperationalError

from otel_agent_tracker import wire
from otel_agent_tracker.server import arrivals, database, tables
from otel_agent_tracker.server.database import Database, default_path
from otel_agent_tracker.server.selection import Page, Selection
from otel_agent_tracker.server.store import Store
from tests.server.world import Client, Clock, batch_event, end, start, turn


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Another process writes, and does not come to an end."""
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        connection.execute("BEGIN IMMEDIATE")
        yield
    finally:
        connection.close()


def test_the_migrations_make_the_tables(store: Store) -> None:
    """What `tables` says is what the steps have come to."""
    with store._database.reading() as connection:
        context = MigrationContext.configure(connection)
        assert compare_metadata(context, tables.metadata) == []


def test_a_restart_keeps_all(database_path: Path, clock: Clock) -> None:
    """A store opened anew answers as the one before."""
    answers = []
    told: list[wire.Request] = [start("s1"), turn("s1", 5), end("s1", 9, quality_score=4)]
    for arrived in (told, []):
        store = Store(Database(str(database_path)), clock)
        store.ingest(store.default_project, [arrivals.arrive(each, None) for each in arrived])
        answers.append(store.conversations.get(store.default_project, "s1"))
        store.close()
    assert answers[0] == answers[1]
    assert answers[0] is not None
    assert answers[0].status == "completed"


def test_what_an_older_release_kept_is_counted(tmp_path: Path, store: Store, database_path: Path) -> None:
    """Its schema had no counts and another key of turns; the answers are those of a database made anew."""
    told: list[wire.Request] = [start("s1"), turn("s1", 5, 7.5), end("s1", 20, quality_score=4), start("s2")]
    store.ingest(store.default_project, [arrivals.arrive(each, None) for each in told])
    older = tmp_path / "older.sqlite3"
    _make_first_schema(older)
    with closing(sqlite3.connect(older)) as connection, connection:
        connection.execute("ATTACH ? AS newer", (str(database_path),))
        for table in (tables.projects, tables.events, tables.conversations, tables.turns, tables.agents):
            names = ", ".join(column.name for column in table.columns)
            connection.execute(f"INSERT INTO {table.name} ({names}) SELECT {names} FROM newer.{table.name}")
    with closing(Store(Database(str(older)))) as upgraded:
        for each in (upgraded, store):
            each.ingest(each.default_project, [arrivals.arrive(turn("s2", 90, 2.5), None)])
        assert _overview(upgraded) == _overview(store)
        assert upgraded.erase(upgraded.default_project, "s1")
        assert _overview(upgraded).response_times.count == 1


def _make_first_schema(path: Path) -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(database.__file__).parent / "migrations"))
    engine = create_engine(f"sqlite:///{path}")
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
    engine.dispose()


def _overview(store: Store) -> wire.PerformanceOverview:
    return store.figures.overview(store.default_project, Selection(), Page())


def test_a_database_of_a_newer_release_is_let_be(store: Store) -> None:
    """It cannot be read, and says so."""
    with store._database.writing() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(RuntimeError, match="newer release"):
        Store(store._database)


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:"])
def test_a_database_in_memory_is_refused(url: str) -> None:
    """Connections could not share it."""
    with pytest.raises(ValueError, match="must be a file"):
        Database(url)


def test_a_path_and_a_url_name_the_same_file(tmp_path: Path) -> None:
    """Either will do."""
    path = tmp_path / "tracker.sqlite3"
    assert Database(str(path)).path == Database(f"sqlite:///{path}").path == path


def test_a_new_database_is_private(tmp_path: Path) -> None:
    """The file and the folder made for it: what people said is in there."""
    path = tmp_path / "folder" / "tracker.sqlite3"
    Store(Database(str(path))).close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


@pytest.mark.parametrize(
    ("platform", "variables", "expected"),
    [
        ("linux", {"XDG_DATA_HOME": "/data"}, "/data/otel-agent-tracker"),
        ("linux", {"XDG_DATA_HOME": ""}, "/home/ann/.local/share/otel-agent-tracker"),
        ("darwin", {}, "/home/ann/Library/Application Support/otel-agent-tracker"),
        ("win32", {"LOCALAPPDATA": "/local"}, "/local/otel-agent-tracker"),
    ],
)
def test_the_default_is_in_the_platforms_data_folder(
    monkeypatch: pytest.MonkeyPatch, platform: str, variables: dict[str, str], expected: str
) -> None:
    """Where such files belong."""
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setenv("HOME", "/home/ann")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert default_path() == Path(expected) / "tracker.sqlite3"


def test_a_transaction_that_fails_leaves_nothing(store: Store) -> None:
    """Not even what was written before it failed."""
    twice = [tables.projects.insert().values(name="half", created_us=0)] * 2
    with pytest.raises(IntegrityError), store._database.writing() as connection:
        list(map(connection.execute, twice))
    assert store.keys.projects().keys() == {"default"}


def test_a_locked_database_is_503(open_client: Client, database_path: Path) -> None:
    """The sender tries again; nothing was kept, nothing is acknowledged; questions are answered meanwhile."""
    open_client.tell(start("s1"))
    body = {"events": [batch_event(end("s1", 5), "e1")]}
    with locked(database_path):
        for path, json in (("/batch", body), ("/conversations/end", wire.to_json(end("s1", 5)))):
            answer = open_client.post(path, json)
            assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
        assert open_client.json("/conversations/s1")["status"] == "active"
        assert open_client.get("/readyz").status_code == 200
    assert open_client.post("/batch", body).status_code == 200
    assert open_client.json("/conversations/s1")["status"] == "completed"


def test_a_database_that_is_gone_is_503(open_client: Client, store: Store) -> None:
    """Not ready, for questions neither; the process is up."""
    with store._database.writing() as connection:
        for table in reversed(tables.metadata.sorted_tables):
            connection.execute(text(f"DROP TABLE {table.name}"))
    assert [open_client.get(path).status_code for path in ("/readyz", "/conversations")] == [503, 503]
    assert open_client.get("/healthz").status_code == 200


def test_of_a_database_that_is_gone_one_line_a_minute_tells(
    open_client: Client, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    """However many requests it cannot answer."""
    with store._database.writing() as connection:
        connection.execute(text("DROP TABLE conversations"))
    answers = {open_client.get("/conversations").status_code for _ in range(3)}
    assert answers == {503}
    assert len([record for record in caplog.records if "cannot answer" in record.getMessage()]) == 1


def test_writers_wait_for_each_other(store: Store) -> None:
    """Threads of one process do not lock each other out."""
    from concurrent.futures import ThreadPoolExecutor

    def tell(number: int) -> None:
        store.ingest(store.default_project, [arrivals.arrive(start(f"s{number}"), None)])

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(tell, range(100)))
    with store._database.reading() as connection:
        assert connection.execute(select(func.count()).select_from(tables.conversations)).scalar_one() == 100


def test_readers_do_not_wait_for_a_writer(store: Store) -> None:
    """They see what was before."""
    with store._database.writing() as connection:
        connection.execute(tables.projects.insert().values(name="new", created_us=0))
        assert store.keys.projects().keys() == {"default"}
    assert store.keys.projects().keys() == {"default", "new"}


def test_the_database_is_in_wal_mode(store: Store) -> None:
    """It is what lets readers go on while somebody writes."""
    with store._database.reading() as connection:
        assert connection.execute(text("PRAGMA journal_mode")).scalar_one() == "wal"


def test_a_second_process_waits_no_longer_than_told(database_path: Path) -> None:
    """Then it is an OperationalError, which the application answers with 503."""
    database = Database(str(database_path), busy_timeout_seconds=0.01)
    with locked(database_path), pytest.raises(OperationalError), database.writing():
        pass
    database.close()
