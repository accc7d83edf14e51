"""What a million live sessions cost: memory, garbage collection, touch, sweep. Prints one JSON object.

python benchmarks/sessions.py [number of sessions]
"""

from __future__ import annotations

import gc
import json
import random
import sys
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from statistics import median

from otel_agent_tracker.clock import SYSTEM_CLOCK, Clock
from otel_agent_tracker.semconv import TurnStatus
from otel_agent_tracker.sessions import SessionMap

HOT, WARM = 100, 1_000
SWEPT = 10_000
TTL_SECONDS = 36_000.0


class LeapingClock:
    """The system's clocks, the monotonic one ahead by as much as is asked for."""

    def __init__(self) -> None:
        self.ahead = 0.0
        self.clock = Clock(time_ns=SYSTEM_CLOCK.time_ns, monotonic=self._monotonic)

    def _monotonic(self) -> float:
        return SYSTEM_CLOCK.monotonic() + self.ahead


def resident_bytes() -> int:
    """Memory of this process, in bytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


def seconds_of(step: Callable[[], object], runs: int = 3) -> float:
    """The shortest of some runs, in seconds."""
    return min(_once(step) for _ in range(runs))


def _once(step: Callable[[], object]) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def session_id(number: int) -> str:
    """A session id of 40 characters."""
    return f"support-bot_{1_700_000_000 + number}_{number:017x}"


def open_sessions(sessions: SessionMap, count: int) -> None:
    """Open `count` sessions, each with a user id of 20 characters."""
    for number in range(count):
        sessions.open(session_id(number), "support-bot", user_id=f"user-{number:015d}", start_us=number)


def add_turns(sessions: SessionMap, count: int) -> None:
    """One turn for each session."""
    for number in range(count):
        sessions.turn(
            session_id(number), turn_id=str(number), seconds=1.5, status=TurnStatus.OK, end_us=number
        )


def touch_all(sessions: SessionMap, ids: Iterable[str]) -> None:
    """Touch each."""
    touch = sessions.touch
    for one in ids:
        touch(one)


def sweep_all(sessions: SessionMap, count: int) -> None:
    """Sweep `count` sessions as the worker does: 500 at a time, each dealt with before the next."""
    swept = 0
    while swept < count:
        swept += len(sessions.sweep(500))


def sweep_seconds(sessions: SessionMap, leap: LeapingClock, count: int) -> list[float]:
    """How long each of three sweeps of 10,000 sessions takes, and one that returns them in one list.

    All others have been touched later. The one list makes the interpreter collect garbage on the way.
    """
    leap.ahead += TTL_SECONDS / 2
    touch_all(sessions, map(session_id, range(4 * SWEPT, count)))
    leap.ahead += TTL_SECONDS / 2
    seconds = [_once(partial(sweep_all, sessions, SWEPT)) for _ in range(3)]
    seconds.append(_once(partial(sessions.sweep, SWEPT)))
    assert not sessions.stats()["expired_sessions_pending_cleanup"]
    return seconds


def measure(count: int) -> dict[str, float]:
    """Every figure, in the unit that its name ends in."""
    leap = LeapingClock()
    sessions = SessionMap(ttl_seconds=TTL_SECONDS, idle_seconds=1_800, max_sessions=count, clock=SYSTEM_CLOCK)
    before = resident_bytes()
    opened_seconds = _once(partial(open_sessions, sessions, count))
    without_turns = (resident_bytes() - before) / count
    collected_seconds = seconds_of(gc.collect)
    ids = [session_id(number) for number in random.sample(range(count), WARM)]
    hot_seconds = seconds_of(partial(touch_all, sessions, ids[:HOT]), runs=1_000) / HOT
    warm_seconds = seconds_of(partial(touch_all, sessions, ids), runs=100) / WARM
    turn_seconds = _once(partial(add_turns, sessions, count)) / count
    with_turns = (resident_bytes() - before) / count
    collected_with_turns = seconds_of(gc.collect)
    stats_seconds = _once(sessions.stats)
    del sessions
    leaping = SessionMap(ttl_seconds=TTL_SECONDS, idle_seconds=1_800, max_sessions=count, clock=leap.clock)
    open_sessions(leaping, count)
    *swept_seconds, in_one_list = sweep_seconds(leaping, leap, count)
    return {
        "sessions": count,
        "bytes_without_turns": round(without_turns),
        "bytes_with_turns": round(with_turns),
        "gc_collect_milliseconds": round(collected_seconds * 1e3, 1),
        "gc_collect_with_turns_milliseconds": round(collected_with_turns * 1e3, 1),
        "touch_hot_microseconds": round(hot_seconds * 1e6, 3),
        "touch_any_of_1000_microseconds": round(warm_seconds * 1e6, 3),
        "sweep_10000_milliseconds": round(median(swept_seconds) * 1e3, 1),
        "sweep_10000_worst_of_three_milliseconds": round(max(swept_seconds) * 1e3, 1),
        "sweep_10000_in_one_list_milliseconds": round(in_one_list * 1e3, 1),
        "open_microseconds": round(opened_seconds / count * 1e6, 2),
        "turn_microseconds": round(turn_seconds * 1e6, 2),
        "stats_milliseconds": round(stats_seconds * 1e3, 3),
    }


if __name__ == "__main__":
    print(json.dumps(measure(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000), indent=2))
