"""OpenTelemetry as it is in the doctor's own process; an application's may differ."""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

from otel_agent_tracker.cli.doctor.checks import Check, ok, warning
from otel_agent_tracker.cli.frameworks import Found, installed_frameworks
from otel_agent_tracker.sdk_private import processors_of

__all__ = ["check_telemetry"]


def check_telemetry() -> Iterator[Check]:
    """Version, provider and processors, and the agent frameworks that are installed."""
    yield ok(
        "SDK", f"opentelemetry-sdk {_version('opentelemetry-sdk')}, -api {_version('opentelemetry-api')}"
    )
    yield _check_provider(trace.get_tracer_provider())
    if os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        yield warning("disabled", "OTEL_SDK_DISABLED is true.", "Unset it where agents are to be tracked.")
    yield from map(_check_framework, installed_frameworks())


def _check_framework(found: Found) -> Check:
    name = f"{found.framework.name} {found.version}"
    if found.advice:
        return warning("framework", f"{name} has no instrumentation, and is not seen.", found.advice)
    note = f"; {found.framework.note}" if found.framework.note else ""
    return ok("framework", f"{name} is recognised, by spans of {found.instrumentation}{note}")


def _check_provider(provider: trace.TracerProvider) -> Check:
    if not isinstance(provider, TracerProvider):
        return ok("provider", "none in this process; the library needs none, an application sets its own")
    names = ", ".join(type(each).__name__ for each in processors_of(provider)) or "none"
    return ok("provider", f"{type(provider).__name__} in this process; processors: {names}")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "(unknown)"
