"""The frame format: what is written whole is read, whatever lies around it."""

from __future__ import annotations

from zlib import crc32

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_agent_tracker import frames
from otel_agent_tracker.frames import HEADER, HEADER_BYTES, MAGIC, ReadResult, scan

EVENTS = [b'{"event":"start"}', b'{"event":"turn"}', "{'text':'é🤖'}".encode(), b'{"event":"end"}']
WHOLE = 1 << 20
pieces = st.one_of(
    st.binary(max_size=40), st.just(MAGIC), st.binary(max_size=40).map(lambda text: framed(text))
)


def framed(*payloads: bytes) -> bytes:
    return b"".join(frames.encode(payload, frames.checksum(payload)) for payload in payloads)


def frame_at(position: int) -> int:
    """The index in EVENTS of the frame in which `position` lies."""
    ends = [len(framed(*EVENTS[: count + 1])) for count in range(len(EVENTS))]
    return next(index for index, end in enumerate(ends) if position < end)


@given(st.lists(st.one_of(st.binary(), st.just(MAGIC), st.just(framed(b"frame in a frame")))))
def test_what_is_encoded_is_scanned(payloads: list[bytes]) -> None:
    """Any payload comes back as it was, also an empty one and one that holds magic and whole frames."""
    data = framed(*payloads)
    assert scan(data, 100, WHOLE) == ReadResult(payloads, 100 + len(data), 0)


@given(st.text())
def test_the_magic_cannot_occur_in_text(text: str) -> None:
    """No byte of the magic is ever part of UTF-8."""
    assert not set(MAGIC) & set(text.encode())


@pytest.mark.parametrize("size", [0, 1, 5107, 5108, 5109, 5120, 5121, 10_240, 70_001])
def test_a_checksum_made_in_pieces_is_the_same(size: int) -> None:
    """Long payloads are fed to zlib in pieces, which must not show."""
    payload = bytes(range(256)) * (size // 256 + 1)
    assert frames.checksum(payload[:size]) == crc32(payload[:size], HEADER_BYTES + size)


@pytest.mark.parametrize("flip", [0x01, 0x80, 0xFF])
def test_a_flipped_byte_costs_only_its_frame(flip: int) -> None:
    """Whichever byte is damaged, every other frame is read and the damaged one's size is counted."""
    data = framed(*EVENTS)
    for position in range(len(data)):
        damaged = bytearray(data)
        damaged[position] ^= flip
        lost = EVENTS[frame_at(position)]
        intact = [event for event in EVENTS if event != lost]
        assert scan(bytes(damaged), 0, WHOLE) == ReadResult(intact, len(data), HEADER_BYTES + len(lost))


def test_a_cut_costs_only_the_frame_it_goes_through() -> None:
    """Wherever the data ends, the frames that are whole are read and the rest is counted."""
    data = framed(*EVENTS)
    for length in range(len(data)):
        whole = EVENTS[: frame_at(length)]
        torn = data[len(framed(*whole)) : length].rstrip(b"\0")
        assert scan(data[:length], 0, WHOLE) == ReadResult(whole, length, len(torn))


def test_a_blank_end_is_no_damage() -> None:
    """Preallocated space that was never used is passed over without being counted."""
    data = framed(b"event") + bytes(4 * 1024 * 1024)
    assert scan(data, 0, WHOLE) == ReadResult([b"event"], len(data), 0)


def test_a_frame_without_its_size_does_not_count() -> None:
    """The size is written last: a writer killed before that leaves bytes that are skipped."""
    torn = HEADER.pack(MAGIC, 0, frames.checksum(b"event")) + b"event"
    data = framed(b"before") + torn + bytes(20_000)
    assert scan(data, 0, WHOLE) == ReadResult([b"before"], len(data), len(torn))


def test_scanning_stops_at_the_limit_and_goes_on_there() -> None:
    """A frame that begins within the limit is read whole; the next call begins where this one ended."""
    data = framed(b"a" * 88, b"b" * 88, b"c" * 88)
    first = scan(data, 0, 101)
    assert first == ReadResult([b"a" * 88, b"b" * 88], 200, 0)
    assert scan(data[first.offset :], first.offset, 101) == ReadResult([b"c" * 88], 300, 0)


def test_false_headers_cost_what_they_claim() -> None:
    """Headers that claim much and hold nothing use up the limit, so one call never takes long."""
    header = HEADER.pack(MAGIC, 500_000, 0)
    data = header * 100_000
    result = scan(data, 0, 1_000_000)
    assert result == ReadResult([], 2 * HEADER_BYTES, 2 * HEADER_BYTES)


@given(st.lists(pieces), st.integers(0, 64))
def test_garbage_is_walked_through(garbage: list[bytes], max_bytes: int) -> None:
    """Every call gets on; at the end each byte was part of a frame, skipped, or blank."""
    data = b"".join(garbage)
    offset = skipped = read = 0
    while offset < len(data):
        result = scan(data[offset:], offset, max_bytes)
        assert result.offset > offset
        offset, skipped = result.offset, skipped + result.skipped
        read += sum(HEADER_BYTES + len(payload) for payload in result.payloads)
    blank = len(data) - len(data.rstrip(b"\0"))
    assert offset == len(data)
    assert len(data) - blank <= skipped + read <= len(data)
