"""Real spans of agent frameworks, replayed through the real processor: turns, ids, tokens and outcomes.

`labels.json` says for each scenario of each file what is true of it, and why. `turns` were counted by hand by those who
recorded the spans; ids are those that the scenario passed, where the framework emits them at all; tokens are those of
the model calls, each counted once.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import otel_agent_tracker
from otel_agent_tracker import auto
from otel_agent_tracker.semconv import EndedBy
from otel_agent_tracker.testing import RecordedConversation, RecordedTurn, recording
from tests.recognition.replayed import DUMPS, Dump, make_provider

LABELS: dict[str, Any] = json.loads((Path(__file__).parent / "labels.json").read_text(encoding="utf-8"))
SCENARIOS = [(dump, scenario) for dump in LABELS for scenario in LABELS[dump]["scenarios"]]
INDISTINGUISHABLE = "one_trace_two_runs"

Turns = dict[str, list[tuple[RecordedConversation, RecordedTurn]]]
_replayed: dict[str, Turns] = {}


@pytest.fixture(autouse=True)
def nothing_installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each test begins as a new process does."""
    monkeypatch.setattr(auto, "_installed", None)
    yield
    if auto._installed is not None:
        auto._installed.close()


def turns_of(name: str) -> Turns:
    """What the tracker is told of a file's spans, by scenario; each file is replayed once."""
    if name not in _replayed:
        dump, (provider, ids) = Dump(name), make_provider()
        turns: Turns = defaultdict(list)
        with recording(ungrouped="all") as recorded:
            otel_agent_tracker.install(provider)
            dump.replay(provider, ids)
            for conversation in recorded.conversations:
                for turn in conversation.turns:
                    scenario = dump.scenario_of[turn.turn_id.partition("-")[2]]
                    turns[scenario].append((conversation, turn))
        _replayed[name] = turns
    return _replayed[name]


def test_every_file_is_labelled() -> None:
    """And every scenario in it."""
    assert {dump: set(Dump(dump).scenario_of.values()) for dump in DUMPS} == {
        dump: set(labelled["scenarios"]) for dump, labelled in LABELS.items()
    }


@pytest.mark.parametrize(("dump", "scenario"), SCENARIOS)
def test_turns_are_what_a_user_would_count(dump: str, scenario: str) -> None:
    """Neither more nor fewer; but two runs below one span look as one run with a handoff does."""
    expected = 1 if scenario == INDISTINGUISHABLE else LABELS[dump]["scenarios"][scenario]["turns"]
    assert len(turns_of(dump)[scenario]) == expected


@pytest.mark.parametrize(("dump", "scenario"), SCENARIOS)
def test_a_turn_belongs_to_the_conversation_that_was_passed(dump: str, scenario: str) -> None:
    """Where the framework emits its id; else it is a conversation of its own, which has ended with it."""
    label = LABELS[dump]["scenarios"][scenario]
    for conversation, turn in turns_of(dump)[scenario]:
        if label["id"] is None:
            assert (conversation.session_id, conversation.ended_by) == (turn.turn_id, EndedBy.TURN)
        else:
            assert (conversation.session_id, conversation.ended_by) == (label["id"], None)


@pytest.mark.parametrize(("dump", "scenario"), SCENARIOS)
def test_tokens_are_counted_once(dump: str, scenario: str) -> None:
    """Whatever repeats, sums up or accumulates them."""
    turns = [turn for _, turn in turns_of(dump)[scenario]]
    summed = [sum(turn.input_tokens or 0 for turn in turns), sum(turn.output_tokens or 0 for turn in turns)]
    assert summed == LABELS[dump]["scenarios"][scenario]["tokens"]


@pytest.mark.parametrize(("dump", "scenario"), SCENARIOS)
def test_the_turns_that_fail_are_those_that_failed(dump: str, scenario: str) -> None:
    """A reader who leaves cancels, and a question to a human waits."""
    expected = LABELS[dump]["scenarios"][scenario]["status"]
    assert {turn.status.value for _, turn in turns_of(dump)[scenario]} == {expected}


@pytest.mark.parametrize("dump", DUMPS)
def test_no_content_leaves_the_process(dump: str) -> None:
    """Of what users and models say nothing is in an event; error texts are what frameworks put into the status."""
    provider, ids = make_provider()
    with recording(ungrouped="all") as recorded:
        otel_agent_tracker.install(provider)
        Dump(dump).replay(provider, ids)
        told = json.dumps([request.body for request in recorded.requests])
    assert told.count("turn_id") > 0
    for said in ("weather", "Paris", "sunny"):
        assert said not in told
