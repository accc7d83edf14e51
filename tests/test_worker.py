"""The worker: through disks that refuse, files that vanish, other processes and a tracker that hangs."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
import pytest

from otel_agent_tracker import worker
from otel_agent_tracker.client import Delivered, Result, Retry, TrackerClient
from otel_agent_tracker.clock import Clock
from otel_agent_tracker.config import Config, Durability
from otel_agent_tracker.events import Ending, TurnReport
from otel_agent_tracker.journal import Journal, MemoryJournal
from otel_agent_tracker.pipeline import Pipeline
from otel_agent_tracker.semconv import Outcome
from otel_agent_tracker.server.run import Server
from otel_agent_tracker.sessions import SessionMap
from otel_agent_tracker.state import State
from otel_agent_tracker.testing import FakeClock
from otel_agent_tracker.wire import Capabilities
from tests.scripted_server import ScriptedServer, hang
from tests.waiting import wait_until

EVERYTHING = Capabilities(
    batch={"path": "/batch", "max_events": 500},
    turns={"path": "/conversations/turn"},
    feedback={"path": "/conversations/feedback"},
    heartbeat={"path": "/agents/heartbeat"},
)
START, END, EXPIRED = "/conversations/start", "/conversations/end", "/conversations/expired"
COMPLETED = Ending(outcome=Outcome.COMPLETED)
TIMEOUT = 10.0


@dataclass
class Tracker:
    """A tracker in the place of the network, up or down."""

    up: bool = True
    requests: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    closed: bool = False

    def capabilities(self) -> Capabilities:
        return EVERYTHING

    def send(self, path: str, body: bytes, *, event_id: str | None = None) -> Result:
        if not self.up:
            return Retry("down")
        self.requests.append((path, orjson.loads(body)))
        return Delivered()

    def send_batch(
        self, path: str, events: Sequence[bytes], event_ids: Sequence[str]
    ) -> Result | list[Result]:
        if not self.up:
            return Retry("down")
        for event in map(orjson.loads, events):
            self.requests.append((event["path"], event["body"]))
        return [Delivered()] * len(events)

    def close(self) -> None:
        self.closed = True

    def bodies(self, path: str) -> list[dict[str, Any]]:
        return [body for sent_to, body in self.requests if sent_to == path]

    def sessions(self, path: str = START) -> list[str]:
        return [body["session_id"] for body in self.bodies(path)]


class Busy(Tracker):
    """A tracker that asks to be left alone for ten minutes."""

    def send_batch(self, *_: object) -> Result | list[Result]:
        return Retry("status 503", 600.0)


class Host:
    """A pipeline as one process has it, with a tracker of its own and the clock of all."""

    def __init__(self, state_dir: Path, clock: Clock, tracker: Tracker, **options: Any) -> None:
        self.tracker = tracker
        self.config = Config(
            url="http://tracker.invalid", state_dir=state_dir, **{"flush_timeout_seconds": 0.2, **options}
        )
        self.pipeline = Pipeline(self.config, clock=clock, sender=tracker)

    @property
    def folder(self) -> Path:
        return self.config.state_folder

    @property
    def sessions(self) -> SessionMap:
        return self.pipeline.sessions

    def start(self, count: int = 1) -> list[str]:
        return [self.pipeline.events.start("bot", user_id=None, metadata=None) for _ in range(count)]

    def turn(self, session: str, now: FakeClock, turn_id: str) -> None:
        now_us = now.clock.time_ns() // 1000
        self.pipeline.events.turn(
            session, TurnReport(turn_id=turn_id, start_us=now_us - 10, end_us=now_us, agent_id="bot")
        )

    def flush(self, timeout_seconds: float = TIMEOUT) -> bool:
        return self.pipeline.flush(timeout_seconds)

    def books(self) -> dict[str, int]:
        """The books, which must add up whenever one looks."""
        stats = self.pipeline.delivery_stats()
        parts = ("delivered", "pending", "dead_lettered", "dropped")
        assert stats["accepted"] == sum(stats[part] for part in parts), stats
        return {name: stats[name] for name in ("accepted", *parts)}

    def close(self) -> None:
        self.pipeline.close()


MakeHost = Callable[..., Host]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """What happens once a second happens ten times a second."""
    for interval in ("SHARE_INTERVAL", "TROUBLE_INTERVAL"):
        monkeypatch.setattr(f"otel_agent_tracker.worker.{interval}", 0.1)


@pytest.fixture
def now() -> FakeClock:
    return FakeClock()


@pytest.fixture
def make_host(tmp_path: Path, now: FakeClock) -> Iterator[MakeHost]:
    """Makes hosts on one state folder; all are closed at the end."""
    with ExitStack() as stack:

        def make(tracker: Tracker | None = None, *, state_dir: Path | None = None, **options: Any) -> Host:
            host = Host(state_dir or tmp_path / "state", now.clock, tracker or Tracker(), **options)
            stack.callback(host.close)
            return host

        yield make


@pytest.fixture
def host(make_host: MakeHost) -> Host:
    return make_host()


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


# --- disks that refuse --------------------------------------------------------------------------------------


def test_a_folder_that_cannot_be_used_leaves_memory_and_delivery(
    make_host: MakeHost, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One warning; nothing is raised, everything is delivered."""
    (tmp_path / "file").write_text("not a folder")
    host = make_host(state_dir=tmp_path / "file" / "state")
    sessions = host.start(20)
    assert host.flush()
    assert [host.tracker.sessions(), host.books()["delivered"]] == [sessions, 20]
    assert host.pipeline._journal.counters.not_durable == 20
    assert [len(warnings_of(caplog)), "memory" in caplog.text] == [1, True]


