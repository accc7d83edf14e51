"""The state folder: on a full disk, damaged, deleted, forbidden, at its limit, of another release, shared by many."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from otel_agent_tracker import (
    AgentOperationsTracker,
    AgentPerformanceTracker,
    journal,
    making,
    state_file,
    worker,
)
from tests.conftest import MakeTracker
from tests.faults.failing_storage import FailingStorage
from tests.faults.sink import CountingTracker, counting_tracker
from tests.waiting import wait_until

BEGUN = 200


@pytest.fixture
def counting() -> Iterator[CountingTracker]:
    with counting_tracker() as counting:
        yield counting


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 16 MiB. It needs root, or ``sudo`` without a password, as CI has it."""
    disk = tmp_path / "disk"
    disk.mkdir()
    as_root("mount", "-t", "tmpfs", "-o", f"size=16m,mode=700,uid={os.geteuid()}", "tmpfs", disk)
    yield disk
    as_root("umount", "--lazy", disk)


def as_root(*command: str | Path) -> None:
    sudo = [] if os.geteuid() == 0 else ["sudo", "-n"]
    ran = subprocess.run([*sudo, *command], capture_output=True, text=True)
    if ran.returncode:
        pytest.fail(f"a small disk cannot be mounted; run as root or allow sudo -n mount: {ran.stderr}")


def converse(tracker: AgentPerformanceTracker, count: int) -> set[str]:
    """Start and end as many conversations; their ids."""
    sessions = {tracker.start_conversation("bot", "u1") for _ in range(count)}
    assert all(tracker.end_conversation(session, 4) for session in sessions)
    return sessions


def books(tracker: AgentPerformanceTracker) -> dict[str, int]:
    """The books, which add up."""
    stats = tracker.delivery_stats()
    parts = ("delivered", "pending", "dead_lettered", "dropped")
    assert stats["accepted"] == sum(stats[part] for part in parts), stats
    return {part: stats[part] for part in parts}


def delivered_sessions(counting: CountingTracker, path: str = "/conversations/end") -> set[str]:
    return {told.session_id for told in counting.events.values() if told.path == path}


def folder_of(tracker: AgentPerformanceTracker) -> Path:
    return tracker._config.state_folder


def fill(disk: Path) -> Path:
    """Write to the disk until it takes no more; the file that has it all."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while file.write(b"x" * 65536):
                pass
        except OSError:
            return filler
    raise AssertionError("the disk has no end")


def test_fault_17_a_full_disk_reaches_neither_the_application_nor_the_tracker(
    small_disk: Path, make_tracker: MakeTracker, counting: CountingTracker
) -> None:
    """While the disk is full events wait in memory and are delivered from there; when there is space again they
    go to disk by themselves. Nothing is raised and nothing is lost.
    """
    filler = fill(small_disk)
    tracker = make_tracker(counting.url, state_dir=small_disk / "state")
    sessions = converse(tracker, 50)
    assert tracker.flush(30)
    assert delivered_sessions(counting) == sessions
    filler.unlink()
    folder = folder_of(tracker)
    counting.refuses = 1.0
    wait_until(lambda: converse_one(tracker, sessions) and list(folder.glob("*.journal-1")), 30)
    counting.refuses = 0.0
    tracker.close()
    tracker = make_tracker(counting.url, state_dir=small_disk / "state")
    assert tracker.flush(30)
    assert delivered_sessions(counting) >= sessions
    assert set(counting.told().values()) == {1}


@pytest.mark.parametrize("for_good", [False, True], ids=["once", "until it is mended"])
def test_fault_17_wherever_storage_fails_nothing_is_raised_and_nothing_is_lost(
    tmp_path: Path, counting: CountingTracker, monkeypatch: pytest.MonkeyPatch, for_good: bool
) -> None:
    """Each of the calls that files, mappings and SQLite get in a conversation's life fails in turn, once or from then
    on until the disk is mended: calls return, every event is delivered exactly once, and the books agree.
    """
    monkeypatch.setattr(worker, "TROUBLE_INTERVAL", 0.01)
    monkeypatch.setattr(state_file, "RETRY_SECONDS", 0.05)
    storage = FailingStorage(monkeypatch)

    def live(name: str, number: int | None) -> None:
        if number is not None:
            storage.fail_at(number, for_good=for_good)
        options: dict[str, Any] = {"state_dir": tmp_path / name, "flush_timeout_seconds": 0.1}
        with AgentPerformanceTracker(counting.url, **options) as tracker:
            sessions = converse(tracker, 2)
            flushed = tracker.flush(0.2 if for_good else 10)
            assert flushed or for_good
            storage.heal()
            sessions |= converse(tracker, 1)
            assert tracker.flush(30), number
            assert books(tracker) == {"delivered": 6, "pending": 0, "dead_lettered": 0, "dropped": 0}, number
        told = {each: count for each, count in counting.told().items() if each.session_id in sessions}
        assert [len(told), set(told.values())] == [6, {1}], number

    live("sound", None)
    calls = storage.calls
    assert calls > 50
    for number in range(calls):
        live(f"fails-{number}", number)
    assert storage.failed >= calls / 2


def test_fault_17_of_a_disk_that_hangs_one_call_takes_notice(
    make_tracker: MakeTracker, counting: CountingTracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the disk answers nothing one call waits for it, a moment, and all others put their events into memory at
    once; when it answers again every event is delivered exactly once, and those that come are on disk.
    """
    monkeypatch.setitem(journal.Journal.__init__.__kwdefaults__ or {}, "segment_bytes", 16 * 1024)
    waits: list[bool] = []
    plain_wait = making.Making.wait

    def noted_wait(self: making.Making) -> bool:
        waits.append(plain_wait(self))
        return waits[-1]

    storage = FailingStorage(monkeypatch)
    tracker = make_tracker(counting.url)
    sessions = converse(tracker, 10)
    assert tracker.flush(30)
    ring = tracker._pipeline._journal
    storage.hang()
    while not ring.read_ring():
        sessions |= converse(tracker, 1)
    monkeypatch.setattr(making, "TURN", 60.0)
    monkeypatch.setattr(making.Making, "wait", noted_wait)
    sessions |= converse(tracker, 50)
    assert waits == [False] * 100
    assert ring.counters.not_durable >= 100
    storage.heal()
    assert tracker.flush(30)
    assert delivered_sessions(counting) == sessions
    assert books(tracker) == {"delivered": 2 * len(sessions), "pending": 0, "dead_lettered": 0, "dropped": 0}
    assert set(counting.told().values()) == {1}
    before = ring.counters.not_durable
    converse(tracker, 20)
    assert ring.counters.not_durable == before


