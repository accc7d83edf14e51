"""A session and its packed form.

A million sessions as objects cost the host's garbage collector pauses of a tenth of a second, so the map
keeps each as one ``bytearray``, which the collector does not look at:

    header | agent id | user id | turns (from the first turn on) | error type | error message

Everything in it is little-endian, so that the same bytes, with a version in front and the last access as wall
time, are what processes hand each other (`dumped`, `loaded`).

A touch writes only the access and `TOUCHED`: reading the wall clock would be a fifth of its cost. Whoever
reads the last activity calls `settle` first, which works it out once and keeps it.

Response times go into a histogram of 58 buckets: 56 from 10 ms to 10 min, each 1.217 times as wide as the one
before, and one at either end. A percentile is the middle of the bucket that holds the value of its rank, kept
within the smallest and largest value seen: at most 9.8 % off from 10 ms to 10 min; shorter than that it is
the minimum, longer the maximum. Counts have 16 bits; when one is full, all are halved, which keeps the shape.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass
from itertools import accumulate
from struct import Struct
from typing import Any, NamedTuple
from zlib import crc32

from otel_agent_tracker.semconv import Origin, TurnStatus

__all__ = [
    "ACCESS",
    "FLAGS_AT",
    "LOADED",
    "PLACE",
    "RECOGNISED",
    "TOUCHED",
    "WAITING",
    "ResponseTimeSummary",
    "Session",
    "Turn",
    "add_turn",
    "adopt",
    "dumped",
    "fill_in_user",
    "last_access_us",
    "last_activity_us",
    "loaded",
    "note_activity",
    "packed",
    "set_last_access",
    "set_loaded",
    "settle",
    "start_by_call",
    "start_us",
    "unpacked",
    "without_turns",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponseTimeSummary:
    """Response times of a session's turns, in seconds."""

    count: int
    sum: float
    min: float
    max: float
    p50: float
    p95: float


class Session(NamedTuple):
    """One session as it was when it was read.

    `start_us` and `last_activity_us` are Unix microseconds; `last_access` is in seconds of the map's
    monotonic clock. `error_type` and `error_message` are those of the last turn, while that is a failed one.
    """

    session_id: str
    agent_id: str
    user_id: str | None
    origin: Origin
    start_us: int
    last_access: float
    last_activity_us: int
    waiting: bool
    message_count: int | None
    turns: int
    failed_turns: int
    last_turn_failed: bool
    error_type: str | None
    error_message: str | None
    input_tokens: int
    output_tokens: int
    response_times: ResponseTimeSummary | None
    last_turn_us: int | None = None
    """When the turn that started last did so, in Unix microseconds."""


class Turn(NamedTuple):
    """What a session keeps of one turn; `end_us` is Unix microseconds."""

    turn_id: str
    seconds: float
    status: TurnStatus
    end_us: int
    error_type: str | None = None
    error_message: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    message_count: int | None = None

    @property
    def start_us(self) -> int:
        """When it started, in Unix microseconds."""
        return self.end_us - round(max(0.0, self.seconds) * 1e6)


def packed(
    *,
    agent_id: str,
    user_id: str | None,
    origin: Origin,
    start_us: int,
    last_access: float,
    last_activity_us: int,
) -> bytearray:
    """The record of a session without turns."""
    agent, user = _encoded(agent_id), _encoded(user_id)
    flags = RECOGNISED if origin is Origin.RECOGNISED else 0
    lengths = (len(agent), _length(user_id, user), _NONE, _NONE)
    head = _HEAD.pack(last_access, flags, last_activity_us, start_us, _NO_COUNT, *lengths)
    return bytearray(head + agent + user)


