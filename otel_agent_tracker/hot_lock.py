"""A lock for what takes microseconds on the threads of a host, also beside one that computes."""

from __future__ import annotations

import threading
import time
from _thread import RLock
from typing import Literal

__all__ = ["HotLock", "wait_in_line"]

PAUSE = 0.0001  # seconds
_this_thread = threading.local()


def wait_in_line() -> None:
    """Have the calling thread wait for its turn at every lock; for a worker, of which there is one.

    Beside callers that never rest it would else find the lock taken time and again. One thread is no line.
    """
    _this_thread.waits_in_line = True


class HotLock(RLock):  # type: ignore[misc]  # final to type checkers alone
    """A reentrant lock that is free once it is released, whoever waits for it.

    Python's own lock goes to a thread that waits, and stays locked while that thread waits for the GIL: beside a
    thread that computes 5 ms each time. Once a few threads stand in line, that is what all of them do from then on.
    Here a thread that finds the lock taken comes again later.
    """

    def __enter__(self) -> Literal[True]:  # type: ignore[override]  # there it is `acquire`
        try:
            if not self.acquire(False):
                self._wait()
        except BaseException:  # from a signal handler: during the pause, or when the lock was ours already
            if self.is_mine:
                self.release()
            raise
        return True

    def _wait(self) -> None:
        if getattr(_this_thread, "waits_in_line", False):
            self.acquire()
            return
        while not self.acquire(False):
            time.sleep(PAUSE)

    @property
    def is_mine(self) -> bool:
        """Whether the calling thread has it: what a signal handler or a finaliser runs may interrupt who has."""
        return bool(self._is_owned())  # type: ignore[attr-defined]  # as `threading.Condition` asks
