"""Interruptions of a thread at chosen points, as signal handlers and finalisers come.

for point in count():
    with interrupted_at(point, FILES, do=handle) as was_reached:
        ...
    if not was_reached():
        break
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["finishes", "interrupted_at"]


@contextmanager
def interrupted_at(
    point: int, files: Container[str], *, do: Callable[[], object]
) -> Iterator[Callable[[], bool]]:
    """Inside, `do` runs once, at that point of what this thread runs of `files`.

    Python looks for signals, and newer ones for garbage, where a function is entered and where a call returns: points
    are there. Yields what tells whether the point was reached.
    """
    passed = 0

    def passing(frame: FrameType, event: str, _: object) -> None:
        nonlocal passed
        if frame.f_code.co_filename in files:
            passed += 1
            if passed == point + 1:
                do()

    sys.setprofile(passing)
    try:
        yield lambda: passed > point
    finally:
        sys.setprofile(None)


def finishes(do: Callable[[], None], timeout_seconds: float = 30.0) -> bool:
    """Whether `do` comes to its end on a thread of its own; raises what it raises."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            do()
        except BaseException as error:  # noqa: BLE001 - it is raised where the test waits
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(timeout_seconds)
    if raised:
        raise raised[0]
    return not thread.is_alive()
