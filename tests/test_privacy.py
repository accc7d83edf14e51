"""Each row of docs/privacy.md: who gets what, where it lies, for how long, and how it goes."""

from __future__ import annotations

import logging
import re
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from otel_agent_tracker import AgentOperationsTracker, AgentPerformanceTracker, semconv
from otel_agent_tracker.config import resolve
from otel_agent_tracker.pipeline import Pipeline, substitute
from otel_agent_tracker.server.run import Server
from otel_agent_tracker.testing import FakeClock
from tests.cli.terminal import run, run_json, state_folder
from tests.conftest import MakeTracker
from tests.hosts import host_provider, known_environment, tracker_answer
from tests.meters import meter_provider
from tests.scripted_server import Action, ReceivedRequest, ScriptedServer, json_reply, reply, respond
from tests.waiting import wait_until

PAGE = (Path(__file__).parent.parent / "docs" / "privacy.md").read_text(encoding="utf-8")


def rows_of(first_heading: str) -> list[list[str]]:
    """The cells of the table whose first column has this heading."""
    _, _, table = PAGE.partition(f"| {first_heading} |")
    lines = table.partition("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


# --- who gets what --------------------------------------------------------------------------------------

DATA = {cells[0]: cells[1:] for cells in rows_of("datum")}

TOKENS = 987_654_321_012
CANARIES = {
    "session ids": "thread-canary",
    "agent ids": "agent-canary",
    "user ids": "user-canary",
    "metadata": "metadata-canary",
    "feedback": "feedback-canary",
    "names of feedback": "label-canary",
    "error messages": "message-canary",
    "error types": "type-canary",
    "actions of agents": "action-canary",
    "details of activities": "details-canary",
    "versions of agents": "version-canary",
    "name, version, instance and environment of the service": "service-canary",
    "other attributes of the resource": "attribute-canary",
    "messages, prompts and answers": "content-canary",
    "the API key": "sk-key-canary-0123456789",
}
Found = dict[str, bytes]


def tell_begin(tracker: AgentPerformanceTracker, operations: AgentOperationsTracker) -> None:
    """Every datum at least once; one session stays open."""
    told = CANARIES
    with tracker.turn(told["session ids"], agent_id=told["agent ids"], user_id=told["user ids"]) as turn:
        with trace.get_tracer("framework").start_as_current_span("chat model") as span:
            span.set_attributes(
                {
                    semconv.GEN_AI_OPERATION_NAME: "chat",
                    semconv.GEN_AI_INPUT_TOKENS: TOKENS,
                    "gen_ai.input.messages": told["messages, prompts and answers"],
                }
            )
        turn.fail(told["error messages"], error_type=told["error types"])
        assert list(turn.stream(iter([told["messages, prompts and answers"]])))
    tracker.record_feedback(
        told["session ids"], 5, told["feedback"], name=told["names of feedback"], agent_id=told["agent ids"]
    )
    ended = tracker.start_conversation(told["agent ids"], told["user ids"], {"note": told["metadata"]})
    tracker.record_failed_session(ended, told["error messages"], error_type=told["error types"])
    operations.register_agent(told["agent ids"], told["versions of agents"], {"note": told["metadata"]})
    operations.log_activity(
        told["agent ids"], told["actions of agents"], {"found": told["details of activities"]}
    )


def tell_end(tracker: AgentPerformanceTracker) -> None:
    """The open session ends, and is ended again, which is worth a line in the log."""
    assert tracker.end_conversation(CANARIES["session ids"], 5)
    assert not tracker.end_conversation(CANARIES["session ids"], 5)


def look_on_disk(folder: Path) -> Found:
    """What is in each place of a state folder, beside a worker that goes on."""
    connection = sqlite3.connect(folder / "state.sqlite3")
    try:
        tables = {
            place: b"\n".join(
                cell if isinstance(cell, bytes) else str(cell).encode()
                for row in connection.execute(f"SELECT * FROM {table}")
                for cell in row
            )
            for place, table in TABLES.items()
        }
    finally:
        connection.close()
    return tables | {"journal": b"".join(path.read_bytes() for path in folder.glob("*.journal-*"))}


TABLES = {"outbox": "outbox", "open sessions": "sessions", "tombstones": "tombstones", "roll-ups": "rollups"}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    """All that one application lets go of, while its tracker is away, and when it is back."""
    return everything(tmp_path_factory.mktemp("privacy"))


def everything(state_dir: Path, **options: Any) -> Found:
    """Everything that leaves an application with `options`, and everything of it on disk, by place."""
    is_back = False

    def play(request: ReceivedRequest) -> Action:
        return tracker_answer(request) if is_back else reply(503)

    with host() as the_host, ScriptedServer(respond(play)) as server, ScriptedServer(reply(200)) as backend:
        the_host.environment.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", backend.url)
        arguments: dict[str, Any] = {
            "state_dir": state_dir,
            "otlp": True,
            "api_key": CANARIES["the API key"],
        } | options
        with (
            AgentPerformanceTracker(server.url, **arguments) as tracker,
            AgentOperationsTracker(server.url, **arguments) as operations,
        ):
            tell_begin(tracker, operations)
            folder = wait_for_folder(state_dir, events=7)
            before = look_on_disk(folder)
            is_back = True
            tell_end(tracker)
            assert tracker.flush(20)
            after = look_on_disk(folder)
            metrics = the_host.metrics()
        on_disk = {place: before[place] + after[place] for place in before}
        return on_disk | {
            "tracker": b"".join(str(request.headers).encode() + request.body for request in server.requests),
            "copies": b"".join(request.body for request in backend.requests),
            "host's spans": the_host.spans(),
            "logs": the_host.log(),
            "metrics": metrics,
        }


def wait_for_folder(state_dir: Path, *, events: int) -> Path:
    """The state folder, once its outbox holds so many events."""

    def is_stored() -> bool:
        [books] = run_json("outbox", "status", "--state-dir", state_dir)["folders"]
        return (books["pending"], books["unread_in_journal"]) == (events, 0)

    wait_until(is_stored)
    (file,) = state_dir.glob("*/state.sqlite3")
    return file.parent


class Host:
    """An application with a tracer provider, a meter provider and a log."""

    def __init__(self, environment: pytest.MonkeyPatch, spans: InMemorySpanExporter, reader: Any) -> None:
        self.environment = environment
        self._spans = spans
        self._reader = reader
        self.records: list[str] = []

    def spans(self) -> bytes:
        """Our own spans, and what we put on those of others."""
        finished = self._spans.get_finished_spans()
        ours = [span for span in finished if getattr(span.instrumentation_scope, "name", "") != "framework"]
        theirs = [span for span in finished if span not in ours]
        assert (len(ours), len(theirs)) == (1, 1)
        stamped = str((theirs[0].attributes or {})[semconv.SESSION_ID])
        # The resource is the host's own, and so on every span of it.
        told = [(span.name, dict(span.attributes or {}), span.status.description) for span in ours]
        return f"{told} {stamped}".encode()

    def metrics(self) -> bytes:
        """One reading."""
        data = self._reader.get_metrics_data()
        return str(data.to_json()).encode()

    def log(self) -> bytes:
        """All lines, of every level."""
        return "\n".join(self.records).encode()


@contextmanager
def host() -> Iterator[Host]:
    """An application whose resource says more than its service."""
    spans = InMemorySpanExporter()
    with pytest.MonkeyPatch.context() as environment, meter_provider() as reader:
        known_environment(environment)
        environment.setenv(
            "OTEL_RESOURCE_ATTRIBUTES",
            f"service.name={CANARIES['name, version, instance and environment of the service']},"
            f"team={CANARIES['other attributes of the resource']}",
        )
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(spans))
        made = Host(environment, spans, reader)
        listener = logging.Handler(logging.DEBUG)
        listener.emit = lambda record: made.records.append(listener.format(record))  # type: ignore[method-assign]  # the point
        root, level = logging.getLogger(), logging.getLogger().level
        root.addHandler(listener)
        logging.getLogger("otel_agent_tracker").setLevel(logging.DEBUG)
        try:
            with host_provider(provider):
                yield made
        finally:
            root.removeHandler(listener)
            root.setLevel(level)
            logging.getLogger("otel_agent_tracker").setLevel(logging.NOTSET)


