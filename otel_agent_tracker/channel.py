"""The channel to one destination: what an answer means for what is sent next. No I/O, no thread, no clock.

One back-off holds for the whole channel; after it one probe goes first. A path that a tracker does not know
pauses alone. An event is to blame only if others of its path succeed.
"""

from __future__ import annotations

import logging
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from otel_agent_tracker.client import Delivered, Misconfigured, NotOffered, Refused, Result, Retry
from otel_agent_tracker.wire import Capabilities

__all__ = ["Channel", "Dead", "Done", "Later", "Verdict"]

INITIAL_INTERVAL = 1.0  # seconds
MAX_INTERVAL = 60.0
PAUSE = 60.0
CAPABILITIES_INTERVAL = 600.0
REFUSALS_BEFORE_DEATH = 3

_logger = logging.getLogger(__name__)


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
        self._paused_until: dict[str, float] = {}
        self._successes: Counter[str] = Counter()
        self._suspects: dict[str, _Suspect] = {}
        self._warnings: dict[str, float] = {}

    def seconds_to_wait(self, now: float) -> float:
        """How long nothing may be sent; 0 when it may."""
        return max(0.0, self._not_before - now)

    def is_open(self, now: float) -> bool:
        """Whether events may be sent, and freely: no back-off, no probe under way, capabilities known."""
        return not self.probing and self.capabilities is not None and self.seconds_to_wait(now) == 0

    def must_ask_capabilities(self, now: float) -> bool:
        """Whether the tracker is to be asked what it offers before anything else is sent."""
        return self.capabilities is None or now >= self._ask_again_at

    def answered_capabilities(self, answer: Capabilities | Retry | Misconfigured, now: float) -> None:
        """The tracker said what it offers, or did not."""
        if not isinstance(answer, Capabilities):
            self._fail(answer, now)
            return
        offered_before, self.capabilities = self.capabilities, answer
        self._ask_again_at = float("inf") if answer != Capabilities() else now + CAPABILITIES_INTERVAL
        if offered_before is not None and offered_before != answer:
            self._paused_until.clear()

    def paused_paths(self, now: float) -> list[str]:
        """The paths whose events wait."""
        return [path for path, until in self._paused_until.items() if until > now]

    def probed_paths(self) -> frozenset[str]:
        """The paths that were refused and are to be tried with one event."""
        return frozenset(self._paused_until)

    def is_suspect(self, event_id: str) -> bool:
        """Whether the path of this event was refused when it was sent."""
        return event_id in self._suspects

    def judge(self, event_id: str, path: str, result: Result, now: float, *, sent_before: bool) -> Verdict:
        """What becomes of the event that was answered by `result`."""
        match result:
            case Delivered():
                return self._succeed(event_id, path)
            case Refused(409, _) if sent_before:
                return self._succeed(event_id, path)
            case Refused(status, reason):
                self._open()
                return Dead(f"{status} {reason}".strip())
            case NotOffered(_, reason):
                return self._refuse_path(event_id, path, reason, now)
            case Retry() | Misconfigured():
                self._fail(result, now)
                return Later(result.reason)

    def fail(self, result: Retry | Misconfigured, now: float) -> None:
        """A request that was about no single event failed."""
        self._fail(result, now)

    def refuse_batches(self, reason: str, now: float) -> None:
        """The path of batches is not known any more; what is offered is asked again."""
        self.capabilities = None
        self._fail(Misconfigured(f"batches are refused: {reason}"), now)

    def _succeed(self, event_id: str, path: str) -> Done:
        self._open()
        self._successes[path] += 1
        self._paused_until.pop(path, None)
        self._suspects.pop(event_id, None)
        return Done()

    def _open(self) -> None:
        self._failures = 0
        self.probing = False

    def _fail(self, failure: Retry | Misconfigured, now: float) -> None:
        self.probing = True
        if isinstance(failure, Misconfigured):
            self._not_before = now + PAUSE
            self._warn(now, "the tracker is not usable, events are kept: %s", failure.reason)
            return
        delay = failure.after_seconds
        if delay is None:
            delay = self._jitter(min(MAX_INTERVAL, INITIAL_INTERVAL * 2.0**self._failures))
        self._failures = min(self._failures + 1, 10)
        self._not_before = max(self._not_before, now + delay)
        self._warn(now, "the tracker cannot be reached, events are kept: %s", failure.reason)

    def _refuse_path(self, event_id: str, path: str, reason: str, now: float) -> Verdict:
        self.probing = False
        self._paused_until[path] = now + PAUSE
        self._ask_again_at = min(self._ask_again_at, now)
        self._warn(
            now, "the tracker refuses a path, its events are kept; is the URL right? %s", f"{path}: {reason}"
        )
        suspect = self._suspects.setdefault(event_id, _Suspect(self._successes[path]))
        if self._successes[path] > suspect.successes_seen:
            suspect.confirmed += 1
            suspect.successes_seen = self._successes[path]
        if suspect.confirmed < REFUSALS_BEFORE_DEATH - 1:
            return Later(f"{path}: {reason}", PAUSE)
        del self._suspects[event_id]
        return Dead(f"{path}: {reason}")

    def _warn(self, now: float, message: str, detail: str) -> None:
        """One line a minute for each message."""
        if now >= self._warnings.get(message, -PAUSE) + PAUSE:
            self._warnings[message] = now
            _logger.warning(message, detail)
