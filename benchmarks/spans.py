"""What watching costs the spans of other people: with our processor against without. Prints one JSON object."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping
from tempfile import TemporaryDirectory

from opentelemetry.sdk.trace import TracerProvider

from benchmarks.plain_span import make_provider
from benchmarks.sink import running_sink
from benchmarks.timing import Subject, alone
from otel_agent_tracker import install

__all__: list[str] = []

HTTP: dict[str, str | int] = {
    "http.request.method": "GET",
    "url.full": "https://example.org/orders/17",
    "server.address": "example.org",
    "server.port": 443,
    "http.response.status_code": 200,
}
LLM: dict[str, str | int] = {
    "gen_ai.operation.name": "chat",
    "gen_ai.provider.name": "openai",
    "gen_ai.request.model": "model",
    "gen_ai.response.model": "model-1",
    "gen_ai.usage.input_tokens": 812,
    "gen_ai.usage.output_tokens": 64,
}


class OneSpan:
    """A span with the given attributes, below whatever span is current."""

    def __init__(self, provider: TracerProvider, name: str, attributes: Mapping[str, str | int]) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("benchmark")
        self._name = name
        self._attributes = attributes

    def call(self) -> None:
        """Start and end the span."""
        self._tracer.start_span(self._name, attributes=self._attributes).end()

    def settle(self) -> None:
        """Wait until all spans are exported."""
        self._provider.force_flush()


def _measure(url: str, rounds: int) -> dict[str, float]:
    plain, watched = make_provider(url), make_provider(url)
    http: dict[str, Subject] = {
        "plain": OneSpan(plain, "GET", HTTP),
        "watched": OneSpan(watched, "GET", HTTP),
    }
    llm: dict[str, Subject] = {
        "plain": OneSpan(plain, "chat", LLM),
        "watched": OneSpan(watched, "chat", LLM),
    }
    with TemporaryDirectory() as folder:
        os.environ["AGENT_TRACKER_STATE_DIR"] = folder
        tracker = install(watched, base_url=url)
        outside = alone(http, rounds=rounds, calls=500)
        with tracker.conversation("support-bot") as conversation, conversation.turn():
            inside = alone(llm, rounds=rounds, calls=500)
        tracker.flush(10)
        tracker.close()
    plain.shutdown()
    watched.shutdown()
    figures = {f"{name}.http.p50": times.p50 for name, times in outside.items()}
    return figures | {f"{name}.llm.p50": times.p50 for name, times in inside.items()}


def main() -> None:
    """Measure a span that is nobody's of ours, and a model's below a turn."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    with running_sink() as sink:
        print(json.dumps(_measure(sink.url, 4 if options.quick else 15)))


if __name__ == "__main__":
    main()