def places(cell: str) -> set[str]:
    """The places that a cell of the page names."""
    return set() if cell in ("nobody", "nowhere") else set(cell.split(", "))


def where(found: Found, canary: str) -> set[str]:
    """Where it is, of all places there are."""
    return {place for place, text in found.items() if canary.encode() in text}


@pytest.mark.parametrize("datum", CANARIES)
def test_a_datum_is_where_the_page_says_and_nowhere_else(found: Found, datum: str) -> None:
    """On the wire, in copies, spans, logs and metrics, and in each place on disk."""
    leaves_to, on_disk = DATA[datum]
    assert where(found, CANARIES[datum]) == places(leaves_to) | places(on_disk)


@pytest.mark.parametrize("policy", ["hash", "drop"])
def test_a_user_id_that_is_not_kept_is_nowhere(tmp_path: Path, policy: str) -> None:
    """With `hash` only what stands for it is where it would be."""
    found = everything(tmp_path, user_id=policy)
    leaves_to, on_disk = DATA[f"user ids, with `AGENT_TRACKER_USER_ID={policy}`"]
    assert where(found, CANARIES["user ids"]) == places(leaves_to) | places(on_disk) == set()
    hashed = sha256(CANARIES["user ids"].encode()).hexdigest()[:32]
    expected = [places(cell) for cell in DATA["user ids"]] if policy == "hash" else []
    assert where(found, hashed) == set().union(*expected)


