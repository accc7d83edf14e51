"""Rules of `session_id`: ids of our form, read from the right, and ids derived from a session's."""

from __future__ import annotations

import os
import re
from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_agent_tracker import session_id
from otel_agent_tracker.session_id import ParsedSessionId, mint, parse

AGENT_IDS = st.text(st.characters(exclude_categories=("Cc", "Cs")), min_size=1, max_size=256)
SECONDS = st.integers(0, 99_999_999_999)


@given(agent_id=AGENT_IDS, seconds=SECONDS)
def test_what_was_minted_is_read_again(agent_id: str, seconds: int) -> None:
    """Any agent id, with underscores, digits or unicode, comes back from the session ids minted for it."""
    assert parse(mint(agent_id, seconds)) == ParsedSessionId(agent_id, seconds)


@given(agent_id=AGENT_IDS, seconds=SECONDS, digits=st.text("0123456789abcdef", min_size=8, max_size=32))
def test_eight_to_32_digits_are_read(agent_id: str, seconds: int, digits: str) -> None:
    """Ids of other writers of the form may have 8 to 32 hex digits."""
    assert parse(f"{agent_id}_{seconds}_{digits}") == ParsedSessionId(agent_id, seconds)


@pytest.mark.parametrize(
    ("text", "agent_id"),
    [
        ("agent_001_1674123456_a1b2c3d4", "agent_001"),
        ("a_1674123456_1674123456_a1b2c3d4e5f60718", "a_1674123456"),
        ("bot_1_0123abcd_1674123456_a1b2c3d4", "bot_1_0123abcd"),
        ("日本_エージェント_1674123456_a1b2c3d4", "日本_エージェント"),
        ("__1674123456_a1b2c3d4", "_"),
    ],
)
def test_parsing_goes_from_the_right(text: str, agent_id: str) -> None:
    """Whatever an agent id looks like, the last two parts are time and digits."""
    assert parse(text) == ParsedSessionId(agent_id, 1674123456)


@pytest.mark.parametrize(
    "text",
    [
        "thread-7",
        "",
        "_1674123456_a1b2c3d4",
        "bot_1674123456_a1b2c3d",
        "bot_1674123456_" + "a" * 33,
        "bot_1674123456_A1B2C3D4",
        "bot_167412345678_a1b2c3d4",
        "bot_-1_a1b2c3d4",
        "bot_١٦٧_a1b2c3d4",
        "bot_1674123456_a1b2c3d4\n",
        "6f9619ff-8b86-d011-b42d-00c04fc964ff",
    ],
)
def test_other_ids_are_of_another_form(text: str) -> None:
    """An id of another tool is not taken apart."""
    assert parse(text) is None


def test_minted_ids_have_the_form_of_the_design() -> None:
    """Agent, Unix seconds, 16 hex digits; event ids have 32."""
    assert re.fullmatch(r"bot_12_[0-9a-f]{16}", mint("bot", 12))
    assert re.fullmatch(r"[0-9a-f]{32}", session_id.mint_event_id())
    assert 0 < session_id.mint_span_id() < 2**64


def test_minted_ids_differ() -> None:
    """No two ids are alike."""
    assert len({mint("bot", 1) for _ in range(10_000)}) == 10_000
    assert len({session_id.mint_event_id() for _ in range(10_000)}) == 10_000


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_child_mints_other_ids() -> None:
    """The generator is reseeded in a child, which would repeat its parent's ids otherwise."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.write(writing, mint("bot", 1).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        assert pipe.read() != mint("bot", 1)
    os.waitpid(child, 0)


@given(text=st.text())
def test_trace_and_span_ids_are_hashes(text: str) -> None:
    """Whoever knows a session id knows its trace id, and with the start its conversation's span id."""
    digest = sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    assert f"{session_id.trace_id(text):032x}" == digest[:32]
    digest = sha256(f"{text}\n1674123456000001".encode("utf-8", "surrogatepass")).hexdigest()
    assert f"{session_id.conversation_span_id(text, 1674123456000001):016x}" == digest[:16]


def test_derived_event_ids_are_hashes() -> None:
    """Two observers of one thing give its event the same id."""
    assert session_id.turn_event_id("t-1") == sha256(b"t-1").hexdigest()[:32]
    derived = session_id.derived_event_id("conversation", "thread-7", 5)
    assert derived == sha256(b"conversation\nthread-7\n5").hexdigest()[:32]
