"""The lock of what callers run: free at once, also beside a thread that computes, and after any interruption."""

from __future__ import annotations

import signal
import sys
import threading
import time
from contextlib import suppress
from random import Random

import pytest

from otel_agent_tracker.hot_lock import HotLock

THREADS = 8
TIMES = 100


class Interrupted(BaseException):
    """What the signal handler raises."""


def _interrupt(number: int, frame: object) -> None:
    raise Interrupted


def _seconds_once_in_line(lock: HotLock) -> float:
    """How long threads need that all came while the lock was taken, and each want it again and again."""
    in_line = threading.Barrier(THREADS + 1)

    def work() -> None:
        in_line.wait()
        for _ in range(TIMES):
            with lock:
                pass

    threads = [threading.Thread(target=work) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    with lock:
        in_line.wait()
        _compute(0.05)
    start = time.perf_counter()
    while any(thread.is_alive() for thread in threads):
        _compute(0.02)
    return time.perf_counter() - start


def _compute(seconds: float) -> None:
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        pass


def test_threads_that_stood_in_line_do_not_go_on_standing_in_line() -> None:
    """With a lock that is handed over each of them waits for the GIL each time."""
    assert _seconds_once_in_line(HotLock()) < THREADS * TIMES * sys.getswitchinterval() / 2


def test_a_thread_may_take_it_again_and_others_only_when_it_has_let_go() -> None:
    lock, seen, entered = HotLock(), [], threading.Event()

    def other() -> None:
        entered.set()
        with lock:
            seen.append("other")

    with lock:
        with lock:
            thread = threading.Thread(target=other)
            thread.start()
            assert entered.wait(10)
        seen.append("first")
    thread.join(10)
    assert seen == ["first", "other"]


def test_only_one_thread_at_a_time_has_it() -> None:
    lock, total = HotLock(), [0]

    def work() -> None:
        for _ in range(5_000):
            with lock:
                before = total[0]
                time.sleep(0) if before % 100 == 0 else None
                total[0] = before + 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert total == [20_000]


@pytest.mark.parametrize("is_taken", [False, True], ids=["free", "taken by another now and then"])
def test_whoever_is_interrupted_leaves_it_free(is_taken: bool) -> None:
    lock, random, stop = HotLock(), Random(7), threading.Event()

    def take_it() -> None:
        while not stop.is_set():
            with lock:
                time.sleep(0.00005)
            time.sleep(0.00005)

    rival = threading.Thread(target=take_it)
    if is_taken:
        rival.start()
    before = signal.signal(signal.SIGALRM, _interrupt)
    try:
        for _ in range(1_000):
            with suppress(Interrupted):
                signal.setitimer(signal.ITIMER_REAL, random.uniform(0.00001, 0.0003))
                while True:
                    with lock:
                        pass
    finally:
        signal.signal(signal.SIGALRM, before)
        stop.set()
    if is_taken:
        rival.join(10)
    found: list[bool] = []
    other = threading.Thread(target=lambda: found.append(lock.acquire(timeout=5)))
    other.start()
    other.join(10)
    assert found == [True]
