"""What a tracker hears of real frameworks: turns, ids, tokens, failures and outcomes; `make test-frameworks` runs it.

Each framework plays all scenarios in one process of its own environment, as its example in `examples/` uses it,
against a model that is a stub and a tracker that is real. What the table says of it is checked in either direction.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from otel_agent_tracker.server import tables
from otel_agent_tracker.server.database import Database
from otel_agent_tracker.server.run import Server
from tests.frameworks import scenarios
from tests.frameworks.environments import AT_ONCE, ROOT, python_of
from tests.frameworks.model import INPUT_TOKENS, OUTPUT_TOKENS, StubModel
from tests.frameworks.scenarios import Scenario
from tests.frameworks.table import PAIRS, Pair

Json = dict[str, Any]

LONGEST = 120.0  # seconds, on a machine that does other things as well
NOWHERE = "http://127.0.0.1:9"
SERVICE = "weather-service"
DATABASE = "tracker.sqlite3"
_opening = threading.Lock()  # the library that migrates databases bears one thread at a time
ONE_CALL = (INPUT_TOKENS, OUTPUT_TOKENS)
WITH_TOOL = (2 * INPUT_TOKENS, 2 * OUTPUT_TOKENS)
SCENARIOS = (
    scenarios.TALK,
    scenarios.FAILING,
    scenarios.THREADS,
    scenarios.TASKS,
    scenarios.STREAM,
    scenarios.ABANDONED,
)


@dataclass(frozen=True, slots=True)
class Heard:
    """What a tracker was told by a process: turns in the order of their starts, and ends, by session."""

    turns: dict[str, list[Json]]
    ends: dict[str, list[Json]]
    printed: str

    def statuses(self, session: str) -> list[str]:
        """How the session's turns ended."""
        return [turn["status"] for turn in self.turns[session]]

    def tokens(self, session: str) -> list[tuple[int | None, int | None]]:
        """What they cost."""
        return [(turn.get("input_tokens"), turn.get("output_tokens")) for turn in self.turns[session]]


@dataclass(frozen=True, slots=True)
class Played:
    """A framework's scenarios, and its example as users run it: with the code that it shows, and with none."""

    scenarios: Future[Heard]
    example: Future[Heard]
    no_code: Future[Heard]


@pytest.fixture(scope="session")
def played(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, migrated_database: Path
) -> Iterator[dict[str, Played]]:
    """All frameworks that are tested in this run; they play while the tests of the first ones go on."""
    chosen = {
        item.callspec.params["pair"].name for item in request.session.items if hasattr(item, "callspec")
    }
    pairs = [pair for pair in PAIRS if pair.name in chosen]

    def hear(pair: Pair, *command: str) -> Future[Heard]:
        folder = tmp_path_factory.mktemp(pair.name)
        shutil.copy(migrated_database, folder / DATABASE)
        return threads.submit(_hear, pair, folder, *command)

    def start(pair: Pair) -> Played:
        options = () if pair.shows_conversation else ("--in-session",)
        bare = f"import asyncio; from examples.{pair.example} import main; asyncio.run(main())"
        return Played(
            hear(pair, "python", "-m", "tests.frameworks.drive", f"examples.{pair.example}", *options),
            hear(pair, "python", f"examples/{pair.example}.py"),
            hear(pair, "otel-agent-tracker", "run", "--", "python", "-c", bare),
        )

    with ThreadPoolExecutor(AT_ONCE) as threads:
        yield {pair.name: start(pair) for pair in pairs}


@pytest.fixture(params=PAIRS, ids=lambda pair: pair.name)
def pair(request: pytest.FixtureRequest) -> Pair:
    """One row of the table."""
    chosen: Pair = request.param
    return chosen


@pytest.fixture
def heard(pair: Pair, played: dict[str, Played]) -> Heard:
    """What the tracker was told of its scenarios."""
    return played[pair.name].scenarios.result()


def _hear(pair: Pair, folder: Path, *command: str) -> Heard:
    python = python_of(pair)
    assert python.exists(), f"{python} is not there: run `make test-frameworks`"
    with _opening:
        tracker = Server(port=0, database=str(folder / DATABASE))
    with StubModel() as model, tracker as server:
        process = subprocess.run(
            [str(python.with_name(command[0])), *command[1:]],
            cwd=ROOT,
            env=_environment(server, model, folder),
            capture_output=True,
            text=True,
            timeout=LONGEST,
            check=False,
        )
    assert process.returncode == 0, process.stderr
    return _told(folder / DATABASE, process.stdout)


def _environment(server: Server, model: StubModel, folder: Path) -> dict[str, str]:
    known = {name: value for name, value in os.environ.items() if not name.startswith(("AGENT_", "OTEL_"))}
    return known | {
        "AGENT_TRACKER_URL": server.url,
        "AGENT_TRACKER_STATE_DIR": str(folder / "state"),
        "AGENT_TRACKER_FLUSH_TIMEOUT_SECONDS": str(LONGEST),  # a process that ends leaves nothing to the next
        "OTEL_SERVICE_NAME": SERVICE,
        "OPENAI_BASE_URL": f"{model.url}/v1",
        "OPENAI_API_KEY": "of the stub",
        "GOOGLE_GEMINI_BASE_URL": model.url,
        "GOOGLE_API_KEY": "of the stub",
        "HTTPS_PROXY": NOWHERE,  # some frameworks report to their makers
        "PYTHONPATH": str(ROOT),
    }


