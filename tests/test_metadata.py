"""The copy of what a user hands in: always JSON, bounded, and none of the user's code runs."""

from __future__ import annotations

import json
import threading
import time as clock
from collections import OrderedDict, namedtuple
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from decimal import Decimal
from enum import Enum, IntEnum
from pathlib import PurePosixPath
from typing import Any
from uuid import UUID

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_agent_tracker.metadata import TRUNCATED, copy_text, to_json_text

LIMIT = 65_536
MARK = {TRUNCATED: True}


def copy_json(value: object) -> Any:
    """What the text says."""
    return json.loads(to_json_text(value))


class Colour(Enum):
    RED = "red"
    ODD = b"12"


class Level(IntEnum):
    HIGH = 3


class Bare:
    pass


@dataclass
class Order:
    number: int


class Zone(tzinfo):
    def utcoffset(self, _: datetime | None) -> timedelta:
        raise AssertionError("a user's method was called")

    tzname = dst = utcoffset  # type: ignore[assignment]  # none of them is to be called


Point = namedtuple("Point", "x y")


@pytest.mark.parametrize(
    ("value", "copied"),
    [
        (Bare(), "<Bare>"),
        (Order(1), "<Order>"),
        (Bare, "<type>"),
        (b"123456789012", "<bytes 12>"),
        (bytearray(3), "<bytes 3>"),
        (float("nan"), None),
        (float("-inf"), None),
        (datetime(2024, 1, 19, 10, 0, tzinfo=UTC), "2024-01-19T10:00:00+00:00"),
        (datetime(2024, 1, 19, 10, 0, tzinfo=Zone()), "2024-01-19T10:00:00 <Zone>"),
        (date(2024, 1, 19), "2024-01-19"),
        (time(10, 30), "10:30:00"),
        (time(10, 30, tzinfo=Zone()), "10:30:00 <Zone>"),
        (timedelta(minutes=1.5), 90.0),
        (Decimal("1.10"), "1.10"),
        (Decimal("1" * 10_000), "<Decimal>"),
        (Colour.RED, "red"),
        (Colour.ODD, "<bytes 2>"),
        (Level.HIGH, 3),
        (UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (UUID.__new__(UUID), "<UUID>"),
        (PurePosixPath("/a/b"), "/a/b"),
        (Point(1, 2), [1, 2]),
        (frozenset([1]), [1]),
        ({1}, [1]),
        (2**63 - 1, 2**63 - 1),
        (-(2**63) - 1, "-9223372036854775809"),
        (2**64, "18446744073709551616"),
        (1 << 512, "<int of 513 bits>"),
        ("a\ud800b", "a?b"),
        (OrderedDict(b=1, a=2), {"b": 1, "a": 2}),
        (None, None),
        (True, True),
    ],
)
def test_what_json_cannot_hold_is_named(value: object, copied: object) -> None:
    """Each kind of value becomes what the docstring says, alone and inside an object."""
    assert copy_json(value) == copied
    assert json.loads(to_json_text({"value": value})) == {"value": copied}


def test_an_enum_member_without_a_value_is_unknown_to_nobody() -> None:
    """A member taken while its class is being made has no value yet; it becomes null."""
    assert copy_json(object.__new__(Colour)) is None


def test_the_text_of_a_huge_integer_is_not_made() -> None:
    """It would take quadratic time, and Python refuses beyond 4,300 digits."""
    assert copy_json(1 << 1_000_000) == "<int of 1000001 bits>"


def test_keys_become_strings_as_json_writes_them() -> None:
    """Numbers, true and null as JSON would; dates and enums as their text; others by class."""
    keys: dict[object, int] = {
        1: 1,
        1.5: 2,
        None: 3,
        Colour.RED: 4,
        date(2024, 1, 19): 5,
        (1, 2): 6,
        Bare(): 7,
    }
    expected = {"1": 1, "1.5": 2, "null": 3, "red": 4, "2024-01-19": 5, "<tuple>": 6, "<Bare>": 7}
    assert copy_json(keys) == expected
    assert copy_json({False: 1, "a\udfff": 2}) == {"false": 1, "a?": 2}


def test_two_keys_with_one_name_are_marked() -> None:
    """Where two keys become one, a value is gone, and the copy says so."""
    assert copy_json({1: "a", "1": "b"}) == {"1": "b", **MARK}


def test_a_cycle_ends_in_a_marker() -> None:
    """What contains itself is named where it would begin again; what is only shared is copied twice."""
    cyclic: dict[str, Any] = {"shared": [shared := [1], shared]}
    cyclic["self"] = cyclic
    cyclic["list"] = [cyclic]
    assert copy_json(cyclic) == {"shared": [[1], [1]], "self": "<cycle>", "list": ["<cycle>"]}


def test_an_enum_that_holds_itself_ends_in_a_marker() -> None:
    """An enum's value may be anything, its own member too."""
    member = object.__new__(Colour)
    member._value_ = member
    assert copy_json(member) == "<cycle>"


def test_depth_is_bounded() -> None:
    """Beyond 20 levels a marker stands for the rest, however deep it is."""
    deep: list[Any] = []
    innermost = deep
    for _ in range(100_000):
        innermost.append([])
        innermost = innermost[0]
    copied = copy_json(deep)
    depth = 0
    inner = copied["value"]
    while type(inner) is list:
        depth, inner = depth + 1, inner[0]
    assert (depth, inner, copied[TRUNCATED]) == (20, "<depth>", True)


def test_long_strings_are_cut() -> None:
    """A string keeps its first 4,096 characters and the outermost object is marked."""
    assert copy_json({"a": {"b": "é" * 1_000_000}}) == {"a": {"b": "é" * 4_096}, **MARK}
    assert copy_json("x" * 5_000) == {"value": "x" * 4_096, **MARK}
    assert copy_json({"x" * 5_000: 1}) == {"x" * 4_096: 1, **MARK}


def test_what_fits_is_not_cut() -> None:
    """Plain metadata of some kilobytes is kept whole on either way."""
    small = {f"key_{i}": "v" * 30 for i in range(25)}
    large = {f"key_{i}": "v" * 400 for i in range(140)}
    odd = {**{f"key_{i}": i for i in range(100)}, "at": date(2024, 1, 1)}
    assert copy_json(small) == small
    assert copy_json(large) == large
    assert copy_json(odd) == {**odd, "at": "2024-01-01"}


def test_the_text_has_at_most_64_kb() -> None:
    """Escapes and multi-byte characters count as what they take in the text."""
    for character in ("x", "\x01", "😀", '"', "\ud800"):
        for value in ({str(i): character * 4_000 for i in range(100)}, [[character * 4_000]] * 100):
            text = to_json_text(value)
            assert len(text.encode()) <= LIMIT
            copied = json.loads(text)
            assert copied[TRUNCATED] is True
            assert len(text) > 10_000  # and not less than what fits


def _nested(width: int, depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value] * width
    return value


HOSTILE: dict[str, Callable[[], object]] = {
    "100,000 keys": lambda: {f"k{i}": i for i in range(100_000)},
    "a list of 1,000,000": lambda: [0] * 1_000_000,
    "a set of 100,000": lambda: set(range(100_000)),
    "10 to the 20 lists": lambda: _nested(10, 20),
    "many strings of 1 MB": lambda: ["x" * 1_000_000] * 1_000,
    "many objects": lambda: [Bare()] * 10_000,
    "many keys that are objects": lambda: {Bare(): 1 for _ in range(10_000)},
    "many keys that are tuples": lambda: {(i,): {(i,): 1} for i in range(10_000)},
    "many decimals": lambda: [Decimal(i) for i in range(10_000)],
    "many times": lambda: [datetime.now(UTC)] * 10_000,
    "many enums": lambda: [Colour.RED] * 10_000,
    "many lists": lambda: [[[]] for _ in range(10_000)],
    "many large integers": lambda: [1 << 500] * 10_000,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_values_cost_little(name: str) -> None:
    """The best of several tries stays near 200 µs; the bound leaves room for a slow machine."""
    value = HOSTILE[name]()
    assert json.loads(to_json_text(value))[TRUNCATED] is True
    assert min(_seconds(lambda: to_json_text(value)) for _ in range(20)) < 0.002


def _seconds(call: Callable[[], object]) -> float:
    start = clock.thread_time()
    call()
    return clock.thread_time() - start


def forbidden(*_: object, **__: object) -> Any:
    """What a method does that must not be called."""
    raise AssertionError("a user's method was called")


FORBIDDEN = (
    *("__repr__", "__str__", "__iter__", "__len__", "__getitem__", "__getattribute__", "__format__"),
    *(
        "__bool__",
        "__int__",
        "__float__",
        "__index__",
        "__contains__",
        "keys",
        "items",
        "values",
        "isoformat",
    ),
    *(
        "__bytes__",
        "__buffer__",
        "bit_length",
        "total_seconds",
        "__lt__",
        "__fspath__",
        "encode",
        "__sizeof__",
    ),
)


@pytest.mark.parametrize(
    ("base", "argument", "copied"),
    [
        (dict, {"a": 1}, {"a": 1}),
        (list, [1], [1]),
        (tuple, [1], [1]),
        (set, [1], [1]),
        (frozenset, [1], [1]),
        (str, "text", "text"),
        (int, 7, 7),
        (float, 1.5, 1.5),
        (bytes, b"12", "<bytes 2>"),
        (Decimal, "1.5", "1.5"),
        (object, None, "<Hostile>"),
    ],
)
def test_overridden_methods_are_not_called(base: type, argument: Any, copied: object) -> None:
    """A subclass is copied as its built-in base, whatever it has replaced."""
    hostile = type("Hostile", (base,), dict.fromkeys(FORBIDDEN, forbidden))
    value = hostile() if base is object else hostile(argument)
    assert copy_json([value]) == [copied]


def test_properties_and_metaclasses_are_not_asked() -> None:
    """Neither ``__class__``, nor the class's own hash, name or attributes run."""

    class Meta(type):
        __hash__ = forbidden
        __eq__ = forbidden
        __getattribute__ = forbidden
        __name__ = property(forbidden)

    class Hostile(metaclass=Meta):
        __class__ = property(forbidden)

    assert copy_json({"object": object.__new__(Hostile)}) == {"object": "<Hostile>"}


def test_an_enums_overridden_value_is_not_asked() -> None:
    """The stored value counts, not a property in front of it."""

    class Odd(Enum):
        ONE = 1

        @property
        def value(self) -> int:
            raise AssertionError("a user's method was called")

    assert copy_json({"odd": Odd.ONE}) == {"odd": 1}


def test_a_hashable_subclass_as_key() -> None:
    """A str subclass as key is read as the str it is, without its methods."""

    class Key(str):
        __slots__ = ()
        __str__ = forbidden

    assert copy_json({Key("a"): 1}) == {"a": 1}


def test_a_dict_that_another_thread_changes_is_copied() -> None:
    """Whatever moment the copy is made at, it is one of the dict's states and nothing raises."""
    shared: dict[str, int] = {f"fixed{i}": i for i in range(80)}
    stop = threading.Event()

    def change() -> None:
        while not stop.is_set():
            for i in range(50):
                shared[f"changing{i}"] = i
            for i in range(50):
                del shared[f"changing{i}"]

    thread = threading.Thread(target=change)
    thread.start()
    try:
        copies = [copy_json({"shared": shared, "odd": Bare()})["shared"] for _ in range(300)]
    finally:
        stop.set()
        thread.join()
    assert all(copied["fixed79"] == 79 for copied in copies)


def test_what_changes_under_every_try_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """After some tries a source that never holds still is left out, and the copy says so."""

    def changed(*_: object) -> Iterator[object]:
        raise RuntimeError("dictionary changed size during iteration")

    monkeypatch.setattr("otel_agent_tracker.metadata.islice", changed)
    assert copy_json([Bare()]) == {"value": [], **MARK}


ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(), max_size=20)
    | st.binary(max_size=5)
    | st.datetimes()
    | st.decimals()
    | st.uuids()
    | st.builds(object),
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(st.characters(), max_size=5) | st.integers() | st.none(), inner, max_size=5)
    ),
    max_leaves=30,
)


