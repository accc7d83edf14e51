"""`install`: the pipeline for code that holds no tracker object, and functions that speak to it."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from opentelemetry.trace import TracerProvider

from otel_agent_tracker.agents import watch
from otel_agent_tracker.config import ApiKey, Options, Redact
from otel_agent_tracker.following import follow, follow_global
from otel_agent_tracker.hearing import hear
from otel_agent_tracker.recognition import Recogniser
from otel_agent_tracker.semconv import ConversationQuality, FeedbackSource
from otel_agent_tracker.tracker import AgentPerformanceTracker

__all__ = ["end_conversation", "install", "record_feedback"]


def install(
    tracer_provider: TracerProvider | None = None,
    *,
    base_url: str | None = None,
    api_key: ApiKey | None = None,
    recognisers: Sequence[Recogniser] = (),
    redactor: Redact | None = None,
) -> AgentPerformanceTracker:
    """Watch `tracer_provider`, by default the global one and each that is set later, and hold the pipeline.

    Turns that the spans of agent frameworks show are then reported, and spans that start inside our blocks carry
    their session's id. Spans that the provider's sampler drops are recorded for that, and exported to nobody. What
    evaluators emit on the global logger provider becomes feedback (`EvaluationLogRecordProcessor`).
    `recognisers` are rules of your own: each is given the name and the attributes of a span that has ended, and
    returns a `Recognised` or None; they are asked before the library's rules. `redactor` gets every text that is
    to leave and returns what may. Idempotent: a second call with the same destination changes the rules at most,
    and a `redactor` joins in. Returns the tracker that `record_feedback` and `end_conversation` speak to.

    Raises ValueError or TypeError, before anything changes, for an argument that is not accepted.
    """
    global _installed
    given: object = tracer_provider
    if not isinstance(given, TracerProvider | None):
        kind = type(given).__name__
        raise TypeError(
            f"tracer_provider must be a TracerProvider, not {kind}; the tracker's URL goes to base_url="
        )
    rules = _rules(recognisers)
    options: Options = {} if redactor is None else {"redactor": redactor}
    tracker = AgentPerformanceTracker(base_url, api_key, **options)
    with _lock:
        before, _installed = _installed, tracker
    if before is not None:
        before.close()
    tracker._pipeline.recognise(rules)
    if not tracker._pipeline.is_reporting:
        watch(tracer_provider)  # spans in our blocks carry the session's id all the same
    elif tracer_provider is None:
        follow_global()
    else:
        follow(tracer_provider)
        hear()
    return tracker


def record_feedback(
    session_id: str,
    quality_score: ConversationQuality | int | None = None,
    user_feedback: str | None = None,
    *,
    thumbs: str | None = None,
    turn_id: str | None = None,
    source: FeedbackSource | str = FeedbackSource.USER,
    name: str | None = None,
    agent_id: str | None = None,
) -> bool:
    """`AgentPerformanceTracker.record_feedback` on the installed pipeline.

    Without one, `install` is called first: the environment names the destination.
    """
    return _tracker().record_feedback(
        session_id,
        quality_score,
        user_feedback,
        thumbs=thumbs,
        turn_id=turn_id,
        source=source,
        name=name,
        agent_id=agent_id,
    )


def end_conversation(
    session_id: str,
    quality_score: ConversationQuality | int | None = None,
    user_feedback: str | None = None,
    message_count: int | None = None,
    metadata: Mapping[str, Any] | None = None,
    *,
    agent_id: str | None = None,
) -> bool:
    """`AgentPerformanceTracker.end_conversation` on the installed pipeline, as `record_feedback`."""
    return _tracker().end_conversation(
        session_id, quality_score, user_feedback, message_count, metadata, agent_id=agent_id
    )


def _rules(recognisers: Iterable[Recogniser]) -> tuple[Recogniser, ...]:
    given: object = recognisers
    if isinstance(given, Iterable) and all(map(callable, rules := tuple(recognisers))):
        return rules
    raise TypeError("recognisers must be a sequence of functions of a span's name and attributes")


def _tracker() -> AgentPerformanceTracker:
    return _installed or install()


_installed: AgentPerformanceTracker | None = None
_lock = threading.Lock()
