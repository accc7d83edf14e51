"""What a query asks for: filters, periods and pages. Raises ValueError with what is accepted."""

from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from typing import Any
from zoneinfo import ZoneInfo

import orjson
from sqlalchemy import BigInteger, ColumnElement, Integer, Row, Select, String, Table, bindparam, tuple_

__all__ = ["InvalidCursor", "Page", "Period", "Selection", "read_cursor", "read_period", "write_cursor"]

MAX_LIMIT = 500
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class InvalidCursor(ValueError):  # noqa: N818 - says what is so
    """A cursor that no answer gave."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Period:
    """Half-open: from `start_us` (Unix µs) up to but not including `end_us`; None is unbounded."""

    start_us: int | None = None
    end_us: int | None = None

    def conditions(self, column: ColumnElement[int]) -> list[ColumnElement[bool]]:
        """What holds of a time within the period."""
        bounds: list[ColumnElement[bool]] = []
        if self.start_us is not None:
            bounds.append(column >= self.start_us)
        if self.end_us is not None:
            bounds.append(column < self.end_us)
        return bounds


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which conversations, or whose turns; None selects all."""

    agent_id: str | None = None
    user_id: str | None = None
    status: str | None = None
    period: Period = Period()

    def conditions(self, table: Table, time_column: str) -> list[ColumnElement[bool]]:
        """What holds of the selected rows of `table`."""
        # Of several only the one that tells the most may choose the index: a database without statistics
        # might take another, and read through all that have one status.
        names = ("user_id", "agent_id", "status")
        given = [(table.columns[name], value) for name in names if (value := getattr(self, name)) is not None]
        equal = [column == value for column, value in given[:1]]
        equal += [column + "" == value for column, value in given[1:]]
        return equal + self.period.conditions(table.columns[time_column])


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """At most `limit` rows (500 at the most) after the row that `cursor` names."""

    limit: int = 50
    cursor: str | None = None

    @property
    def size(self) -> int:
        """The limit, clamped."""
        return min(self.limit, MAX_LIMIT)

    def apply(self, select: Select[Any], keys: Sequence[ColumnElement[Any]]) -> Select[Any]:
        """Newest first by `keys` from the cursor on, and one row more, which tells of a next page."""
        if self.cursor is not None:
            after = read_cursor(self.cursor, [int if _is_number(key) else str for key in keys])
            bound = [bindparam(None, value, key.type) for value, key in zip(after, keys, strict=True)]
            select = select.where(tuple_(*keys) < tuple_(*bound))
        return select.order_by(*(key.desc() for key in keys)).limit(self.size + 1)

    def take(self, rows: Sequence[Row[Any]], names: Sequence[str]) -> tuple[Sequence[Row[Any]], str | None]:
        """The rows of this page, and the cursor of the next, made of the columns `names`, if there is one."""
        if self.size == 0 or len(rows) <= self.size:
            return rows[: self.size], None
        last = rows[self.size - 1]
        return rows[: self.size], write_cursor([getattr(last, name) for name in names])


def write_cursor(values: Sequence[int | str]) -> str:
    """The place after the row that has these keys, as text that a URL can carry."""
    return urlsafe_b64encode(orjson.dumps(values)).decode().rstrip("=")


def read_cursor(cursor: str, types: Sequence[type]) -> list[int | str]:
    """The keys in a cursor that `write_cursor` made."""
    try:
        values = orjson.loads(urlsafe_b64decode(cursor.encode() + b"=" * (-len(cursor) % 4)))
    except ValueError:
        values = None
    if not isinstance(values, list) or [type(value) for value in values] != list(types):
        raise InvalidCursor("cursor must be a next_cursor that an answer to this query gave")
    return values


def read_period(start_date: str | None, end_date: str | None, tz: str | None) -> Period:
    """A period from ISO 8601 dates or times, read in `tz` (default UTC) where they name no zone.

    A date without a time includes that whole day. Raises ValueError if the period would end before it starts.
    """
    zone = _read_zone(tz)
    period = Period(
        start_us=None if start_date is None else _read_bound("start_date", start_date, zone, whole_day=False),
        end_us=None if end_date is None else _read_bound("end_date", end_date, zone, whole_day=True),
    )
    if start_date and end_date and _is_reversed(period, includes_day=not _has_time(end_date)):
        raise ValueError(
            f"start_date must not be after end_date, but {start_date[:64]!r} is after {end_date[:64]!r}"
        )
    return period


def _is_reversed(period: Period, *, includes_day: bool) -> bool:
    """Whether it starts after its end; a day's end is the midnight after it, which is no longer that day."""
    if period.start_us is None or period.end_us is None:
        return False
    return period.start_us >= period.end_us if includes_day else period.start_us > period.end_us


def _read_zone(tz: str | None) -> tzinfo:
    try:
        return ZoneInfo(tz) if tz else UTC
    except (ValueError, KeyError, OSError):
        raise ValueError("tz must be the name of an IANA time zone such as Europe/Berlin or UTC") from None


def _read_bound(name: str, text: str, zone: tzinfo, *, whole_day: bool) -> int:
    try:
        bound = _read_moment(text, zone, whole_day=whole_day)
        return (bound.astimezone(UTC) - _EPOCH) // timedelta(microseconds=1)
    except (ValueError, OverflowError):
        raise ValueError(
            f"{name} must be an ISO 8601 date such as 2024-01-19 or a time such as 2024-01-19T16:17:36Z, "
            f"not {text[:64]!r}"
        ) from None


def _read_moment(text: str, zone: tzinfo, *, whole_day: bool) -> datetime:
    if _has_time(text):
        moment = datetime.fromisoformat(text)
        return moment if moment.tzinfo else moment.replace(tzinfo=zone)
    day = date.fromisoformat(text) + timedelta(days=whole_day)
    return datetime.combine(day, time(), zone)


def _has_time(text: str) -> bool:
    return "T" in text.upper() or ":" in text


def _is_number(key: ColumnElement[Any]) -> bool:
    if not isinstance(key.type, BigInteger | Integer | String):
        raise TypeError(f"no cursor can hold {key.type!r}")
    return not isinstance(key.type, String)
