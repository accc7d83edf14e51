"""Rules of `evaluation` and `recent`: what an evaluator's word is worth, and which turn it is about."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_agent_tracker import recent
from otel_agent_tracker.evaluation import Evaluation, quality, read
from otel_agent_tracker.recent import RecentTurns, Target
from otel_agent_tracker.recognition import Reader
from otel_agent_tracker.semconv import FoundBy

TRACE = "0" * 31 + "a"
OTHER_TRACE = "0" * 31 + "b"

labels = st.sampled_from(
    ["pass", "fail", "relevant", "not_relevant", "partially correct", "GOOD", "very-poor"]
)


# --- what it is worth ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "label", "expected"),
    [
        (0, None, 1),
        (0.5, None, 3),
        (0.624, None, 3),
        (0.625, None, 4),
        (1, None, 5),
        (True, None, 5),
        (1.4, None, 1),
        (4.0, None, 4),
        (5, None, 5),
        (5.1, None, None),
        (-0.1, None, None),
        (87, None, None),
        (math.nan, None, None),
        ("4", None, None),
        (None, None, None),
        (None, "pass", 5),
        (None, " Not Relevant ", 1),
        (None, "partially_correct", 3),
        (None, "Excellent", 5),
        (None, "very-poor", 1),
        (None, "green", None),
        (None, 7, None),
        (None, "x" * 10_000, None),
        (4, "pass", 4),
        (87, "pass", 5),
        (1, "fail", 1),
        (0.0, "pass", 5),
        (3, "fail", 3),
        (0.9, "green", 5),
    ],
)
def test_value_and_label_become_a_quality(value: object, label: object, expected: int | None) -> None:
    """By the documented rule: the value is the finer one, and the label knows which end of its scale is good."""
    assert quality(value, label) == expected


@given(st.floats() | st.integers() | st.none() | st.text(), labels | st.none() | st.text())
def test_whatever_is_said_is_a_quality_or_none(value: object, label: object) -> None:
    """Never outside 1 to 5, never an exception."""
    assert quality(value, label) in (None, 1, 2, 3, 4, 5)


@given(st.tuples(st.floats(0, 1), st.floats(0, 1)) | st.tuples(st.floats(1.01, 5), st.floats(1.01, 5)))
def test_on_one_scale_more_is_never_worse(values: tuple[float, float]) -> None:
    """Of shares as of qualities."""
    less, more = (quality(value, None) for value in sorted(values))
    assert less is not None
    assert more is not None
    assert less <= more


@given(st.floats(0, 1))
def test_a_share_and_its_rest_mirror_each_other(share: float) -> None:
    """As far as rounding lets them: neither end of the scale is favoured by more than a step."""
    one, other = quality(share, None), quality(1 - share, None)
    assert one is not None
    assert other is not None
    assert one + other in (6, 7)


@given(st.floats(-1, 10), labels)
def test_a_label_is_never_contradicted(value: float, label: str) -> None:
    """Whatever the value, the result lies on the label's side of the middle."""
    found, said = quality(value, label), quality(None, label)
    assert found is not None
    assert said is not None
    assert (found - 3) * (said - 3) >= 0


# --- what it says -------------------------------------------------------------------------------------------

SAID: dict[str, Any] = {
    "gen_ai.evaluation.name": "Relevance",
    "gen_ai.evaluation.score.value": 4.0,
    "gen_ai.evaluation.score.label": "pass",
    "gen_ai.evaluation.explanation": "to the point",
    "gen_ai.response.id": "resp_1",
}


def evaluation(*, span: int = 0, trace: int = 0xA, **more: Any) -> Evaluation | None:
    """What is read of an event in a span, with attributes changed; those of None are left out."""
    attributes = SAID | {f"gen_ai.{name}": value for name, value in more.items()}
    kept = {name: value for name, value in attributes.items() if value is not None}
    return read(kept, trace_id=trace if span else 0, span_id=span, reader=Reader())


def an_evaluation(**how: Any) -> Evaluation:
    """One that says something."""
    found = evaluation(**how)
    assert found is not None
    return found


def test_an_evaluation_is_read_whole() -> None:
    """Name, quality and explanation, and each id that tells what it is about."""
    found = an_evaluation(span=0xB, **{"conversation.id": "thread-1"})
    assert found[:3] == ("Relevance", 4, "to the point")
    assert found[4:] == (f"{TRACE}-{0xB:016x}", "resp_1", "thread-1")


def test_what_says_nothing_is_none() -> None:
    """No score and no explanation, or an evaluator that failed."""
    silent: Any = dict.fromkeys(
        ("evaluation.score.value", "evaluation.score.label", "evaluation.explanation")
    )
    assert evaluation(**silent) is None
    assert read({**SAID, "error.type": "timeout"}, trace_id=0, span_id=0, reader=Reader()) is None


def test_ids_that_can_name_nothing_name_nothing() -> None:
    """What a scrubber leaves, what is no text, and what would be kept at length."""
    for wrong in ("", "[Scrubbed due to 'session']", "x" * 10_000, 7, ["a"]):
        found = an_evaluation(**{"response.id": wrong, "conversation.id": wrong})
        assert (found.response_id, found.conversation_id) == (None, None)


