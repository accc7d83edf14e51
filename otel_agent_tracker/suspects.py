"""Events that failed alone: one that a tracker can never take must not hold up what others have to say.

A batch that fails is made smaller until one event fails alone. That may be an outage, or it may be that event. Once
others get through, it is sent alone again; if it fails then too, its session is set apart, and tried less and less
often. Nothing is given up, and nothing is sent out of its order in the session. No I/O, no clock.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Suspects"]

PAUSE = 60.0  # seconds
MOST_FAILURES = 4  # that make the pause longer: to eight minutes
MOST = 500


@dataclass(slots=True)
class _Suspect:
    lane: str
    successes_seen: int
    failures: int = 0
    not_before: float = 0.0


class Suspects:
    """The rows of the outbox that are to be sent alone; `now` is monotonic time in seconds."""

    def __init__(self) -> None:
        self._found: dict[int, _Suspect] = {}
        self._successes = 0

    def failed_alone(self, row_id: int, lane: str, now: float) -> bool:
        """A request that held nothing but this event has failed, and not because the event was refused.

        True if the event is to blame: it has failed where others got through.
        """
        suspect = self._found.get(row_id)
        if suspect is None:
            self._make_room()
            self._found[row_id] = _Suspect(lane, self._successes)
            return False
        if self._successes > suspect.successes_seen:  # else it may be an outage, which is not its fault
            suspect.successes_seen = self._successes
            suspect.failures = min(suspect.failures + 1, MOST_FAILURES)
        if suspect.failures:
            suspect.not_before = now + PAUSE * 2.0 ** (suspect.failures - 1)
        return suspect.failures > 0

    def others_succeeded(self) -> None:
        """A request got through: the tracker answers."""
        self._successes += 1

    def forget(self, row_id: int) -> None:
        """The event is settled."""
        self._found.pop(row_id, None)

    def known(self) -> list[int]:
        """The events that have failed alone."""
        return list(self._found)

    def known_lanes(self) -> list[str]:
        """The sessions of which an event has failed alone."""
        return list({suspect.lane for suspect in self._found.values()})

    def lanes(self) -> list[str]:
        """The sessions that are set apart: their events go in no request with others."""
        return list({suspect.lane for suspect in self._found.values() if self._is_apart(suspect)})

    def due(self, now: float) -> int | None:
        """An event to send alone now."""
        apart = (row_id for row_id, suspect in self._found.items() if self._is_apart(suspect))
        return next((row_id for row_id in apart if self._found[row_id].not_before <= now), None)

    def seconds_to_next(self, now: float) -> float | None:
        """When `due` has one again; None if it depends on others."""
        apart = [suspect.not_before - now for suspect in self._found.values() if self._is_apart(suspect)]
        return max(0.0, min(apart)) if apart else None

    def _make_room(self) -> None:
        """Forget the oldest, if there are too many, rather one that nobody else has got past."""
        if len(self._found) >= MOST:
            oldest = (row_id for row_id, suspect in self._found.items() if not suspect.failures)
            del self._found[next(oldest, next(iter(self._found)))]

    def _is_apart(self, suspect: _Suspect) -> bool:
        return suspect.failures > 0 or self._successes > suspect.successes_seen
