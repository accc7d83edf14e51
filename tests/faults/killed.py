"""A warm process whose children accept events as fast as they can, until they are killed at a random moment.

``python -m tests.faults.killed URL STATE_DIR SEED KILLS`` prints what its children had done, as JSON: for each
thread of each child the ids of its sessions, in order, and how many calls had returned. Each session takes one call
of each of `CALLS`.
"""

from __future__ import annotations

import gc
import json
import math
import mmap
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from random import Random

from otel_agent_tracker import AgentPerformanceTracker, journal, making
from otel_agent_tracker import worker as worker  # warm: a child's worker begins at once
from otel_agent_tracker.client import TrackerClient

__all__ = ["CALLS", "THREADS"]

CALLS = ("start", "turn", "feedback", "end")
THREADS = 2
SHORTEST, LONGEST = 0.0002, 0.25  # seconds that a child has after its beginning
DELIVERING = 0.25  # the share of children whose time begins when they have delivered something
PATIENCE = 3.0  # seconds for that: the tracker may refuse
SMALL_SEGMENT = 32 * 1024  # is filled in some 20 ms, so that many are killed while they change it
_HEAD = 16
_ID_BYTES = 64
_MOST_SESSIONS = 50_000


class Ledger:
    """What one thread of a child has done, in memory that outlives it: a store no signal can cut in two."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, _HEAD + _MOST_SESSIONS * _ID_BYTES)
        self._numbers = memoryview(self._memory)[:_HEAD].cast("Q")

    @property
    def returned(self) -> int:
        """How many calls have returned."""
        return self._numbers[0]

    @property
    def delivered(self) -> int:
        """How many events the child has seen delivered; 1 at least once it has begun."""
        return self._numbers[1]

    def sessions(self) -> list[str]:
        """The sessions whose start has returned."""
        count = -(-self.returned // len(CALLS))
        places = (_HEAD + number * _ID_BYTES for number in range(count))
        return [self._memory[at : at + _ID_BYTES].rstrip(b"\0").decode() for at in places]

    def note_session(self, session: str) -> None:
        """Before its start counts as returned."""
        at = _HEAD + self.returned // len(CALLS) * _ID_BYTES
        self._memory[at : at + len(session)] = session.encode()

    def note_delivered(self, count: int) -> None:
        """The child has begun, and so many events were delivered since."""
        self._numbers[1] = 1 + count

    def note_return(self) -> None:
        """A call has returned."""
        self._numbers[0] += 1


def accept_for_ever(tracker: AgentPerformanceTracker, ledger: Ledger) -> None:
    """Start, turn, feedback and end of one session after the other."""
    ledger.note_delivered(0)
    for session in _sessions(tracker):
        ledger.note_session(session)
        ledger.note_return()
        for call in _calls(tracker, session):
            call()
            ledger.note_return()
        ledger.note_delivered(tracker.delivery_stats()["delivered"])


def _sessions(tracker: AgentPerformanceTracker) -> Iterator[str]:
    for _ in range(_MOST_SESSIONS):
        yield tracker.start_conversation("bot", "u1")


def _calls(tracker: AgentPerformanceTracker, session: str) -> tuple[Callable[[], object], ...]:
    def turn() -> None:
        with tracker.turn(session):
            pass

    return (
        turn,
        lambda: tracker.record_feedback(session, thumbs="up"),
        lambda: tracker.end_conversation(session, 4),
    )


def be_killed(url: str, state_dir: str, ledgers: list[Ledger], segment_bytes: int) -> None:
    """The child; does not return."""
    signal.alarm(60)  # should its parent be gone
    (journal.Journal.__init__.__kwdefaults__ or {})["segment_bytes"] = segment_bytes
    # What is kept in memory, for a disk that hangs or a journal that is full, is not promised to survive a kill.
    making.PATIENCE = making.MOST_TURNS = 1_000_000
    journal._MOST_UNREAD *= journal.SEGMENT_BYTES // segment_bytes  # as many bytes as otherwise
    tracker = AgentPerformanceTracker(url, state_dir=state_dir)
    for ledger in ledgers[1:]:
        threading.Thread(target=accept_for_ever, args=(tracker, ledger), daemon=True).start()
    accept_for_ever(tracker, ledgers[0])
    os._exit(1)


def kill_one(url: str, state_dir: str, random: Random) -> list[Ledger]:
    """Start a child and kill it a little after its beginning, or after its first delivery."""
    ledgers = [Ledger() for _ in range(THREADS)]
    seconds = math.exp(random.uniform(math.log(SHORTEST), math.log(LONGEST)))
    segment_bytes = random.choice([SMALL_SEGMENT, journal.SEGMENT_BYTES])
    delivering = random.random() < DELIVERING
    child = os.fork()
    if not child:
        try:
            be_killed(url, state_dir, ledgers, segment_bytes)
        finally:
            os._exit(1)
    deadline = time.monotonic() + PATIENCE
    while ledgers[0].delivered < 1 + delivering and time.monotonic() < deadline:
        if os.waitpid(child, os.WNOHANG)[0]:
            sys.exit("a child ended before it was killed")
        time.sleep(0.0005)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if not os.WIFSIGNALED(status):
        sys.exit(f"a child ended before it was killed, with {status}")
    return ledgers


def main(url: str, state_dir: str, seed: str, kills: str) -> None:
    """Kill as many children as asked for, and tell what they had done."""
    random = Random(seed)
    TrackerClient("http://127.0.0.1").close()  # brings its codecs
    gc.freeze()
    done = []
    for _ in range(int(kills)):
        for ledger in kill_one(url, state_dir, random):
            done.append((ledger.sessions(), ledger.returned))
    json.dump(done, sys.stdout)


if __name__ == "__main__":
    main(*sys.argv[1:])
