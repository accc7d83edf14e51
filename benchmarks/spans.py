"""What watching costs the spans of other people: with our processor against without. Prints one JSON object."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping
from tempfile import TemporaryDirectory

from opentelemetry.sdk.trace import TracerProvider

from benchmarks.plain_span import make_provider
from benchmarks.sink import running_sink
from benchmarks.timing import Subject, alone
from otel_agent_tracker import AgentPerformanceTracker, install

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


AGENT: dict[str, str | int] = {
    "gen_ai.operation.name": "invoke_agent",
    "gen_ai.provider.name": "openai",
    "gen_ai.agent.name": "support-bot",
    "gen_ai.conversation.id": "thread-17",
    "gen_ai.request.model": "model",
}
KNOWN = "opentelemetry.instrumentation.httpx"


class OneSpan:
    """A span with the given attributes, below whatever span is current."""

    def __init__(
        self,
        provider: TracerProvider,
        name: str,
        attributes: Mapping[str, str | int],
        scope: str = "benchmark",
    ) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer(scope)
        self._name = name
        self._attributes = attributes

    def call(self) -> None:
        """Start and end the span."""
        self._tracer.start_span(self._name, attributes=self._attributes).end()

    def settle(self) -> None:
        """Wait until all spans are exported."""
        self._provider.force_flush()


class OneTurn(OneSpan):
    """A span that is a turn, and so is reported; `tracker` is who reports it."""

    tracker: AgentPerformanceTracker | None = None

    def settle(self) -> None:
        """Wait until all spans are exported, and all turns delivered."""
        super().settle()
        assert self.tracker is None or self.tracker.flush(60)


def _measure(url: str, rounds: int) -> dict[str, float]:
    plain, watched = make_provider(url), make_provider(url)

    def both(name: str, attributes: Mapping[str, str | int], scope: str = "benchmark") -> dict[str, Subject]:
        return {
            "plain": OneSpan(plain, name, attributes, scope),
            "watched": OneSpan(watched, name, attributes, scope),
        }

    def measured(kind: str, subjects: dict[str, Subject]) -> dict[str, float]:
        print(f"  spans: {kind}", file=sys.stderr, flush=True)
        times = alone(subjects, rounds=rounds, calls=500)
        return {f"{name}.{kind}.p50": each.p50 for name, each in times.items()}

    with TemporaryDirectory() as folder:
        os.environ["AGENT_TRACKER_STATE_DIR"] = folder
        tracker = install(watched, base_url=url)
        turn = OneTurn(watched, "invoke_agent", AGENT)
        turn.tracker = tracker
        figures = measured("http", both("GET", HTTP)) | measured("known", both("GET", HTTP, KNOWN))
        figures |= measured("turn", {"plain": OneTurn(plain, "invoke_agent", AGENT), "watched": turn})
        with tracker.conversation("support-bot") as conversation, conversation.turn():
            figures |= measured("llm", both("chat", LLM)) | measured("agent", both("invoke_agent", AGENT))
        tracker.flush(10)
        tracker.close()
    plain.shutdown()
    watched.shutdown()
    return figures


def main() -> None:
    """Measure spans that are nobody's of ours, a model's and an agent's below a turn, and one that is a turn."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    with running_sink() as sink:
        print(json.dumps(_measure(sink.url, 4 if options.quick else 15)))


if __name__ == "__main__":
    main()
