"""What a pipeline holds of its worker: started once, asked from any thread, stopped in time."""

from __future__ import annotations

import io
import logging
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from otel_agent_tracker.handle import Snapshot, WorkerHandle
from otel_agent_tracker.state import Counts
from tests.waiting import wait_until

TIMEOUT = 10.0
SNAPSHOT = Snapshot(Counts(accepted=1, pending=1), absorbed=1, booked={}, pressure=0.0)
Make = Callable[..., WorkerHandle]


def answer_flushes(handle: WorkerHandle) -> None:
    """A worker that has nothing to do but to say so."""
    while not handle.stopping.wait(0.001):
        while handle.flushes:
            handle.flushes.popleft().done.set()


def do_nothing(handle: WorkerHandle) -> None:
    handle.stopping.wait(TIMEOUT)


@pytest.fixture
def make() -> Iterator[Make]:
    made: list[WorkerHandle] = []

    def make(main: Callable[[WorkerHandle], None] = answer_flushes) -> WorkerHandle:
        made.append(WorkerHandle(lambda handle: partial(main, handle), lambda: None))
        return made[-1]

    yield make
    for handle in made:
        handle.stop(TIMEOUT)


def test_the_thread_starts_once(make: Make) -> None:
    """However many threads ask for it."""
    mains: list[int] = []

    def main(handle: WorkerHandle) -> None:
        mains.append(threading.get_ident())
        do_nothing(handle)

    handle = make(main)
    threads = [threading.Thread(target=handle.start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    handle.stop(TIMEOUT)
    assert [handle.started, len(mains)] == [True, 1]


def test_nothing_starts_after_stop(make: Make) -> None:
    """And a flush is answered at once."""
    handle = make()
    handle.stop(TIMEOUT)
    handle.start()
    assert [handle.started, handle.flush(TIMEOUT)] == [False, False]


def test_a_flush_waits_for_its_answer(make: Make) -> None:
    """It starts the worker if need be."""
    assert make().flush(TIMEOUT)


def test_a_flush_that_took_too_long_is_abandoned(make: Make) -> None:
    """The worker learns that nobody waits any more."""
    handle = make(do_nothing)
    began = time.monotonic()
    assert not handle.flush(0.05)
    assert time.monotonic() - began < 1.0
    assert [request.abandoned for request in handle.flushes] == [True]


def test_without_threads_nothing_is_waited_for(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """At interpreter exit no thread can be started; events stay where they are."""

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    handle = make()
    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert [handle.flush(TIMEOUT), handle.started] == [False, False]


def test_the_first_look_waits_for_the_worker(make: Make) -> None:
    """Later ones take what was published last; without a worker there is nothing to wait for."""

    def publish(handle: WorkerHandle) -> None:
        handle.publish(SNAPSHOT)
        do_nothing(handle)

    handle = make(publish)
    assert handle.seen(TIMEOUT) is None
    handle.start()
    assert handle.seen(TIMEOUT) == SNAPSHOT


def test_heartbeats_wait_for_the_worker_in_bounded_number(make: Make) -> None:
    """They are of use only while they are new."""
    handle = make(do_nothing)
    for number in range(1500):
        handle.heartbeat(f"agent{number}")
    assert [handle.started, len(handle.heartbeats), handle.heartbeats[-1]] == [True, 1000, "agent1499"]


def test_stop_waits_no_longer_than_it_is_told(make: Make) -> None:
    """A worker that hangs does not hang the host."""
    go_on = threading.Event()
    handle = make(lambda handle: go_on.wait(TIMEOUT) and None)
    handle.start()
    began = time.monotonic()
    handle.stop(0.05)
    assert time.monotonic() - began < 1.0
    go_on.set()


def test_the_worker_may_stop_itself(make: Make) -> None:
    """A finaliser may run on its thread."""
    ended = threading.Event()

    def main(handle: WorkerHandle) -> None:
        handle.stop(TIMEOUT)
        ended.set()

    make(main).start()
    assert ended.wait(TIMEOUT)


def test_a_signal_handler_may_start_while_its_thread_does(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Re-entered, start neither waits for itself nor starts a second thread."""
    handle, start, entered = make(), threading.Thread.start, []

    def interrupted(thread: threading.Thread) -> None:
        entered.append(thread)
        handle.start()
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    handle.start()
    assert len(entered) == 1


def test_a_worker_that_fails_goes_on(
    make: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its trouble is told, and events wait for it."""
    monkeypatch.setattr("otel_agent_tracker.handle.RESTART_INTERVAL", 0.01)
    failures = iter([OSError("no sender"), OSError("still none")])

    def main(handle: WorkerHandle) -> None:
        for failure in failures:
            raise failure
        answer_flushes(handle)

    assert make(main).flush(TIMEOUT)
    assert [str(record.exc_info[1]) for record in caplog.records if record.exc_info] == [
        "no sender",
        "still none",
    ]


def test_a_worker_that_cannot_be_made_is_made_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once, when it can be."""
    monkeypatch.setattr("otel_agent_tracker.handle.RESTART_INTERVAL", 0.01)
    outcomes = iter([OSError("no sender"), None, OSError("made twice")])

    def make(handle: WorkerHandle) -> Callable[[], None]:
        if (failure := next(outcomes)) is not None:
            raise failure
        runs = iter([OSError("it failed"), None])

        def run() -> None:
            if (failure := next(runs)) is not None:
                raise failure
            answer_flushes(handle)

        return run

    handle = WorkerHandle(make, lambda: None)
    assert handle.flush(TIMEOUT)
    handle.stop(TIMEOUT)
    assert len(list(outcomes)) == 1


def test_a_worker_whose_trouble_cannot_be_told_goes_on_too(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the host has detached the stream that its logging writes to."""
    monkeypatch.setattr("otel_agent_tracker.handle.RESTART_INTERVAL", 0.01)
    failures, stream = iter([OSError("no sender")]), io.TextIOWrapper(io.BytesIO())
    handler = logging.StreamHandler(stream)
    logging.getLogger().addHandler(handler)
    stream.detach()

    def main(handle: WorkerHandle) -> None:
        for failure in failures:
            raise failure
        answer_flushes(handle)

    try:
        assert make(main).flush(TIMEOUT)
    finally:
        logging.getLogger().removeHandler(handler)


def test_a_fork_waits_for_the_worker_between_two_cycles(make: Make) -> None:
    """What it has open is closed by then; in the middle of a cycle it is waited for, but not for ever."""
    handle, suspended = make(), []
    handle.suspend = lambda: suspended.append(True)
    with handle.stepping:
        assert not handle.pause_for_fork(0.01)
    handle.resume_after_fork()
    assert [handle.pause_for_fork(TIMEOUT), handle.stepping.locked(), suspended] == [True, True, [True]]
    handle.resume_after_fork()
    assert not handle.stepping.locked()


def test_a_worker_in_a_long_cycle_gives_way_to_a_fork(make: Make) -> None:
    """It stands still from the pause to the end of the fork, and then goes on with its cycle."""
    handle, in_cycle, over = make(), threading.Event(), threading.Event()
    rounds = 0

    def cycle() -> None:
        nonlocal rounds
        with handle.stepping:
            in_cycle.set()
            while not over.is_set():
                handle.give_way()
                rounds += 1

    worker = threading.Thread(target=cycle)
    worker.start()
    assert in_cycle.wait(TIMEOUT)
    assert handle.pause_for_fork(TIMEOUT)
    seen = rounds
    assert [handle.stepping.locked(), worker.is_alive(), rounds] == [True, True, seen]
    handle.resume_after_fork()
    wait_until(lambda: rounds > seen)
    over.set()
    worker.join(TIMEOUT)
    assert not handle.stepping.locked()
