"""What the pipelines of this process tell OpenTelemetry's metrics, on whichever meter provider the host has set.

Counters count what this process did, so that a sum over processes is right. Gauges tell of a state folder, which
processes share: each of them tells about the same, under the attribute `agent_tracker.state_folder`.

Callbacks read what the worker has published and what callers have counted; they neither wait nor touch the disk.
What a pipeline has counted stays counted when it is gone.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import urlsplit

from opentelemetry import metrics
from opentelemetry.metrics import CallbackOptions, MeterProvider, Observation

from otel_agent_tracker import semconv
from otel_agent_tracker.log import Log
from otel_agent_tracker.semconv import VERSION

__all__ = ["Counted", "FolderNow", "Source", "forget", "observe"]

SCOPE = "otel_agent_tracker"

_logger = Log(__name__)

_Attributes = tuple[tuple[str, str | int], ...]
_Key = tuple[str, _Attributes]


@dataclass(frozen=True, slots=True)
class Counted:
    """What one pipeline has counted since this process began.

    `ended` is by who ended and by outcome, `turns` and `evaluations` by what told whose each is.
    """

    accepted: int
    delivered: int
    rejected: int
    dropped: Mapping[str, int]
    ended: Mapping[tuple[str, str], int]
    turns: Mapping[str, int]
    evaluations: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class FolderNow:
    """A state folder as it is now; `name` tells it from every other on any machine."""

    name: str
    pending: int
    dead_letters: int
    oldest_pending_age: float
    live_sessions: int


class Source(Protocol):
    """A pipeline. Neither method waits."""

    @property
    def destination(self) -> str:
        """The URL that its events go to; empty if there is none."""

    def counted(self) -> Counted:
        """Counts of this process."""

    def folder_now(self) -> FolderNow | None:
        """The state folder; None until the worker has looked."""


def observe(source: Source) -> None:
    """Tell of `source` from now on, for as long as it is there.

    Whatever the host's meter provider does wrong stays there.
    """
    with _lock:
        _sources.add(source)
    try:
        _make_instruments(metrics.get_meter_provider())
    except Exception as error:  # noqa: BLE001 - the host's own code runs here, and its mistakes stay there
        _logger.warn_once("the host's meter provider makes no instruments: %r", error)


def forget(source: Source) -> None:
    """`source` counts no more; what it has counted stays. Idempotent."""
    with _lock:
        if source in _sources:
            _sources.discard(source)
            _gone.update(_counters(source))


def _make_instruments(provider: MeterProvider) -> None:
    """Once for each provider that is the global one; before it is set, a proxy stands for it and goes on."""
    global _instrumented
    with _lock:
        if provider is _instrumented:
            return
        _instrumented = provider
    meter = provider.get_meter(SCOPE, VERSION)
    for name, (unit, description) in _COUNTERS.items():
        meter.create_observable_counter(name, [_callback(name, _all_counters)], unit, description)
    for name, (unit, description) in _GAUGES.items():
        meter.create_observable_gauge(name, [_callback(name, _all_gauges)], unit, description)


def _callback(
    name: str, read: Callable[[], Mapping[_Key, float]]
) -> Callable[[CallbackOptions], Iterable[Observation]]:
    def observations(options: CallbackOptions) -> Sequence[Observation]:
        try:
            return [Observation(value, dict(at)) for (metric, at), value in read().items() if metric == name]
        except Exception as error:  # noqa: BLE001 - the host's reader must go on, whatever is wrong with us
            _logger.warn_once("a metric could not be read: %r", error)
            return []

    return observations


def _all_counters() -> Mapping[_Key, int]:
    with _lock:
        found = Counter(_gone)
        for source in list(_sources):
            found.update(_counters(source))
    return found


def _all_gauges() -> Mapping[_Key, float]:
    with _lock:
        sources = list(_sources)
    return {key: value for source in sources for key, value in _gauges(source).items()}


def _counters(source: Source) -> dict[_Key, int]:
    counted, server = source.counted(), _server(source.destination)
    return {
        (semconv.METRIC_ACCEPTED, server): counted.accepted,
        (semconv.METRIC_DELIVERED, server): counted.delivered,
        (semconv.METRIC_REJECTED, server): counted.rejected,
        **{
            (semconv.METRIC_DROPPED, (*server, (semconv.DROP_KIND, kind))): number
            for kind, number in counted.dropped.items()
        },
        **{
            (semconv.METRIC_ENDED, (*server, (semconv.ENDED_BY, by), (semconv.OUTCOME, outcome))): number
            for (by, outcome), number in counted.ended.items()
        },
        **{
            (semconv.METRIC_TURNS, (*server, (semconv.FOUND_BY, by))): number
            for by, number in counted.turns.items()
        },
        **{
            (semconv.METRIC_EVALUATIONS, (*server, (semconv.FOUND_BY, by))): number
            for by, number in counted.evaluations.items()
        },
    }


def _gauges(source: Source) -> dict[_Key, float]:
    folder = source.folder_now()
    if folder is None:
        return {}
    at: _Attributes = (*_server(source.destination), (semconv.STATE_FOLDER, folder.name))
    return {
        (semconv.METRIC_PENDING, at): folder.pending,
        (semconv.METRIC_DEAD_LETTERS, at): folder.dead_letters,
        (semconv.METRIC_OLDEST_PENDING_AGE, at): folder.oldest_pending_age,
        (semconv.METRIC_LIVE_SESSIONS, at): folder.live_sessions,
    }


def _server(url: str) -> _Attributes:
    """Host and port alone: a path may name a tenant, a query may hold a key."""
    parts = urlsplit(url)
    if not parts.hostname:
        return ()
    port = parts.port or (443 if parts.scheme == "https" else 80)
    return (semconv.SERVER_ADDRESS, parts.hostname), (semconv.SERVER_PORT, port)


def _after_fork_in_child() -> None:
    """What was counted is the parent's to tell; another thread may have held the lock there."""
    global _lock
    _lock = threading.RLock()
    _gone.clear()


_COUNTERS = {
    semconv.METRIC_ACCEPTED: ("{event}", "Events that callers of this process handed in."),
    semconv.METRIC_DELIVERED: ("{event}", "Events that this process delivered, whoever accepted them."),
    semconv.METRIC_REJECTED: ("{event}", "Events of this process's deliveries that were refused for good."),
    semconv.METRIC_DROPPED: ("{event}", "Events that this process could not keep."),
    semconv.METRIC_ENDED: ("{conversation}", "Conversations whose end this process took in."),
    semconv.METRIC_TURNS: ("{turn}", "Turns that spans of others showed to this process."),
    semconv.METRIC_EVALUATIONS: ("{evaluation}", "Evaluators' words that this process heard."),
}
_GAUGES = {
    semconv.METRIC_PENDING: ("{event}", "Events in the state folder that wait to be delivered."),
    semconv.METRIC_DEAD_LETTERS: ("{event}", "Events in the state folder that were refused and are kept."),
    semconv.METRIC_OLDEST_PENDING_AGE: ("s", "How old the oldest event is that waits in the state folder."),
    semconv.METRIC_LIVE_SESSIONS: (
        "{session}",
        "Live sessions of the processes that share the state folder.",
    ),
}

_sources: weakref.WeakSet[Source] = weakref.WeakSet()
_gone: Counter[_Key] = Counter()
_instrumented: MeterProvider | None = None
_lock = threading.RLock()  # a finaliser may close a pipeline in the middle of a reading

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