def unpacked(session_id: str, record: bytearray) -> Session:
    """The session that `record` holds."""
    accessed, flags, active, start, messages, agent_length, *lengths = _HEAD.unpack_from(record)
    agent_end = _HEAD.size + agent_length
    user_id, user_end = _text_at(record, agent_end, lengths[0])
    turns_end = user_end + (_TURNS_SIZE if flags & _HAS_TURNS else 0)
    error_type, type_end = _text_at(record, turns_end, lengths[1])
    error_message, _ = _text_at(record, type_end, lengths[2])
    sums = _SUMS.unpack_from(record, user_end) if flags & _HAS_TURNS else _NO_SUMS
    return Session(
        session_id=session_id,
        agent_id=record[_HEAD.size : agent_end].decode("utf-8", _ERRORS),
        user_id=user_id,
        origin=Origin.RECOGNISED if flags & RECOGNISED else Origin.CALL,
        start_us=start,
        last_access=accessed,
        last_activity_us=active,
        waiting=bool(flags & WAITING),
        message_count=None if messages == _NO_COUNT else messages,
        turns=sums[0],
        failed_turns=sums[1],
        last_turn_failed=bool(flags & _LAST_FAILED),
        error_type=error_type,
        error_message=error_message,
        input_tokens=sums[5],
        output_tokens=sums[6],
        response_times=_summary(sums, record, user_end + _SUMS.size) if sums[0] else None,
        last_turn_us=sums[-1] if sums[0] else None,
    )


def without_turns(record: bytearray) -> bytearray:
    """A record that tells whose conversation it is and since when, and nothing of turns: itself, if there are none."""
    accessed, flags, active, start, messages, agent_length, user_length, *_ = _HEAD.unpack_from(record)
    end = _HEAD.size + agent_length + (0 if user_length == _NONE else user_length)
    if end == len(record):
        return record
    lengths = (agent_length, user_length, _NONE, _NONE)
    head = _HEAD.pack(accessed, flags & RECOGNISED, active, start, messages, *lengths)
    return bytearray(head + record[_HEAD.size : end])


def settle(record: bytearray, now: float, wall_us: int) -> None:
    """Work out the last activity of a record that was touched, in the wall time of `now`.

    The wall clock may have stepped back since; an activity does not.
    """
    accessed, flags = ACCESS.unpack_from(record)
    if flags & TOUCHED:
        record[FLAGS_AT] = flags & ~TOUCHED
        note_activity(record, wall_us - round((now - accessed) * 1e6))


def note_activity(record: bytearray, activity_us: int) -> None:
    """Move the last activity to `activity_us` (Unix microseconds), unless it is later already."""
    if activity_us > last_activity_us(record):
        _INTEGER.pack_into(record, _ACTIVITY_AT, activity_us)


def last_access_us(record: bytearray) -> int:
    """When a record that `loaded` returned was last accessed, in Unix microseconds."""
    return int(ACCESS.unpack_from(record)[0])


def set_last_access(record: bytearray, seconds: float) -> None:
    """Put another last access in the place of the one there was."""
    _SECONDS.pack_into(record, 0, seconds)


def set_loaded(record: bytearray) -> None:
    """Mark that the record came from another process and has not been accessed in this one."""
    record[FLAGS_AT] |= LOADED


def last_activity_us(record: bytearray) -> int:
    """When something last happened in a settled session, in Unix microseconds."""
    return int(_INTEGER.unpack_from(record, _ACTIVITY_AT)[0])


def start_us(record: bytearray) -> int:
    """When the conversation started, in Unix microseconds."""
    return int(_INTEGER.unpack_from(record, _START_AT)[0])


def last_turn_start_us(record: bytearray) -> int | None:
    """When the turn that started last did so, in Unix microseconds; None without turns."""
    return int(_sums(record)[-1]) if record[FLAGS_AT] & _HAS_TURNS else None


def begin_next(record: bytearray, start: int) -> None:
    """Let the record be that of the session's next conversation, which a turn opened at `start`."""
    record[FLAGS_AT] |= RECOGNISED
    _INTEGER.pack_into(record, _START_AT, start)


