"""What other living processes have accepted into their journals and not stored yet: looked at, never taken."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path

from otel_agent_tracker import frames
from otel_agent_tracker.segment import SUFFIX

__all__ = ["still_unread", "unread_elsewhere"]


def unread_elsewhere(folder: Path, *, ours: Collection[str], read_to: Mapping[str, int]) -> dict[str, int]:
    """How far each segment of others is written, by name, if that is further than `read_to` says.

    Raises OSError if the folder cannot be read; a segment that disappears meanwhile has been read.
    """
    unread: dict[str, int] = {}
    for entry in os.scandir(folder):
        if entry.name.endswith(SUFFIX) and entry.name not in ours:
            start = read_to.get(entry.name, 0)
            with suppress(FileNotFoundError):
                end = _written_to(Path(entry.path), start)
                if end > start:
                    unread[entry.name] = end
    return unread


def still_unread(folder: Path, unread: Mapping[str, int], read_to: Mapping[str, int]) -> dict[str, int]:
    """Those of `unread` whose owners have not stored them by now."""
    return {
        name: end for name, end in unread.items() if read_to.get(name, 0) < end and (folder / name).exists()
    }


def _written_to(path: Path, start: int) -> int:
    """Where the last whole frame from `start` on ends; damage hides what follows it."""
    with path.open("rb") as file:
        file.seek(start)
        header = file.read(frames.HEADER_BYTES)
        if not header.startswith(frames.MAGIC):
            return start
        return start + frames.whole_length(header + file.read())
