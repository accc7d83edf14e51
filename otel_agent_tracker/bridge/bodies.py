"""Bodies of requests: packed in what ways, and never larger than a limit, however small they were packed."""

from __future__ import annotations

import zlib
from collections.abc import Callable

import zstandard

__all__ = ["ENCODINGS", "TooLarge", "Unreadable", "unpack"]

_GZIP, _ZLIB = 16 + zlib.MAX_WBITS, zlib.MAX_WBITS
_LARGEST_WINDOW = (
    8 * 1024 * 1024
)  # what every decoder of zstd has to support, and encoders do not exceed unasked


class Unreadable(ValueError):  # noqa: N818 - says what is so
    """A body is not what it says it is."""


class TooLarge(ValueError):  # noqa: N818 - says what is so
    """A body holds more than may be."""


def unpack(body: bytes, encoding: str, limit: int) -> bytes:
    """The body as it was before it was packed as `encoding`, one of `ENCODINGS`.

    Raises TooLarge if that is more than `limit` bytes, and Unreadable.
    """
    unpacked = ENCODINGS[encoding](body, limit)
    if len(unpacked) > limit:
        raise TooLarge(f"the body must not be larger than {limit} bytes when it is unpacked")
    return unpacked


def _identity(body: bytes, limit: int) -> bytes:
    return body


def _gzip(packed: bytes, limit: int) -> bytes:
    """One member or several, one after another."""
    unpacked = b""
    while packed:
        member, packed = _inflate(packed, _GZIP, limit + 1 - len(unpacked))
        unpacked += member
        if len(unpacked) > limit:
            break
    return unpacked


def _zlib(packed: bytes, limit: int) -> bytes:
    unpacked, rest = _inflate(packed, _ZLIB, limit + 1)
    if rest and len(unpacked) <= limit:
        raise Unreadable("something follows the end of the packed body")
    return unpacked


def _inflate(packed: bytes, form: int, most: int) -> tuple[bytes, bytes]:
    """At most `most` bytes of what is packed, and what follows it."""
    member = zlib.decompressobj(form)
    try:
        unpacked = member.decompress(packed, most)
    except zlib.error as error:
        raise Unreadable("the body cannot be unpacked") from error
    if not member.eof and len(unpacked) < most:
        raise Unreadable("the packed body is not complete")
    return unpacked, member.unused_data


def _zstd(packed: bytes, limit: int) -> bytes:
    """One frame. What it says of its size is believed only after that was compared with the limit."""
    try:
        size = zstandard.frame_content_size(packed)
        if size > limit:
            raise TooLarge(f"the body must not be larger than {limit} bytes when it is unpacked")
        if size == 0:
            return b""
        decompressor = zstandard.ZstdDecompressor(max_window_size=_LARGEST_WINDOW)
        return decompressor.decompress(packed, max_output_size=limit + 1, allow_extra_data=False)
    except zstandard.ZstdError as error:
        if "too small" in str(error):  # the room for a frame that does not tell its size
            raise TooLarge(f"the body must not be larger than {limit} bytes when it is unpacked") from error
        raise Unreadable("the body cannot be unpacked") from error


ENCODINGS: dict[str, Callable[[bytes, int], bytes]] = {
    "": _identity,
    "identity": _identity,
    "gzip": _gzip,
    "deflate": _zlib,
    "zstd": _zstd,
}
