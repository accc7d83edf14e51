"""What a user hands in, as JSON: a copy made in the caller's thread that runs none of the user's code.

Nothing raises and the cost has a bound, whatever is handed in. Values that JSON lacks are named instead of
shown; where something had to be left out, the outermost object says so with ``"_truncated": true``. Methods
are called through the built-in types, because a subclass may have replaced its own. Only of a mapping that is
no dict, handed in as the whole, the methods have to run: until one raises, or time is up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum
from itertools import islice
from math import isfinite
from pathlib import PosixPath, PurePosixPath, PureWindowsPath, WindowsPath
from time import perf_counter
from typing import Any, TypeVar
from uuid import UUID
from zoneinfo import ZoneInfo

import orjson

__all__ = ["TRUNCATED", "copy_text", "fitted", "is_mapping", "to_json_text"]

MAX_BYTES = 65_536  # of the JSON text
MAX_STEPS = 290  # counted, not timed: as many as fit into 200 µs; see _HEAVY
MAX_DEPTH = 20
MAX_STRING = 4_096  # characters
MAX_TEXT = 65_536  # characters
MAX_WAIT = 0.02  # seconds, for a mapping's own methods
TRUNCATED = "_truncated"

_Element = TypeVar("_Element")


def to_json_text(value: object) -> str:
    """The JSON text, of at most 64 KB, of a copy of `value`; never raises.

    Unknown objects become ``<ClassName>``, bytes ``<bytes 12>``, a cycle ``<cycle>``, what is nested too deep
    ``<depth>``, NaN and infinity null; dates ISO 8601; enums their value; sets and tuples lists; durations
    seconds; integers beyond 64 bits strings; lone surrogates ``?``. If something was left out of a value that
    is no object, the copy is ``{"value": …, "_truncated": true}``.
    """
    return (_small_json(value) or _any_json(value)).decode()


def fitted(text: str) -> str:
    """JSON text that something has made longer since: cut as by `to_json_text` where it is too long now."""
    return (
        text
        if len(text) <= MAX_BYTES and len(text.encode()) <= MAX_BYTES
        else to_json_text(orjson.loads(text))
    )


def is_mapping(value: object) -> bool:
    """Whether `value` is a mapping, also if it stands for one as proxies do, or stands for nothing and raises."""
    try:
        return issubclass(type(value), dict) or isinstance(value, Mapping)
    except Exception:  # noqa: BLE001 - to be asked for its class runs the proxy's code
        return False


def copy_text(text: str) -> str:
    """Free text that any backend can hold: at most 65,536 characters, lone surrogates as ``?``."""
    text = str.__str__(text[:MAX_TEXT]) if type(text) is str else str.__getitem__(text, slice(MAX_TEXT))
    return text if text.isascii() else _without_surrogates(text)


# --- the short way: what is plain and small needs no copy to be written -------------------------------------


def _small_json(value: object) -> bytes | None:
    """The JSON text of plain small data, or None if a closer look is needed."""
    try:
        if _plain_length(value, 0) > MAX_STRING:
            return None
        text = orjson.dumps(value, option=_NOTHING_USER_DEFINED)
    except (orjson.JSONEncodeError, RuntimeError):  # a surrogate, a huge int; changed by another thread
        return None
    return text if len(text) <= MAX_STRING else None


def _plain_length(value: object, depth: int) -> int:
    """About how long the JSON text is; beyond any limit if a type is in it that is not JSON's own."""
    kind = type(value)
    if kind is str:
        return len(value)  # type: ignore[arg-type]  # kind is its exact type
    if kind is int or kind is float or kind is bool or value is None:
        return 0
    if depth == MAX_DEPTH or not (kind is dict or kind is list):
        return _NOT_PLAIN
    return _plain_items_length(value, depth + 1)


def _plain_items_length(container: Any, depth: int) -> int:
    length = _ITEM * (1 + len(container))
    if length > MAX_STRING:
        return _NOT_PLAIN
    if type(container) is dict:
        for key in container:
            if type(key) is not str:
                return _NOT_PLAIN
            length += len(key)
        container = container.values()
    for item in container:
        length += len(item) if type(item) is str else _plain_length(item, depth)
        if length > MAX_STRING:
            break
    return length


# --- the long way: every value is looked at -----------------------------------------------------------------


def _any_json(value: object) -> bytes:
    copier = _Copier()
    copied = copier.outermost(value)
    if copier.truncated:
        copied = {**(copied if type(copied) is dict else {"value": copied}), TRUNCATED: True}
    return orjson.dumps(copied)


