"""What a host's meter provider reads of us: this process's counts, the state folder as it is, and nothing else."""

from __future__ import annotations

import gc
import json
import logging
import re
import sqlite3
import subprocess
import sys
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.metrics import MeterProvider, NoOpMeter
from opentelemetry.metrics import _internal as metrics_api
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from otel_agent_tracker import AgentOperationsTracker, AgentPerformanceTracker, metrics, semconv
from otel_agent_tracker.config import Config, Durability
from otel_agent_tracker.pipeline import Pipeline
from otel_agent_tracker.server.run import Server
from otel_agent_tracker.testing import RecordingSender, recording
from tests.cli.terminal import NOWHERE, run, state_folder
from tests.conftest import MakeTracker
from tests.meters import Read, meter_provider, read
from tests.scripted_server import Action, ReceivedRequest, ScriptedServer, json_reply, reply, respond
from tests.waiting import wait_until

DOCS = Path(__file__).parent.parent / "docs" / "semantic-conventions.md"


@pytest.fixture
def reader() -> Iterator[InMemoryMetricReader]:
    """Reads what the host's meter provider is told."""
    with meter_provider() as reader:
        yield reader


def total(read: Read, metric: str) -> float:
    """Over all attributes."""
    return sum(read.get(metric, {}).values())


def refusing_ends(request: ReceivedRequest) -> Action:
    """A tracker of the plain protocol that refuses every end."""
    if request.path == "/capabilities":
        return reply(404)
    return reply(422, "no, because") if request.path == "/conversations/end" else json_reply({})


# --- what is told ---------------------------------------------------------------------------------------


def test_the_metrics_tell_what_became_of_events(
    reader: InMemoryMetricReader, make_tracker: MakeTracker
) -> None:
    """Accepted, delivered and refused by this process; pending and refused in the folder; live and ended."""
    with ScriptedServer(respond(refusing_ends)) as server:
        tracker = make_tracker(server.url)
        for _ in range(2):
            tracker.end_conversation(tracker.start_conversation("bot"))
        tracker.start_conversation("bot")
        assert tracker.flush(20)
        told = read(reader)
    ((folder,),) = told[semconv.METRIC_PENDING]
    assert told == {
        semconv.METRIC_ACCEPTED: {(): 5},
        semconv.METRIC_DELIVERED: {(): 3},
        semconv.METRIC_REJECTED: {(): 2},
        semconv.METRIC_ENDED: {("call", "completed"): 2},
        semconv.METRIC_PENDING: {(folder,): 0},
        semconv.METRIC_DEAD_LETTERS: {(folder,): 2},
        semconv.METRIC_OLDEST_PENDING_AGE: {(folder,): 0.0},
        semconv.METRIC_LIVE_SESSIONS: {(folder,): 1},
    }
    assert tracker.delivery_stats()["dead_lettered"] == 2


def test_what_waits_is_told_with_its_age(reader: InMemoryMetricReader, make_tracker: MakeTracker) -> None:
    """While no tracker is there, from the moment of the call."""
    tracker = make_tracker(NOWHERE)
    began = time.monotonic()
    tracker.end_conversation(tracker.start_conversation("bot"))
    wait_until(lambda: total(read(reader), semconv.METRIC_OLDEST_PENDING_AGE) > 0)
    told = read(reader)
    assert list(told[semconv.METRIC_PENDING].values()) == [2]
    assert 0 < max(told[semconv.METRIC_OLDEST_PENDING_AGE].values()) <= time.monotonic() - began + 0.1


def test_conversations_that_nobody_ended_are_told_apart(reader: InMemoryMetricReader) -> None:
    """Past their TTL, or evicted from a full map, with their outcome."""
    with recording(max_sessions=2) as recorded:
        tracker = AgentPerformanceTracker()
        for _ in range(3):
            tracker.start_conversation("bot")
        recorded.settle()
        assert total(read(reader), semconv.METRIC_LIVE_SESSIONS) == 2
        recorded.clock.advance(hours=11)
        told = read(reader)
    assert told[semconv.METRIC_ENDED] == {("evicted", "expired"): 1, ("ttl", "expired"): 2}
    assert total(told, semconv.METRIC_LIVE_SESSIONS) == 0


def test_an_idle_conversation_is_told_with_the_outcome_of_its_last_turn(reader: InMemoryMetricReader) -> None:
    """A session of another tool's id is over when nothing comes for a while."""
    with recording() as recorded:
        tracker = AgentPerformanceTracker()
        with tracker.turn("thread-1", agent_id="bot"):
            pass
        with tracker.turn("thread-2", agent_id="bot") as turn:
            turn.fail("no route")
        recorded.clock.advance(minutes=31)
        assert read(reader)[semconv.METRIC_ENDED] == {("idle", "completed"): 1, ("idle", "failed"): 1}


