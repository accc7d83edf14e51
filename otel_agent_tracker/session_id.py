"""Session ids of our own form, and the ids derived from a session's.

The form is ``{agent_id}_{unix seconds}_{16 hex}``; agent ids may hold underscores, so it is parsed from the
right. Random digits come from a generator seeded once per process: ``os.urandom`` is a system call, and a
system call on a caller's thread gives up the GIL.
"""

from __future__ import annotations

import os
import re
from functools import lru_cache
from hashlib import sha256
from random import Random
from typing import NamedTuple

__all__ = [
    "ParsedSessionId",
    "conversation_span_id",
    "derived_event_id",
    "mint",
    "mint_event_id",
    "mint_span_id",
    "parse",
    "trace_id",
    "turn_event_id",
]

_FORM = re.compile(r"(?P<agent>.+)_(?P<seconds>[0-9]{1,11})_[0-9a-f]{8,32}", re.DOTALL)
_random = Random(os.urandom(32))
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: _random.seed(os.urandom(32)))


class ParsedSessionId(NamedTuple):
    """What an id of our form tells by itself."""

    agent_id: str
    start_seconds: int


def mint(agent_id: str, start_seconds: int) -> str:
    """A new session id for a conversation of `agent_id` that starts at `start_seconds` (Unix time)."""
    return f"{agent_id}_{start_seconds}_{_bits(64):016x}"


def parse(session_id: str) -> ParsedSessionId | None:
    """Agent and start of an id of our form (8 to 32 hex digits are read), or None for any other id."""
    form = _FORM.fullmatch(session_id)
    return ParsedSessionId(form["agent"], int(form["seconds"])) if form else None


def mint_event_id() -> str:
    """A new event id: 32 hex digits, minted once and carried from the span to the tracker."""
    return f"{_bits(128):032x}"


def mint_span_id() -> int:
    """A new valid span id."""
    return _bits(64) or 1


@lru_cache(maxsize=1024)  # a session's events come close together
def trace_id(session_id: str) -> int:
    """The trace id that every event span of the session has."""
    return int.from_bytes(_digest(session_id)[:16], "big") or 1


@lru_cache(maxsize=1024)
def conversation_span_id(session_id: str, start_us: int) -> int:
    """The span id of the conversation that starts at `start_us` (Unix microseconds) in the session."""
    return int.from_bytes(_digest(session_id, str(start_us))[:8], "big") or 1


def derived_event_id(event: str, session_id: str, time_us: int) -> str:
    """The event id of a recognised start or an inferred end, so that two observers of one thing agree."""
    return _digest(event, session_id, str(time_us))[:16].hex()


def turn_event_id(turn_id: str) -> str:
    """The event id of the turn `turn_id`."""
    return _digest(turn_id)[:16].hex()


def _digest(*parts: str) -> bytes:
    return sha256("\n".join(parts).encode("utf-8", "surrogatepass")).digest()


def _bits(count: int) -> int:
    """So many random bits; from the system, should the generator fail: no conversation may go without an id."""
    try:
        return _random.getrandbits(count)
    except Exception:  # noqa: BLE001 - out of memory, say
        return int.from_bytes(os.urandom(count // 8), "big")
