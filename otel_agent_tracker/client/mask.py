"""The key out of what is told of a tracker's answer, which may repeat it, as it is or as its format spells it."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache

__all__ = ["MASK", "masked", "masked_in_debug_lines"]

MASK = "***"


def masked(text: str, secrets: tuple[str, ...]) -> str:
    """`text` with ``***`` for each of `secrets`, also where it is escaped for JSON, a URL, HTML or Python."""
    return _any_of(secrets).sub(MASK, text) if secrets else text


@contextmanager
def masked_in_debug_lines(secrets: tuple[str, ...]) -> Iterator[None]:
    """Within the block the network library, which logs an answer's headers, does not log `secrets`."""
    token = _under_way.set(secrets)
    try:
        yield
    finally:
        _under_way.reset(token)


class _DebugLines(logging.Filter):
    """Masks the secrets of our own request, and lets everybody else's lines pass as they are."""

    def filter(self, record: logging.LogRecord) -> bool:
        if secrets := _under_way.get():
            record.msg, record.args = masked(record.getMessage(), secrets), ()
        return True


@lru_cache(maxsize=16)
def _any_of(secrets: tuple[str, ...]) -> re.Pattern[str]:
    """The longest first: one may be the beginning of another."""
    longest_first = sorted(secrets, key=len, reverse=True)
    return re.compile("|".join("".join(map(_spellings, _PIECES.findall(secret))) for secret in longest_first))


def _spellings(piece: str) -> str:
    """A pattern of the ways to write letters and digits, another character, or a run of backslashes.

    Where what was escaped is escaped once more, backslashes double, `%` becomes `%25` and `&` `&amp;`.
    """
    if piece.isalnum():
        return piece
    character, count = piece[0], len(piece)
    code = ord(character)
    # possessive: a run that could be shared out among its backslashes in many ways would be tried in all
    plain = rf"\\{{{count},{8 * count}}}+" if character == "\\" else rf"\\{{0,8}}{re.escape(character)}"
    escaped = rf"\\{{1,8}}(?:u00|x){code:02x}|%(?:25){{0,2}}{code:02x}"
    entity = rf"&(?:amp;)?(?:{_NAMES.get(character, f'#{code}')}|#0*{code}|#x0*{code:x});"
    return rf"(?:{plain}|(?i:(?:{escaped}|{entity}){{{count}}}))"


_PIECES = re.compile(r"[A-Za-z0-9]+|\\+|.", re.DOTALL)
_NAMES = {'"': "quot", "&": "amp", "'": "apos", "<": "lt", ">": "gt"}
_under_way: ContextVar[tuple[str, ...]] = ContextVar("secrets of the request under way", default=())

for _name in ("httpcore.connection", "httpcore.http11", "httpcore.proxy"):
    logging.getLogger(_name).addFilter(_DebugLines())