def fill_in_user(record: bytearray, user_id: str) -> bool:
    """Give the session its user, unless it has one."""
    if _LENGTH.unpack_from(record, _USER_LENGTH_AT)[0] != _NONE:
        return False
    user = _encoded(user_id)
    at = _HEAD.size + _LENGTH.unpack_from(record, _AGENT_LENGTH_AT)[0]
    record[at:at] = user
    _LENGTH.pack_into(record, _USER_LENGTH_AT, len(user))
    return True


def start_by_call(record: bytearray, start: int) -> None:
    """Let a session that was only recognised be one that was started by a call, at `start`."""
    if record[FLAGS_AT] & RECOGNISED:
        record[FLAGS_AT] &= ~RECOGNISED
        _INTEGER.pack_into(record, _START_AT, start)


def add_turn(record: bytearray, turn: Turn) -> bool:
    """Count a turn; False, and nothing is changed, if it is one of the last 64 that were counted.

    Turns are told apart by 32 bits of their ids: two different ones are taken for one in one of 67 million.
    """
    block = _turns_block(record)
    sums = _SUMS.unpack_from(record, block)
    turns, last_end_us = sums[0], sums[-2]
    turn_hash = crc32(_encoded(turn.turn_id))
    seen_at = block + _SUMS.size + _HISTOGRAM.size
    if turn_hash in _SEEN.unpack_from(record, seen_at)[:turns]:
        return False
    _HASH.pack_into(record, seen_at + _HASH.size * (turns % _SEEN_TURNS), turn_hash)
    seconds = max(0.0, turn.seconds)  # a sender's clock may have stepped back
    _SUMS.pack_into(record, block, *_with_turn(sums, turn, seconds))
    _count_seconds(record, block + _SUMS.size, seconds)
    if turn.message_count is not None:
        _INTEGER.pack_into(record, _COUNT_AT, _limited(turn.message_count))
    if turns == 0 or turn.end_us >= last_end_us:  # turns may come in any order
        _set_last_turn(record, block + _TURNS_SIZE, turn)
    return True


def adopt(record: bytearray, older: bytearray) -> None:
    """Let the newer record of a conversation keep what only the older one knows.

    That is the later access, the turns if its last one is the later one (a touch makes a record newer, too), a
    start by call and the user. Of a record with another start, which is that of another conversation unless it
    has a turn that ended in this one, only the access is taken over.
    """
    set_last_access(record, max(ACCESS.unpack_from(record)[0], ACCESS.unpack_from(older)[0]))
    if _last_turn_end_us(older) > max(_last_turn_end_us(record), start_us(record)):
        _take_turns(record, older)
    if start_us(record) != start_us(older):
        return
    if not older[FLAGS_AT] & RECOGNISED:
        record[FLAGS_AT] &= ~RECOGNISED
    if (user_id := _user_id(older)) is not None:
        fill_in_user(record, user_id)


def dumped(record: bytearray, access_wall_us: float) -> bytes:
    """A settled record for another process: a version, then the record, accessed at a Unix microsecond."""
    copy = bytearray((_VERSION,)) + record
    _SECONDS.pack_into(copy, 1, access_wall_us)
    copy[1 + FLAGS_AT] &= ~LOADED
    return bytes(copy)


def loaded(blob: bytes) -> bytearray:
    """The record that `dumped` made, its last access still in Unix microseconds.

    Raises ValueError if the bytes are not of this version, or not whole.
    """
    if blob[:1] != bytes((_VERSION,)):
        raise ValueError(
            f"a session of format {_VERSION} was expected, not of {blob[:1].hex() or 'no bytes'}"
        )
    record = bytearray(blob[1:])
    if len(record) < _HEAD.size or len(record) != _whole_size(record):
        raise ValueError(f"a session of {len(blob)} bytes is not whole")
    if not math.isfinite(_SECONDS.unpack_from(record)[0]):
        raise ValueError("a session was accessed at no time")
    record[FLAGS_AT] &= ~(LOADED | TOUCHED)
    unpacked("", record)  # its texts must decode
    return record


