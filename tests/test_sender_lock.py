"""One process at a time may send for a state folder."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from otel_agent_tracker.sender_lock import SenderLock

HOLDER = """
import os, sys, time
from pathlib import Path
from otel_agent_tracker.sender_lock import SenderLock

lock = SenderLock(Path(sys.argv[1]))
os.register_at_fork(after_in_child=lock.release)
print(lock.acquire(), flush=True)
if sys.argv[2] == "with child" and os.fork() == 0:
    print(os.getpid(), flush=True)
time.sleep(60)
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "sender.lock"


@contextmanager
def holder(path: Path, *, child: str = "") -> Iterator[subprocess.Popen[str]]:
    """Another process that has the right."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path), child], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "True\n"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_one_at_a_time(path: Path) -> None:
    """Whoever has the right keeps it; when it is given up, the next one gets it."""
    first, second = SenderLock(path), SenderLock(path)
    assert [first.acquire(), first.acquire(), second.acquire()] == [True, True, False]
    first.release()
    first.release()
    assert second.acquire()
    second.release()


def test_the_file_is_private(path: Path) -> None:
    """Nobody else can hold the right, and a symbolic link is not followed."""
    lock = SenderLock(path)
    lock.acquire()
    assert path.stat().st_mode & 0o777 == 0o600
    lock.release()
    path.unlink()
    path.symlink_to(path.with_name("elsewhere"))
    with pytest.raises(OSError, match="sender"):
        lock.acquire()


def test_the_right_to_a_deleted_file_is_worth_nothing(path: Path) -> None:
    """After the folder was emptied the right is fought for anew, so that no two send."""
    first, second = SenderLock(path), SenderLock(path)
    first.acquire()
    path.unlink()
    assert [second.acquire(), first.acquire()] == [True, False]
    second.release()
    assert first.acquire()
    first.release()


def test_a_folder_that_is_gone_is_an_error(tmp_path: Path) -> None:
    """Whoever asks must know that the disk refuses; no descriptor is left open."""
    open_before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(OSError, match="gone"):
        SenderLock(tmp_path / "gone" / "sender.lock").acquire()
    assert len(list(Path("/proc/self/fd").iterdir())) == open_before


def test_a_killed_process_frees_the_right(path: Path) -> None:
    """The kernel does it."""
    lock = SenderLock(path)
    with holder(path) as process:
        assert not lock.acquire()
        process.kill()
        process.wait()
        assert lock.acquire()
    lock.release()


def test_a_living_child_does_not_hold_its_dead_parents_right(path: Path) -> None:
    """The child closes what it inherited, which leaves its parent's right alone while that lives."""
    lock = SenderLock(path)
    with holder(path, child="with child") as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        try:
            assert not lock.acquire()
            process.kill()
            process.wait()
            assert lock.acquire()
            os.kill(child, 0)  # it lives
        finally:
            os.kill(child, signal.SIGKILL)
    lock.release()
