"""Waiting for what another thread makes: for a thread that wants the CPU or the GIL, but not for a disk."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from otel_agent_tracker import making as making_module
from otel_agent_tracker.journal import Journal
from otel_agent_tracker.making import PATIENCE, TURN, Making


@contextmanager
def maker(make: Callable[[], object], *, is_slow: bool = False) -> Iterator[Making]:
    """What a thread makes."""
    making = Making(is_slow=is_slow)

    def run() -> None:
        making.begin()
        make()
        making.finish()

    thread = threading.Thread(target=run)
    thread.start()
    yield making
    thread.join()


def seconds_waited(making: Making) -> float:
    """How long it took to see it finished."""
    began = time.monotonic()
    assert making.wait()
    return time.monotonic() - began


def test_what_is_finished_is_not_waited_for() -> None:
    """Also if it was finished before anybody asked."""
    with maker(lambda: None) as making:
        assert making.wait()
    assert making.wait()


def test_a_maker_that_nothing_answers_is_waited_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few turns; whoever comes later does not wait at all, until it is finished."""
    may_go = threading.Event()
    with maker(may_go.wait) as making:
        assert not making.wait()
        monkeypatch.setattr(making_module, "TURN", 60.0)
        assert not making.wait()
        may_go.set()
    assert making.wait()


def test_after_something_slow_one_call_tries_and_the_others_do_not_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What it finds holds for what is made next."""
    may_go = threading.Event()
    with maker(may_go.wait, is_slow=True) as making:
        began = time.monotonic()
        assert not making.wait()
        assert time.monotonic() - began < PATIENCE * TURN
        monkeypatch.setattr(making_module, "DOUBT", (60.0, 3))
        assert not making.wait()
        assert making.is_slow
        may_go.set()
    with maker(lambda: None, is_slow=True) as making:
        assert making.wait()
        assert not making.is_slow


def test_answers_that_take_their_time_one_by_one_are_one_slow_disk() -> None:
    """Each is awaited for less than the patience there is, all of them for more."""

    def make() -> None:
        while not may_go.wait(TURN * (PATIENCE - 2)):
            pass

    may_go = threading.Event()
    with maker(make) as making:
        assert not making.wait()
        may_go.set()


def test_a_maker_that_does_not_get_the_cpu_is_waited_for() -> None:
    """It is ready all the time, and another process has its place."""
    cpu = min(os.sched_getaffinity(0))
    hog = f"import os, time; os.sched_setaffinity(0, {{{cpu}}}); print(flush=True); end = time.time() + 0.5\n"

    def make() -> None:
        os.sched_setaffinity(0, {cpu})
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        while time.thread_time() < 0.005:
            pass

    command = [sys.executable, "-c", hog + "while time.time() < end: pass"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with maker(make) as making:
            assert seconds_waited(making) > PATIENCE * TURN


def test_a_maker_that_does_not_get_the_gil_is_waited_for() -> None:
    """Other threads run, and every call into the system gives it up."""
    is_over = threading.Event()

    def make() -> None:
        for _ in range(30):
            time.sleep(0)

    others = [threading.Thread(target=compute_until, args=(is_over,)) for _ in range(3)]
    for other in others:
        other.start()
    with maker(make) as making:
        assert seconds_waited(making) > PATIENCE * TURN
    is_over.set()
    for other in others:
        other.join()


def compute_until(is_over: threading.Event) -> None:
    while not is_over.is_set():
        sum(range(1_000))


def test_where_the_system_tells_nothing_each_turn_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """No /proc: then patience is all there is."""
    monkeypatch.setattr(making_module, "Path", lambda _: Path("/nowhere"))
    is_over = threading.Event()
    with maker(lambda: compute_until(is_over)) as making:
        assert not making.wait()
        is_over.set()


def test_a_maker_is_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """Though it runs all the time."""
    monkeypatch.setattr(making_module, "MOST_TURNS", 3)
    is_over = threading.Event()
    with maker(lambda: compute_until(is_over)) as making:
        assert not making.wait()
        is_over.set()


def test_a_maker_that_has_died_is_not_waited_for() -> None:
    """What is known of its thread ends with it."""
    making = Making()
    thread = threading.Thread(target=making.begin)
    thread.start()
    thread.join()
    assert not making.wait()


def test_a_maker_that_cannot_begin_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever fails before it makes anything: its event waits in memory, and the next try is another's."""

    def fail(making: Making) -> None:
        raise RuntimeError("no thread can be told from another")

    journal = Journal(tmp_path / "state")
    with monkeypatch.context() as patch:
        patch.setattr(Making, "begin", fail)
        began = time.monotonic()
        assert not journal.append(b"x")
        assert time.monotonic() - began < 1.0
    journal.prepare()
    assert journal.append(b"y")
    journal.close()
