"""Rules of `gathering`: spans that have ended, whatever their order, and when what they tell is told."""

from __future__ import annotations

import random
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_agent_tracker import gathering
from otel_agent_tracker.gathering import (
    REMEMBER_SECONDS,
    WAIT_FOR_LATE,
    WAIT_FOR_LOCAL_PARENT,
    WAIT_FOR_PARENT,
    EndedSpan,
    EndedSpans,
)
from otel_agent_tracker.recognition import Ids, Seen, SpanClass

SECOND = 1_000_000_000


class Gatherer:
    """Ended spans on a clock that the test moves."""

    def __init__(self) -> None:
        self.now = 100.0
        self.spans = EndedSpans(lambda: self.now)

    def add(self, *spans: EndedSpan) -> None:
        """These come now."""
        for span in spans:
            self.spans.add(span)

    def told(self, after: float = 0.0) -> list[int]:
        """The ids of the spans whose turns are told when so many seconds have passed."""
        self.now += after
        return [turn.span_id for turn, _ in self.spans.decide()]


def ended(
    span_id: int,
    parent_id: int | None = None,
    *,
    span_class: SpanClass = SpanClass.AGENT,
    local: bool = True,
    trace_id: int = 1,
    start: float = 0.0,
    end: float = 1.0,
    tokens: tuple[int | None, int | None] = (None, None),
    conversation: str | None = None,
    origin: object = None,
) -> EndedSpan:
    """A span, by default an agent's."""
    seen = Seen(span_class, Ids(conversation), tokens=tokens)
    times = int(start * SECOND), int(end * SECOND)
    return EndedSpan(
        trace_id, span_id, parent_id, local and parent_id is not None, *times, seen, origin=origin
    )


def llm(span_id: int, parent_id: int | None, **options: object) -> EndedSpan:
    """A model call with tokens."""
    return ended(span_id, parent_id, span_class=SpanClass.LLM, tokens=(3, 2), **options)  # type: ignore[arg-type]


def test_a_turn_is_told_a_moment_after_its_root_has_come() -> None:
    """The moment is for spans that another sender of the same exporter brings later."""
    gatherer = Gatherer()
    gatherer.add(llm(2, 1), ended(1))
    assert gatherer.told(WAIT_FOR_LATE - 0.01) == []
    gatherer.add(llm(3, 1))
    assert gatherer.told(WAIT_FOR_LATE - 0.01) == []
    gatherer.now += 0.02
    ((turn, _),) = gatherer.spans.decide()
    assert (turn.span_id, turn.tokens) == (1, (6, 4))
    assert not gatherer.spans.is_holding


@pytest.mark.parametrize(("local", "wait"), [(False, WAIT_FOR_PARENT), (True, WAIT_FOR_LOCAL_PARENT)])
def test_an_agent_whose_parent_has_not_come_waits_for_it(local: bool, wait: float) -> None:
    """One of the same process will come when it has ended; one of another may never."""
    gatherer = Gatherer()
    gatherer.add(ended(2, 1, local=local))
    assert gatherer.told(wait - 0.1) == []
    assert gatherer.told(0.2) == [2]


def test_an_agent_below_another_is_part_of_its_turn() -> None:
    """Though it came long before: what called it went on."""
    gatherer = Gatherer()
    gatherer.add(llm(3, 2), ended(2, 1, conversation="inner"))
    assert gatherer.told(WAIT_FOR_LOCAL_PARENT / 2) == []
    gatherer.add(ended(1, end=30.0))
    assert gatherer.told(WAIT_FOR_LATE) == [1]


def test_what_stands_between_two_agents_joins_them() -> None:
    """A request to another service, in another request to us."""
    gatherer = Gatherer()
    gatherer.add(ended(3, 2, start=0.2, end=0.8, local=False))
    gatherer.add(ended(1))
    assert gatherer.told(WAIT_FOR_LATE / 2) == []
    gatherer.add(ended(2, 1, span_class=SpanClass.OTHER, start=0.1, end=0.9))
    assert gatherer.told(WAIT_FOR_LATE) == [1]


def test_a_turn_is_told_once() -> None:
    """However often its spans are sent, and whatever belongs below it and comes minutes later."""
    gatherer = Gatherer()
    spans = [llm(2, 1), ended(1)]
    gatherer.add(*spans, *spans)
    assert gatherer.told(WAIT_FOR_LATE) == [1]
    gatherer.add(*spans, llm(3, 1), ended(4, 1, start=0.2, end=0.3))
    assert gatherer.told(WAIT_FOR_LOCAL_PARENT) == []
    assert len(gatherer.spans) == 4


def test_runs_below_one_span_that_never_comes_are_told_one_by_one() -> None:
    """A loop around everything, hours long: each run waits for itself."""
    gatherer = Gatherer()
    numbers = count(2)
    told: list[int] = []
    for number in range(100):
        gatherer.add(ended(next(numbers), 1, start=number * 2, end=number * 2 + 1, local=False))
        told += gatherer.told(2.0)
    assert told == list(range(2, 100))
    assert gatherer.told(WAIT_FOR_PARENT) == [100, 101]


def test_the_origin_of_a_turn_is_that_of_its_span() -> None:
    """Whose resource it was, for those who know several."""
    gatherer = Gatherer()
    gatherer.add(llm(2, 1, origin="below"), ended(1, origin="above"))
    gatherer.now += WAIT_FOR_LATE
    assert [origin for _, origin in gatherer.spans.decide()] == ["above"]


