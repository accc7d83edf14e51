"""What an evaluator says of an answer, as `gen_ai.evaluation.result` tells it; pure, told from plain values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from hashlib import sha256
from typing import Any, NamedTuple

from otel_agent_tracker import semconv
from otel_agent_tracker.recognition import Reader, response_id
from otel_agent_tracker.semconv import ConversationQuality, Event

__all__ = ["Evaluation", "quality", "read"]


class Evaluation(NamedTuple):
    """One evaluator's word on one answer, and all that tells which answer it is about."""

    name: str | None
    score: int | None
    """From 1 to 5, by `quality`."""
    explanation: str | None
    said: str
    """Value and label as the evaluator said them: what tells its words on one answer apart."""
    span: str | None = None
    """`{trace_id}-{span_id}` of the span that was evaluated."""
    response_id: str | None = None
    conversation_id: str | None = None

    def feedback_id(self, session: str) -> str:
        """The same for whoever observes it, and however often it is emitted, so that it counts once."""
        parts = (self.name, self.span, self.response_id, self.said)
        text = "\n".join((Event.CONVERSATION_FEEDBACK, session, *(part or "" for part in parts)))
        return sha256(text.encode("utf-8", "surrogatepass")).digest()[:16].hex()


def read(attributes: Mapping[str, Any], *, trace_id: int, span_id: int, reader: Reader) -> Evaluation | None:
    """The evaluation that a log event `gen_ai.evaluation.result` shows.

    None if the evaluator failed, or says nothing that could be kept.
    """
    if semconv.ERROR_TYPE in attributes:
        return None
    value, label = (
        attributes.get(semconv.EVALUATION_SCORE_VALUE),
        attributes.get(semconv.EVALUATION_SCORE_LABEL),
    )
    score = quality(value, label)
    explanation = _text(attributes.get(semconv.EVALUATION_EXPLANATION), LONGEST_EXPLANATION)
    if score is None and explanation is None:
        return None
    return Evaluation(
        _text(attributes.get(semconv.EVALUATION_NAME), LONGEST_NAME),
        score,
        explanation,
        f"{value!r} {label!r}"[:LONGEST_NAME],
        f"{trace_id:032x}-{span_id:016x}" if trace_id and span_id else None,
        response_id(attributes),
        reader.ids(attributes).conversation,
    )


def quality(value: object, label: object) -> int | None:
    """An evaluator's score as a quality from 1 to 5, or None where there is no telling.

    A value from 0 to 1 is a share, of which 0 becomes 1 and 1 becomes 5; above 1 and up to 5 it is a quality as it
    stands. Either is rounded, halves up. Beyond that no scale is known and the value says nothing. A label counts by
    the words of `_LABELS`. With both the value counts, as the finer one, unless the two lie on different sides of 3:
    the scale, and which end of it is good, is the evaluator's own, and only the label says so.
    """
    by_value, by_label = _quality_of_value(value), _quality_of_label(label)
    if by_value is None or by_label is None:
        return by_label if by_value is None else by_value
    return by_value if (by_value - 3) * (by_label - 3) >= 0 else by_label


def _quality_of_value(value: object) -> int | None:
    if not isinstance(value, int | float) or not 0 <= value <= 5:
        return None
    return math.floor((1 + 4 * value if value <= 1 else value) + 0.5)


def _quality_of_label(label: object) -> int | None:
    if not isinstance(label, str) or len(label) > LONGEST_NAME:
        return None
    return _LABELS.get("_".join(label.lower().replace("-", " ").replace("_", " ").split()))


def _text(value: object, longest: int) -> str | None:
    return value[:longest] if isinstance(value, str) and value.strip() else None


LONGEST_NAME = 256
LONGEST_EXPLANATION = 4096  # as long as a text of an event may be

_GOOD = (
    *("pass", "passed", "true", "yes", "correct", "relevant", "success", "successful", "safe"),
    *("grounded", "faithful", "factual", "helpful", "complete", "coherent", "compliant", "acceptable"),
)
_BAD = (
    *("fail", "failed", "false", "no", "incorrect", "irrelevant", "failure", "unsuccessful", "unsafe"),
    *(
        "ungrounded",
        "unfaithful",
        "hallucinated",
        "unhelpful",
        "incomplete",
        "incoherent",
        "toxic",
        "harmful",
    ),
)
_LABELS: Mapping[str, int] = {
    **dict.fromkeys(_GOOD, 5),
    **dict.fromkeys(("partial", "neutral", "mixed", "borderline"), 3),
    **{f"partially_{word}": 3 for word in _GOOD},
    **dict.fromkeys(_BAD, 1),
    **{f"not_{word}": 1 for word in _GOOD},
    **{quality.name.lower(): quality.value for quality in ConversationQuality},
}
"""Labels in lower case, words joined by `_`. The conventions name relevant, correct and pass, and their opposites."""
