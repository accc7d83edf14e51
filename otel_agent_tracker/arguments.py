"""Checks of arguments: each returns the finished value or raises with what was wrong and what is accepted.

A message shows short values of built-in types and the class of everything else: none of the caller's code runs.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from datetime import date, datetime
from enum import Enum
from typing import Any, TypeVar, cast

from otel_agent_tracker.metadata import is_mapping
from otel_agent_tracker.semconv import ConversationQuality

__all__ = [
    "choice",
    "count",
    "date_text",
    "identifier",
    "mapping",
    "member",
    "optional_identifier",
    "period",
    "positive_number",
    "quality",
    "seconds",
    "session_identifier",
    "shown",
    "text",
    "type_or_value",
]

MAX_ID_LENGTH = 256
LONGEST_SECONDS = 1e9
LONGEST_PERIOD = 1e7  # in whichever unit
MAX_SESSION_ID_LENGTH = MAX_ID_LENGTH + 64  # the longest agent id with what makes a session id of it
_LONGEST_SHOWN = 80  # characters
_WIDEST_SHOWN = 256  # bits
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
        raise type_or_value(name, value, "a ConversationQuality or an int from 1 to 5")
    number = int.__int__(value)
    if not ConversationQuality.VERY_POOR <= number <= ConversationQuality.EXCELLENT:
        raise ValueError(f"{name} must be a ConversationQuality or an int from 1 to 5, not {shown(number)}")
    return number


def count(name: str, value: object) -> int:
    """A number of things: an int of 0 or more."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, not {type(value).__name__}")
    number = int.__int__(value)
    if not 0 <= number < 2**63:
        raise ValueError(f"{name} must be 0 or more and fit in 63 bits, not {shown(number)}")
    return number


def positive_number(name: str, value: object) -> float:
    """A finite number above 0."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number, not {type(value).__name__}")
    if not 0 < value <= sys.float_info.max:  # before it becomes a float: an int may be too large for one
        raise ValueError(f"{name} must be a finite number above 0, not {shown(value)}")
    return float(value)


def period(name: str, value: object) -> float:
    """A period of time in the unit of its name: a number above 0, at most 1e7."""
    number = positive_number(name, value)
    if number > LONGEST_PERIOD:  # clocks, locks and sockets take no more
        raise ValueError(f"{name} must be at most {LONGEST_PERIOD:.0f}, not {shown(value)}")
    return number


def seconds(name: str, value: object) -> float:
    """A duration: a number from 0 to 1e9, which is 31 years."""
    duration = 0.0 if value == 0 and not isinstance(value, bool) else positive_number(name, value)
    if duration > LONGEST_SECONDS:
        raise ValueError(f"{name} must be at most {LONGEST_SECONDS:.0f} seconds, not {shown(value)}")
    return duration


def mapping(name: str, value: object) -> Mapping[str, Any] | None:
    """A mapping, or None for none; nothing in it is looked at."""
    if value is None or is_mapping(value):
        return cast("Mapping[str, Any] | None", value)
    raise TypeError(f"{name} must be a mapping, not {type(value).__name__}")


def optional_identifier(name: str, value: object) -> str | None:
    """An id as `identifier` takes it, or None for none."""
    return None if value is None else identifier(name, value)


def member(name: str, value: object, choices: type[_Member]) -> _Member:
    """A member of the closed set `choices`, or its value; they are texts."""
    return choices(choice(name, value, *(str(member.value) for member in choices)))


def choice(name: str, value: object, *choices: str) -> str:
    """One of the texts `choices`."""
    if not isinstance(value, str) or str.__str__(value) not in choices:
        raise type_or_value(name, value, f"one of {', '.join(choices)}")
    return str.__str__(value)


def date_text(name: str, value: object) -> str:
    """A date, a datetime or its ISO 8601 text, as ISO 8601 text."""
    if isinstance(value, date):  # datetime is one
        return value.isoformat()
    written = str.__str__(text(name, value))
    try:
        datetime.fromisoformat(written)
    except ValueError:
        raise ValueError(
            f"{name} must be an ISO 8601 date or time such as 2024-01-19, not {shown(value)}"
        ) from None
    return written


def type_or_value(name: str, value: object, accepted: str) -> Exception:
    """What to raise for a `value` that is not `accepted`: a ValueError if it might have been, by its type."""
    kind = ValueError if isinstance(value, int | float | str) else TypeError
    return kind(f"{name} must be {accepted}, not {shown(value)}")


def shown(value: object) -> str:
    """`value` as a message may show it."""
    if isinstance(value, str):
        text = str.__repr__(str.__getitem__(value, slice(_LONGEST_SHOWN)))
        return text if str.__len__(value) <= _LONGEST_SHOWN else f"{text} and so on"
    if isinstance(value, bool):
        return repr(value)
    if isinstance(value, int):
        bits = int.bit_length(value)  # the text of a long one takes quadratic time, and Python may refuse it
        return int.__repr__(value) if bits <= _WIDEST_SHOWN else f"an int of {bits} bits"
    return float.__repr__(value) if isinstance(value, float) else type(value).__name__


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
