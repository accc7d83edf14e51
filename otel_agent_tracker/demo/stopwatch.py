"""How long a turn took, as far as that can be known from outside the library."""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter

__all__ = ["Bounds", "Stopwatch"]

SLACK_SECONDS = 0.005  # turns are timed by the wall clock, the demo by a monotonic one


@dataclass(frozen=True, slots=True)
class Bounds:
    """A duration in seconds that was measured inside the turn and around it."""

    least: float
    most: float

    def allow(self, seconds: float | None) -> bool:
        """Whether it can have taken that long."""
        return seconds is not None and self.least - SLACK_SECONDS <= seconds <= self.most + SLACK_SECONDS


class Stopwatch:
    """Runs from its making to `stop`; what lies between `enter` and the last `lap` was inside the turn."""

    def __init__(self) -> None:
        self._began = self._entered = self._lapped = perf_counter()

    def enter(self) -> None:
        """The turn has begun."""
        self._entered = self._lapped = perf_counter()

    def lap(self) -> None:
        """The turn has not ended yet."""
        self._lapped = perf_counter()

    def stop(self) -> Bounds:
        """The turn has ended."""
        return Bounds(self._lapped - self._entered, perf_counter() - self._began)
