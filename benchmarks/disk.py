"""What a disk in trouble costs the threads that call us. Prints one JSON object.

Files of the journal are small, so that one is wanted several times a second. What a call takes bounds what it waits.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.caller import StartEnd
from benchmarks.sink import running_sink
from benchmarks.timing import Times, in_threads
from otel_agent_tracker import AgentPerformanceTracker, journal

__all__: list[str] = []

SEGMENT_BYTES = 256 * 1024
SLOW_SECONDS = 1.0


def _slow(fd: int, offset: int, size: int) -> None:
    time.sleep(SLOW_SECONDS)
    _allocate(fd, offset, size)


def _full(fd: int, offset: int, size: int) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


_allocate = os.posix_fallocate
DISKS: dict[str, Callable[[int, int, int], None]] = {"well": _allocate, "slow": _slow, "full": _full}


def _measure(url: str, allocate: Callable[[int, int, int], None], quick: bool) -> tuple[Times, int]:
    """The times of calls, and how many events were not on disk when their call returned."""
    setattr(os, "posix_fallocate", allocate)  # noqa: B010 - what the journal reserves its files with
    with TemporaryDirectory() as folder, AgentPerformanceTracker(url, state_dir=Path(folder)) as tracker:
        rounds, seconds = (2, 2) if quick else (4, 6)
        times = in_threads({"it": StartEnd(tracker)}, rounds=rounds, seconds=seconds)["it"]
        assert tracker.delivery_stats()["dropped"] == 0
        return times, tracker._pipeline._journal.counters.not_durable


def main() -> None:
    """Measure with a disk that is well, one that takes a second for each file, and one that has no room."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    quick: bool = parser.parse_args().quick
    defaults = journal.Journal.__init__.__kwdefaults__
    assert defaults is not None
    defaults["segment_bytes"] = SEGMENT_BYTES
    found: dict[str, float] = {}
    with running_sink() as sink:
        for name, allocate in DISKS.items():
            print(f"  disk: {name}", file=sys.stderr, flush=True)
            times, not_durable = _measure(f"{sink.url}/{name}", allocate, quick)
            found |= {f"{name}.{key}": value for key, value in times._asdict().items()}
            found[f"{name}.not_durable"] = not_durable
    print(json.dumps(found))


if __name__ == "__main__":
    main()