def test_events_that_a_full_folder_refuses_are_told_by_kind(
    reader: InMemoryMetricReader, tmp_path: Path
) -> None:
    """The least important kind goes first, and each that went is counted."""
    options = {"state_dir": tmp_path, "outbox_max_mb": 4, "flush_timeout_seconds": 0.1}
    with AgentOperationsTracker(NOWHERE, **options) as tracker:  # type: ignore[arg-type]  # values of many types

        def is_full() -> bool:
            tracker.log_activity("bot", "fill", ["x" * 4_000] * 10)
            return semconv.METRIC_DROPPED in read(reader)

        wait_until(is_full)
        told = read(reader)
        stats = tracker.delivery_stats()
    assert told[semconv.METRIC_DROPPED] == {("agent.activity",): stats["dropped"]}
    assert total(told, semconv.METRIC_ACCEPTED) == stats["accepted"]
    assert stats["dropped"] > 0


def test_every_metric_is_documented_with_its_unit(
    reader: InMemoryMetricReader, make_tracker: MakeTracker
) -> None:
    """The table of metrics has a row for each instrument there is, and no other."""
    make_tracker(NOWHERE)
    meters = metrics_api.get_meter_provider()._meters.values()  # type: ignore[attr-defined]  # the SDK's own
    made = {
        each.name: (each.unit, type(each).__name__.removeprefix("_Observable").lower())
        for meter in meters
        for each in meter._instrument_id_instrument.values()
    }
    rows = re.findall(
        r"^\| `(agent_tracker[\w.]+)` \| (\w+) \| `([^`]+)` \|",
        DOCS.read_text(encoding="utf-8"),
        re.MULTILINE,
    )
    assert {name: (unit, kind) for name, kind, unit in rows} == made
    assert set(made) == {value for name, value in vars(semconv).items() if name.startswith("METRIC_")}


def test_a_metric_names_the_server_and_nothing_secret(
    reader: InMemoryMetricReader, make_tracker: MakeTracker
) -> None:
    """Host and port: no path, which may name a tenant, no key, no name of an agent, session or user."""
    tracker = make_tracker("http://127.0.0.1:9/tenant-42/", api_key="sk-secret-key-0123456789")
    session = tracker.start_conversation("quiet-bot", user_id="ann")
    wait_until(lambda: read(reader).get(semconv.METRIC_PENDING))
    data = reader.get_metrics_data()
    assert data is not None
    shown = data.to_json()
    points = [
        point
        for metric in data.resource_metrics[0].scope_metrics[0].metrics
        for point in metric.data.data_points
    ]
    assert {(point.attributes or {})["server.address"] for point in points} == {"127.0.0.1"}
    assert {(point.attributes or {})["server.port"] for point in points} == {9}
    hidden = ("tenant", "secret", "quiet", session, "ann", "http://")
    assert not [text for text in hidden if text in shown]


# --- life of pipelines and providers --------------------------------------------------------------------


def test_what_was_counted_stays_when_a_pipeline_is_closed(
    reader: InMemoryMetricReader, make_tracker: MakeTracker, tracker_server: Server
) -> None:
    """Counters never go back; the folder that nobody looks after any more is told no longer, and nothing leaks."""
    before = total(read(reader), semconv.METRIC_DELIVERED)
    for number in (1, 2, 3):
        tracker = make_tracker(tracker_server.url)
        tracker.start_conversation("bot")
        assert tracker.flush(10)
        gone = weakref.ref(tracker._pipeline)
        tracker.close()
        told = read(reader)
        assert total(told, semconv.METRIC_DELIVERED) - before == number
        assert semconv.METRIC_PENDING not in told
        del tracker._pipeline
        gc.collect()
        assert gone() is None


def test_pipelines_of_one_server_are_told_as_one(reader: InMemoryMetricReader, tmp_path: Path) -> None:
    """Counts are summed, each folder is told by itself."""
    with ScriptedServer(json_reply({})) as server:
        trackers = [AgentPerformanceTracker(server.url, state_dir=tmp_path / name) for name in ("a", "b")]
        for tracker in trackers:
            tracker.start_conversation("bot")
            assert tracker.flush(10)
        told = read(reader)
        for tracker in trackers:
            tracker.close()
    assert len(told[semconv.METRIC_PENDING]) == 2
    assert list(told[semconv.METRIC_ACCEPTED]) == [()]


class Broken(MeterProvider):
    """A provider with a mistake."""

    def get_meter(self, *args: object, **kwargs: object) -> NoOpMeter:
        raise RuntimeError("a mistake of the host")


