"""What goes wrong with a database when it is opened, told as one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from otel_agent_tracker.server.database import Database

__all__ = ["usable"]


@contextmanager
def usable(database: Database) -> Iterator[None]:
    """Raises RuntimeError, which says why, if the database turns out to be of no use within the block."""
    try:
        yield
    except (SQLAlchemyError, OSError, RuntimeError) as error:
        raise RuntimeError(f"{database.shown} cannot be used: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    told: object = error
    if isinstance(error, DBAPIError):
        told = error.orig
    elif isinstance(error, OSError):
        told = error.strerror or error
    return " ".join(str(told).split())
