"""A segment in the making: callers wait for a thread that needs the CPU, and not for a disk that hangs.

How long it takes does not tell one from the other. So the wait goes by turns, and only those count in which the
maker neither ran nor was ready to run: then the system had not answered it.
"""

from __future__ import annotations

import threading
from pathlib import Path

__all__ = ["Making"]

TURN = 0.004  # seconds
PATIENCE = 8  # turns without an answer: some 30 ms
DOUBT = 0.001, 3  # seconds of a turn, and turns, after something slow: less than 5 ms
MOST_TURNS = 1_000  # in all, should the system mislead us


class Making:
    """What one thread makes, between `begin` and `finish`, which it calls; any number of threads `wait` for it.

    `is_slow`: the disk keeps callers waiting, as far as is known; at first by what was made before.
    """

    def __init__(self, *, is_slow: bool = False) -> None:
        self.finished = False
        self.is_slow = is_slow
        self._is_tried = False
        self._maker: _Thread | None = None
        self._bell = (
            threading.Lock()
        )  # held until it is finished; a signal handler may wait within a wait for it
        self._bell.acquire()

    def begin(self) -> None:
        """The calling thread is the maker."""
        self._maker = _Thread()

    def finish(self) -> None:
        """It is made, or cannot be."""
        self.finished = True
        self._bell.release()

    def wait(self) -> bool:
        """Whether it is finished. Once one call has waited in vain for the disk, none waits any more.

        Of what comes after something slow a single call tries, for less long, whether it is so still.
        """
        if self.is_slow and self._is_tried:
            return self.finished
        self._is_tried, before = True, self.is_slow
        turn, patience = DOUBT if before else (TURN, PATIENCE)
        turns = idle = 0
        while not self.finished and self.is_slow == before:
            turns += 1
            if self._bell.acquire(timeout=turn):
                self._bell.release()
            elif self._maker is not None and self._maker.is_kept_waiting():
                idle += 1
            if idle >= patience or turns >= MOST_TURNS:
                self.is_slow = True
                return self.finished
        self.is_slow = self.is_slow and not before
        return self.finished


class _Thread:
    """The thread that makes this object, as others see it. What the system does not tell counts as waiting."""

    def __init__(self) -> None:
        task = Path(
            f"/proc/self/task/{threading.get_native_id()}"
        )  # gevent's threads have ids that no system knows
        self._status, self._times = task / "stat", task / "schedstat"
        self._used = self._cpu_time()

    def is_kept_waiting(self) -> bool:
        """Whether it has not run since the last call, nor is ready to; one that waits for the GIL runs now and then."""
        before, self._used = self._used, self._cpu_time()
        return before == self._used and not self._is_ready()

    def _cpu_time(self) -> bytes:
        try:
            return self._times.read_bytes().partition(b" ")[0]
        except OSError:  # it has ended, or the system does not count
            return b""

    def _is_ready(self) -> bool:
        try:
            return self._status.read_bytes().rpartition(b") ")[2][:1] == b"R"
        except OSError:
            return False
