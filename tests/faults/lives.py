"""Processes on the test's own thread: the worker takes a step when it is told to, and a process can die anywhere.

with on_one_thread():
    life = Life(folder, clocks, sender)
    life.tracker.start_conversation("bot")
    life.step()
    life.die(another_folder)  # which then holds what a killed process would have left
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from inspect import CO_GENERATOR
from itertools import count
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import otel_agent_tracker
from otel_agent_tracker import AgentPerformanceTracker
from otel_agent_tracker.agents import remove_toucher
from otel_agent_tracker.clock import Clock
from otel_agent_tracker.config import Config
from otel_agent_tracker.delivery import Sender
from otel_agent_tracker.handle import FlushRequest, WorkerHandle
from otel_agent_tracker.journal import Journal
from otel_agent_tracker.lanes import Lanes
from otel_agent_tracker.making import Making
from otel_agent_tracker.pipeline import Pipeline, substitute
from otel_agent_tracker.worker import Worker

__all__ = ["Clocks", "Death", "Life", "death_at", "killed", "on_one_thread"]

START_US = 1_705_681_056_000_000
PACKAGE = Path(otel_agent_tracker.__file__).parent
STORING = {
    str(PACKAGE / f"{name}.py")
    for name in ("journal", "segment", "frames", "state", "state_file", "worker", "delivery", "replay")
}


class Clocks:
    """Two clocks that stand until they are moved; each look at the wall takes a microsecond."""

    def __init__(self) -> None:
        self.monotonic = 1000.0
        self._wall_us = START_US
        self._looks = count(1)
        self.clock = Clock(time_ns=self._look_ns, monotonic=lambda: self.monotonic)

    def advance(self, seconds: float) -> None:
        """Time passes."""
        self.monotonic += seconds
        self.set_wall(seconds)

    def set_wall(self, seconds: float) -> None:
        """Somebody sets the wall clock, forwards or back."""
        self._wall_us += round(seconds * 1e6)

    def _look_ns(self) -> int:
        return (self._wall_us + next(self._looks)) * 1000


class Death(BaseException):
    """The process is killed here; nothing in it may go on."""


class Life:
    """A process with a tracker object, from its start to its death."""

    def __init__(self, state_dir: Path, clocks: Clocks, sender: Sender, **options: Any) -> None:
        self.state_dir = state_dir
        state_dir.mkdir(exist_ok=True, parents=True)
        config = Config(
            url="http://tracker.invalid", state_dir=state_dir, **{"flush_timeout_seconds": 0.0, **options}
        )
        self.pipeline = Pipeline(config, clock=clocks.clock, sender=sender)
        make_work = self.pipeline._make_work
        self._handle = self.pipeline._handle = _Unthreaded(make_work, self.pipeline._journal.wake)
        make_work(self._handle)()
        self.worker = _Unthreaded.workers.pop()
        substitute(self.pipeline)
        self.tracker = AgentPerformanceTracker()

    def step(self) -> bool:
        """One cycle of the worker, in which everything is due; whether all that was pending is delivered."""
        request = FlushRequest()
        self._handle.flushes.append(request)
        with self._handle.stepping:
            self.worker._cycle()
        request.abandoned = True
        return request.done.is_set()

    def books(self) -> dict[str, int]:
        """The books, which must add up whenever one looks."""
        stats = self.tracker.delivery_stats()
        parts = ("delivered", "pending", "dead_lettered", "dropped")
        assert stats["accepted"] == sum(stats[part] for part in parts), stats
        return {name: stats[name] for name in ("accepted", *parts)}

    def end(self) -> None:
        """The process ends as it should."""
        self.worker._close()
        self.tracker.close()

    def die(self, left_in: Path) -> None:
        """The process is killed: what it had on disk, as it is now, is left in another folder."""
        shutil.copytree(self.state_dir, left_in)
        self.bury()

    def bury(self) -> None:
        """Nothing is left of the process."""
        self.let_go()
        shutil.rmtree(self.state_dir)

    def let_go(self) -> None:
        """Close what the kernel closes when the process is dead."""
        journal, lock, state = self.pipeline._journal, self.pipeline._sender_lock, self.worker._file.state
        assert isinstance(journal, Journal)
        assert lock is not None
        journal._release_all()
        lock.release()
        if state is not None:
            state.close()
        remove_toucher(self.pipeline.sessions.touch)


@contextmanager
def on_one_thread() -> Iterator[None]:
    """Inside, no pipeline starts a thread, and what happens now and then happens in every step."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Worker, "run", lambda worker: _Unthreaded.workers.append(worker))
        patch.setattr("otel_agent_tracker.delivery.Lanes", _Inline)
        patch.setattr("otel_agent_tracker.pipeline.Journal", _SmallJournal)
        for interval in ("SHARE_INTERVAL", "PUBLISH_REST"):
            patch.setattr(f"otel_agent_tracker.worker.{interval}", 0.0)
        try:
            yield
        finally:
            substitute(None)


@contextmanager
def death_at(point: int, life: Life, left_in: Path) -> Iterator[Callable[[], int]]:
    """Kill the process at that point, inside: points lie before and after each call of what stores events.

    Calls what tells how many points have been passed. Raises Death, which stops at nothing.
    """
    passed = 0

    def passing(frame: FrameType, event: str, _: object) -> None:
        nonlocal passed
        code = frame.f_code
        if code.co_filename not in STORING:
            return
        if code.co_flags & CO_GENERATOR and not event.startswith("c_"):
            return  # a generator that is let go of stops at nothing raised in it
        passed += 1
        if passed == point:
            sys.setprofile(None)
            shutil.copytree(life.state_dir, left_in)
            raise Death

    sys.setprofile(passing)
    try:
        yield lambda: passed
    finally:
        sys.setprofile(None)


def killed(life: Life, point: int, left_in: Path, act: Callable[[], object]) -> bool:
    """Whether the process died at that point of the act; if it has fewer, it dies afterwards."""
    try:
        with death_at(point, life, left_in):
            act()
    except Death:
        life.bury()
        return True
    life.die(left_in)
    return False


class _Unthreaded(WorkerHandle):
    """Starts no thread; the workers are those whose `run` was asked for."""

    workers: list[Worker] = []  # noqa: RUF012 - filled in place of `Worker.run`

    def start(self) -> None:
        """Nothing: a test takes the steps."""


class _Inline(Lanes[Any]):
    """Does everything at once, as where no thread can be started."""

    def _start_thread(self) -> None:
        pass


class _SmallJournal(Journal):
    """Segments that are full after a few events, and are made on the thread that needs one."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, segment_bytes=8192)

    def _make_elsewhere(self, making: Making, least: int) -> None:
        self._make_for_callers(making, least)
