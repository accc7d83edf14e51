"""An entry survives the journal, and nothing else is taken for one."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_agent_tracker.entry import Entry
from otel_agent_tracker.semconv import Event

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
numbers = st.integers(-(2**53), 2**53)
json_values = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=10,
)
objects = st.dictionaries(texts, json_values, max_size=4)
entries = st.builds(
    Entry,
    event=st.sampled_from(Event),
    event_id=texts,
    path=texts,
    body=objects,
    agent_id=texts,
    time_us=numbers,
    session_id=st.none() | texts,
    service=st.none() | objects,
    lacks=st.lists(st.sampled_from(["agent_id", "start_time"]), max_size=2).map(tuple),
    otlp=st.binary(max_size=30),
)
ENTRY = Entry(
    event=Event.CONVERSATION, event_id="e", path="/p", body={}, agent_id="bot", time_us=1, session_id="s"
)


def is_entry(payload: bytes) -> bool:
    try:
        Entry.decode(payload)
    except ValueError:
        return False
    return True


@given(entries)
def test_what_is_encoded_is_decoded(entry: Entry) -> None:
    """Every entry comes back equal, whatever its texts and bytes hold: newlines too."""
    assert Entry.decode(entry.encode()) == entry


@given(st.binary(max_size=60))
def test_other_bytes_are_no_entry(payload: bytes) -> None:
    """Bytes that are no entry raise ValueError and nothing else."""
    assert not is_entry(payload)


@given(json_values, json_values)
def test_other_json_is_no_entry(head: Any, body: Any) -> None:
    """Nor does JSON that is no entry raise anything else."""
    assert not is_entry(b"%b\n%b\n" % (orjson.dumps(head), orjson.dumps(body)))


@pytest.mark.parametrize("at", range(8))
def test_a_field_of_another_type_makes_no_entry(at: int) -> None:
    """An entry of a release that writes it otherwise is passed over as a whole."""
    head, body, otlp = ENTRY.encode().split(b"\n", 2)
    fields = orjson.loads(head)
    fields[at] = 1.5
    assert not is_entry(b"\n".join((orjson.dumps(fields), body, otlp)))


def test_what_the_next_release_adds_is_passed_over() -> None:
    """Its entries are read by this one: what it knows of them is what it needs."""
    head, body, otlp = ENTRY.encode().split(b"\n", 2)
    fields = [*orjson.loads(head), {"added": 1}]
    assert Entry.decode(b"\n".join((orjson.dumps(fields), body, otlp))) == ENTRY


def test_events_of_one_session_share_a_lane() -> None:
    """Delivery is in order for each session, or else for each agent."""
    agent = Entry(event=Event.AGENT_STATUS, event_id="e", path="/p", body={}, agent_id="bot", time_us=1)
    assert [ENTRY.lane, agent.lane] == ["s", "bot"]
