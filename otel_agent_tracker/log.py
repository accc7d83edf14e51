"""Our loggers: they write where the host's logging leads, and what goes wrong there reaches nobody's call."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

__all__ = ["Log", "SparingLog"]

INTERVAL = 60.0  # seconds


class Log(logging.LoggerAdapter[logging.Logger]):
    """The logger `name`, whose methods never raise.

    A handler whose stream the host has closed would print a traceback for each line, or raise; while there is one
    in the way nothing is logged.
    """

    def __init__(self, name: str) -> None:
        super().__init__(logging.getLogger(name), {})
        self.said: set[str] = set()

    def warn_once(self, message: str, error: Exception) -> None:
        """Warn of this trouble the first time that it is met, with its traceback."""
        if message not in self.said:
            self.said.add(message)
            self.warning(message, error, exc_info=error)

    def log(self, level: int, msg: object, *args: object, stacklevel: int = 1, **kwargs: Any) -> None:
        """Log, if that can be done."""
        with suppress(Exception):  # handlers, filters and streams are the host's own
            if not any(_is_closed(handler) for handler in _handlers(self.logger)):
                super().log(level, msg, *args, stacklevel=stacklevel + 1, **kwargs)


class SparingLog:
    """Tells each message at most once a minute, whatever its details; `now` is monotonic time in seconds."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._told_at: dict[str, float] = {}

    def warning(
        self, now: float, message: str, *details: object, exc_info: BaseException | None = None
    ) -> bool:
        """Warn, and return True, unless the same message was told less than a minute ago."""
        return self._tell(now, logging.WARNING, message, details, exc_info)

    def error(
        self, now: float, message: str, *details: object, exc_info: BaseException | None = None
    ) -> bool:
        """As `warning`, for an error."""
        return self._tell(now, logging.ERROR, message, details, exc_info)

    def _tell(
        self,
        now: float,
        level: int,
        message: str,
        details: tuple[object, ...],
        exc_info: BaseException | None,
    ) -> bool:
        if now < self._told_at.get(message, -math.inf) + INTERVAL:
            return False
        self._told_at[message] = now
        self._log.log(level, message, *details, exc_info=exc_info, stacklevel=_OF_THE_CALLER)
        return True


def _handlers(logger: logging.Logger | None) -> Iterator[logging.Handler]:
    """The handlers that a record of `logger` comes to."""
    while logger is not None:
        yield from logger.handlers
        logger = logger.parent if logger.propagate else None


def _is_closed(handler: logging.Handler) -> bool:
    return bool(getattr(getattr(handler, "stream", None), "closed", False))


_OF_THE_CALLER = 3  # a record tells the line of who has something to say, not one of this module
