"""Two hundred processes, each killed at a moment of its own, on one state folder."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from random import Random

from tests.conftest import MakeTracker
from tests.faults.killed import CALLS, THREADS
from tests.faults.sink import Told, counting_tracker

KILLS = 200
COMPLAINT = "the tracker cannot be reached, events are kept: status 503"
PATHS = dict(
    zip(
        CALLS,
        ("/conversations/start", "/conversations/turn", "/conversations/feedback", "/conversations/end"),
        strict=True,
    )
)


def test_fault_24_25_of_two_hundred_killed_processes_no_accepted_event_is_lost_or_told_twice(
    tmp_path: Path, make_tracker: MakeTracker
) -> None:
    """Every event whose call had returned when its process was killed is delivered, with effect exactly once,
    by one of the processes that come after it; the books agree.

    Each child adopts what the one before it left, while the tracker refuses some batches and takes others
    without an answer. A call that was killed on its way has happened or has not; there is one to a thread. Calls
    wait here for the disk for as long as it takes, so that all they accept is on it.
    """
    seed = Random().randrange(1 << 32)
    print("seed", seed)  # shown when the test fails
    with counting_tracker(seed) as counting:
        counting.refuses, counting.forgets = 0.1, 0.1
        command = [sys.executable, "-m", "tests.faults.killed", counting.url, str(tmp_path / "state")]
        told = subprocess.run([*command, str(seed), str(KILLS)], capture_output=True, text=True, timeout=120)
        assert told.returncode == 0, told.stderr
        assert set(told.stderr.splitlines()) <= {COMPLAINT}
        counting.refuses = counting.forgets = 0.0
        tracker = make_tracker(counting.url)
        assert tracker.flush(120)
        stats = tracker.delivery_stats()
    lives = json.loads(told.stdout)
    assert len(lives) == KILLS * THREADS
    accepted = Counter(
        Told(PATHS[call], session)
        for sessions, returned in lives
        for call, session in [(c, s) for s in sessions for c in CALLS][:returned]
    )
    delivered = counting.told()
    assert set(accepted.values()) == set(delivered.values()) == {1}
    assert accepted.keys() - delivered.keys() == set()
    assert len(delivered.keys() - accepted.keys()) <= KILLS * THREADS
    assert stats["accepted"] == stats["delivered"] == len(counting.events)
    assert [stats["pending"], stats["dead_lettered"], stats["dropped"]] == [0, 0, 0]