def converse_one(tracker: AgentPerformanceTracker, sessions: set[str]) -> bool:
    sessions |= converse(tracker, 1)
    return True


@pytest.mark.parametrize("kind", ["below a file", "a file", "forbidden"])
def test_fault_18_without_a_state_folder_events_are_kept_in_memory(
    tmp_path: Path,
    make_tracker: MakeTracker,
    counting: CountingTracker,
    kind: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A state folder that cannot be used costs one warning: events are kept in memory and delivered from there."""
    (tmp_path / "file").write_text("no folder")
    state_dir = {"below a file": tmp_path / "file" / "state", "a file": tmp_path / "file"}.get(
        kind, Path("/proc/none")
    )
    tracker = make_tracker(counting.url, state_dir=state_dir)
    sessions = converse(tracker, 20)
    assert tracker.flush(30)
    assert delivered_sessions(counting) == sessions
    assert books(tracker) == {"delivered": 40, "pending": 0, "dead_lettered": 0, "dropped": 0}
    assert len(warnings(caplog)) == 1


def test_fault_18_a_state_folder_that_is_read_only_is_used_once_it_is_not(
    small_disk: Path,
    make_tracker: MakeTracker,
    counting: CountingTracker,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Until then events are delivered from memory, and one warning says so; the process need not be restarted."""
    monkeypatch.setattr(state_file, "RETRY_SECONDS", 0.05)
    as_root("mount", "-o", "remount,ro", small_disk)
    tracker = make_tracker(counting.url, state_dir=small_disk / "state")
    sessions = converse(tracker, 20)
    assert tracker.flush(30)
    assert delivered_sessions(counting) == sessions
    assert not list(small_disk.iterdir())
    as_root("mount", "-o", "remount,rw", small_disk)
    wait_until(
        lambda: converse_one(tracker, sessions) and (folder_of(tracker) / state_file.NAME).exists(), 30
    )
    assert tracker.flush(30)
    assert delivered_sessions(counting) == sessions
    assert books(tracker)["delivered"] == 2 * len(sessions)
    assert len(warnings(caplog)) == 1


UNPRIVILEGED = """
import logging, os, sys, time
from otel_agent_tracker import AgentPerformanceTracker, client, state_file, worker
warm = client.TrackerClient(sys.argv[1])  # whoever may not write here may not read where Python is
warm.capabilities()
warm.close()
if not os.geteuid():
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
warnings = []
handler = logging.Handler(logging.WARNING)
handler.emit = warnings.append
logging.getLogger().addHandler(handler)
state_file.RETRY_SECONDS = 0.05
tracker = AgentPerformanceTracker(sys.argv[1], state_dir=sys.argv[2], flush_timeout_seconds=0.1)

def converse():
    session = tracker.start_conversation("bot", "u1")
    assert tracker.end_conversation(session, 4)
    print(session)

for _ in range(20):
    converse()
assert tracker.flush(30)
print("told", flush=True)
sys.stdin.readline()
while not (tracker._config.state_folder / state_file.NAME).exists():
    converse()
    time.sleep(0.01)
converse()
assert tracker.flush(30)
print(len(warnings))
"""


@pytest.mark.parametrize("kind", ["read-only", "somebody else's"])
def test_fault_18_without_the_right_to_write_events_are_kept_in_memory(
    counting: CountingTracker, kind: str
) -> None:
    """A process that may not write where its state folder belongs warns once and delivers from memory; when it may,
    it uses the folder, and need not be restarted.
    """
    user = os.geteuid() or 65534
    with tempfile.TemporaryDirectory() as name:
        shared, place = Path(name), Path(name) / "place"
        shared.chmod(0o755)
        place.mkdir()
        as_root("chown", str(user if kind == "read-only" else 0), place)
        as_root("chmod", "555", place)
        command = [sys.executable, "-c", UNPRIVILEGED, counting.url, str(place / "state")]
        pipe = subprocess.PIPE
        with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
            assert process.stdout is not None
            lines = []
            while (line := process.stdout.readline().strip()) not in ("", "told"):
                lines.append(line)
            assert list(place.iterdir()) == []
            as_root("chown", str(user), place)
            as_root("chmod", "755", place)
            out, err = process.communicate("\n", timeout=60)
        assert (process.returncode, err) == (0, "")
        assert next(place.glob("state/*/state.sqlite3")).stat().st_uid == user
    *later, warned = out.split()
    assert warned == "1"
    assert delivered_sessions(counting) == {*lines, *later}
    assert set(counting.told().values()) == {1}


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


def header(file: Path, _log: Path) -> None:
    file.write_bytes(b"x" * 100 + file.read_bytes()[100:])


def half(file: Path, _log: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def page(file: Path, _log: Path) -> None:
    content = bytearray(file.read_bytes())
    middle = len(content) // 8192 * 4096
    content[middle : middle + 4096] = os.urandom(4096)
    file.write_bytes(content)


def nothing(file: Path, _log: Path) -> None:
    os.truncate(file, 0)


def garbage_log(_file: Path, log: Path) -> None:
    log.write_bytes(os.urandom(50_000))


def torn_log(_file: Path, log: Path) -> None:
    os.truncate(log, log.stat().st_size * 2 // 3 + 100)


@pytest.mark.parametrize("damage", [header, half, page, nothing, garbage_log, torn_log])
def test_fault_19_a_damaged_state_file_costs_what_is_damaged_and_nothing_else(
    tmp_path: Path,
    make_tracker: MakeTracker,
    counting: CountingTracker,
    damage: Callable[[Path, Path], None],
) -> None:
    """A damaged state file is set aside once, what can be read of it is delivered, what is lost is counted, and
    a new file takes what comes.
    """
    counting.refuses = 1.0
    first = make_tracker(counting.url)
    converse(first, BEGUN)
    assert not first.flush(0.5)
    file = folder_of(first) / "state.sqlite3"
    log = file.with_name(file.name + "-wal")
    if damage in (garbage_log, torn_log):  # as a process that was killed leaves it
        held = {path: path.read_bytes() for path in (file, log)}
        first.close()
        for path, content in held.items():
            path.write_bytes(content)
    else:
        first.close()
    damage(file, log)
    counting.refuses = 0.0
    tracker = make_tracker(counting.url)
    (session,) = converse(tracker, 1)
    assert tracker.flush(30)
    assert session in delivered_sessions(counting)
    assert len(list(file.parent.glob("*.corrupt-*[0-9]"))) == (damage in (header, half, page))
    stats = books(tracker)
    assert stats["pending"] == 0
    if damage is page:
        assert stats["delivered"] + stats["dropped"] == 2 * BEGUN + 2
        assert 0 < stats["dropped"] < 50


def test_fault_20_a_state_folder_deleted_while_in_use_is_made_anew(
    make_tracker: MakeTracker, counting: CountingTracker
) -> None:
    """What was accepted before and after somebody deletes the state folder is delivered: it moves to a new one."""
    counting.refuses = 1.0
    tracker = make_tracker(counting.url)
    sessions = converse(tracker, 20)
    assert not tracker.flush(0.5)
    shutil.rmtree(folder_of(tracker))
    sessions |= converse(tracker, 20)
    wait_until((folder_of(tracker) / "state.sqlite3").exists, 30)
    counting.refuses = 0.0
    assert tracker.flush(60)
    assert delivered_sessions(counting) == sessions
    assert books(tracker) == {"delivered": 80, "pending": 0, "dead_lettered": 0, "dropped": 0}


def test_fault_21_at_its_limit_activity_is_refused_first_then_turns_then_starts(
    tmp_path: Path, make_tracker: MakeTracker, counting: CountingTracker
) -> None:
    """A state folder that has reached its limit refuses activity first, then turns, then starts, each counted by
    its kind; ends are taken when all of these are refused.
    """
    counting.refuses = 1.0
    tracker = make_tracker(counting.url, outbox_max_mb=4.0)
    begun = tracker.start_conversation("bot", "u1")
    with AgentOperationsTracker(counting.url, state_dir=tmp_path / "state", outbox_max_mb=4.0) as operations:

        def refused(kind: str) -> bool:
            return kind in tracker.delivery_stats()["dropped_by_kind"]

        def say(kind: str) -> bool:
            """One more event of that kind; whether it was refused."""
            if kind == "agent.activity":
                operations.log_activity("bot", "work", {"text": "x" * 2000})
            elif kind == "conversation.turn":
                with tracker.turn(begun) as turn:
                    turn.fail("x" * 2000)
            else:
                tracker.start_conversation("bot", "u1", {"text": "x" * 2000})
            return refused(kind)

        order = ("agent.activity", "conversation.turn", "conversation.start")
        for number, kind in enumerate(order):
            at_once = (
                1 if number else 10
            )  # slowly near the limit: the worker tells how near it is, between events
            wait_until(lambda kind=kind, count=at_once: any(say(kind) for _ in range(count)), 60)  # type: ignore[misc]  # a default binds the loop's value
            assert not any(refused(later) for later in order[number + 1 :])
    before = tracker.delivery_stats()
    assert tracker.end_conversation(begun, 4)
    after = tracker.delivery_stats()
    assert after["pending"] == before["pending"] + 1
    assert set(after["dropped_by_kind"]) == set(order)
    books(tracker)


@pytest.mark.parametrize(("number", "used"), [(2, True), (99, False)])
def test_fault_22_the_next_release_s_state_file_is_used_a_later_one_s_is_left_alone(
    make_tracker: MakeTracker, counting: CountingTracker, number: int, used: bool
) -> None:
    """Two releases that follow one another share a state folder. A file of a later one still is left untouched;
    what is accepted meanwhile is kept in the journal and delivered.
    """
    first = make_tracker(counting.url)
    sessions = converse(first, 5)
    assert first.flush(30)
    file = folder_of(first) / "state.sqlite3"
    first.close()
    connection = sqlite3.connect(file)
    connection.execute(f"PRAGMA user_version = {number}")
    connection.close()
    before = file.read_bytes()
    tracker = make_tracker(counting.url)
    sessions |= converse(tracker, 5)
    assert tracker.flush(30)
    tracker.close()
    assert delivered_sessions(counting) == sessions
    assert set(counting.arrivals.values()) == {1}
    assert (file.read_bytes() != before) is used
    assert not list(file.parent.glob("*.corrupt-*"))


WRITER = """
import sys
from otel_agent_tracker import AgentPerformanceTracker
tracker = AgentPerformanceTracker(sys.argv[1], state_dir=sys.argv[2], flush_timeout_seconds=0.1)
print("ready", flush=True)
sys.stdin.read(1)
for _ in range(100):
    assert tracker.end_conversation(tracker.start_conversation("bot", "u1"), 4)
"""


def test_fault_22_23_sixteen_processes_that_write_at_once_lose_nothing(
    tmp_path: Path, make_tracker: MakeTracker, counting: CountingTracker
) -> None:
    """Sixteen processes that accept at the same moment into one state folder see no error, say nothing, and
    every event arrives once.
    """
    command = [sys.executable, "-c", WRITER, counting.url, str(tmp_path / "state")]
    pipe = subprocess.PIPE
    writers = [subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) for _ in range(16)]
    try:
        for writer in writers:
            assert writer.stdout is not None
            assert writer.stdout.readline() == "ready\n"
        told = [writer.communicate(timeout=120) for writer in _all_begun(writers)]
    finally:
        for writer in writers:
            writer.kill()
    assert [(writer.returncode, said) for writer, said in zip(writers, told, strict=True)] == [
        (0, ("", ""))
    ] * 16
    tracker = make_tracker(counting.url)
    assert tracker.flush(60)
    assert len(counting.events) == 16 * 200
    assert set(counting.told().values()) == {1}
    assert books(tracker) == {"delivered": 3200, "pending": 0, "dead_lettered": 0, "dropped": 0}


def _all_begun(writers: list[subprocess.Popen[str]]) -> list[subprocess.Popen[str]]:
    """Let them all go at once."""
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("!")
        writer.stdin.flush()
    return writers
