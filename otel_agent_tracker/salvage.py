"""What can be read of a damaged table of the state file.

SQLite ends a query at the first page, or text, that it cannot read. What lies beyond is found by its id, or
from the other end.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

__all__ = ["rows_by_id", "rows_from_both_ends"]

_LARGEST_ID = (1 << 63) - 1
_MOST_GAPS = 1000  # each takes about a millisecond of the worker's time

_Row = tuple[Any, ...]


def rows_by_id(connection: sqlite3.Connection, table: str, columns: str) -> Iterator[_Row]:
    """The rows of `table` that can be read, in the order of their `id`, which is not among the columns."""
    select = f"SELECT id, {columns} FROM {table} NOT INDEXED WHERE id > ? AND id < ? ORDER BY id"
    read_to = 0
    for _ in range(_MOST_GAPS):
        for row_id, *row in _between(connection, select, read_to, _LARGEST_ID):
            read_to = row_id
            yield tuple(row)
        beyond = _next_id(connection, table, read_to)
        before = list(_between(connection, f"{select} DESC", read_to, beyond))
        yield from (tuple(row) for _, *row in reversed(before))
        if beyond == _LARGEST_ID:
            return
        read_to = beyond - 1


def _between(connection: sqlite3.Connection, select: str, low: int, high: int) -> Iterator[_Row]:
    """The rows between two ids, up to the damage; the last before it is asked for by itself.

    A cursor looks one row ahead. A row out of order is damage too: its page was another's.
    """
    for limit in ("", " LIMIT 1"):
        with suppress(sqlite3.DatabaseError):
            for row in connection.execute(select + limit, (low, high)):
                if not low < row[0] < high:
                    return
                low, high = (low, row[0]) if select.endswith("DESC") else (row[0], high)
                yield row
            return


def rows_from_both_ends(connection: sqlite3.Connection, table: str, columns: str, key: str) -> Iterator[_Row]:
    """The rows of `table` up to what cannot be read, from the front and from the back: most come twice."""
    for order in ("ASC", "DESC"):
        with suppress(sqlite3.DatabaseError):
            yield from connection.execute(f"SELECT {columns} FROM {table} ORDER BY {key} {order}")


def _next_id(connection: sqlite3.Connection, table: str, read_to: int) -> int:
    """The id of a row beyond the damage that begins after `read_to`; the largest there can be, if none is."""
    step = 1
    while read_to + step < _LARGEST_ID:
        with suppress(sqlite3.DatabaseError):
            select = f"SELECT id FROM {table} NOT INDEXED WHERE id > ? ORDER BY id LIMIT 1"
            found = connection.execute(select, (read_to + step,)).fetchone()
            return _LARGEST_ID if found is None else max(int(found[0]), read_to + step)
        step *= 2
    return _LARGEST_ID