def test_a_host_s_broken_meter_provider_stops_nothing(
    make_tracker: MakeTracker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One line in the log, and the tracker works."""
    monkeypatch.setattr(metrics_api, "_METER_PROVIDER", Broken())
    monkeypatch.setattr(metrics._logger, "said", set())
    with ScriptedServer(json_reply({})) as server, caplog.at_level(logging.WARNING):
        tracker = make_tracker(server.url)
        tracker.start_conversation("bot")
        assert tracker.flush(10)
    assert [record.getMessage() for record in caplog.records if "meter provider" in record.getMessage()] == [
        "the host's meter provider makes no instruments: RuntimeError('a mistake of the host')"
    ]


class Wrong:
    """A pipeline with a mistake."""

    destination = "http://tracker.invalid"

    def counted(self) -> metrics.Counted:
        raise RuntimeError("a mistake of ours")

    def folder_now(self) -> metrics.FolderNow | None:
        raise RuntimeError("a mistake of ours")


def test_a_mistake_of_ours_reaches_no_reader(
    reader: InMemoryMetricReader, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One line in our log; the host's other metrics are read."""
    monkeypatch.setattr(metrics._logger, "said", set())
    wrong = Wrong()
    metrics.observe(wrong)
    metrics_api.get_meter_provider().get_meter("host").create_counter("host.counter").add(1)
    assert read(reader) == {"host.counter": {(): 1}}
    assert [record.name for record in caplog.records] == ["otel_agent_tracker.metrics"]


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://tracker.invalid/t", ("tracker.invalid", 443)),
        ("http://tracker.invalid", ("tracker.invalid", 80)),
        (None, (None, None)),
    ],
)
def test_a_server_is_told_by_host_and_port(
    reader: InMemoryMetricReader, url: str | None, expected: tuple[str | None, int | None]
) -> None:
    """The port that the scheme has, where none is said; nothing where there is no URL."""
    config = Config(url=url, durability=Durability.MEMORY)
    pipeline = Pipeline(config, sender=RecordingSender())
    pipeline.events.start("bot", user_id=None, metadata=None)
    data = reader.get_metrics_data()
    pipeline.close()
    assert data is not None
    (metric, *_) = data.resource_metrics[0].scope_metrics[0].metrics
    (point,) = metric.data.data_points
    assert tuple((point.attributes or {}).get(key) for key in ("server.address", "server.port")) == expected


def test_a_reading_waits_for_nobody(
    reader: InMemoryMetricReader, make_tracker: MakeTracker, tmp_path: Path
) -> None:
    """Not for a worker that waits for a locked state file; what callers have handed in is there at once."""
    tracker = make_tracker(NOWHERE)
    tracker.start_conversation("bot")
    wait_until(lambda: read(reader).get(semconv.METRIC_PENDING))
    file = state_folder(tmp_path / "state", NOWHERE) / "state.sqlite3"
    holding = sqlite3.connect(file, isolation_level=None)
    try:
        holding.execute("BEGIN EXCLUSIVE")
        for _ in range(10):
            tracker.start_conversation("bot")
        began = time.monotonic()
        told = read(reader)
        took = time.monotonic() - began
    finally:
        holding.close()
    assert (total(told, semconv.METRIC_ACCEPTED), total(told, semconv.METRIC_PENDING)) == (11, 11)
    assert took < 0.5


# --- processes ------------------------------------------------------------------------------------------

HEAD = """
import json, os, sys, time
from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from otel_agent_tracker import AgentPerformanceTracker

def tell(reader):
    found = {}
    for metric in reader.get_metrics_data().resource_metrics[0].scope_metrics[0].metrics:
        for point in metric.data.data_points:
            found.setdefault(metric.name, []).append([point.value, dict(point.attributes)])
    print(json.dumps(found), flush=True)

reader = InMemoryMetricReader()
"""


def told_by(process: subprocess.Popen[str]) -> list[dict[str, list[Any]]]:
    """What the process told, line by line, once it has ended well."""
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    return [json.loads(line) for line in out.splitlines()]