def test_events_in_memory_return_to_disk_when_it_accepts_them(
    make_host: MakeHost, tmp_path: Path, now: FakeClock
) -> None:
    """With the books, and what is still to be delivered, sessions too."""
    blocker = tmp_path / "blocker"
    blocker.write_text("not a folder")
    host = make_host(Tracker(up=False), state_dir=blocker / "state")
    sessions = host.start(5)
    assert not host.flush(0.2)
    blocker.unlink()
    now.advance(minutes=2)
    host.start()
    wait_until((host.folder / "state.sqlite3").exists)
    wait_until(lambda: rows_on_disk(host) == 6)
    assert host.books() == {"accepted": 6, "delivered": 0, "pending": 6, "dead_lettered": 0, "dropped": 0}
    host.tracker.up = True
    now.advance(minutes=2)
    assert host.flush()
    assert host.tracker.sessions()[:5] == sessions
    assert host.books()["delivered"] == 6


def rows_on_disk(host: Host) -> int:
    connection = sqlite3.connect(host.folder / "state.sqlite3")
    try:
        return int(connection.execute("SELECT count(*) FROM outbox").fetchone()[0])
    except sqlite3.OperationalError:  # not made yet
        return -1
    finally:
        connection.close()


def test_a_state_file_of_a_later_release_is_left_alone(make_host: MakeHost, now: FakeClock) -> None:
    """Delivery goes on from memory, the journal keeps what is not delivered, and nothing is sent twice later."""
    first = make_host()
    first.start()
    assert first.flush()
    first.close()
    set_format(first, 99)
    host = make_host()
    sessions = host.start(3)
    assert host.flush()
    assert host.tracker.sessions() == sessions
    assert not list(host.folder.glob("*corrupt*"))
    set_format(first, 1)
    now.advance(minutes=2)
    assert host.flush()
    assert [host.tracker.sessions(), host.books()["delivered"]] == [sessions, 4]


def set_format(host: Host, number: int) -> None:
    connection = sqlite3.connect(host.folder / "state.sqlite3")
    connection.execute(f"PRAGMA user_version = {number}")
    connection.close()


