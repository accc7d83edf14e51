"""Checks of arguments: each returns the finished value or raises with what was wrong and what is accepted."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from datetime import date, datetime
from enum import Enum
from typing import Any, TypeVar

from otel_agent_tracker.semconv import ConversationQuality

__all__ = [
    "count",
    "date_text",
    "identifier",
    "mapping",
    "member",
    "optional_identifier",
    "positive_number",
    "quality",
    "seconds",
    "session_identifier",
    "text",
]

MAX_ID_LENGTH = 256
LONGEST_SECONDS = 1e9
MAX_SESSION_ID_LENGTH = MAX_ID_LENGTH + 64  # the longest agent id with what makes a session id of it
_Member = TypeVar("_Member", bound=Enum)


def identifier(name: str, value: object) -> str:
    """An agent or user id: 1 to 256 characters, none of them a control character or surrogate."""
    return _identifier(name, value, MAX_ID_LENGTH)


def session_identifier(name: str, value: object) -> str:
    """A session id: as `identifier`, but of up to 320 characters, so that every agent id can have one."""
    return _identifier(name, value, MAX_SESSION_ID_LENGTH)


def text(name: str, value: object) -> str:
    """Free text that a person or an exception wrote."""
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a str, not {type(value).__name__}")
    return value


def quality(name: str, value: object) -> int:
    """A quality as `ConversationQuality` or an int from 1 to 5."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise _type_or_value(name, value, "a ConversationQuality or an int from 1 to 5")
    if not ConversationQuality.VERY_POOR <= value <= ConversationQuality.EXCELLENT:
        raise ValueError(f"{name} must be a ConversationQuality or an int from 1 to 5, not {int(value)}")
    return int(value)


def count(name: str, value: object) -> int:
    """A number of things: an int of 0 or more."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, not {type(value).__name__}")
    if not 0 <= value < 2**63:
        raise ValueError(f"{name} must be 0 or more and fit in 63 bits, not {value}")
    return value


def positive_number(name: str, value: object) -> float:
    """A finite number above 0."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number, not {type(value).__name__}")
    if not 0 < value <= sys.float_info.max:  # before it becomes a float: an int may be too large for one
        raise ValueError(f"{name} must be a finite number above 0, not {value}")
    return float(value)


def seconds(name: str, value: object) -> float:
    """A duration: a number from 0 to 1e9, which is 31 years."""
    duration = 0.0 if value == 0 and not isinstance(value, bool) else positive_number(name, value)
    if duration > LONGEST_SECONDS:
        raise ValueError(f"{name} must be at most {LONGEST_SECONDS:.0f} seconds, not {value}")
    return duration


def mapping(name: str, value: object) -> Mapping[str, Any] | None:
    """A mapping, or None for none."""
    if value is None or isinstance(value, dict):
        return value
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{name} must be a mapping, not {type(value).__name__}")


def optional_identifier(name: str, value: object) -> str | None:
    """An id as `identifier` takes it, or None for none."""
    return None if value is None else identifier(name, value)


def member(name: str, value: object, choices: type[_Member]) -> _Member:
    """A member of the closed set `choices`, or its value."""
    try:
        return choices(value)
    except ValueError:
        accepted = ", ".join(str(choice.value) for choice in choices)
        raise _type_or_value(name, value, f"one of {accepted}") from None


def date_text(name: str, value: object) -> str:
    """A date, a datetime or its ISO 8601 text, as ISO 8601 text."""
    if isinstance(value, date):  # datetime is one
        return value.isoformat()
    try:
        datetime.fromisoformat(text(name, value))
    except ValueError:
        raise ValueError(
            f"{name} must be an ISO 8601 date or time such as 2024-01-19, not {value!r}"
        ) from None
    return str(value)


def _type_or_value(name: str, value: object, accepted: str) -> Exception:
    kind = ValueError if isinstance(value, int | float | str) else TypeError
    return kind(
        f"{name} must be {accepted}, not {value!r}"
        if kind is ValueError
        else f"{name} must be {accepted}, not {type(value).__name__}"
    )


def _identifier(name: str, value: object, longest: int) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a str, not {type(value).__name__}")
    if type(value) is not str:  # an enum's text may be another than its value
        value = str.__str__(value)
    if not 0 < len(value) <= longest:
        raise ValueError(f"{name} must have 1 to {longest} characters, not {len(value)}")
    if value.isascii() and value.isprintable():
        return value
    if unfit := next(
        (c for c in value if c < " " or "\x7f" <= c < "\xa0" or "\ud800" <= c <= "\udfff"), None
    ):
        raise ValueError(f"{name} must not contain control characters or lone surrogates, but has {unfit!a}")
    return value
