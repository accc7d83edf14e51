"""The two clocks, handed to whoever needs the time, so that a test can hand in its own."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

__all__ = ["SYSTEM_CLOCK", "Clock"]


@dataclass(frozen=True, slots=True)
class Clock:
    """What time it is.

    `time_ns` is the wall clock in Unix nanoseconds: it stamps events and may jump either way. `monotonic` is
    in seconds from an unknown start and never goes back: it alone decides deadlines.
    """

    time_ns: Callable[[], int]
    monotonic: Callable[[], float]


def _system_monotonic() -> Callable[[], float]:
    """The boot-time clock where there is one, else Python's monotonic clock.

    Linux stops CLOCK_MONOTONIC while the machine is suspended: a session would live on through a closed lid.
    CLOCK_BOOTTIME counts that time, and is the same for every process of one boot.
    """
    boot_time: int | None = getattr(time, "CLOCK_BOOTTIME", None)
    if boot_time is None:
        return time.monotonic
    try:
        time.clock_gettime(boot_time)
    except OSError:  # a sandbox that does not know it
        return time.monotonic
    return partial(time.clock_gettime, boot_time)


SYSTEM_CLOCK = Clock(time_ns=time.time_ns, monotonic=_system_monotonic())
