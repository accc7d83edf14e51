"""A host's meter provider, and what it reads of us: nothing that earlier tests in this process have counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakSet

import pytest
from opentelemetry.metrics import _internal as metrics_api
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from otel_agent_tracker import metrics

__all__ = ["Read", "meter_provider", "read"]

Read = dict[str, dict[tuple[object, ...], float]]
"""Of each metric the values, by those of its attributes that tell one point from another."""

TOLD_ELSEWHERE = {"server.address", "server.port"}


@contextmanager
def meter_provider() -> Iterator[InMemoryMetricReader]:
    """Make an SDK meter provider the global one for a while; the API's own setter works once a process."""
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics_api, "_METER_PROVIDER", provider)
        patch.setattr(metrics, "_sources", WeakSet())
        patch.setattr(metrics, "_gone", Counter())
        yield reader
    provider.shutdown()


def read(reader: InMemoryMetricReader) -> Read:
    """One collection, without the server's attributes."""
    return {
        metric.name: {
            tuple(
                value for key, value in sorted((point.attributes or {}).items()) if key not in TOLD_ELSEWHERE
            ): getattr(point, "value", 0.0)
            for point in metric.data.data_points
        }
        for resource in getattr(reader.get_metrics_data(), "resource_metrics", ())
        for scope in resource.scope_metrics
        for metric in scope.metrics
    }