def _whole_size(record: bytearray) -> int:
    lengths: tuple[int, ...] = _LENGTHS.unpack_from(record, _AGENT_LENGTH_AT)
    texts = sum(length for length in lengths if length != _NONE)
    return _HEAD.size + texts + (_TURNS_SIZE if record[FLAGS_AT] & _HAS_TURNS else 0)


def _texts_end(record: bytearray) -> int:
    """Where the agent and user ids end, and the turns begin."""
    agent, user = _LENGTHS.unpack_from(record, _AGENT_LENGTH_AT)[:2]
    return _HEAD.size + int(agent) + (0 if user == _NONE else int(user))


def _user_id(record: bytearray) -> str | None:
    agent, user = _LENGTHS.unpack_from(record, _AGENT_LENGTH_AT)[:2]
    return _text_at(record, _HEAD.size + agent, user)[0]


def _sums(record: bytearray) -> tuple[Any, ...]:
    """Of a record that has turns."""
    return _SUMS.unpack_from(record, _texts_end(record))


def _last_turn_end_us(record: bytearray) -> float:
    return _sums(record)[-2] if record[FLAGS_AT] & _HAS_TURNS else -math.inf


def _turns_block(record: bytearray) -> int:
    """Where the turns stand in the record, made if need be."""
    block = _texts_end(record)
    if not record[FLAGS_AT] & _HAS_TURNS:
        record[block:] = bytes(_TURNS_SIZE)
        record[FLAGS_AT] |= _HAS_TURNS
    return block


def _take_turns(record: bytearray, older: bytearray) -> None:
    record[_texts_end(record) :] = older[_texts_end(older) :]
    of_last_turn = _HAS_TURNS | _LAST_FAILED | WAITING
    record[FLAGS_AT] = record[FLAGS_AT] & ~of_last_turn | older[FLAGS_AT] & of_last_turn
    record[_COUNT_AT:_AGENT_LENGTH_AT] = older[_COUNT_AT:_AGENT_LENGTH_AT]
    record[_ERROR_LENGTHS_AT : _HEAD.size] = older[_ERROR_LENGTHS_AT : _HEAD.size]


def _with_turn(sums: tuple[Any, ...], turn: Turn, seconds: float) -> tuple[Any, ...]:
    turns, failed, total, least, most, input_tokens, output_tokens, end_us, start_us = sums
    return (
        turns + 1,
        failed + (turn.status is TurnStatus.FAILED),
        total + seconds,
        min(least, seconds) if turns else seconds,
        max(most, seconds),
        _limited(input_tokens + max(0, turn.input_tokens or 0)),
        _limited(output_tokens + max(0, turn.output_tokens or 0)),
        max(end_us, turn.end_us) if turns else turn.end_us,
        max(start_us, turn.start_us) if turns else turn.start_us,
    )


