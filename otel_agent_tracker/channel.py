"""The channel to one destination: what an answer means for what is sent next. No I/O, no thread, no clock.

One back-off holds for the whole channel; after it one probe goes first. A path that a tracker does not know
pauses alone, and where none is known the address is wrong and all pause. An event is to blame only if others
of its path succeed.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from otel_agent_tracker.client import Delivered, Misconfigured, NotOffered, Refused, Result, Retry
from otel_agent_tracker.log import Log, SparingLog
from otel_agent_tracker.wire import Capabilities

__all__ = ["Channel", "Dead", "Done", "Later", "Verdict"]

INITIAL_INTERVAL = 1.0  # seconds
MAX_INTERVAL = 60.0
PAUSE = 60.0
CAPABILITIES_INTERVAL = 600.0
REFUSALS_BEFORE_DEATH = 3
MOST_SUSPECTS = 500


@dataclass(frozen=True, slots=True)
class Done:
    """The event is delivered."""


@dataclass(frozen=True, slots=True)
class Later:
    """The event stays, to be sent again not before `seconds` from now."""

    reason: str
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Dead:
    """The tracker refuses the event for good."""

    reason: str


Verdict = Done | Later | Dead


@dataclass(slots=True)
class _Suspect:
    """An event whose path was refused; `confirmed` counts refusals after which others succeeded there."""

    successes_seen: int
    confirmed: int = 0


class Channel:
    """Decides when the destination may be asked, and what becomes of an event after an answer.

    Every method takes the monotonic time `now` in seconds. `jitter` gives a number from 0 to its argument.
    """

    def __init__(self, jitter: Callable[[float], float] = lambda most: random.uniform(0.0, most)) -> None:
        self.capabilities: Capabilities | None = None
        self.probing = True
        self._jitter = jitter
        self._not_before = 0.0
        self._failures = 0
        self._ask_again_at = 0.0
        self._no_batches_until = 0.0
        self._paused_until: dict[str, float] = {}
        self._working: set[str] = set()
        self._successes: Counter[str] = Counter()
        self._suspects: dict[str, _Suspect] = {}
        self._log = SparingLog(Log(__name__))

    def seconds_to_wait(self, now: float) -> float:
        """How long nothing may be sent; 0 when it may."""
        return max(0.0, self._not_before - now)

    def is_open(self, now: float) -> bool:
        """Whether events may be sent, and freely: no back-off, no probe under way, capabilities known."""
        return not self.probing and self.capabilities is not None and self.seconds_to_wait(now) == 0

    def must_ask_capabilities(self, now: float) -> bool:
        """Whether the tracker is to be asked what it offers before anything else is sent."""
        return self.capabilities is None or now >= self._ask_again_at

    def answered_capabilities(self, answer: Capabilities | Retry | Misconfigured, now: float) -> bool:
        """The tracker said what it offers, or did not; whether it offers something else than before."""
        if not isinstance(answer, Capabilities):
            self.fail(answer, now)
            return False
        changed = answer != self.capabilities
        self.capabilities = answer
        self._ask_again_at = float("inf") if answer != Capabilities() else now + CAPABILITIES_INTERVAL
        if changed:
            self._no_batches_until = 0.0
            self._paused_until.clear()
            self._suspects.clear()
        return changed

    def batch(self, now: float) -> dict[str, Any] | None:
        """The tracker's offer of batches, unless it has just refused one; single requests go on."""
        return self.capabilities.batch if self.capabilities and now >= self._no_batches_until else None

    def paused_paths(self, now: float) -> list[str]:
        """The paths whose events wait."""
        return [path for path, until in self._paused_until.items() if until > now]

    def probed_paths(self) -> frozenset[str]:
        """The paths that were refused and are to be tried with one event."""
        return frozenset(self._paused_until)

    def refused_until(self, path: str) -> float:
        """What orders probes: paths never refused come first, then the one refused longest ago."""
        return self._paused_until.get(path, 0.0)

    def is_suspect(self, event_id: str) -> bool:
        """Whether the path of this event was refused when it was sent."""
        return event_id in self._suspects

    def judge(self, event_id: str, path: str, result: Result, now: float, *, sent_before: bool) -> Verdict:
        """What becomes of the event that was answered by `result`."""
        match result:
            case Delivered():
                return self._succeed(event_id, path, now)
            case Refused(409, _) if sent_before:
                return self._succeed(event_id, path, now)
            case Refused(status, reason):
                self._open(now)
                # only the status: what a tracker says of an event may repeat its content
                self._log.warning(
                    now, "the tracker refuses events, which are kept as dead letters: %s", str(status)
                )
                return Dead(f"{status} {reason}".strip())
            case NotOffered(_, reason):
                return self._refuse_path(event_id, path, reason, now)
            case Retry() | Misconfigured():
                self.fail(result, now)
                return Later(result.reason)

    def fail(self, failure: Retry | Misconfigured, now: float) -> None:
        """A request failed for no fault of its events. Of several that were under way it is one failure."""
        self.probing = True
        self._not_before = max(self._not_before, now + self._delay(failure, now))
        if isinstance(failure, Misconfigured):
            self._log.warning(now, "the tracker is not usable, events are kept: %s", failure.reason)
        else:
            self._log.warning(now, "the tracker cannot be reached, events are kept: %s", failure.reason)

    def hold_back(self, failure: Retry | Misconfigured, attempts: int, now: float) -> Later:
        """An event failed by itself: it waits, the longer the more `attempts` it has had, and no other does."""
        self.blame_event(failure, now)
        return Later(
            failure.reason, PAUSE if isinstance(failure, Misconfigured) else self._back_off(attempts)
        )

    def blame_event(self, failure: Retry | Misconfigured, now: float) -> None:
        """An event failed while others got through: the channel is open as before."""
        self._log.warning(
            now, "the tracker takes other events, but not these, which are kept: %s", failure.reason
        )

    def refuse_batches(self, path: str, reason: str, now: float) -> None:
        """The path of batches is not known any more: events go singly, and what is offered is asked again."""
        self._open(now)
        self._no_batches_until = now + PAUSE
        self._ask_again_at = min(self._ask_again_at, now)
        self._warn_of_path(path, reason, now)

    def _succeed(self, event_id: str, path: str, now: float) -> Done:
        self._open(now)
        self._working.add(path)
        self._successes[path] += 1
        self._paused_until.pop(path, None)
        self._suspects.pop(event_id, None)
        return Done()

    def _open(self, now: float) -> None:
        """The tracker answers; unless another request that was under way with this one failed meanwhile."""
        if now >= self._not_before:
            self._failures = 0
            self.probing = False

    def _delay(self, failure: Retry | Misconfigured, now: float) -> float:
        if isinstance(failure, Misconfigured):
            return PAUSE
        asked = failure.after_seconds or 0.0
        if now < self._not_before or asked >= INITIAL_INTERVAL:
            return asked
        self._failures += 1
        return max(asked, self._back_off(self._failures - 1))

    def _back_off(self, attempts: int) -> float:
        return self._jitter(min(MAX_INTERVAL, INITIAL_INTERVAL * 2.0 ** min(attempts, 10)))

    def _refuse_path(self, event_id: str, path: str, reason: str, now: float) -> Verdict:
        self._open(now)
        self._working.discard(path)
        self._paused_until[path] = now + PAUSE
        self._ask_again_at = min(self._ask_again_at, now)
        self._warn_of_path(path, reason, now)
        if len(self._paused_until) > 1 and not self._working:
            self.probing = True
            self._not_before = max(self._not_before, now + PAUSE)
        if self._is_to_blame(event_id, path):
            del self._suspects[event_id]
            return Dead(f"{path}: {reason}")
        return Later(f"{path}: {reason}", PAUSE)

    def _is_to_blame(self, event_id: str, path: str) -> bool:
        """Whether others succeeded between this event's refusals, of which this is the third."""
        suspect = self._suspects.get(event_id)
        if suspect is None:
            self._make_room()
            suspect = self._suspects[event_id] = _Suspect(self._successes[path])
        if self._successes[path] > suspect.successes_seen:
            suspect.confirmed += 1
            suspect.successes_seen = self._successes[path]
        return suspect.confirmed >= REFUSALS_BEFORE_DEATH - 1

    def _make_room(self) -> None:
        """Forget the oldest suspect, if there are too many, rather one that nobody else has got past."""
        if len(self._suspects) >= MOST_SUSPECTS:
            oldest = (event_id for event_id, suspect in self._suspects.items() if not suspect.confirmed)
            del self._suspects[next(oldest, next(iter(self._suspects)))]

    def _warn_of_path(self, path: str, reason: str, now: float) -> None:
        message = "the tracker refuses a path, its events are kept; is the URL right? %s"
        self._log.warning(now, message, f"{path}: {reason}")