def _told(database: Path, printed: str) -> Heard:
    """The requests that the tracker took, as it keeps them."""
    turns: dict[str, list[Json]] = defaultdict(list)
    ends: dict[str, list[Json]] = defaultdict(list)
    columns = tables.events.columns
    opened = Database(str(database))
    with opened.reading() as connection:
        rows = connection.execute(select(columns.path, columns.session_id, columns.body)).all()
    opened.close()
    for path, session, body in rows:
        if path == "/conversations/turn":
            turns[session].append(json.loads(body))
        elif path != "/conversations/start":
            ends[session].append(json.loads(body))
    for told in turns.values():
        told.sort(key=lambda turn: turn["start_time"])
    return Heard(turns, ends, printed)


# --- the scenarios ------------------------------------------------------------------------------------------


def test_a_conversation_is_its_turns(heard: Heard) -> None:
    """Three questions are three turns, and a model that is called twice for one of them costs twice."""
    [talk] = scenarios.TALK.conversations
    assert heard.statuses(talk) == ["ok", "ok", "ok"]
    assert heard.tokens(talk) == [WITH_TOOL, ONE_CALL, ONE_CALL]


def test_a_turn_fails_where_the_model_refuses(heard: Heard) -> None:
    """The conversation fails with its last turn."""
    [failing] = scenarios.FAILING.conversations
    assert heard.statuses(failing) == ["ok", "failed"]
    assert [end["status"] for end in heard.ends[failing]] == ["failed"]


def test_a_stream_is_a_turn(heard: Heard) -> None:
    """With a tool in it, read to its end."""
    [stream] = scenarios.STREAM.conversations
    assert heard.statuses(stream) == ["ok"]
    assert heard.tokens(stream) == [WITH_TOOL]


def test_a_stream_that_nobody_reads_is_a_turn(pair: Pair, heard: Heard) -> None:
    """It is left after its first words, so no costs are known; that is no failure."""
    [abandoned] = scenarios.ABANDONED.conversations
    assert heard.statuses(abandoned) == [pair.abandoned]
    assert heard.tokens(abandoned) == [(None, None)]


@pytest.mark.parametrize("scenario", [scenarios.THREADS, scenarios.TASKS], ids=["threads", "tasks"])
def test_conversations_at_once_do_not_mix(scenario: Scenario, heard: Heard) -> None:
    """Two of them, whose calls of the model are under way together."""
    for conversation in scenario.conversations:
        assert heard.statuses(conversation) == ["ok", "ok"]
        assert heard.tokens(conversation) == [ONE_CALL, ONE_CALL]


def test_an_id_is_recognised_where_the_table_says_so(pair: Pair, heard: Heard) -> None:
    """With nothing of ours around it the turn belongs to the caller's conversation, or is one of its own."""
    session = scenarios.BARE if pair.shows_conversation else _alone(heard)
    assert heard.statuses(session) == ["ok"]
    [end] = heard.ends[session]
    ended_by = end["metadata"]["agent_tracker"]["ended_by"]
    assert (end["status"], ended_by) == ("completed", "idle" if pair.shows_conversation else "turn")


def test_nothing_else_is_told(pair: Pair, heard: Heard) -> None:
    """No conversation that nobody had, and each ends once: by its silence, since nobody says that it is over."""
    bare = scenarios.BARE if pair.shows_conversation else _alone(heard)
    had = {bare, *(each for scenario in SCENARIOS for each in scenario.conversations)}
    assert (set(heard.turns), set(heard.ends)) == (had, had)
    for session in had - {bare}:
        [end] = heard.ends[session]
        assert end["metadata"]["agent_tracker"]["ended_by"] == "idle"


def test_the_agent_is_named(pair: Pair, heard: Heard) -> None:
    """By its own name; or by the service's where the turn's span bears a name that the framework gives to all."""
    expected = "weather_bot" if pair.names_agent else SERVICE
    assert {turn["agent_id"] for turns in heard.turns.values() for turn in turns} == {expected}


@pytest.mark.parametrize("way", ["example", "no_code"])
def test_the_example_runs(way: str, pair: Pair, played: dict[str, Played]) -> None:
    """As users run it: three answers, and three turns in the tracker, of one conversation if the id is shown."""
    told: Heard = getattr(played[pair.name], way).result()
    assert told.printed.count("These are ten words") == 3
    counts = sorted(len(turns) for turns in told.turns.values())
    assert counts == ([3] if pair.shows_conversation else [1, 1, 1])
    assert ("chat-42" in told.turns) is pair.shows_conversation


def _alone(heard: Heard) -> str:
    """The session that is named for its one turn."""
    [session] = [name for name, turns in heard.turns.items() if turns[0]["turn_id"] == name]
    return session
