"""Damaged tables: what lies around the damage is found, in order, and nothing loops."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from otel_agent_tracker.salvage import rows_by_id, rows_from_both_ends

PAGE = 4096
ROWS = 400


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A table of rows of which seven share a page; of their ids every third is missing."""
    path = tmp_path / "table.sqlite3"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE things (id INTEGER PRIMARY KEY, text TEXT, body BLOB)")
        rows = [(number, f"thing {number:04}", b"x" * 500) for number in range(1, ROWS + 1) if number % 3]
        connection.executemany("INSERT INTO things VALUES (?, ?, ?)", rows)
    connection.close()
    return path


@pytest.fixture
def read(path: Path) -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(path)
    yield connection
    connection.close()


def found(read: sqlite3.Connection) -> list[int]:
    return [int(text[6:]) for text, _ in rows_by_id(read, "things", "text, body")]


def whole() -> list[int]:
    return [number for number in range(1, ROWS + 1) if number % 3]


def test_every_damaged_page_costs_its_own_rows(path: Path, read: sqlite3.Connection) -> None:
    """Several pages in one table: what lies between them is found, and all of it in order."""
    content = bytearray(path.read_bytes())
    for page in (5, 11, 12, 20):
        content[page * PAGE : (page + 1) * PAGE] = b"\xff" * PAGE
    path.write_bytes(content)
    survived = found(read)
    assert survived == sorted(set(survived) & set(whole()))
    assert len(survived) == len(whole()) - 4 * 7


def test_a_text_that_does_not_decode_costs_its_own_row(path: Path, read: sqlite3.Connection) -> None:
    """One byte is wrong in each of two rows."""
    content = path.read_bytes()
    for number in (41, 200):
        content = content.replace(b"thing %04d" % number, b"thing %03d\xff" % number)
    path.write_bytes(content)
    assert found(read) == [number for number in whole() if number not in (41, 200)]


def test_pages_that_were_exchanged_end_the_walk(path: Path, read: sqlite3.Connection) -> None:
    """Rows come in order and once, whatever the pages say."""
    content = path.read_bytes()
    pages = [content[at : at + PAGE] for at in range(0, len(content), PAGE)]
    pages[5], pages[20] = pages[20], pages[5]
    path.write_bytes(b"".join(pages))
    survived = found(read)
    assert survived == sorted(set(survived))
    assert len(survived) > ROWS // 3


@pytest.mark.parametrize("content", [b"", b"no database at all " * 1000])
def test_where_nothing_can_be_read_nothing_is_found(
    path: Path, read: sqlite3.Connection, content: bytes
) -> None:
    """And that at once."""
    path.write_bytes(content)
    assert found(read) == []
    assert list(rows_from_both_ends(read, "things", "text", "text")) == []


def test_from_both_ends_every_row_comes_twice(read: sqlite3.Connection) -> None:
    """Where nothing is damaged, there and back."""
    there_and_back = [text for (text,) in rows_from_both_ends(read, "things", "text", "text")]
    assert there_and_back == sorted(there_and_back[: len(whole())]) + there_and_back[: len(whole())][::-1]
