"""Rules of `clock`."""

from __future__ import annotations

import time
from dataclasses import FrozenInstanceError

import pytest

from otel_agent_tracker import clock
from otel_agent_tracker.clock import SYSTEM_CLOCK, Clock


def test_the_system_clock_tells_unix_time() -> None:
    """The wall clock is Unix time in nanoseconds."""
    before = time.time_ns()
    assert before <= SYSTEM_CLOCK.time_ns() <= time.time_ns()


@pytest.mark.skipif(not hasattr(time, "CLOCK_BOOTTIME"), reason="only Linux has the clock")
def test_suspended_time_counts() -> None:
    """On Linux the monotonic clock is the one that runs on while the machine is suspended."""
    boot_time: int = time.CLOCK_BOOTTIME
    before = time.clock_gettime(boot_time)
    assert before <= SYSTEM_CLOCK.monotonic() <= time.clock_gettime(boot_time)


def test_a_system_without_boot_time_has_the_monotonic_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no CLOCK_BOOTTIME, Python's monotonic clock serves."""
    monkeypatch.delattr(time, "CLOCK_BOOTTIME", raising=False)
    assert clock._system_monotonic() is time.monotonic


def test_a_sandbox_that_refuses_boot_time_has_the_monotonic_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where CLOCK_BOOTTIME is known to Python and unknown to the system, the monotonic clock serves."""
    monkeypatch.setattr(time, "CLOCK_BOOTTIME", 10_000, raising=False)
    assert clock._system_monotonic() is time.monotonic


def test_a_clock_is_frozen() -> None:
    """Whoever holds a clock can rely on it."""
    held = Clock(time_ns=lambda: 1, monotonic=lambda: 1.0)
    with pytest.raises(FrozenInstanceError):
        held.time_ns = time.time_ns  # type: ignore[misc]  # what is tested
