"""The last process of a state folder: it delivers what is left and waits until no session is open.

    python -m tests.faults.chaos.settle SECONDS

Prints one JSON object.
"""

from __future__ import annotations

import gc
import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

from otel_agent_tracker import AgentPerformanceTracker

__all__ = ["main"]

LAST_WORDS_SECONDS = 5.0


def main() -> None:
    """Settle the configured state folder within as many seconds as the command line says."""
    _settle(0.0)  # whatever is loaded and opened once for all is there by now
    before = _held()
    told = _settle(float(sys.argv[1]))
    gc.collect()
    print(json.dumps({**told, "held_before": before, "held_after": _held()}))


def _settle(seconds: float) -> dict[str, Any]:
    deadline = time.monotonic() + seconds
    with AgentPerformanceTracker() as tracker:
        while True:
            flushed = tracker.flush(2.0)
            open_sessions = tracker.get_session_stats()["total_cached_sessions"]
            if (flushed and not open_sessions) or time.monotonic() > deadline:
                flushed = tracker.flush(2.0)  # the last ends too
                return {"flushed": flushed, "open_sessions": open_sessions, "stats": tracker.delivery_stats()}
            time.sleep(0.2)


def _held() -> dict[str, int]:
    """What is open once every thread has had the time to end: lanes may be at their last words."""
    for thread in threading.enumerate():
        if thread is not threading.current_thread():
            thread.join(LAST_WORDS_SECONDS)
    return {"threads": threading.active_count(), "files": len(list(Path("/proc/self/fd").iterdir()))}


if __name__ == "__main__":
    main()
