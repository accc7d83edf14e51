"""The log of the calls that workers make: what stands in it as returned is what must be known in the end.

One file for each worker, which all of its processes append to, each line with one ``write``: a line when a call
begins and one when it has returned. A process that was killed in between leaves a call that may or may not have
counted.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["Call", "CallLog", "LogReader", "calls_in", "log_path"]

Line = dict[str, Any]
NEVER_US = 1 << 62


@dataclass(frozen=True, slots=True)
class Call:
    """One call. Whatever it did was done between `begin_us` and `end_us`, Unix microseconds.

    `host` names the state folder, which stands for a host: processes of one learn of each other's sessions.
    `returned` False: its process was killed meanwhile. `result` is what it returned, for a turn nothing.
    `may_be_refused` says that an event was counted as refused meanwhile, perhaps this one's.
    """

    op: str
    worker: int
    host: int
    session: str | None
    agent: str
    begin_us: int
    end_us: int
    returned: bool
    result: bool | None = None
    may_be_refused: bool = False
    details: Line = field(default_factory=dict)


class CallLog:
    """Writes the calls of one worker's process, the `life`th one, on a host."""

    def __init__(self, folder: Path, worker: int, *, host: int, life: int) -> None:
        self._fd = os.open(log_path(folder, worker), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._head = {"worker": worker, "host": host, "life": life}
        self._number = 0

    def begin(self, op: str, **details: Any) -> None:
        """A call is about to be made."""
        self._number += 1
        self._write("begin", {"op": op, **details})

    def returned(self, **details: Any) -> None:
        """The call that began last has returned."""
        self._write("returned", details)

    def _write(self, phase: str, details: Line) -> None:
        line = {"phase": phase, "number": self._number, "at": time.time_ns() // 1000, **self._head, **details}
        os.write(self._fd, json.dumps(line).encode() + b"\n")


class LogReader:
    """Reads the logs of all workers while they grow."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._read_to: dict[Path, int] = {}

    def new_lines(self) -> Iterator[Line]:
        """The whole lines since the last time."""
        for path in sorted(self._folder.glob("calls-*.jsonl")):
            with path.open("rb") as file:
                file.seek(self._read_to.get(path, 0))
                text = file.read()
            whole = text[: text.rfind(b"\n") + 1]
            self._read_to[path] = self._read_to.get(path, 0) + len(whole)
            yield from map(json.loads, whole.splitlines())


def log_path(folder: Path, worker: int) -> Path:
    """Where the calls of a worker stand."""
    return folder / f"calls-{worker}.jsonl"


def calls_in(folder: Path) -> list[Call]:
    """All calls, by their beginning."""
    by_worker: dict[int, list[Line]] = {}
    for line in LogReader(folder).new_lines():
        by_worker.setdefault(line["worker"], []).append(line)
    calls = [call for lines in by_worker.values() for call in _calls(lines)]
    return sorted(calls, key=lambda call: call.begin_us)


def _calls(lines: list[Line]) -> Iterator[Call]:
    """A call that never returned had its effect, if any, before its process's successor began to call."""
    for line, following in zip(lines, [*lines[1:], {"phase": "begin", "at": NEVER_US}], strict=True):
        if line["phase"] == "begin":
            returned = following["phase"] == "returned"
            merged = {**line, **following} if returned else line
            yield Call(
                op=line["op"],
                worker=line["worker"],
                host=line["host"],
                session=merged.get("session"),
                agent=merged["agent"],
                begin_us=line["at"],
                end_us=following["at"],
                returned=returned,
                result=merged.get("result"),
                may_be_refused=merged.get("may_be_refused", False),
                details=merged,
            )
