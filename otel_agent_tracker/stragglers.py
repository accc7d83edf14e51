"""Events that a tracker answered in a batch, but did not take: each holds up its own session, and nobody else.

If it took others, it works, and the channel stays open. If it took none, it may be ill, and the channel waits; but
an event that fails once more tells nothing new, and then waits by itself. No I/O, no clock.
"""

from __future__ import annotations

__all__ = ["Stragglers"]

MOST = 400  # beyond them it is the tracker that is ill
MEMORY = (
    60.0  # seconds for which one whose time has come is known at least: it may be gone and not tried again
)


class Stragglers:
    """The rows of the outbox that wait by themselves; `now` is monotonic time in seconds."""

    def __init__(self) -> None:
        self._found: dict[int, tuple[str, float]] = {}

    def add(self, row_id: int, lane: str, until: float) -> None:
        """Let the event and what follows it in its session wait `until` then, if there is room."""
        if row_id in self._found or self.has_room:
            self._found[row_id] = lane, until

    def __contains__(self, row_id: int) -> bool:
        """Whether this event has failed before."""
        return row_id in self._found

    @property
    def has_room(self) -> bool:
        """Whether one more may wait by itself."""
        return len(self._found) < MOST

    def forget(self, row_id: int) -> None:
        """The event is settled."""
        self._found.pop(row_id, None)

    def lanes(self, now: float) -> tuple[set[str], set[str]]:
        """The sessions that wait, and those that may try with one event, the oldest."""
        if not self.has_room:
            self._found = {row_id: one for row_id, one in self._found.items() if one[1] > now - MEMORY}
        waiting = {lane for lane, until in self._found.values() if until > now}
        return waiting, {lane for lane, _ in self._found.values()} - waiting

    def seconds_to_next(self, now: float) -> float | None:
        """When the next session goes on; None if none waits."""
        return min((until - now for _, until in self._found.values() if until > now), default=None)
