"""A worker: an application that talks about conversations until the storm is over, or until it is killed."""

from __future__ import annotations

import heapq
import itertools
import json
import logging
import os
import random
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from otel_agent_tracker import AgentOperationsTracker, AgentPerformanceTracker
from tests.faults.chaos.calls import CallLog, LogReader, log_path
from tests.faults.chaos.plan import Step, draw
from tests.waiting import wait_until

__all__ = ["Duty", "Hours", "command", "is_ready"]

Told = Mapping[str, Any]

PAUSE_SECONDS = 0.01
START_PROBABILITY = 0.12
FLUSH_PROBABILITY = 0.01
ACTIVITY_PROBABILITY = 0.03
FILL_BYTES = 40_000
LONGEST_TEXT = 4_000  # longer ones are cut
LONGEST_WAIT = 120.0  # seconds; whoever runs the storm has gone by then


@dataclass(frozen=True, slots=True)
class Duty:
    """What a worker is told: which of how many it is, and its `life`th process."""

    folder: str
    seed: int
    worker: int
    workers: int
    life: int

    @property
    def host(self) -> int:
        """Which state folder is its own: the last worker's is 1, the others' 0."""
        return int(self.worker == self.workers - 1)


@dataclass(frozen=True, slots=True)
class Hours:
    """How long workers work, and in which periods they write as much as fills a state folder.

    Times are of the monotonic clock, which all processes share.
    """

    until: float
    fill: list[tuple[float, float]]

    def write(self, folder: Path) -> None:
        """Let the workers of a run begin."""
        written = folder / "hours.new"
        written.write_text(json.dumps(asdict(self)))
        written.rename(folder / _HOURS)


def is_ready(folder: Path, worker: int) -> bool:
    """Whether the worker waits for its hours, or has had them."""
    return log_path(folder, worker).exists()


def command(duty: Duty) -> list[str]:
    """The arguments with which Python becomes this worker."""
    return ["-m", "tests.faults.chaos.worker", json.dumps(asdict(duty))]


class _Todo:
    """The steps that are this worker's to do, as the logs of all workers tell."""

    def __init__(self, duty: Duty) -> None:
        self._worker = duty.worker
        self._reader = LogReader(Path(duty.folder))
        self._due: list[tuple[float, int, str, int, dict[str, Any]]] = []
        self._done: set[tuple[str, int]] = set()
        self._numbers = itertools.count()

    def next(self) -> tuple[str, int, dict[str, Any]] | None:
        """A session whose next step is due, the number of that step, and the plan."""
        for line in self._reader.new_lines():
            self._take_in(line)
        while self._due and self._due[0][0] <= time.time():
            _, _, session, number, planned = heapq.heappop(self._due)
            if (session, number) not in self._done:
                return session, number, planned
        return None

    def _take_in(self, line: dict[str, Any]) -> None:
        """Whoever is named first in a step hands the session on."""
        if line["phase"] != "returned" or "steps" not in line:
            return
        session, number, steps = line["session"], line["step"], [Step(*step) for step in line["steps"]]
        if line["worker"] == self._worker:
            self._done.add((session, number))
        handed_on = number + 1 < len(steps) and line["worker"] == steps[number].workers[0]
        if handed_on and self._worker in steps[number + 1].workers:
            due = line["at"] / 1e6 + steps[number + 1].seconds
            planned = {name: line[name] for name in ("kind", "agent", "steps")}
            heapq.heappush(self._due, (due, next(self._numbers), session, number + 1, planned))