def _count_seconds(record: bytearray, histogram: int, seconds: float) -> None:
    at = histogram + _BUCKET.size * _bucket(seconds)
    (counted,) = _BUCKET.unpack_from(record, at)
    if counted == _FULL:
        halves = ((count + 1) // 2 for count in _HISTOGRAM.unpack_from(record, histogram))
        _HISTOGRAM.pack_into(record, histogram, *halves)
        (counted,) = _BUCKET.unpack_from(record, at)
    _BUCKET.pack_into(record, at, counted + 1)


def _bucket(seconds: float) -> int:
    if seconds < _SHORTEST:
        return 0
    if seconds >= _LONGEST:
        return _BUCKETS - 1
    return 1 + min(int(math.log(seconds / _SHORTEST) / _LOG_WIDTH), _BUCKETS - 3)


def _set_last_turn(record: bytearray, turns_end: int, turn: Turn) -> None:
    """Whether the session waits, and its error, are those of its last turn."""
    record[FLAGS_AT] = record[FLAGS_AT] & ~(WAITING | _LAST_FAILED) | _LAST_TURN_FLAGS.get(turn.status, 0)
    error = (turn.error_type, turn.error_message) if turn.status is TurnStatus.FAILED else (None, None)
    texts = [None if text is None else text[:_ERROR_LENGTH] for text in error]
    encoded = [_encoded(text) for text in texts]
    record[turns_end:] = b"".join(encoded)
    _ERROR_LENGTHS.pack_into(record, _ERROR_LENGTHS_AT, *map(_length, texts, encoded))


def _summary(sums: tuple[Any, ...], record: bytearray, histogram: int) -> ResponseTimeSummary:
    count, _, total, least, most, *_ = sums
    counted = list(accumulate(_HISTOGRAM.unpack_from(record, histogram)))
    p50, p95 = (
        min(max(_MIDDLES[bisect_left(counted, math.ceil(share * counted[-1]))], least), most)
        for share in (0.5, 0.95)
    )
    return ResponseTimeSummary(count=count, sum=total, min=least, max=most, p50=p50, p95=p95)


def _encoded(text: str | None) -> bytes:
    return b"" if text is None else text.encode("utf-8", _ERRORS)


def _length(text: str | None, encoded: bytes) -> int:
    return _NONE if text is None else len(encoded)


def _text_at(record: bytearray, at: int, length: int) -> tuple[str | None, int]:
    """The text of `length` bytes at `at`, and where it ends."""
    if length == _NONE:
        return None, at
    return record[at : at + length].decode("utf-8", _ERRORS), at + length


def _limited(number: int) -> int:
    return min(number, 2**63 - 1)


RECOGNISED, WAITING, LOADED, TOUCHED, _HAS_TURNS, _LAST_FAILED = 1, 2, 4, 8, 16, 32
PLACE = RECOGNISED | WAITING | LOADED  # the flags that decide where in the map the record stands
_LAST_TURN_FLAGS = {TurnStatus.WAITING: WAITING, TurnStatus.FAILED: _LAST_FAILED}
_VERSION = 1
_NONE = 0xFFFF  # the length of a text that is not there
_NO_COUNT = -1
_ERRORS = "surrogatepass"  # texts of others may hold half a character
_ERROR_LENGTH = 500
_SEEN_TURNS = 64

# last access s, flags, last activity µs, start µs, message count, lengths: agent, user, error type, message
_HEAD = Struct("<dBqqqHHHH")
FLAGS_AT, _ACTIVITY_AT, _START_AT, _COUNT_AT = 8, 9, 17, 25
_AGENT_LENGTH_AT, _USER_LENGTH_AT, _ERROR_LENGTHS_AT = 33, 35, 37
ACCESS = Struct("<dB")  # the front of the header: what the map reads and writes itself, for speed
_SECONDS = Struct("<d")
_INTEGER = Struct("<q")
_LENGTH = Struct("<H")
_LENGTHS = Struct("<HHHH")
_ERROR_LENGTHS = Struct("<HH")

# turns, failed turns, seconds: sum, least, most, input tokens, output tokens, end and start of the last turn µs
_SUMS = Struct("<IIdddQQqq")
_NO_SUMS = (0, 0, 0.0, 0.0, 0.0, 0, 0, 0, 0)
_BUCKETS, _SHORTEST, _LONGEST = 58, 0.01, 600.0
_LOG_WIDTH = math.log(_LONGEST / _SHORTEST) / (_BUCKETS - 2)
_HISTOGRAM = Struct(f"<{_BUCKETS}H")
_BUCKET = Struct("<H")
_FULL = 0xFFFF
_HASH = Struct("<I")
_SEEN = Struct(f"<{_SEEN_TURNS}I")
_TURNS_SIZE = _SUMS.size + _HISTOGRAM.size + _SEEN.size


def _middle(bucket: int) -> float:
    """The value that is off by the same share from either end of the bucket."""
    lower, upper = (_SHORTEST * math.exp(_LOG_WIDTH * edge) for edge in (bucket - 1, bucket))
    return 2 * lower * upper / (lower + upper)


_MIDDLES = (0.0, *map(_middle, range(1, _BUCKETS - 1)), math.inf)
