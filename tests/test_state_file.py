"""The state file of a folder: private, set aside when damaged, in memory while the disk refuses."""

from __future__ import annotations

import logging
import sqlite3
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from otel_agent_tracker.sqlite_lock import is_busy
from otel_agent_tracker.state import NewRow, State
from otel_agent_tracker.state_file import (
    MOST_SET_ASIDE,
    RETRY_SECONDS,
    StateFile,
    is_damage,
    open_state,
)

LIMIT = 1 << 24
EVENT = NewRow("e1", "x", "/x", "s", b"{}", b"null", b"", 1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "state"


@pytest.fixture
def file(folder: Path) -> Iterator[StateFile]:
    file = StateFile(folder, writer="a", limit_bytes=LIMIT)
    yield file
    file.close()


def accept(state: State, event_id: str = "e1") -> None:
    with state.transaction():
        state.accept([EVENT._replace(event_id=event_id)])


def test_folder_and_files_are_private(file: StateFile, folder: Path) -> None:
    """What users said is nobody else's business."""
    accept(file.change(0.0))
    modes = {path.name: path.stat().st_mode & 0o777 for path in (folder, *folder.iterdir())}
    assert modes == {
        "state": 0o700,
        "state.sqlite3": 0o600,
        "state.sqlite3-wal": 0o600,
        "state.sqlite3-shm": 0o600,
    }


def test_symbolic_links_are_not_followed(folder: Path, tmp_path: Path) -> None:
    """Neither of the folder nor of the file."""
    folder.mkdir(parents=True)
    (folder / "state.sqlite3").symlink_to(tmp_path / "theirs")
    (tmp_path / "link").symlink_to(folder)
    for path in (folder, tmp_path / "link"):
        with pytest.raises(OSError, match="link"):
            open_state(path, writer="a", limit_bytes=LIMIT)
    assert not (tmp_path / "theirs").exists()


def test_memory_needs_no_folder() -> None:
    """And never changes."""
    file = StateFile(None, writer="a", limit_bytes=LIMIT)
    assert [file.change(0.0).is_private, file.on_disk, file.must_change(1e9)] == [True, False, False]
    file.close()
    file.close()


def test_a_file_that_this_process_may_not_open_is_never_tried(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Told once; the folder is not even looked at."""
    file = StateFile(folder, writer="a", limit_bytes=LIMIT, unusable="it is the parent's")
    accept(file.change(0.0))
    assert [file.on_disk, file.must_change(10 * RETRY_SECONDS), folder.exists()] == [False, False, False]
    assert [record.getMessage() for record in caplog.records] == [
        "the state folder cannot be used, events are kept in memory: it is the parent's"
    ]
    file.close()


def test_a_refused_folder_is_tried_again_every_minute(
    file: StateFile, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Told once; what was kept in memory goes to disk."""
    folder.parent.write_text("not a folder")
    state = file.change(0.0)
    accept(state)
    for now in (RETRY_SECONDS, 2 * RETRY_SECONDS):
        assert [file.must_change(now - 1), file.must_change(now), file.change(now) is state] == [
            False,
            True,
            True,
        ]
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    folder.parent.unlink()
    again = file.change(3 * RETRY_SECONDS)
    assert [file.on_disk, again.is_private, again.counts().pending] == [True, False, 1]


def test_a_deleted_file_moves_at_once(file: StateFile, folder: Path) -> None:
    """With all that it holds."""
    accept(file.change(0.0))
    assert not file.must_change(0.0)
    (folder / "state.sqlite3").unlink()
    assert file.must_change(0.0)
    state = file.change(0.0)
    assert [file.must_change(0.0), state.is_in_place, state.counts().pending] == [False, True, 1]


def test_a_tally_counts_on_through_every_state(folder: Path) -> None:
    """On disk, in memory, in a new file."""
    tally: Counter[str] = Counter()
    file = StateFile(folder, writer="a", limit_bytes=LIMIT, tally=tally)
    folder.parent.touch()  # no folder can be made: memory
    accept(file.change(0.0), "e1")
    folder.parent.unlink()
    accept(file.change(2 * RETRY_SECONDS), "e2")
    (folder / "state.sqlite3").write_bytes(b"no database" * 1000)
    file.close()
    accept(file.change(3 * RETRY_SECONDS), "e3")
    assert tally["accepted"] == 3
    file.close()


def test_several_processes_leave_a_deleted_file_without_counting_twice(file: StateFile, folder: Path) -> None:
    """Each brings what it knows."""
    other = StateFile(folder, writer="b", limit_bytes=LIMIT)
    state = file.change(0.0)
    other.change(0.0)
    accept(state, "delivered")
    with state.transaction():
        state.delivered([1])
    accept(state)
    for path in list(folder.iterdir()):
        path.unlink()
    file.change(0.0)
    counts = other.change(0.0).counts()
    assert [counts.accepted, counts.delivered, counts.pending] == [2, 1, 1]
    other.close()


def test_a_damaged_file_is_set_aside(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It stays for whoever wants to look into it."""
    folder.mkdir(parents=True)
    (folder / "state.sqlite3").write_bytes(b"no database, but something else" * 100)
    state = open_state(folder, writer="a", limit_bytes=LIMIT)
    accept(state)
    state.close()
    (aside,) = folder.glob("*.corrupt-*")
    assert [aside.read_bytes()[:11], "0 events were recovered" in caplog.text] == [b"no database", True]


def test_damage_that_shows_later_sets_the_file_aside_once(file: StateFile, folder: Path) -> None:
    """A second process that finds it replaced leaves the new file alone."""
    other = StateFile(folder, writer="b", limit_bytes=LIMIT)
    accept(file.change(0.0))
    other.change(0.0)
    error = sqlite3.DatabaseError("database disk image is malformed")
    file.abandon_damaged(error)
    assert file.change(0.0).counts().pending == 1
    other.abandon_damaged(error)
    assert other.change(0.0).counts().pending == 1
    assert len(list(folder.glob("*.corrupt-*[0-9]"))) == 1
    other.close()


def test_what_is_lost_is_counted(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A text that does not decode costs its own row; the books still add up."""
    state = open_state(folder, writer="a", limit_bytes=LIMIT)
    for number in range(9):
        accept(state, f"event {number}")
    with state.transaction():
        state.delivered([1, 2])
    state.close()
    path = folder / "state.sqlite3"
    path.write_bytes(
        path.read_bytes().replace(b"event 5/", b"event\xff5/").replace(b"event 5x", b"event\xff5x")
    )
    damaged = State(path, writer="a", max_bytes=LIMIT)
    with pytest.raises(sqlite3.OperationalError) as caught:
        damaged.pending(9)
    damaged.close()
    assert is_damage(caught.value)
    file = StateFile(folder, writer="b", limit_bytes=LIMIT)
    file.change(0.0)
    file.abandon_damaged(caught.value)
    salvaged = file.change(0.0)
    assert [row.event_id[-1] for row in salvaged.pending(9)] == ["2", "3", "4", "6", "7", "8"]
    counts = salvaged.counts()
    assert [counts.accepted, counts.delivered, counts.dropped_by_kind] == [9, 2, {"damaged": 1}]
    assert "6 events were recovered, 1 were lost" in caplog.text
    file.close()


def test_only_so_many_files_are_set_aside(file: StateFile, folder: Path) -> None:
    """A disk that damages everything is not filled by it."""
    error = sqlite3.DatabaseError("database disk image is malformed")
    for number in range(MOST_SET_ASIDE + 3):
        accept(file.change(0.0), f"event {number}")
        file.abandon_damaged(error)
    assert file.change(0.0).counts().pending == MOST_SET_ASIDE + 3
    assert len(list(folder.glob("*.corrupt-*[0-9]"))) == MOST_SET_ASIDE


def test_a_busy_file_is_no_refusal(file: StateFile, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is asked for again, and nothing goes to memory."""
    state = file.change(0.0)
    connection = sqlite3.connect(folder / "state.sqlite3", timeout=0.0)
    with state.transaction(), pytest.raises(sqlite3.OperationalError) as caught:
        connection.execute("BEGIN IMMEDIATE")
    connection.close()
    assert [is_busy(caught.value), is_damage(caught.value)] == [True, False]

    def refuse(*_: object, **__: object) -> State:
        raise caught.value

    (folder / "state.sqlite3").rename(folder / "moved")
    monkeypatch.setattr("otel_agent_tracker.state_file.open_state", refuse)
    with pytest.raises(sqlite3.OperationalError):
        file.change(0.0)
    assert [file.on_disk, file.state is state] == [True, True]
