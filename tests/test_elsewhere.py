"""What other living processes have accepted is seen, and left to them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from otel_agent_tracker.elsewhere import still_unread, unread_elsewhere
from otel_agent_tracker.journal import Journal


@pytest.fixture
def theirs(tmp_path: Path) -> Iterator[Journal]:
    """The journal of another process."""
    journal = Journal(tmp_path, segment_bytes=64 * 1024)
    yield journal
    journal.close()


def test_what_was_appended_is_unread_until_its_owner_has_stored_it(theirs: Journal, tmp_path: Path) -> None:
    """To its last whole frame."""
    theirs.prepare()
    assert unread_elsewhere(tmp_path, ours=[], read_to={}) == {}
    theirs.append(b"one")
    theirs.append(b"two")
    (segment,) = theirs.readable()
    first = segment.read(0, 1).offset
    unread = unread_elsewhere(tmp_path, ours=[], read_to={segment.name: first})
    assert unread == {segment.name: segment.end}
    assert still_unread(tmp_path, unread, {segment.name: first}) == unread
    assert still_unread(tmp_path, unread, {segment.name: segment.end}) == {}
    assert unread_elsewhere(tmp_path, ours=[], read_to={segment.name: segment.end}) == {}


def test_a_segment_that_was_retired_has_been_read(theirs: Journal, tmp_path: Path) -> None:
    """Its owner stored it before."""
    theirs.append(b"one")
    unread = unread_elsewhere(tmp_path, ours=[], read_to={})
    theirs.readable()[0].retire()
    assert [len(unread), still_unread(tmp_path, unread, {})] == [1, {}]


def test_our_own_segments_and_other_files_are_passed_over(theirs: Journal, tmp_path: Path) -> None:
    """Only what others wait with counts."""
    theirs.append(b"one")
    (tmp_path / "state.sqlite3").write_bytes(b"x")
    ours = [segment.name for segment in theirs.readable()]
    assert unread_elsewhere(tmp_path, ours=ours, read_to={}) == {}


def test_garbage_is_not_waited_for(theirs: Journal, tmp_path: Path) -> None:
    """Nobody will ever store it."""
    theirs.append(b"one")
    (segment,) = theirs.readable()
    path = tmp_path / segment.name
    content = bytearray(path.read_bytes())
    content[segment.end : segment.end + 8] = b"\xff\xf5\xc1\xfe" + b"\xff" * 4
    path.write_bytes(content)
    assert unread_elsewhere(tmp_path, ours=[], read_to={}) == {segment.name: segment.end}
    assert unread_elsewhere(tmp_path, ours=[], read_to={segment.name: segment.end}) == {}
