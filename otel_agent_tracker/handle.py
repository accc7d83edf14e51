"""What a pipeline holds of its worker: it starts the thread, wakes it, asks it and waits for it."""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from otel_agent_tracker.hot_lock import wait_in_line
from otel_agent_tracker.log import Log

if TYPE_CHECKING:
    from otel_agent_tracker.state import Counts

__all__ = ["FlushRequest", "Snapshot", "WorkerHandle"]

RESTART_INTERVAL = 60.0  # seconds

_logger = Log(__name__)


@dataclass(slots=True, eq=False)
class FlushRequest:
    """Somebody waits until everything that is pending now is delivered or dead-lettered."""

    done: threading.Event = field(default_factory=threading.Event)
    target: int | None = None
    """The newest row to wait for; None until the worker has looked."""
    elsewhere: dict[str, int] = field(default_factory=dict)
    """How far segments of other living processes are to be stored first."""
    abandoned: bool = False
    """Whether nobody waits any more."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The books as the worker last saw them, and how far it had read this process's journal then.

    `booked` is how many of the events that this process could not keep are in them, by kind; `pressure` is the
    share of the state folder's limit that is used.
    """

    counts: Counts
    absorbed: int
    booked: Mapping[str, int]
    pressure: float


class WorkerHandle:
    """Starts the worker's thread on first use; `make`, called there, gives what it runs until `stopping` is set.

    Safe from any thread. After `stop` nothing starts again.
    """

    def __init__(self, make: Callable[[WorkerHandle], Callable[[], None]], wake: Callable[[], None]) -> None:
        self.flushes: deque[FlushRequest] = deque()
        self.heartbeats: deque[str] = deque(maxlen=1000)
        self._make_waits()
        self.snapshot: Snapshot | None = None
        self.tally: Counter[str] = Counter()
        """What the worker has counted since the process began; the state file's counters count for all processes."""
        self.suspend: Callable[[], None] = lambda: None
        """Lets go of what a forked child must not inherit; the worker sets it."""
        self.is_forked = False
        """Whether the process has been forked: then no step should take long."""
        self._paused_by: int | None = None
        self._make = make
        self._wake = wake
        self._thread: threading.Thread | None = None
        self._lock = threading.RLock()  # a signal handler may come in between

    def _make_waits(self) -> None:
        self.stopping = threading.Event()
        self.urgent = threading.Event()
        self.stepping = threading.Lock()
        """Held by the worker while it is in the middle of something, not while it sleeps."""
        self._forking = threading.Lock()  # held by a thread that waits to fork
        self._published = threading.Event()

    @property
    def started(self) -> bool:
        """Whether the thread was started."""
        return self._thread is not None

    def start(self) -> None:
        """Start the thread if it is not running; at interpreter exit, when none can be, events stay on disk."""
        with self._lock:
            if self._thread is not None or self.stopping.is_set():
                return
            if type(self.stepping) is not type(threading.Lock()):  # gevent has replaced it since
                self._make_waits()
            self._thread = threading.Thread(target=self._run, name="otel-agent-tracker", daemon=True)
            try:
                self._thread.start()
            except (RuntimeError, MemoryError):
                self._thread = None
                _logger.debug("no thread can be started; events stay where they are")

    def wake(self) -> None:
        """Let the worker look now instead of at the end of its sleep."""
        self.urgent.set()
        self._wake()

    def publish(self, snapshot: Snapshot) -> None:
        """The worker tells what it sees."""
        self.snapshot = snapshot
        self._published.set()

    def flush(self, timeout_seconds: float) -> bool:
        """Wait until what is pending now is delivered or dead-lettered; False when the time is over."""
        self.start()
        if self._thread is None or self.stopping.is_set():
            return False
        request = FlushRequest()
        self.flushes.append(request)
        self.wake()
        request.abandoned = not request.done.wait(timeout_seconds)
        return not request.abandoned

    def heartbeat(self, agent_id: str) -> None:
        """Send a heartbeat for the agent soon, if the tracker takes any."""
        self.heartbeats.append(agent_id)
        self.start()
        self.wake()

    def seen(self, timeout_seconds: float) -> Snapshot | None:
        """The newest snapshot; a worker that has just started is waited for."""
        if self._thread is not None:
            self._published.wait(timeout_seconds)
        return self.snapshot

    def stop(self, timeout_seconds: float) -> None:
        """Let the thread end and wait for it; idempotent."""
        with self._lock:
            self.stopping.set()
        self.wake()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout_seconds)

    def give_way(self) -> None:
        """Let a thread that waits to fork go first; for the worker in a long cycle, with no transaction open."""
        if self._forking.locked():
            self.stepping.release()
            with self._forking:  # until that thread has `stepping`, or has given up
                pass
            self.stepping.acquire()

    def pause_for_fork(self, timeout_seconds: float) -> bool:
        """Hold the worker between two steps, with nothing open that a child must not inherit.

        False if it was still in the middle of one after `timeout_seconds`; then nothing is held.
        """
        if self._thread is threading.current_thread():
            return False
        self.is_forked = True
        with self._forking:
            if not self.stepping.acquire(timeout=timeout_seconds):
                return False
        try:
            self.suspend()
        except BaseException:
            self.stepping.release()
            raise
        self._paused_by = threading.get_ident()
        return True

    def resume_after_fork(self) -> None:
        """Let the worker go on; for the parent, on the thread that paused it. Nothing if it is not paused."""
        if self._paused_by == threading.get_ident():
            self._paused_by = None
            self.stepping.release()

    def _run(self) -> None:
        """The thread's own boundary: what ends the worker is told, and a minute later it goes on.

        It is not made anew: it may be the only one that has some events, and knows what it has counted.
        """
        wait_in_line()
        work: Callable[[], None] | None = None
        while not self.stopping.is_set():
            try:
                work = work or self._make(self)
                work()
            except Exception:
                _logger.exception("the worker ended, events wait; it goes on in a minute")
                self.stopping.wait(RESTART_INTERVAL)
            else:
                return