def test_times_and_tokens_are_where_the_page_says(found: Found) -> None:
    """Numbers have no form of their own on disk, but the events that hold them do."""
    leaves_to, on_disk = DATA["times and tokens of turns"]
    assert where(found, f'"input_tokens":{TOKENS}') == {"tracker", "journal", "outbox"}
    assert b"gen_ai.usage.input_tokens" in found["copies"]
    assert b"gen_ai.usage.input_tokens" not in found["host's spans"] + found["metrics"] + found["logs"]
    assert TOKENS.to_bytes(8, "little") in found["open sessions"]
    assert (places(leaves_to), places(on_disk)) == (
        {"tracker", "copies"},
        {"journal", "outbox", "open sessions"},
    )


def test_every_datum_of_the_page_is_tested() -> None:
    """And every one that is tested is on the page."""
    others = {
        "times and tokens of turns",
        "user ids, with `AGENT_TRACKER_USER_ID=hash`",
        "user ids, with `AGENT_TRACKER_USER_ID=drop`",
    }
    assert set(DATA) == CANARIES.keys() | others


# --- how long, and how it goes --------------------------------------------------------------------------

PLACES = {cells[0]: cells[1:] for cells in rows_of("place")}
NOTE = "note-canary"


def files_with(folder: Path, text: str) -> list[str]:
    """The names of the files below `folder` that hold `text`, without what tells one from another."""
    holding = [
        path for path in sorted(folder.rglob("*")) if path.is_file() and text.encode() in path.read_bytes()
    ]
    return sorted({re.sub(r"^.*(?=\.journal)|\d{5,}", "", path.name) for path in holding})


def refuse_ends(request: ReceivedRequest) -> Action:
    """A tracker that refuses every end."""
    return reply(422) if request.path == "/conversations/end" else tracker_answer(request)


