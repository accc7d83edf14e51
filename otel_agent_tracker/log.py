"""Our loggers: they write where the host's logging leads, and what goes wrong there reaches nobody's call."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

__all__ = ["Log"]


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

    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:
        """Log, if that can be done."""
        if any(_is_closed(handler) for handler in _handlers(self.logger)):
            return
        with suppress(Exception):  # handlers and filters are the host's own code
            super().log(level, msg, *args, stacklevel=_OF_THE_CALLER, **kwargs)


def _handlers(logger: logging.Logger | None) -> Iterator[logging.Handler]:
    """The handlers that a record of `logger` comes to."""
    while logger is not None:
        yield from logger.handlers
        logger = logger.parent if logger.propagate else None


def _is_closed(handler: logging.Handler) -> bool:
    return bool(getattr(getattr(handler, "stream", None), "closed", False))


_OF_THE_CALLER = 2  # this module's own frame is passed over where a record says its line
