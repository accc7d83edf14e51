"""The recorded spans once more, seen only when they have ended: in order, shuffled, in parts and repeated."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from otel_agent_tracker.testing import recording
from otel_agent_tracker.trace_exporter import AgentTrackerSpanExporter
from tests.recognition.replayed import DUMPS, Dump, make_provider
from tests.recognition.test_replay import INDISTINGUISHABLE, LABELS

Told = dict[str, list[tuple[str | None, str, int, int]]]
ORDERS = ["as they end", "parents first", "shuffled", "one by one", "twice"]


def recorded_spans(name: str) -> list[ReadableSpan]:
    """All spans of a file in the order in which they ended."""
    provider, ids = make_provider()
    kept = InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(kept))
    Dump(name).replay(provider, ids)
    return list(kept.get_finished_spans())


def requests_of(spans: list[ReadableSpan], order: str) -> list[Sequence[ReadableSpan]]:
    """The spans in the requests that they come in."""
    if order == "parents first":
        return [spans[::-1]]
    if order == "shuffled":
        mixed = random.Random(len(spans)).sample(spans, len(spans))
        return [mixed[at : at + 7] for at in range(0, len(mixed), 7)]
    if order == "one by one":
        return [[span] for span in spans]
    return [spans, spans] if order == "twice" else [spans]


def told_of(name: str, order: str) -> Told:
    """Of each scenario its turns: conversation, status and tokens."""
    scenario_of, told = Dump(name).scenario_of, defaultdict(list)
    with recording(ungrouped="all") as recorded:
        exporter = AgentTrackerSpanExporter()
        for spans in requests_of(recorded_spans(name), order):
            exporter.export(spans)
        exporter.shutdown()
        for conversation in recorded.conversations:
            for turn in conversation.turns:
                label = LABELS[name]["scenarios"][scenario_of[turn.turn_id.partition("-")[2]]]
                session = None if label["id"] is None else conversation.session_id
                tokens = turn.input_tokens or 0, turn.output_tokens or 0
                told[scenario_of[turn.turn_id.partition("-")[2]]].append(
                    (session, turn.status.value, *tokens)
                )
    return told


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", DUMPS)
def test_ended_spans_tell_the_same_turns(name: str, order: str) -> None:
    """As many, of the same conversations, with the same tokens and outcomes, as the labels say."""
    told = told_of(name, order)
    for scenario, label in LABELS[name]["scenarios"].items():
        turns = told[scenario]
        assert len(turns) == (1 if scenario == INDISTINGUISHABLE else label["turns"]), scenario
        assert {session for session, *_ in turns} <= {label["id"]}, scenario
        assert [sum(turn[2] for turn in turns), sum(turn[3] for turn in turns)] == label["tokens"], scenario
        assert {status for _, status, *_ in turns} <= {label["status"]}, scenario