class _Copier:
    """One copy in the making: how much may still be added, and whether something was left out."""

    __slots__ = ("_open", "_room", "_steps_left", "truncated")

    def __init__(self) -> None:
        self.truncated = False
        self._steps_left = MAX_STEPS
        self._room = MAX_BYTES - _RESERVED
        self._open: set[int] = set()

    def outermost(self, value: object) -> Any:
        """As `copy`, but a mapping of another kind than dict is read by its own methods."""
        way = _way_of(type(value))
        return (
            self._pairs(self._read(value))
            if way is _Copier.unknown and is_mapping(value)
            else way(self, value)
        )

    def copy(self, value: object) -> Any:
        kind = type(value)
        if kind is str:
            return self.text(value)  # type: ignore[arg-type]  # kind is its exact type
        return _way_of(kind)(self, value)

    def text(self, text: str) -> str | orjson.Fragment:
        """The text as far as it fits; a long one as its JSON, which is made once."""
        if len(text) > MAX_STRING:
            self.truncated = True
            text = text[:MAX_STRING]
        try:
            written = orjson.dumps(text)
        except orjson.JSONEncodeError:
            text = _without_surrogates(text)
            written = orjson.dumps(text)
        size = len(written)
        if size > self._room:
            self.truncated = True
            self._room = 0
            return ""
        self._room -= size
        return text if size < _LONG else orjson.Fragment(written)

    def mapping(self, source: dict[Any, Any]) -> Any:
        if mark := self._enter(source):
            return mark
        copied = self._pairs(self._taken(source, dict.items))
        self._open.discard(id(source))
        return copied

    def array(self, source: Any, elements: Callable[[Any], Iterable[Any]]) -> Any:
        if mark := self._enter(source):
            return mark
        copied: list[Any] = []
        for value in self._taken(source, elements):
            if not self._has_room():
                break
            copied.append(self.copy(value))
        self._open.discard(id(source))
        return copied

    def member(self, member: object) -> Any:
        if mark := self._enter(member):
            return mark
        copied = self.copy(_value_of(member))
        self._open.discard(id(member))
        return copied

    def integer(self, value: int) -> int | str | orjson.Fragment:
        if int.bit_length(value) > 63:
            return self.heavy(_long_integer(value))
        self._room -= _LONGEST_NUMBER
        return int.__int__(value)

    def number(self, value: float) -> float | None:
        self._room -= _LONGEST_NUMBER
        number = float.__float__(value)
        return number if isfinite(number) else None

    def constant(self, value: bool | None) -> bool | None:
        self._room -= _LONGEST_NUMBER
        return value

    def unknown(self, value: object) -> str | orjson.Fragment:
        return self.heavy(_name(value))

    def heavy(self, text: str) -> str | orjson.Fragment:
        self._steps_left -= _HEAVY
        return self.text(text)

    def _pairs(self, items: list[tuple[Any, Any]]) -> dict[str, Any]:
        copied: dict[str, Any] = {}
        for key, value in items:
            if not self._has_room():
                break
            name = self._key(key)
            copied[name] = self.copy(value)
        self.truncated |= len(copied) < len(items)  # two keys may have had one name
        return copied

    def _key(self, key: object) -> str:
        self._steps_left -= 1
        has_parts = issubclass(type(key), tuple | frozenset)  # isinstance would ask the key for its class
        copied = self.unknown(key) if has_parts else self.copy(key)
        if type(copied) is str:
            return copied
        written = orjson.dumps(copied)
        return orjson.loads(written) if type(copied) is orjson.Fragment else written.decode()

    def _read(self, source: Any) -> list[tuple[Any, Any]]:
        """What the mapping's own methods tell, until one of them raises or takes too long."""
        items: list[tuple[Any, Any]] = []
        deadline = perf_counter() + MAX_WAIT
        with suppress(Exception):  # the user's code may raise anything; what it told before is kept
            for key in islice(iter(source), self._steps_left + 1):
                items.append((key, source[key]))
                if perf_counter() > deadline:
                    break
            else:
                return items
        self.truncated = True
        return items

    def _enter(self, nesting: object) -> str | orjson.Fragment | None:
        """The mark to leave in its place where `nesting` must not be entered."""
        if id(nesting) in self._open:
            return self.text("<cycle>")
        if len(self._open) == MAX_DEPTH:
            self.truncated = True
            return self.text("<depth>")
        self._steps_left -= _HEAVY
        self._open.add(id(nesting))
        return None

    def _taken(self, source: Any, elements: Callable[[Any], Iterable[_Element]]) -> list[_Element]:
        """The first elements, taken at once, because another thread may be changing the source."""
        for _ in range(_ATTEMPTS):
            try:
                return list(islice(elements(source), max(self._steps_left, 0) + 1))
            except RuntimeError:  # changed size during iteration
                continue
        self.truncated = True
        return []

    def _has_room(self) -> bool:
        self._steps_left -= 1
        self._room -= _PUNCTUATION
        if self._steps_left >= 0 and self._room > 0:
            return True
        self._steps_left = 0
        self.truncated = True
        return False