@pytest.mark.parametrize("damage", ["header", "middle", "empty", "half"])
def test_a_damaged_state_file_is_set_aside_and_what_can_be_read_is_kept(
    make_host: MakeHost, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Accepting and delivering go on; whatever else, nothing loops."""
    first = make_host(Tracker(up=False))
    first.start(300)
    assert not first.flush(0.3)
    first.close()
    spoil(first.folder / "state.sqlite3", damage)
    host = make_host()
    session = host.start()[0]
    assert host.flush()
    assert session in host.tracker.sessions()
    if damage == "empty":  # SQLite takes it for a new file
        assert not list(host.folder.glob("*.corrupt-*"))
    else:
        aside = [path for path in host.folder.glob("*.corrupt-*") if path.name[-4:] not in ("-wal", "-shm")]
        assert len(aside) == 1
        assert "damaged" in caplog.text
    if damage == "middle":
        assert len(host.tracker.sessions()) > 100
    host.books()


def spoil(path: Path, damage: str) -> None:
    content = bytearray(path.read_bytes())
    half = len(content) // 2
    match damage:
        case "header":
            content[:100] = b"x" * 100
        case "middle":
            content[half : half + 8192] = b"x" * 8192
        case "empty":
            content = bytearray()
        case "half":
            del content[half + 100 :]
    path.write_bytes(content)


def test_damage_that_shows_while_running_is_survived(
    make_host: MakeHost, caplog: pytest.LogCaptureFixture
) -> None:
    """The journal has what was not stored, and the worker begins a new file."""
    host = make_host(Tracker(up=False))
    host.start(300)
    assert not host.flush(0.3)
    hold(host)
    path = host.folder / "state.sqlite3"
    connection = sqlite3.connect(path)
    connection.execute("UPDATE counters SET value = value")
    connection.commit()
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # the worker has to read it anew
    connection.close()
    spoil(path, "header")
    release(host)
    wait_until(lambda: "set aside" in caplog.text)
    host.tracker.up = True
    session = host.start()[0]
    wait_until(lambda: session in host.tracker.sessions(), 30.0)
    host.books()


def delivers_after_a_pause(host: Host, now: FakeClock) -> bool:
    """Whether what waits is delivered, two minutes later; a request that failed just now begins a pause anew."""
    now.advance(minutes=2)
    return host.flush(2.0)


def is_back_on_disk(host: Host, now: FakeClock, *, rows: int) -> bool:
    """Whether the new file holds everything; a disk that refused in the middle of the deletion is tried again."""
    now.advance(minutes=1)
    return (host.folder / "state.sqlite3").exists() and rows_on_disk(host) == rows


def test_a_folder_that_is_deleted_while_running_loses_nothing(
    make_host: MakeHost, now: FakeClock, tmp_path: Path
) -> None:
    """Outbox and books move to a new folder; so does what comes after."""
    host = make_host(Tracker(up=False))
    sessions = host.start(5)
    assert not host.flush(0.2)
    shutil.rmtree(host.folder.rename(tmp_path / "deleted"))  # what the worker makes meanwhile is a new one
    sessions += host.start(5)
    wait_until(lambda: is_back_on_disk(host, now, rows=10))
    assert host.books()["pending"] == 10
    host.tracker.up = True
    wait_until(lambda: delivers_after_a_pause(host, now), 60.0)
    assert [sorted(host.tracker.sessions()), host.books()["delivered"]] == [sorted(sessions), 10]


def test_a_folder_that_turns_into_a_file_keeps_delivery_going(
    make_host: MakeHost, now: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    """What was stored goes on in the deleted file, and back to disk when that is possible."""
    host = make_host(Tracker(up=False))
    sessions = host.start(5)
    assert not host.flush(0.2)
    turn_into_a_file(host.folder)
    sessions += host.start(5)
    wait_until(lambda: "kept in memory" in caplog.text)
    host.tracker.up = True
    wait_until(lambda: delivers_after_a_pause(host, now), 60.0)
    assert sorted(host.tracker.sessions()) == sorted(sessions)
    host.folder.unlink()
    now.advance(minutes=2)
    host.start()
    assert host.flush()
    assert [(host.folder / "state.sqlite3").exists(), host.books()["delivered"]] == [True, 11]


def turn_into_a_file(folder: Path) -> None:
    """However often the worker makes the folder again meanwhile."""
    while not folder.is_file():
        with suppress(FileNotFoundError):
            folder.rename(folder.with_name(f"deleted-{time.monotonic_ns()}"))
        with suppress(IsADirectoryError):
            folder.write_text("not a folder")


def test_a_full_state_file_neither_loses_nor_wedges(
    make_host: MakeHost, now: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    """What does not fit waits in the journal, what is stored is delivered, and that makes room."""
    host = make_host(Tracker(up=False), outbox_max_mb=4.0)
    (first,) = host.start()
    assert not host.flush(0.2)
    hold(host)
    for _ in range(500):
        host.pipeline.events.start("bot", user_id=None, metadata={"text": ["x" * 10_000] * 5})
    release(host)
    wait_until(lambda: "full" in caplog.text)
    assert host.books()["pending"] == 501
    host.tracker.up = True
    now.advance(minutes=2)
    wait_until(lambda: host.flush(0.5), 60.0)
    assert host.books() == {"accepted": 501, "delivered": 501, "pending": 0, "dead_lettered": 0, "dropped": 0}
    assert [len(host.tracker.sessions()), host.tracker.sessions()[0]] == [501, first]


def test_an_entry_that_cannot_be_read_is_counted_and_passed_over(host: Host) -> None:
    """Another release, or a mistake of ours, must not stop what comes after it."""
    journal = host.pipeline._journal
    for payload in (b"garbage", b"[]\n{}\n", b'["conversation","e","/p","bot",1,"s",null,[]]\n{}\n'):
        journal.append(payload)
    sessions = host.start()
    assert host.flush()
    books = host.books()
    assert [host.tracker.sessions(), books["dropped"], books["delivered"]] == [sessions, 3, 1]


def test_what_could_not_be_kept_is_in_the_books_of_the_folder(make_host: MakeHost) -> None:
    """By kind and once, for this process and for any other that looks."""
    host, other = make_host(), make_host()
    host.start()
    host.pipeline._journal.refuse("agent.activity")
    assert host.books()["dropped"] == 1
    assert host.flush()
    host.pipeline._journal.refuse("agent.activity")
    assert host.flush()
    assert other.flush()
    for each in (host, other):
        assert each.books() == {
            "accepted": 3,
            "delivered": 1,
            "pending": 0,
            "dead_lettered": 0,
            "dropped": 2,
        }
    assert other.pipeline.delivery_stats()["dropped_by_kind"] == {"agent.activity": 2}


def test_order_outlasts_a_wait_in_memory(host: Host) -> None:
    """A start for which the disk had no room just then still goes before the end that found some."""
    host.start()
    assert host.flush()
    hold(host)
    session = host.start()[0]
    with no_room(host):
        late = host.start()[0]
    for each in (late, session):
        host.pipeline.events.end(each, COMPLETED)
    release(host)
    assert host.flush()
    for each in (late, session):
        paths = [path for path, body in host.tracker.requests if body["session_id"] == each]
        assert paths == [START, END]


def test_order_outlasts_a_wait_in_memory_behind_much(host: Host) -> None:
    """A start or an end that has to wait in memory keeps its place, though more is on disk than is read at once."""
    host.start()
    assert host.flush()
    hold(host)
    with no_room(host):
        early = host.start()[0]
    host.pipeline.events.end(early, COMPLETED)
    for _ in range(400):
        late = host.pipeline.events.start("bot", user_id=None, metadata={"text": ["x" * 2000] * 3})
    with no_room(host):
        host.pipeline.events.end(late, COMPLETED)
    release(host)
    assert host.flush()
    for session in (early, late):
        paths = [path for path, body in host.tracker.requests if body["session_id"] == session]
        assert paths == [START, END]


@contextmanager
def no_room(host: Host) -> Iterator[None]:
    """Events wait in memory, as if no segment was ready and the disk had no room for another."""
    journal = host.pipeline._journal
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(journal, "append", lambda payload: MemoryJournal.append(journal, payload))
        yield


def test_a_fork_does_not_wait_until_a_backlog_is_stored(host: Host) -> None:
    """The worker lets it through after each piece, with its file closed, and goes on afterwards."""
    host.start()
    assert host.flush()
    hold(host)
    for _ in range(1500):
        host.pipeline.events.start("bot", user_id=None, metadata={"text": ["x" * 2000] * 3})
    stored = count_stores(host)
    release(host)
    wait_until(lambda: stored)
    assert host.pipeline._handle.pause_for_fork(TIMEOUT)
    assert len(stored) < 9  # of about ten pieces
    host.pipeline.after_fork_in_parent()
    assert host.flush()
    assert len(host.tracker.sessions()) == 1501


def count_stores(host: Host) -> list[None]:
    """One more element for each piece of the journal that the worker stores."""
    stored: list[None] = []
    give_way = host.pipeline._handle.give_way

    def counted() -> None:
        stored.append(None)
        give_way()

    host.pipeline._handle.give_way = counted  # type: ignore[method-assign]  # counts and calls the original
    return stored


# --- flush --------------------------------------------------------------------------------------------------


def test_a_flush_is_true_only_when_everything_before_it_is_delivered(host: Host) -> None:
    """Whenever in the worker's cycle it comes."""
    for number in range(1, 200):
        session = host.start()[0]
        assert host.flush()
        assert [len(host.tracker.requests), host.tracker.sessions()[-1]] == [number, session]


def test_a_flush_that_nobody_waits_for_any_more_is_forgotten(make_host: MakeHost) -> None:
    """The worker goes back to its own pace."""
    host = make_host(Busy())
    host.start()
    assert not host.flush(0.1)
    journal, sleeps = host.pipeline._journal, list[float | None]()
    plain_wait = journal.wait

    def noted_wait(timeout: float | None = None) -> bool:
        sleeps.append(timeout)
        return plain_wait(timeout)

    journal.wait = noted_wait  # type: ignore[method-assign]  # notes and calls the original
    wait_until(lambda: len(sleeps) > 2)
    assert worker.FLUSH_POLL not in sleeps[1:]


def test_a_flush_waits_for_what_other_living_processes_have_accepted(make_host: MakeHost) -> None:
    """It is pending too, though nobody has stored it yet."""
    host = make_host()
    host.start()
    assert host.flush()
    other = Journal(host.folder)
    other.append(entry_of(make_host(state_dir=host.folder.parent / "elsewhere")))
    assert not host.flush(0.3)
    other.close()  # dead: it is adopted
    assert host.flush()
    assert [len(host.tracker.sessions()), host.books()["delivered"]] == [2, 2]


def entry_of(host: Host) -> bytes:
    """The payload of a start, as another process writes it."""
    return payloads_of(host, host.start)[0]


def payloads_of(host: Host, act: Callable[[], object]) -> list[bytes]:
    """What the host's journal gets while `act` runs."""
    payloads: list[bytes] = []
    journal = host.pipeline._journal
    append = journal.append

    def listen(payload: bytes) -> bool:
        payloads.append(payload)
        return append(payload)

    journal.append = listen  # type: ignore[method-assign]  # listens in
    act()
    journal.append = append  # type: ignore[method-assign]  # as before
    return payloads


def test_a_flush_is_answered_by_the_process_that_does_not_send(make_host: MakeHost) -> None:
    """Another one delivers what it accepted."""
    sender, other = make_host(), make_host()
    sender.start()
    assert sender.flush()
    sessions = other.start(3)
    assert other.flush()
    assert [sender.tracker.sessions()[1:], other.tracker.requests] == [sessions, []]


# --- sessions of several processes --------------------------------------------------------------------------


def share(*hosts: Host) -> None:
    """Let each process write what it knows and read what the others wrote."""
    for host in (*hosts, *hosts):
        host.flush()


def recognised(host: Host, now: FakeClock, session: str = "thread-7") -> str:
    host.turn(session, now, "t1")
    return session


def test_sessions_are_mirrored(make_host: MakeHost, now: FakeClock) -> None:
    """What one process opened another one knows, with its agent and start, and both let go at its end."""
    a, b = make_host(), make_host()
    (session,) = a.start()
    share(a, b)
    seen = b.sessions.get(session)
    ours = a.sessions.get(session)
    assert seen is not None
    assert ours is not None
    assert [seen.agent_id, seen.start_us] == [ours.agent_id, ours.start_us]
    assert seen.last_access == pytest.approx(ours.last_access, abs=0.01)
    assert b.pipeline.events.end(session, COMPLETED)
    share(b, a)
    assert [a.sessions.get(session), a.pipeline.events.end(session, COMPLETED)] == [None, False]


def test_what_the_caller_of_an_end_lacked_is_filled_in(make_host: MakeHost, now: FakeClock) -> None:
    """A process that never saw the start sends the true one."""
    a, b = make_host(), make_host()
    (session,) = a.start()
    assert a.flush()
    now.advance(seconds=7)
    assert b.pipeline.events.end(session, COMPLETED)
    assert b.flush()
    (body,) = [*a.tracker.bodies(END), *b.tracker.bodies(END)]
    (start,) = [*a.tracker.bodies(START), *b.tracker.bodies(START)]
    assert [body["start_time"], body["agent_id"]] == [start["start_time"], "bot"]


def test_two_processes_infer_one_end(make_host: MakeHost, now: FakeClock) -> None:
    """Idle in both: whoever stores it first."""
    a, b = make_host(), make_host()
    session = recognised(a, now)
    share(a, b)
    assert b.sessions.get(session) is not None
    now.advance(minutes=31)
    share(a, b)
    ends = [*a.tracker.bodies(END), *b.tracker.bodies(END)]
    assert [len(ends), ends[0]["metadata"]["agent_tracker"]["ended_by"]] == [1, "idle"]
    assert [len(a.sessions), len(b.sessions)] == [0, 0]
    a.books()


def test_activity_elsewhere_overtakes_an_inferred_end(make_host: MakeHost, now: FakeClock) -> None:
    """A process that finds it idle takes it back, and it ends once, when it is idle in all."""
    a, b = make_host(), make_host()
    session = recognised(a, now)
    share(a, b)
    now.advance(minutes=20)
    b.turn(session, now, "t2")
    assert b.flush()  # stored, before a can look
    now.advance(minutes=11)  # idle for a, unless it has read what b stored
    share(b, a)
    assert [a.tracker.bodies(END), b.tracker.bodies(END)] == [[], []]
    assert a.sessions.get(session) is not None
    now.advance(minutes=31)
    share(a, b)
    (end,) = [*a.tracker.bodies(END), *b.tracker.bodies(END)]
    assert end["start_time"] == a.tracker.bodies(START)[0]["start_time"]


def test_a_session_that_outlived_an_inferred_end_is_kept_and_ends_later(
    make_host: MakeHost, now: FakeClock
) -> None:
    """Also when the end was stored before the activity: the tracker will not count that end."""
    a, b = make_host(), make_host()
    session = recognised(a, now)
    share(a, b)
    now.advance(minutes=29, seconds=59)
    hold(b)
    b.turn(session, now, "t2")
    now.advance(seconds=2)
    assert not a.flush(0.5)  # waits for what b holds back
    assert len(a.tracker.bodies(END)) == 1
    release(b)
    share(b, a)
    assert [b.sessions.get(session) is not None, a.sessions.get(session) is not None] == [True, True]
    now.advance(minutes=31)
    share(a, b)
    assert len([*a.tracker.bodies(END), *b.tracker.bodies(END)]) == 2


def hold(host: Host) -> None:
    """Let the host's worker see nothing that is appended from now on."""
    held, reached = threading.Event(), threading.Event()
    prepare = host.pipeline._journal.prepare

    def stand_still() -> None:
        reached.set()
        held.wait(TIMEOUT)
        prepare()

    host.pipeline._journal.prepare = stand_still  # type: ignore[method-assign]  # stops the cycle
    host._held = held  # type: ignore[attr-defined]  # for release
    host.pipeline._journal.wake()
    assert reached.wait(TIMEOUT)


def release(host: Host) -> None:
    del host.pipeline._journal.prepare
    host._held.set()  # type: ignore[attr-defined]  # set by hold


@pytest.mark.parametrize(("boot_id", "alive"), [("this boot", True), ("another boot", False)])
def test_the_wall_clock_decides_only_after_a_reboot(
    make_host: MakeHost, now: FakeClock, monkeypatch: pytest.MonkeyPatch, boot_id: str, alive: bool
) -> None:
    """A session of before is as old as the boot-time clock says, or, if that began anew, the wall clock."""
    monkeypatch.setattr("otel_agent_tracker.worker._boot_id", lambda: "this boot")
    first = make_host()
    (session,) = first.start()
    assert first.flush()
    first.close()
    wall = now.clock.time_ns
    jumped = Clock(lambda: wall() + 24 * 3600 * 10**9, now.clock.monotonic)  # the wall clock was set by a day
    monkeypatch.setattr("otel_agent_tracker.worker._boot_id", lambda: boot_id)
    second = Host(first.config.state_dir, jumped, Tracker())
    second.start()
    assert second.flush()
    assert (second.sessions.get(session) is not None) is alive
    assert len(second.tracker.bodies(EXPIRED)) == (0 if alive else 1)
    second.close()


@pytest.mark.parametrize("hours", [-24, 24])
def test_a_jump_of_the_wall_clock_expires_nothing(tmp_path: Path, now: FakeClock, hours: int) -> None:
    """TTLs are measured on the monotonic clock."""
    jump = [0]
    host = Host(tmp_path, Clock(lambda: now.clock.time_ns() + jump[0], now.clock.monotonic), Tracker())
    (session,) = host.start()
    assert host.flush()
    jump[0] = hours * 3600 * 10**9
    assert host.flush()
    now.advance(hours=9)
    assert host.flush()
    assert [host.sessions.get(session) is not None, host.tracker.bodies(EXPIRED)] == [True, []]
    now.advance(hours=2)
    assert host.flush()
    assert host.tracker.sessions(EXPIRED) == [session]
    host.close()


def test_sessions_of_a_dead_process_expire_once(make_host: MakeHost, now: FakeClock) -> None:
    """What expired while nobody ran is told by whoever runs next."""
    first = make_host(Tracker(up=False))
    sessions = first.start(3)
    assert not first.flush(0.2)
    first.close()
    now.advance(hours=11)
    a, b = make_host(), make_host()
    a.start()
    b.start()
    share(a, b)
    expired = [*a.tracker.sessions(EXPIRED), *b.tracker.sessions(EXPIRED)]
    assert sorted(expired) == sorted(sessions)


def test_sessions_of_an_unread_journal_are_taken_over(make_host: MakeHost, now: FakeClock) -> None:
    """A process that died before anything was stored: its open sessions go on here, its turns counted."""
    other, host = make_host(state_dir=make_host().folder.parent / "elsewhere"), make_host()
    sessions: list[str] = []

    def live() -> None:
        sessions.extend(other.start(2))
        other.turn(sessions[0], now, "t1")
        other.pipeline.events.end(sessions[1], COMPLETED)

    dead = Journal(host.folder)
    for payload in payloads_of(other, live):
        dead.append(payload)
    dead.close()
    assert host.flush()
    assert host.tracker.sessions() == sessions
    open_session = host.sessions.get(sessions[0])
    assert open_session is not None
    assert [open_session.turns, host.sessions.get(sessions[1])] == [1, None]
    ended = [host.pipeline.events.end(session, COMPLETED) for session in sessions]
    assert ended == [True, False]


@pytest.mark.parametrize("session", ["thread-7", "bot_1705681000_a1b2c3d4"])
def test_a_turn_of_a_dead_process_opens_a_session_that_is_unknown_here(
    make_host: MakeHost, now: FakeClock, session: str
) -> None:
    """Its start is another host's, or was stored: the session is held, and ends, all the same."""
    other, host = make_host(state_dir=make_host().folder.parent / "elsewhere"), make_host()
    payloads = payloads_of(other, lambda: other.turn(session, now, "t1"))
    dead = Journal(host.folder)
    dead.append(payloads[-1])  # the turn alone
    dead.close()
    assert host.flush()
    live = host.sessions.get(session)
    assert live is not None
    assert (live.agent_id, live.turns) == ("bot", 1)
    now.advance(hours=11)
    assert host.flush()
    ends = [*host.tracker.sessions(END), *host.tracker.sessions(EXPIRED)]
    assert ends == [session]


def test_a_turn_of_a_dead_process_stays_with_what_a_call_has_ended(
    make_host: MakeHost, now: FakeClock
) -> None:
    """It began before that end, and is told after it."""
    other, host = make_host(state_dir=make_host().folder.parent / "elsewhere"), make_host()
    (session,) = host.start()
    (payload,) = payloads_of(other, lambda: other.turn(session, now, "t1"))
    now.advance(seconds=1)
    assert host.pipeline.events.end(session, COMPLETED)
    assert host.flush()
    dead = Journal(host.folder)
    dead.append(payload)
    dead.close()
    assert host.flush()
    assert [len(host.tracker.sessions("/conversations/turn")), host.sessions.get(session)] == [1, None]


def test_a_conversation_that_follows_an_end_at_once_survives_its_process(
    make_host: MakeHost, now: FakeClock
) -> None:
    """Both are stored together, and another process's row of the conversation before is not in the way."""
    a, b = make_host(), make_host()
    (session,) = a.start()
    share(a, b)
    a.turn(session, now, "t1")
    share(a, b)
    hold(b)
    now.advance(seconds=1)
    b.pipeline.events.end(session, COMPLETED)
    now.advance(seconds=1)
    b.turn(session, now, "t2")
    release(b)
    assert b.flush()
    b.close()
    third = make_host()
    third.start()
    assert third.flush()
    assert third.sessions.get(session) is not None


def test_a_turn_after_an_end_by_call_elsewhere_opens_the_next_conversation(
    make_host: MakeHost, now: FakeClock
) -> None:
    """The process that took it learns of the end later; the session goes on in all, and ends idle."""
    a, b = make_host(), make_host()
    (session,) = a.start()
    share(a, b)
    hold(a)
    now.advance(seconds=1)
    assert b.pipeline.events.end(session, COMPLETED)
    now.advance(seconds=1)
    a.turn(session, now, "t1")
    assert not b.flush(0.2)  # waits for what a holds back
    release(a)
    share(a, b)
    assert [host.sessions.get(session) is not None for host in (a, b)] == [True, True]
    now.advance(minutes=31)
    share(a, b)
    ends = [*a.tracker.bodies(END), *b.tracker.bodies(END)]
    assert [end["metadata"]["agent_tracker"]["ended_by"] for end in ends] == ["call", "idle"]


def test_such_a_turn_opens_the_next_conversation_though_its_process_dies_at_once(
    make_host: MakeHost, now: FakeClock
) -> None:
    """Before it has heard of the end: whoever runs next goes on from what it had stored."""
    a, b = make_host(), make_host()
    (session,) = a.start()
    share(a, b)
    hold(b)
    now.advance(seconds=1)
    assert b.pipeline.events.end(session, COMPLETED)
    now.advance(seconds=1)
    a.turn(session, now, "t1")
    assert not a.flush(0.2)  # waits for what b holds back
    a.close()
    release(b)
    assert b.flush()
    assert b.sessions.get(session) is not None
    now.advance(minutes=31)
    assert b.flush()
    assert [end["metadata"]["agent_tracker"]["ended_by"] for end in b.tracker.bodies(END)] == ["call", "idle"]


def test_a_touch_elsewhere_does_not_lose_a_turn(make_host: MakeHost, now: FakeClock) -> None:
    """It is newer, by a process that has not read of the turn; the turn's own process dies before it reads that."""
    a, b = make_host(), make_host()
    session = recognised(a, now)
    share(a, b)
    hold(b)
    now.advance(seconds=1)
    a.turn(session, now, "t2")
    assert a.flush()
    a.close()
    now.advance(seconds=1)
    assert b.sessions.touch(session)
    release(b)
    assert b.flush()
    b.close()
    third = make_host()
    third.start()
    assert third.flush()
    live = third.sessions.get(session)
    assert live is not None
    assert live.turns == 2


@pytest.mark.parametrize("starts_first", [True, False])
def test_what_a_dead_process_had_delivered_is_not_taken_again(
    make_host: MakeHost, now: FakeClock, starts_first: bool
) -> None:
    """Neither if its segment was unknown when this process began, nor if it had been read less far then."""
    other, host = make_host(), make_host()
    if starts_first:
        other.start()
        assert other.flush()
    host.start()
    assert host.flush()
    other.start(3)
    assert other.flush()
    other.close()
    share(host)
    sent = [*host.tracker.sessions(), *other.tracker.sessions()]
    assert [len(sent), len(set(sent)), host.books()["accepted"]] == [4 + starts_first] * 3


# --- books --------------------------------------------------------------------------------------------------


def test_the_books_are_true_while_events_flow(host: Host) -> None:
    """Whoever looks, whenever: accepted = delivered + pending + dead-lettered + dropped, and nothing shrinks."""
    threads = [threading.Thread(target=host.start, args=(300,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    delivered = [0]
    while any(thread.is_alive() for thread in threads):
        books = host.books()
        assert min(books.values()) >= 0
        delivered.append(books["delivered"])
    for thread in threads:
        thread.join()
    assert host.flush()
    assert delivered == sorted(delivered)
    assert host.books() == {
        "accepted": 1200,
        "delivered": 1200,
        "pending": 0,
        "dead_lettered": 0,
        "dropped": 0,
    }


def test_heartbeats_tell_instance_and_books(host: Host, now: FakeClock) -> None:
    """Once a minute, for agents that this process has seen."""
    host.start()
    assert host.flush()
    now.advance(seconds=61)
    wait_until(lambda: host.flush() and host.tracker.bodies("/agents/heartbeat"))
    (beat,) = host.tracker.bodies("/agents/heartbeat")[:1]
    assert [beat["agent_id"], beat["delivery"]["delivered"], bool(beat["instance"])] == ["bot", 1, True]


def test_thousands_of_sessions_that_end_at_once_are_all_told(make_host: MakeHost, now: FakeClock) -> None:
    """The journal need not hold their ends all together."""
    host = make_host(durability=Durability.MEMORY)
    host.pipeline._journal._ring_limit = 512 * 1024  # less than what they take
    for _ in range(5):
        host.start(400)
        assert host.flush()
    now.advance(hours=11)
    assert host.flush()
    assert [len(host.tracker.sessions(EXPIRED)), host.books()["dropped"]] == [2_000, 0]


def test_an_end_that_nobody_told_in_time_is_in_the_books(
    make_host: MakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sessions may be evicted faster than the worker can tell it."""
    monkeypatch.setattr("otel_agent_tracker.sessions._MAX_UNREPORTED", 100)
    host = make_host(max_sessions=1)
    sessions = host.start()
    assert host.flush()
    hold(host)
    sessions += host.start(300)
    release(host)
    assert host.flush()
    assert host.tracker.sessions(EXPIRED) == sessions[200:300]
    assert host.books() == {
        "accepted": 601,
        "delivered": 401,
        "pending": 0,
        "dead_lettered": 0,
        "dropped": 200,
    }
    assert host.pipeline.delivery_stats()["dropped_by_kind"] == {"conversation": 200}


def test_a_process_that_ends_tells_of_all_it_has_evicted(make_host: MakeHost) -> None:
    """However many wait: nobody else will."""
    first = make_host(Tracker(up=False), max_sessions=1)
    sessions = first.start()
    assert not first.flush(0.2)
    hold(first)
    sessions += first.start(4_000)
    first.pipeline.begin_to_stop()
    release(first)
    first.close()
    second = make_host()
    assert second.flush()
    assert sorted(second.tracker.sessions(EXPIRED)) == sorted(sessions[:-1])


@pytest.mark.parametrize("durability", Durability)
def test_a_worker_that_a_mistake_ended_goes_on_with_what_it_had(
    make_host: MakeHost, monkeypatch: pytest.MonkeyPatch, now: FakeClock, durability: Durability
) -> None:
    """With its books, with what is in memory alone, and with the lanes it has."""
    monkeypatch.setattr("otel_agent_tracker.handle.RESTART_INTERVAL", 0.01)
    host = make_host(Tracker(up=False), durability=durability)
    sessions = host.start(3)
    host.pipeline._journal.refuse("agent.activity")
    assert not host.flush(0.2)
    lanes = lanes_of_all()
    fail_outside_a_cycle(host)
    host.tracker.up = True
    now.advance(minutes=2)
    assert host.flush()
    assert host.tracker.sessions() == sessions
    assert host.books() == {"accepted": 4, "delivered": 3, "pending": 0, "dead_lettered": 0, "dropped": 1}
    assert lanes_of_all() == lanes


def fail_outside_a_cycle(host: Host) -> None:
    """Let the worker's next wait fail, and be over."""
    journal, failed = host.pipeline._journal, threading.Event()

    def fail(timeout: float | None = None) -> bool:
        del journal.wait
        failed.set()
        raise MemoryError

    journal.wait = fail  # type: ignore[method-assign]  # once
    journal.wake()
    assert failed.wait(TIMEOUT)


def lanes_of_all() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "otel-agent-tracker-lane"]


# --- the end ------------------------------------------------------------------------------------------------


def test_a_journal_that_is_closed_while_it_is_read_is_told_once(
    make_host: MakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when a host ends before the worker is through: the next process goes on from where that one got to."""
    monkeypatch.setattr("otel_agent_tracker.pipeline.Journal", SmallJournal)
    first = make_host()
    sessions = first.start()
    assert first.flush()
    hold(first)
    sessions += first.start(100)
    first.pipeline._handle.give_way = first.pipeline._journal.close  # type: ignore[method-assign]  # half way
    release(first)
    wait_until(lambda: len(first.tracker.sessions()) > 1)
    first.close()
    second = make_host()
    assert second.flush()
    assert sorted(first.tracker.sessions() + second.tracker.sessions()) == sorted(sessions)


class SmallJournal(Journal):
    """One whose segments are full after some twenty starts."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, segment_bytes=8192)


def threads_of_ours() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("otel-agent-tracker")]


def test_close_ends_threads_files_and_the_sender(make_host: MakeHost) -> None:
    """Nothing of ours is left behind."""
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    host = make_host()
    host.start()
    assert host.flush()
    host.close()
    assert [threads_of_ours(), host.tracker.closed] == [[], True]
    assert len(list(Path("/proc/self/fd").iterdir())) == descriptors


def test_a_process_that_does_not_send_ends_at_once(make_host: MakeHost) -> None:
    """What it accepted is stored, and another one delivers it."""
    sender, other = make_host(Tracker(up=False)), make_host(flush_timeout_seconds=5.0)
    sender.start()
    sender.flush(0.1)
    other.start()
    began = time.monotonic()
    other.close()
    assert time.monotonic() - began < 2.0


def test_a_back_off_that_outlasts_the_last_flush_is_not_waited_for(make_host: MakeHost) -> None:
    """With a dead tracker a process ends as fast as with none."""
    host = make_host(Busy(), flush_timeout_seconds=5.0)
    host.start()
    host.flush(0.2)
    began = time.monotonic()
    host.close()
    assert time.monotonic() - began < 2.0


def test_a_hanging_tracker_does_not_hang_the_end(tmp_path: Path) -> None:
    """Within the flush timeout and a second; connections and threads end, the event stays on disk."""
    with ScriptedServer(hang()) as server:
        config = Config(url=server.url, state_dir=tmp_path, flush_timeout_seconds=0.5)
        pipeline = Pipeline(config, sender=TrackerClient(server.url))
        pipeline.events.start("bot", user_id=None, metadata=None)
        wait_until(lambda: server.requests)
        began = time.monotonic()
        pipeline.close()
        assert time.monotonic() - began < 1.5
        wait_until(lambda: not threads_of_ours())
    state = State(config.state_folder / "state.sqlite3", writer="test", max_bytes=1 << 24)
    assert state.counts().pending == 1
    state.close()


# --- other processes ----------------------------------------------------------------------------------------

SENDER = """
import os, sys, time
from pathlib import Path
from otel_agent_tracker.config import Config
from otel_agent_tracker.pipeline import acquire

pipeline = acquire(Config(url=sys.argv[1], state_dir=Path(sys.argv[2])))
pipeline.events.start("bot", user_id=None, metadata=None)
assert pipeline.flush(20)
if os.fork() == 0:
    print(os.getpid(), flush=True)
time.sleep(60)
"""


def test_another_process_takes_over_from_a_killed_one_with_a_living_child(
    tracker_server: Server, tmp_path: Path
) -> None:
    """Within five seconds: neither the right to send nor the journal is held by what the child inherited."""
    command = [sys.executable, "-c", SENDER, tracker_server.url, str(tmp_path / "state")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        try:
            pipeline = Pipeline(Config(url=tracker_server.url, state_dir=tmp_path / "state"))
            pipeline.events.start("bot", user_id=None, metadata=None)
            assert pipeline.flush(TIMEOUT)
            process.kill()
            process.wait()
            pipeline.events.start("bot", user_id=None, metadata=None)
            assert pipeline.flush(5.0)
            os.kill(child, 0)  # it lives
            assert pipeline.delivery_stats()["delivered"] == 3
            pipeline.close()
        finally:
            process.kill()
            os.kill(child, signal.SIGKILL)