def start(script: str, *arguments: object) -> subprocess.Popen[str]:
    """A process with a reader of its own."""
    quiet = ("-W", "ignore:This process:DeprecationWarning")  # Python 3.12 warns of every fork
    command = [sys.executable, *quiet, "-c", HEAD + script, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def values(told: dict[str, list[Any]], metric: str) -> list[float]:
    """Of one metric, over all attributes."""
    return [value for value, _ in told.get(metric, [])]


SET_LATER = """
tracker = AgentPerformanceTracker(sys.argv[1], state_dir=sys.argv[2])
tracker.start_conversation("bot")
metrics.set_meter_provider(MeterProvider([reader]))
AgentPerformanceTracker(sys.argv[1], state_dir=sys.argv[2] + "-other").start_conversation("bot")
assert tracker.flush(10)
tell(reader)
"""


def test_a_provider_that_is_set_later_is_told_everything(tracker_server: Server, tmp_path: Path) -> None:
    """Counts begin with the process, not with the provider; a pipeline made afterwards is told once."""
    (told,) = told_by(start(SET_LATER, tracker_server.url, tmp_path / "state"))
    assert values(told, semconv.METRIC_ACCEPTED) == [2]


NO_PROVIDER = """
import json, sys
from otel_agent_tracker import AgentPerformanceTracker
tracker = AgentPerformanceTracker(sys.argv[1], state_dir=sys.argv[2])
tracker.start_conversation("bot")
assert tracker.flush(10)
print(json.dumps({"loaded": [name for name in sys.modules if "sdk.metrics" in name]}))
"""


def test_without_a_provider_nothing_happens(tracker_server: Server, tmp_path: Path) -> None:
    """The SDK's metrics are not even imported."""
    command = [sys.executable, "-c", NO_PROVIDER, tracker_server.url, str(tmp_path / "state")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert json.loads(done.stdout) == {"loaded": []}


FORKED = """
metrics.set_meter_provider(MeterProvider([reader]))
tracker = AgentPerformanceTracker(sys.argv[1], state_dir=sys.argv[2])
other = AgentPerformanceTracker(sys.argv[1], state_dir=sys.argv[2] + "-other")
for each in (tracker, other):
    each.end_conversation(each.start_conversation("bot"))
    assert each.flush(20)
other.close()
child = os.fork()
if not child:
    tracker.start_conversation("child")
    assert tracker.flush(20)
    tell(reader)
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
tell(reader)
"""


def test_after_a_fork_each_process_tells_its_own_counts(tracker_server: Server, tmp_path: Path) -> None:
    """The child begins at zero: what the parent counted is the parent's to tell. Either may deliver."""
    child, parent = told_by(start(FORKED, tracker_server.url, tmp_path / "state"))
    counters = (semconv.METRIC_ACCEPTED, semconv.METRIC_ENDED)
    assert [sum(values(parent, each)) for each in counters] == [4, 2]
    assert [sum(values(child, each)) for each in counters] == [1, 0]
    assert sum(sum(values(each, semconv.METRIC_DELIVERED)) for each in (child, parent)) == 5


SHARING = """
metrics.set_meter_provider(MeterProvider([reader]))
tracker = AgentPerformanceTracker(sys.argv[1], state_dir=sys.argv[2], session_ttl_hours=1.5 / 3600)
if sys.argv[3] == "first":
    for _ in range(5):
        tracker.start_conversation("bot")
assert tracker.flush(20)
print("{}", flush=True)
sys.stdin.readline()
while tracker.get_session_stats()["active_sessions"]:  # until their TTL is over, which nobody tells
    time.sleep(0.01)
assert tracker.flush(20)
tell(reader)
sys.stdin.readline()
"""


def test_sums_over_processes_that_share_a_folder_are_right(tracker_server: Server, tmp_path: Path) -> None:
    """Each event is accepted, delivered and ended in one of them, though both see every session expire.

    What both tell of the folder is told under one name.
    """
    command = [sys.executable, "-c", HEAD + SHARING, tracker_server.url, str(tmp_path / "state")]
    both = []
    for name in ("first", "second"):
        process = subprocess.Popen(
            [*command, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        both.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "{}\n"
    for process in both:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    told = []
    for process in both:
        assert process.stdout is not None
        told.append(json.loads(process.stdout.readline()))
    for process in both:
        process.communicate("\n", timeout=60)
    sums = {
        metric: sum(sum(values(each, metric)) for each in told)
        for metric in (semconv.METRIC_ACCEPTED, semconv.METRIC_DELIVERED, semconv.METRIC_ENDED)
    }
    assert sums[semconv.METRIC_ENDED] == 5
    assert sums[semconv.METRIC_DELIVERED] == 10
    folders = {
        attributes["agent_tracker.state_folder"]
        for each in told
        for _, attributes in each[semconv.METRIC_PENDING]
    }
    assert len(folders) == 1
    assert folders.pop().partition("-")[0] == state_folder(tmp_path / "state", tracker_server.url).name


def test_the_folder_is_the_one_that_the_command_line_names(
    reader: InMemoryMetricReader, make_tracker: MakeTracker, tmp_path: Path
) -> None:
    """What a metric points to can be looked at by `outbox status --folder`."""
    make_tracker(NOWHERE).start_conversation("bot")
    wait_until(lambda: read(reader).get(semconv.METRIC_PENDING))
    ((folder,),) = read(reader)[semconv.METRIC_PENDING]
    name = str(folder).partition("-")[0]
    result = run("outbox", "status", "--state-dir", tmp_path / "state", "--folder", name)
    assert (result.exit_code, name in result.stdout) == (0, True)
