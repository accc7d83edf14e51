"""Rules of `following`: providers that are set later, and what they may do wrong."""

from __future__ import annotations

from itertools import count

import pytest
from opentelemetry import _logs, trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.util._once import Once

from otel_agent_tracker import following, sdk_private
from tests.interrupting import finishes, interrupted_at


@pytest.fixture(autouse=True)
def new_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is followed yet, and no provider is set; what is wrapped is unwrapped at the end."""
    monkeypatch.setattr(following, "_follows", False)
    monkeypatch.setattr(following._logger, "said", set())
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", None)
    monkeypatch.setattr(trace, "_TRACER_PROVIDER_SET_ONCE", Once())
    monkeypatch.setattr(trace, "_set_tracer_provider", trace._set_tracer_provider)
    monkeypatch.setattr(_logs, "set_logger_provider", _logs.set_logger_provider)


class Touchy(trace.NoOpTracerProvider):
    """A provider of the host that does not bear to be looked at."""

    @property
    def add_span_processor(self) -> object:
        raise RuntimeError("a mistake of the host")


def test_a_provider_that_cannot_be_followed_is_set_all_the_same(caplog: pytest.LogCaptureFixture) -> None:
    """Once: OpenTelemetry would warn of a second time. The log says what is wrong, and the next one is followed."""
    assert not following.follow_global()
    touchy, provider = Touchy(), TracerProvider(shutdown_on_exit=False)
    trace.set_tracer_provider(touchy)
    assert trace.get_tracer_provider() is touchy
    assert {record.name for record in caplog.records} <= {
        "otel_agent_tracker.following",
        "otel_agent_tracker.agents",
    }
    assert "the host's tracer provider is not followed: RuntimeError('a mistake of the host')" in caplog.text
    trace.set_tracer_provider(provider)
    assert len(sdk_private.processors_of(provider)) == 1


def test_whoever_interrupts_us_does_not_follow_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal handler that asks for the same, at whichever point, neither waits nor has a provider watched twice."""
    set_by_host = trace._set_tracer_provider

    def interrupt_everywhere() -> None:
        for point in count():
            monkeypatch.setattr(following, "_follows", False)
            monkeypatch.setattr(trace, "_set_tracer_provider", set_by_host)
            with interrupted_at(point, {following.__file__}, do=following.follow_global) as was_reached:
                following.follow_global()
            wrapped = trace._set_tracer_provider
            assert wrapped.__wrapped__ is set_by_host  # type: ignore[attr-defined]  # as `wraps` leaves it
            if not was_reached():
                break

    assert finishes(interrupt_everywhere)