def journal(make_tracker: MakeTracker, state_dir: Path) -> None:
    """What was delivered is in the file of a process that has ended, and goes when the next one begins."""
    with ScriptedServer(respond(tracker_answer)) as server:
        for expected in ([".journal-1"], []):
            tracker = make_tracker(server.url)
            if expected:
                tracker.start_conversation("bot", metadata={"note": NOTE})
            assert tracker.flush(10)
            tracker.close()
            assert files_with(state_dir, NOTE) == expected


def outbox(make_tracker: MakeTracker, state_dir: Path) -> None:
    """The row is gone when the tracker has acknowledged it, and nothing of it is in the file once it is closed."""
    with ScriptedServer(respond(tracker_answer)) as server:
        tracker = make_tracker(server.url)
        tracker.start_conversation("bot", metadata={"note": NOTE})
        assert tracker.flush(10)
        assert look_on_disk(state_folder(state_dir, server.url))["outbox"] == b""
        tracker.close()
    assert "state.sqlite3" not in files_with(state_dir, NOTE)


def dead_letters(make_tracker: MakeTracker, state_dir: Path) -> None:
    """They stay when the application has ended, and nothing of them is in the file after a purge."""
    with ScriptedServer(respond(refuse_ends)) as server:
        tracker = make_tracker(server.url)
        tracker.end_conversation(tracker.start_conversation("bot"), metadata={"note": NOTE})
        assert tracker.flush(10)
        tracker.close()
        assert "state.sqlite3" in files_with(state_dir, NOTE)
        purge = ("outbox", "purge", "--all", "--yes", "--state-dir", state_dir, "--url", server.url)
        assert run(*purge).exit_code == 0
    assert "state.sqlite3" not in files_with(state_dir, NOTE)


def open_sessions(make_tracker: MakeTracker, state_dir: Path) -> None:
    """The row is there while the session is, and not afterwards."""
    with ScriptedServer(respond(tracker_answer)) as server:
        tracker = make_tracker(server.url)
        session = tracker.start_conversation("bot", user_id=NOTE)
        folder = state_folder(state_dir, server.url)
        assert tracker.flush(10)
        assert NOTE.encode() in look_on_disk(folder)["open sessions"]
        tracker.end_conversation(session)
        assert tracker.flush(10)
        assert look_on_disk(folder)["open sessions"] == b""


def tombstones(make_tracker: MakeTracker, state_dir: Path) -> None:
    """They hold the error's message, and go a week after the end."""
    clock = FakeClock()
    with ScriptedServer(respond(tracker_answer)) as server:
        config = resolve({"url": server.url, "state_dir": state_dir, "flush_timeout_seconds": 0.1})
        pipeline = Pipeline(config, clock=clock.clock)
        substitute(pipeline)
        try:
            tracker = make_tracker(server.url)
            tracker.record_failed_session(tracker.start_conversation("bot"), NOTE)
            for days, is_there in ((0, True), (6.9, True), (0.2, False)):
                clock.advance(hours=24 * days)
                assert pipeline.flush(10)
                assert (NOTE.encode() in look_on_disk(config.state_folder)["tombstones"]) is is_there
        finally:
            substitute(None)
            pipeline.close()


def roll_ups(make_tracker: MakeTracker, state_dir: Path) -> None:
    """A plain tracker gets turns with the end of their session; until then they are counted under its id."""
    with ScriptedServer(
        respond(lambda request: reply(404) if "cap" in request.path else json_reply({}))
    ) as server:
        tracker = make_tracker(server.url)
        with tracker.turn(NOTE, agent_id="bot"):
            pass
        assert tracker.flush(10)
        folder = state_folder(state_dir, server.url)
        assert NOTE.encode() in look_on_disk(folder)["roll-ups"]
        tracker.end_conversation(NOTE)
        assert tracker.flush(10)
        assert look_on_disk(folder)["roll-ups"] == b""


