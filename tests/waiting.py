"""Waiting for what another thread or process does and tells nobody."""

from __future__ import annotations

import time
from collections.abc import Callable

__all__ = ["wait_until"]


def wait_until(is_so: Callable[[], object], timeout_seconds: float = 10.0) -> None:
    """Return when `is_so()` is true; raises TimeoutError if that takes too long."""
    deadline = time.monotonic() + timeout_seconds
    while not is_so():
        if time.monotonic() > deadline:
            raise TimeoutError(f"it is not so after {timeout_seconds:.0f} s")
        time.sleep(0.01)