def test_one_evaluation_has_one_feedback_id() -> None:
    """However often it is emitted; another answer, evaluator or verdict is another one."""
    one = an_evaluation(span=0xB)
    assert one.feedback_id("s") == an_evaluation(span=0xB).feedback_id("s")
    others = [
        an_evaluation(span=0xC),
        an_evaluation(span=0xB, **{"response.id": "resp_2"}),
        an_evaluation(span=0xB, **{"evaluation.name": "Safety"}),
        an_evaluation(span=0xB, **{"evaluation.score.value": 3.9}),
        an_evaluation(span=0xB, **{"evaluation.score.label": None}),
    ]
    ids = {each.feedback_id("s") for each in (one, *others)} | {one.feedback_id("another")}
    assert len(ids) == len(others) + 2


# --- which turn it is about ---------------------------------------------------------------------------------


class Now:
    """A clock that is set."""

    def __init__(self) -> None:
        self.seconds = 0.0


@pytest.fixture(name="now")
def _now() -> Now:
    return Now()


@pytest.fixture(name="turns")
def _turns(now: Now) -> RecentTurns:
    return RecentTurns(lambda: now.seconds)


ONE = Target("thread-1", f"{TRACE}-{1:016x}")
TWO = Target("thread-2", f"{TRACE}-{2:016x}")


def test_the_turn_s_own_span_and_each_span_below_it_name_it(turns: RecentTurns) -> None:
    """In its own trace alone."""
    turns.add(ONE, [(0xB, None)])
    for span in (1, 0xB):
        assert turns.find(an_evaluation(span=span)) == ONE
        assert turns.find(an_evaluation(span=span, trace=0xB)) is None
    assert turns.counts == {FoundBy.SPAN: 2}


def test_a_response_names_its_turn_before_the_span_does(turns: RecentTurns) -> None:
    """An evaluator may be an agent, and speak in a span of its own."""
    turns.add(ONE, [(0xB, "resp_1")])
    turns.add(TWO, [])
    assert turns.find(an_evaluation(span=2)) == ONE
    assert turns.counts == {FoundBy.RESPONSE: 1}


def test_a_response_of_two_turns_names_neither(turns: RecentTurns) -> None:
    """Whoever numbers responses anew each time merges nobody's turns; the span still tells."""
    turns.add(ONE, [(0xB, "resp_1")])
    turns.add(TWO, [(0xC, "resp_1")])
    assert turns.find(an_evaluation()) is None
    assert turns.find(an_evaluation(span=0xB)) == ONE


def test_an_evaluation_may_come_before_the_end_of_its_turn(turns: RecentTurns) -> None:
    """It waits, and is handed out once, whichever of its ids is met."""
    for span in (0, 0xB):
        waiting = an_evaluation(span=span)
        assert turns.find(waiting) is None
        assert turns.find(waiting) is None  # emitted twice
        assert turns.add(ONE, [(0xB, "resp_1")]) == [waiting]
        assert turns.add(ONE, [(0xB, "resp_1")]) == []
        turns._turns.clear()
    assert not turns._waiting_for


def test_its_own_conversation_id_tells_last(turns: RecentTurns) -> None:
    """Of a turn that was not seen, it is about that turn by its span, else about the whole."""
    named = {"conversation.id": "thread-7"}
    span = f"{TRACE}-{0xB:016x}"
    assert turns.find(an_evaluation(**named)) == Target("thread-7", None)
    assert turns.find(an_evaluation(span=0xB, **named)) == Target("thread-7", span)
    turns.add(ONE, [(0xB, None)])
    assert turns.find(an_evaluation(span=0xB, **named)) == ONE
    assert turns.counts == {FoundBy.CONVERSATION: 2, FoundBy.SPAN: 1}


def test_after_ten_minutes_nothing_is_known(turns: RecentTurns, now: Now) -> None:
    """Neither of a turn nor of an evaluation that waits; that one is counted as one that found nothing."""
    turns.add(ONE, [(0xB, "resp_1")])
    now.seconds = 599.0
    turns.find(an_evaluation(span=0xD, **{"response.id": "resp_2"}))
    assert turns.find(an_evaluation()) == ONE
    now.seconds = 600.0
    assert turns.find(an_evaluation()) is None
    now.seconds = 1200.0
    assert turns.add(ONE, [(0xB, "resp_1"), (0xD, "resp_2")]) == []
    assert turns.counts == {FoundBy.RESPONSE: 1, FoundBy.NOTHING: 2}


def test_what_is_kept_is_bounded(turns: RecentTurns, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest goes first."""
    monkeypatch.setattr(recent, "MAX_PIECES", 10)
    monkeypatch.setattr(recent, "MAX_WAITING", 10)
    for number in range(1, 51):
        turns.add(Target("thread", f"{TRACE}-{number:016x}"), [])
        turns.find(an_evaluation(span=number, trace=0xB))
    assert (len(turns._turns), len(turns._waiting), len(turns._waiting_for)) == (10, 10, 11)
    assert turns.find(an_evaluation(span=50)) == Target("thread", f"{TRACE}-{50:016x}")
    assert turns.counts == {FoundBy.NOTHING: 40, FoundBy.SPAN: 1}


def test_a_forked_child_leaves_what_waits_to_its_parent(turns: RecentTurns) -> None:
    """And what was counted; it knows the turns, and may be told of them."""
    turns.add(ONE, [])
    turns.find(an_evaluation(span=0xB))
    turns.find(an_evaluation(span=1))
    turns.after_fork_in_child()
    assert turns.add(TWO, [(0xB, "resp_1")]) == []
    assert turns.counts == {}
    assert turns.find(an_evaluation(span=1, **{"response.id": None})) == ONE