@given(ANYTHING)
def test_anything_becomes_json(value: object) -> None:
    """The text is JSON for any value, and says the same as the copy, which is its own copy."""
    text = to_json_text(value)
    assert orjson.loads(text) == copy_json(value)
    assert copy_json(copy_json(value)) == copy_json(value)


def _subclasses(base: type, values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    kind = type("Hostile", (base,), dict.fromkeys({*FORBIDDEN} - {"__getattribute__"}, forbidden))
    return values.map(kind)


def _containing_itself(items: list[Any]) -> list[Any]:
    items.append({"again": items})
    return items


HOSTILE_THINGS = st.recursive(
    ANYTHING
    | _subclasses(str, st.text(st.characters(), max_size=9_000))
    | _subclasses(int, st.integers())
    | _subclasses(float, st.floats())
    | st.text(st.characters()).map(lambda text: text * 500)
    | st.sampled_from([Bare(), Bare, Colour.RED, Zone(), 1 << 10_000, print, clock]),
    lambda inner: (
        st.lists(inner, max_size=9).map(lambda items: items * 99)
        | st.lists(inner, max_size=5).map(_containing_itself)
        | _subclasses(dict, st.dictionaries(st.text(st.characters()), inner, max_size=9))
        | _subclasses(list, st.lists(inner, max_size=9))
        | st.frozensets(st.integers() | st.text(), max_size=9)
    ),
    max_leaves=60,
)


@given(HOSTILE_THINGS)
def test_whatever_is_handed_in_becomes_small_json(value: object) -> None:
    """No method of a user's runs, nothing raises, the text is an object of at most 64 KB, and it can be read."""
    text = to_json_text({"it": value})
    assert len(text.encode()) <= LIMIT
    assert json.loads(text).keys() <= {"it", TRUNCATED}
    assert json.loads(to_json_text(json.loads(text))).keys() == json.loads(text).keys()


@given(st.text(st.characters()))
def test_free_text_can_be_held_by_any_backend(text: str) -> None:
    """Free text comes back encodable, and unchanged if it was."""
    kept = copy_text(text)
    assert kept.encode("utf-8", "strict").decode() == kept
    assert kept == text or not text.isprintable()


def test_free_text_is_cut_and_plain() -> None:
    """At most 65,536 characters, and a str of the built-in type."""

    class Text(str):
        __slots__ = ()
        __getitem__ = forbidden
        isascii = forbidden

    assert copy_text("é" * 100_000) == "é" * 65_536
    assert type(copy_text(Text("a"))) is str