def _way_of(kind: type) -> _Way:
    """How values of a class are copied: as its first base that may stand for it."""
    way = _WAYS.get(id(kind))  # not by the class, whose metaclass may define a hash
    if way is None:
        ways = (_INHERITED[id(base)] for base in _mro(kind) if id(base) in _INHERITED)
        way = next(ways, _Copier.unknown)
    return way


def _value_of(member: object) -> Any:
    try:
        return object.__getattribute__(member, "_value_")
    except AttributeError:  # a class that is still being made
        return None


def _long_integer(value: int) -> str:
    bits = int.bit_length(value)
    return f"<int of {bits} bits>" if bits > _LONGEST_INTEGER else int.__repr__(value)


def _name(value: object) -> str:
    return f"<{_class_name(type(value))}>"


def _decimal(value: Decimal) -> str:
    return "<Decimal>" if Decimal.__sizeof__(value) > MAX_STRING else Decimal.__str__(value)


def _datetime(value: datetime) -> str:
    zone = datetime.tzinfo.__get__(value)
    return (
        datetime.isoformat(value) if _is_ours(zone) else _zoneless(datetime.replace(value, tzinfo=None), zone)
    )


def _time(value: time) -> str:
    zone = time.tzinfo.__get__(value)
    return time.isoformat(value) if _is_ours(zone) else _zoneless(time.replace(value, tzinfo=None), zone)


def _is_ours(zone: object) -> bool:
    """Whether asking the zone for its offset runs the standard library's code alone."""
    return zone is None or type(zone) is timezone or type(zone) is ZoneInfo


def _zoneless(value: datetime | time, zone: object) -> str:
    return f"{value.isoformat()} {_name(zone)}"


def _python_text(copier: _Copier, value: object) -> str | orjson.Fragment:
    try:
        return copier.heavy(str(value))
    except AttributeError:  # made without its constructor
        return copier.unknown(value)


def _without_surrogates(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


_Way = Callable[[_Copier, Any], Any]
_ATTEMPTS = 3
_HEAVY = 4  # further steps that a value takes which is entered, or whose text is made
_LONG = 256  # bytes; a fragment costs more than a shorter text that is written twice
_LONGEST_INTEGER = 512  # bits; the text of longer ones takes quadratic time
_LONGEST_NUMBER = 24
_PUNCTUATION = 4  # colon and comma of an item, brackets of its value
_RESERVED = 256  # for the outermost brackets, the mark, and a number too many
_ITEM = 6  # about the punctuation of an item
_NOT_PLAIN = MAX_STRING + 1
_NOTHING_USER_DEFINED = (
    orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_PASSTHROUGH_DATETIME | orjson.OPT_PASSTHROUGH_SUBCLASS
)
_mro: Callable[[type], tuple[type, ...]] = type.__dict__["__mro__"].__get__
_class_name: Callable[[type], str] = type.__dict__["__name__"].__get__
_INHERITABLE: dict[type, _Way] = {
    type(None): _Copier.constant,
    bool: _Copier.constant,
    int: _Copier.integer,
    float: _Copier.number,
    str: lambda copier, value: copier.text(str.__str__(value)),
    dict: _Copier.mapping,
    list: lambda copier, value: copier.array(value, list.__iter__),
    tuple: lambda copier, value: copier.array(value, tuple.__iter__),
    set: lambda copier, value: copier.array(value, set.__iter__),
    frozenset: lambda copier, value: copier.array(value, frozenset.__iter__),
    bytes: lambda copier, value: copier.heavy(f"<bytes {bytes.__len__(value)}>"),
    bytearray: lambda copier, value: copier.heavy(f"<bytes {bytearray.__len__(value)}>"),
    Decimal: lambda copier, value: copier.heavy(_decimal(value)),
    datetime: lambda copier, value: copier.heavy(_datetime(value)),
    date: lambda copier, value: copier.heavy(date.isoformat(value)),
    time: lambda copier, value: copier.heavy(_time(value)),
    timedelta: lambda copier, value: copier.number(timedelta.total_seconds(value)),
    Enum: _Copier.member,
}
_WRITTEN_IN_PYTHON = (
    UUID,
    PosixPath,
    WindowsPath,
    PurePosixPath,
    PureWindowsPath,
)  # subclasses could run code
_INHERITED = {id(kind): way for kind, way in _INHERITABLE.items()}
_WAYS = _INHERITED | {id(kind): _python_text for kind in _WRITTEN_IN_PYTHON}