class _Worker:
    def __init__(self, duty: Duty) -> None:
        self._duty = duty
        self._random = random.Random(f"{duty.seed} worker {duty.worker} life {duty.life}")
        self._agent = f"agent-{duty.worker}-{duty.life}"
        self._todo = _Todo(duty)
        self._numbers = itertools.count()
        self._tracker = AgentPerformanceTracker()
        self._operations = AgentOperationsTracker()
        self._log = CallLog(Path(duty.folder), duty.worker, host=duty.host, life=duty.life)

    def work(self) -> None:
        """Until the storm is over; then the process ends as applications do."""
        path = Path(self._duty.folder) / _HOURS
        wait_until(path.exists, LONGEST_WAIT)
        hours = Hours(**json.loads(path.read_text()))
        while (now := time.monotonic()) < hours.until:
            filling = any(begin <= now < end for begin, end in hours.fill)
            self._step(filling)
            time.sleep(self._random.uniform(0, 2 * PAUSE_SECONDS))
        self._tracker.close()
        self._operations.close()

    def _step(self, filling: bool) -> None:
        todo = self._todo.next()
        if todo is not None:
            self._go_on(*todo)
        elif self._random.random() < START_PROBABILITY:
            self._begin()
        elif filling or self._random.random() < ACTIVITY_PROBABILITY:
            self._act(FILL_BYTES if filling else 10)
        elif self._random.random() < FLUSH_PROBABILITY:
            self._tracker.flush(self._random.uniform(0.01, 0.3))

    def _begin(self) -> None:
        kind, steps = draw(self._random, self._duty.workers, starter=self._duty.worker)
        plan = {"kind": kind, "agent": self._agent, "steps": steps}
        if kind.endswith("channel"):
            session = f"channel-{self._duty.worker}-{self._duty.life}-{next(self._numbers)}"
            self._go_on(session, 0, plan)
        else:
            self._call("start", self._start, step=0, **plan)

    def _go_on(self, session: str, number: int, plan: dict[str, Any]) -> None:
        """The step of that number, of a session of this worker or another's."""
        op = plan["steps"][number][0]
        do, details = self._prepared(op, session, plan["agent"])
        self._call(op, do, session=session, step=number, **plan, **details)

    def _prepared(self, op: str, session: str, agent: str) -> tuple[Callable[[], Told], Told]:
        """What makes the call, and what is said in it."""
        tracker, choice = self._tracker, self._random.choice
        match op:
            case "turn":
                error = choice((None, None, None, "the model is overloaded"))
                return lambda: self._turn(session, agent, error), {"error": error} if error else {}
            case "rate":
                score, source = choice((1, 2, 3, 4, 5)), choice(("user", "user", "operator", "evaluator"))
                return lambda: self._rate(session, agent, score, source), {"score": score, "source": source}
            case "end":
                quality = choice((None, 1, 2, 3, 4, 5))
                end = partial(tracker.end_conversation, session, quality, agent_id=agent)
                return lambda: {"result": end()}, {"quality": quality}
        error = f"error {self._random.randrange(1000)}"
        fail = partial(tracker.record_failed_session, session, error, agent_id=agent)
        return lambda: {"result": fail()}, {"error": error}

    # --- the calls ------------------------------------------------------------------------------------------

    def _call(self, op: str, do: Callable[[], Told], **details: Any) -> None:
        refused = self._refused(op)
        self._log.begin(op, **details)
        told = do()
        self._log.returned(**details, **told, may_be_refused=self._refused(op) != refused)

    def _refused(self, op: str) -> list[int]:
        """How many events of the kinds that a call makes were refused so far, here or elsewhere."""
        by_kind = self._tracker.delivery_stats()["dropped_by_kind"]
        return [by_kind.get(kind, 0) for kind in (*_EVENTS[op], "journal", "unreadable")]

    def _start(self) -> Told:
        return {"session": self._tracker.start_conversation(self._agent, f"user-{self._duty.worker}")}

    def _turn(self, session: str, agent: str, error: str | None) -> Told:
        with self._tracker.turn(session, agent_id=agent) as turn:
            time.sleep(self._random.choice((0, 0, 0.01, 0.04)))
            if error is not None:
                turn.fail(RuntimeError(error))
        return {}

    def _rate(self, session: str, agent: str, score: int, source: str) -> Told:
        return {"result": self._tracker.record_feedback(session, score, source=source, agent_id=agent)}

    def _act(self, size: int) -> None:
        def act() -> Told:
            texts = ["x" * min(LONGEST_TEXT, size - at) for at in range(0, size, LONGEST_TEXT)]
            self._operations.log_activity(self._agent, "think", {"texts": texts})
            return {}

        self._call("activity", act, agent=self._agent)


_HOURS = "hours.json"
_EVENTS = {
    "start": ("conversation.start",),
    "turn": ("conversation.turn",),
    "end": ("conversation",),
    "fail": ("conversation",),
    "rate": ("conversation.feedback",),
    "activity": ("agent.activity",),
}


def _main() -> None:
    duty = json.loads(sys.argv[1])
    logging.basicConfig(
        filename=Path(duty["folder"]) / f"worker-{duty['worker']}.log",
        format=f"%(asctime)s {os.getpid()} life {duty['life']} %(levelname)s %(message)s",
    )
    _Worker(Duty(**duty)).work()


if __name__ == "__main__":
    _main()
