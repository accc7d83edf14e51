"""The right to send for a state folder: one process at a time has it, until it closes or dies."""

from __future__ import annotations

import os
from pathlib import Path

try:
    import fcntl
except ImportError:  # pragma: no cover - a platform without it shares no state folder
    fcntl = None  # type: ignore[assignment]  # the platform has no such module

__all__ = ["SenderLock"]


class SenderLock:
    """A file locked with ``flock``; the kernel frees it when the process dies."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd: int | None = None

    def acquire(self) -> bool:
        """Whether this process has the right, now or already. Raises OSError if the file cannot be opened.

        The right to a file that was deleted is worth nothing: another process may have made a new one.
        """
        if self._fd is not None and not self._is_linked(self._fd):
            self.release()
        if self._fd is None:
            self._fd = self._locked()
        return self._fd is not None

    def release(self) -> None:
        """Give the right up; a forked child calls it at once, which leaves its parent's right alone."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _locked(self) -> int | None:
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            if fcntl is not None:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return None
        except OSError:
            os.close(fd)
            raise
        return fd

    def _is_linked(self, fd: int) -> bool:
        try:
            return os.path.samestat(self._path.lstat(), os.fstat(fd))
        except OSError:
            return False