def test_released_everything_is_told_and_nothing_waits() -> None:
    """Once."""
    gatherer = Gatherer()
    gatherer.add(ended(2, 1), ended(3, trace_id=2))
    assert sorted(turn.span_id for turn, _ in gatherer.spans.release()) == [2, 3]
    assert gatherer.spans.release() == []
    assert not gatherer.spans.is_holding


def test_traces_are_forgotten_when_nothing_more_was_heard_of_them() -> None:
    """Nothing grows."""
    gatherer = Gatherer()
    gatherer.add(ended(1, trace_id=1))
    assert gatherer.told(WAIT_FOR_LATE) == [1]
    gatherer.add(ended(2, trace_id=2))
    assert [gatherer.told(WAIT_FOR_LATE), len(gatherer.spans)] == [[2], 2]
    gatherer.add(ended(3, trace_id=3))
    assert [gatherer.told(REMEMBER_SECONDS - 1), len(gatherer.spans)] == [[3], 1]


def test_beyond_the_limit_the_idlest_traces_are_told_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rather early than never."""
    monkeypatch.setattr(gathering, "MAX_SPANS", 10)
    gatherer = Gatherer()
    for number in range(1, 31):
        gatherer.add(ended(number, 1000, trace_id=number))
    assert len(gatherer.spans) == 10
    assert gatherer.told() == list(range(1, 21))


def test_a_trace_without_end_is_bounded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its older half is told and forgotten."""
    monkeypatch.setattr(gathering, "MAX_SPANS_OF_TRACE", 10)
    gatherer = Gatherer()
    told: list[int] = []
    for number in range(1, 101):
        gatherer.add(ended(number, 1000, start=number, end=number + 0.5))
        told += gatherer.told()
    assert len(gatherer.spans) <= 10
    assert told == list(range(1, len(told) + 1))
    assert len(told) + len(gatherer.spans.release()) == 100


def test_spans_that_claim_each_other_as_parents_end_nothing() -> None:
    """Nonsense of a sender is told as well as it can be."""
    gatherer = Gatherer()
    gatherer.add(ended(1, 2), ended(2, 1), ended(3, 3))
    told = gatherer.told(WAIT_FOR_LOCAL_PARENT)
    assert set(told) <= {1, 2, 3}
    assert told


def test_a_long_chain_of_spans_costs_each_of_them_a_few_comparisons() -> None:
    """Of ids: a list that is searched for each span would take a million of them."""
    compared = 0

    class CountingId(int):
        def __eq__(self, other: object) -> bool:
            nonlocal compared
            compared += 1
            return int.__eq__(self, other) if isinstance(other, int) else NotImplemented

        __hash__ = int.__hash__

    length, gatherer = 2_000, Gatherer()
    for number in range(length, 0, -1):
        parent = CountingId(number - 1) if number > 1 else None
        kind = SpanClass.OTHER if number > 1 else SpanClass.AGENT
        gatherer.add(ended(CountingId(number), parent, span_class=kind, start=number, end=5_000 - number))
    compared = 0
    assert gatherer.told(WAIT_FOR_LATE) == [1]
    assert compared < 50 * length


def test_a_forked_child_tells_nothing_of_its_parents() -> None:
    """It was the parent that held them."""
    gatherer = Gatherer()
    gatherer.add(ended(1))
    gatherer.spans.after_fork_in_child()
    assert [gatherer.told(WAIT_FOR_LATE), len(gatherer.spans)] == [[], 0]


@st.composite
def trees(draw: st.DrawFn) -> list[EndedSpan]:
    """A trace: each span within the time of the one above it, or going on after it."""
    spans: list[EndedSpan] = []
    for span_id in range(1, draw(st.integers(2, 12))):
        above = draw(st.sampled_from([None, *spans]))
        floor, ceiling = (0.0, 100.0) if above is None else (above.start_ns / SECOND, above.end_ns / SECOND)
        start = floor + (ceiling - floor) * draw(st.sampled_from([0.0, 0.25, 0.5]))
        end = start + (ceiling - start) * draw(st.sampled_from([0.5, 1.0, 1.5]))
        kind = draw(st.sampled_from(list(SpanClass)))
        tokens = (1, 1) if kind is SpanClass.LLM else (None, None)
        parent = None if above is None else above.span_id
        spans.append(ended(span_id, parent, span_class=kind, start=start, end=end, tokens=tokens))
    return spans


@given(trees(), st.randoms(use_true_random=False), st.lists(st.sampled_from([0.0, 0.5]), max_size=12))
def test_the_order_in_which_spans_come_changes_nothing(
    spans: list[EndedSpan], chance: random.Random, pauses: list[float]
) -> None:
    """Turns, tokens and outcomes are those of the times in the spans, as long as no wait ends in between."""
    straight, mixed = Gatherer(), Gatherer()
    straight.add(*spans)
    told = {turn.span_id: turn.tokens for turn, _ in straight.spans.release()}
    shuffled = chance.sample(spans, len(spans))
    for number, span in enumerate([*shuffled, *shuffled[:3]]):
        mixed.add(span)
        mixed.now += pauses[number] if number < len(pauses) else 0.0
    again = [(turn.span_id, turn.tokens) for turn, _ in mixed.spans.release()]
    assert sorted(again) == sorted(told.items())
