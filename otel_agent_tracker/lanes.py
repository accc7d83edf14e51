"""Lanes: daemon threads that talk to the network, so that the worker never waits for it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Generic, TypeVar

__all__ = ["Lanes"]

_Result = TypeVar("_Result")


class Lanes(Generic[_Result]):
    """Runs jobs on at most `count` threads, started when there is work for them; `done` is called after each.

    Jobs must not raise. After `close` threads end with the job they are at, and its result is lost.
    """

    def __init__(self, count: int, done: Callable[[], None]) -> None:
        self.count = count
        self.in_flight = 0
        self._done = done
        self._jobs: SimpleQueue[Callable[[], _Result] | None] = SimpleQueue()
        self._results: SimpleQueue[_Result] = SimpleQueue()
        self._threads: list[threading.Thread] = []

    def submit(self, job: Callable[[], _Result]) -> None:
        """Run `job` on a lane."""
        self.in_flight += 1
        if len(self._threads) < min(self.count, self.in_flight):
            thread = threading.Thread(target=self._run, name="otel-agent-tracker-lane", daemon=True)
            self._threads.append(thread)
            thread.start()
        self._jobs.put(job)

    def finished(self) -> list[_Result]:
        """The results that have come since the last call."""
        results: list[_Result] = []
        while True:
            try:
                results.append(self._results.get_nowait())
            except Empty:
                self.in_flight -= len(results)
                return results

    def close(self) -> None:
        """Let every thread end; idempotent."""
        for _ in self._threads:
            self._jobs.put(None)

    def join(self, timeout_seconds: float) -> None:
        """Wait for the threads to end, `timeout_seconds` for each at most."""
        for thread in self._threads:
            thread.join(timeout_seconds)

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            self._results.put(job())
            self._done()