def damaged_files(make_tracker: MakeTracker, state_dir: Path) -> None:
    """Whatever they hold, nobody else deletes them."""
    with ScriptedServer(respond(tracker_answer)) as server:
        folder = state_folder(state_dir, server.url)
        folder.mkdir(parents=True)
        folder.chmod(0o700)
        (folder / "state.sqlite3").write_bytes(NOTE.encode() * 1000)
        for _ in range(2):
            tracker = make_tracker(server.url)
            tracker.start_conversation("bot")
            assert tracker.flush(10)
            tracker.close()
    assert files_with(state_dir, NOTE) == ["state.corrupt-"]


def memory(make_tracker: MakeTracker, state_dir: Path) -> None:
    """Not even the folder is made."""
    with ScriptedServer(respond(tracker_answer)) as server:
        tracker = make_tracker(server.url, durability="memory")
        tracker.start_conversation("bot", metadata={"note": NOTE})
        assert tracker.flush(10)
        tracker.close()
    assert not state_dir.exists()


def sessions_of_the_tracker(make_tracker: MakeTracker, state_dir: Path) -> None:
    """Nothing of a deleted session is in the database's file once it is closed, and everything was before."""
    database = state_dir.parent / "erased.sqlite3"
    for is_erased in (False, True):
        with Server(port=0, database=str(database)) as server:
            if is_erased:
                answer = httpx.delete(f"{server.url}/conversations/thread-1", trust_env=False, timeout=60)
                assert answer.status_code == 204
            else:
                tracker = make_tracker(server.url)
                with tracker.turn("thread-1", agent_id="bot", user_id=NOTE) as turn:
                    turn.fail(NOTE)
                tracker.end_conversation("thread-1", 5, NOTE, metadata={"note": NOTE})
                assert tracker.flush(10)
                tracker.close()
        holding = [name for name in files_with(state_dir.parent, NOTE) if name.startswith("erased")]
        assert holding == ([] if is_erased else ["erased.sqlite3"])


def agents_of_the_tracker(make_tracker: MakeTracker, state_dir: Path) -> None:
    """Of all routes only those of conversations delete."""
    with Server(port=0, database=str(state_dir.parent / "kept.sqlite3")) as server:
        described = httpx.get(f"{server.url}/openapi.json", trust_env=False, timeout=60).json()["paths"]
    assert {path for path, methods in described.items() if "delete" in methods} == {
        "/conversations",
        "/conversations/{session_id}",
    }


def keys_of_the_tracker(make_tracker: MakeTracker, state_dir: Path) -> None:
    """A key that is revoked opens nothing; its row, without the key itself, stays."""
    database = state_dir.parent / "keys.sqlite3"
    with Server(port=0, database=str(database)) as server:
        key = server.store.keys.create(name=NOTE)
        assert server.store.keys.revoke(key)
        assert [known.name for known in server.store.keys.list()] == [NOTE]
    assert files_with(state_dir.parent, NOTE) == ["keys.sqlite3"]
    assert files_with(state_dir.parent, key) == []


CLAIMS: dict[str, Callable[[MakeTracker, Path], None]] = {
    "journal": journal,
    "outbox": outbox,
    "dead letters": dead_letters,
    "open sessions": open_sessions,
    "tombstones": tombstones,
    "roll-ups of turns, for trackers that take none": roll_ups,
    "damaged files that were set aside": damaged_files,
    "with `AGENT_TRACKER_DURABILITY=memory`": memory,
    "a session in `serve`'s database": sessions_of_the_tracker,
    "agents and their activities in `serve`'s database": agents_of_the_tracker,
    "API keys in `serve`'s database": keys_of_the_tracker,
}


@pytest.mark.parametrize("place", PLACES)
def test_what_is_on_disk_goes_as_the_page_says(place: str, make_tracker: MakeTracker, tmp_path: Path) -> None:
    """Each place has its rule; the function of its name says it in words."""
    CLAIMS[place](make_tracker, tmp_path / "state")


def test_every_claim_is_on_the_page() -> None:
    """And has a row of its own."""
    assert CLAIMS.keys() == PLACES.keys()
