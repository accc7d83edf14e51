"""OpenTelemetry as it is in the doctor's own process; an application's may differ."""

from __future__ import annotations

import os
from collections.abc import Iterator

from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

from otel_agent_tracker.cli.doctor.checks import Check, ok, warning
from otel_agent_tracker.cli.frameworks import Found, installed_frameworks, version_of
from otel_agent_tracker.sdk_private import processors_of

__all__ = ["check_telemetry"]


def check_telemetry() -> Iterator[Check]:
    """Version, provider and processors, and the agent frameworks that are installed."""
    sdk, api = (version_of(f"opentelemetry-{part}") or "(unknown)" for part in ("sdk", "api"))
    yield ok("SDK", f"opentelemetry-sdk {sdk}, -api {api}")
    yield _check_provider(trace.get_tracer_provider())
    if os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        yield warning("disabled", "OTEL_SDK_DISABLED is true.", "Unset it where agents are to be tracked.")
    yield from map(_check_framework, installed_frameworks())


def _check_framework(found: Found) -> Check:
    if found.advice:
        return warning("framework", f"{found.tell()}.", found.advice)
    return ok("framework", found.tell())


def _check_provider(provider: trace.TracerProvider) -> Check:
    if not isinstance(provider, TracerProvider):
        return ok("provider", "none in this process; the library needs none, an application sets its own")
    names = ", ".join(type(each).__name__ for each in processors_of(provider)) or "none"
    return ok("provider", f"{type(provider).__name__} in this process; processors: {names}")
