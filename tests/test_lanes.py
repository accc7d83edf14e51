"""Lanes run jobs beside the worker, lose no result, and end when they are told."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from otel_agent_tracker.lanes import Lanes

TIMEOUT = 10.0


class Bell:
    """Counts how often lanes were done."""

    def __init__(self) -> None:
        self._rung = threading.Semaphore(0)

    def __call__(self) -> None:
        self._rung.release()

    def wait(self, times: int) -> None:
        for _ in range(times):
            assert self._rung.acquire(timeout=TIMEOUT)


@pytest.fixture
def bell() -> Bell:
    return Bell()


@pytest.fixture
def lanes(bell: Bell) -> Iterator[Lanes[str]]:
    lanes: Lanes[str] = Lanes(3, bell, lambda error: f"failed: {error}")
    yield lanes
    lanes.close()
    lanes.join(TIMEOUT)


def test_each_job_has_its_result(lanes: Lanes[str], bell: Bell) -> None:
    """Results come once, in any order, and are in flight until they are taken."""
    for number in range(20):
        lanes.submit(lambda number=number: str(number))  # type: ignore[misc]  # a default binds the loop's value
    bell.wait(20)
    assert lanes.in_flight == 20
    assert sorted(lanes.finished(), key=int) == [str(number) for number in range(20)]
    assert [lanes.in_flight, lanes.finished()] == [0, []]


def test_jobs_run_at_the_same_time_on_at_most_so_many_threads(lanes: Lanes[str], bell: Bell) -> None:
    """Three lanes: three jobs meet, a fourth comes after them; no more threads than jobs are made."""
    names: set[str] = set()
    meeting = threading.Barrier(3, action=lambda: None)

    def meet() -> str:
        names.add(str(threading.get_ident()))
        meeting.wait(TIMEOUT)
        return "met"

    for _ in range(6):
        lanes.submit(meet)
    bell.wait(6)
    assert [lanes.finished(), len(names)] == [["met"] * 6, 3]


def test_a_job_that_raises_has_a_result_too(lanes: Lanes[str], bell: Bell) -> None:
    """A mistake in a job neither ends its lane nor leaves the worker waiting."""

    def fail() -> str:
        raise ValueError("broken")

    for job in (fail, lambda: "works"):
        lanes.submit(job)
        bell.wait(1)
    assert lanes.finished() == ["failed: broken", "works"]


def test_closed_lanes_begin_nothing(bell: Bell) -> None:
    """Each thread ends with the job it is at; what waits is not begun."""
    lanes: Lanes[str] = Lanes(1, bell, str)
    begun, go_on = threading.Event(), threading.Event()

    def wait() -> str:
        begun.set()
        go_on.wait(TIMEOUT)
        return "first"

    lanes.submit(wait)
    lanes.submit(lambda: "second")
    assert begun.wait(TIMEOUT)
    lanes.close()
    lanes.close()
    go_on.set()
    lanes.join(TIMEOUT)
    assert [lanes.closed, lanes.finished()] == [True, ["first"]]
    assert not [thread for thread in threading.enumerate() if "lane" in thread.name]


def test_where_no_thread_can_be_started_the_job_runs_here(
    lanes: Lanes[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the interpreter exits the worker sends itself."""

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    lanes.submit(lambda: str(threading.get_ident()))
    assert lanes.finished() == [str(threading.get_ident())]
