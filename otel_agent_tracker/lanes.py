"""Lanes: daemon threads that talk to the network, so that the worker never waits for it."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from otel_agent_tracker.log import Log

__all__ = ["Lanes"]

_Result = TypeVar("_Result")

_logger = Log(__name__)


class Lanes(Generic[_Result]):
    """Runs jobs on at most `count` threads, started when there is work for them; `done` is called after each.

    A job that raises has the result that `failed` makes of its exception. After `close` threads end with the
    job they are at, the other jobs are not begun, and no result is of use any more. One thread submits, takes
    results and closes.
    """

    def __init__(self, count: int, done: Callable[[], None], failed: Callable[[Exception], _Result]) -> None:
        self.in_flight = 0
        self.closed = False
        self._count = count
        self._done = done
        self._failed = failed
        self._jobs: queue.SimpleQueue[Callable[[], _Result] | None] = queue.SimpleQueue()
        self._results: queue.SimpleQueue[_Result] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []

    def submit(self, job: Callable[[], _Result]) -> None:
        """Run `job` on a lane; where no thread can be started, as while the interpreter exits, run it here."""
        self.in_flight += 1
        if len(self._threads) < min(self._count, self.in_flight):
            self._start_thread()
        if self._threads:
            self._jobs.put(job)
        else:
            self._do(job)

    def finished(self) -> list[_Result]:
        """The results that have come since the last call."""
        results: list[_Result] = []
        while True:
            try:
                results.append(self._results.get_nowait())
            except queue.Empty:
                self.in_flight -= len(results)
                return results

    def close(self) -> None:
        """Let every thread end; idempotent."""
        self.closed = True
        for _ in self._threads:
            self._jobs.put(None)

    def join(self, timeout_seconds: float) -> None:
        """Wait for the threads to end, `timeout_seconds` for each at most."""
        for thread in self._threads:
            thread.join(timeout_seconds)

    def _start_thread(self) -> None:
        thread = threading.Thread(target=self._run, name="otel-agent-tracker-lane", daemon=True)
        try:
            thread.start()
        except (RuntimeError, MemoryError) as error:
            _logger.debug("no lane can be started: %s", error)
        else:
            self._threads.append(thread)

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None and not self.closed:
            self._do(job)

    def _do(self, job: Callable[[], _Result]) -> None:
        try:
            result = job()
        except Exception as error:  # noqa: BLE001 - a lost job would leave the worker waiting for ever
            result = self._failed(error)
        self._results.put(result)
        self._done()
