"""Every private name of the OpenTelemetry SDK that this library uses, each with what happens without it."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Mapping
from contextvars import Token
from functools import wraps
from typing import Any

from opentelemetry import context, trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, Tracer, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span
from opentelemetry.trace import TracerProvider as TracerProviderAPI

__all__ = [
    "SUPPRESS_INSTRUMENTATION_KEY",
    "after_each_tracer_provider",
    "attributes_of",
    "detach",
    "enable",
    "processors_of",
    "scope_of",
    "set_clean_attributes",
    "shut_down",
    "tracers_of",
]

SUPPRESS_INSTRUMENTATION_KEY: str = getattr(
    context, "_SUPPRESS_INSTRUMENTATION_KEY", "suppress_instrumentation"
)
"""The Context key that keeps instrumentations away from our own traffic; without it, its documented text."""


def after_each_tracer_provider(do: Callable[[TracerProviderAPI], object]) -> None:
    """Call `do` with each tracer provider that is set from now on, also if it comes too late to be the global one.

    Without the private name, not with those set by a function that was imported by its name before.
    """
    name = "_set_tracer_provider" if hasattr(trace, "_set_tracer_provider") else "set_tracer_provider"
    set_provider = getattr(trace, name)

    @wraps(set_provider)
    def set_and_do(tracer_provider: TracerProviderAPI, *arguments: Any, **options: Any) -> None:
        set_provider(tracer_provider, *arguments, **options)
        do(tracer_provider)

    setattr(trace, name, set_and_do)


def attributes_of(span: ReadableSpan) -> Mapping[str, Any]:
    """`span.attributes` as the plain dict behind it, to be read only.

    The SDK's own mapping spends an exception on each attribute that is asked for and not there, on a caller's
    thread. Without the private name a copy is made.
    """
    found = _dict_behind(span)
    return dict(span.attributes or {}) if found is None else found


def set_clean_attributes(span: Span, attributes: Mapping[str, Any]) -> None:
    """Set attributes whose keys and values need no check, on a span of a provider without limits.

    The SDK looks at each value again and copies all of them twice, on a caller's thread. Without the private name
    it does so.
    """
    found = _dict_behind(span)
    if found is None:
        span.set_attributes(attributes)
    else:
        found.update(attributes)


def detach(token: Token[Context]) -> bool:
    """`opentelemetry.context.detach` without its log line where the token is another Context's: then False.

    Without the private name, that line is logged, and the answer is True.
    """
    runtime = getattr(context, "_RUNTIME_CONTEXT", None)
    if runtime is None:
        context.detach(token)
        return True
    try:
        runtime.detach(token)
    except ValueError:  # a block that was left in another task or thread than it was entered in
        return False
    return True


def enable(provider: TracerProvider) -> None:
    """Let our private `provider` make spans under OTEL_SDK_DISABLED, where they only keep the session map.

    Without the private name, sessions are then unknown to local questions; nothing else changes.
    """
    if hasattr(provider, "_disabled"):
        provider._disabled = False


def processors_of(provider: TracerProvider) -> tuple[SpanProcessor, ...]:
    """The processors of a provider, to be named to a person; without the private names, none."""
    found = getattr(getattr(provider, "_active_span_processor", None), "_span_processors", ())
    return tuple(found)


def shut_down(processor: BatchSpanProcessor, timeout_seconds: float) -> bool:
    """Shut `processor` down within a time; without the private name, nothing is done and False returned.

    Its own `shutdown` waits for up to 30 seconds.
    """
    batch = getattr(processor, "_batch_processor", None)
    if batch is None:
        return False
    batch.shutdown(timeout_millis=int(timeout_seconds * 1000))
    return True


def tracers_of(provider: TracerProvider) -> Iterable[Tracer]:
    """The tracers that `provider` has made so far.

    Older releases keep no list of them (1.36 does not): then all objects of the process are looked
    through, once, for tracers that tell the provider's processors.
    """
    kept = getattr(provider, "_tracers", None)
    if kept is not None:
        return list(kept.values() if isinstance(kept, Mapping) else kept)
    processor = getattr(provider, "_active_span_processor", None)
    return [each for each in gc.get_objects() if type(each) is Tracer and each.span_processor is processor]


def scope_of(tracer: Tracer) -> str:
    """The name of the library that `tracer` makes spans for; without the private name, empty: no known one."""
    scope = getattr(tracer, "_instrumentation_scope", None)
    name = getattr(scope, "name", "")
    return name if isinstance(name, str) else ""


def _dict_behind(span: ReadableSpan | Span) -> dict[str, Any] | None:
    """The plain dict that a span keeps its attributes in."""
    found = getattr(getattr(span, "_attributes", None), "_dict", None)
    return found if isinstance(found, dict) else None
