"""One run: processes are started, the storm passes over them, everything settles, and what is left is checked."""

from __future__ import annotations

import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tests.faults.chaos import checks, worker
from tests.faults.chaos.calls import LogReader
from tests.faults.chaos.processes import WORKERS, Processes
from tests.faults.chaos.proxy import CALM, Proxy
from tests.faults.chaos.storm import Storm, Strike
from tests.faults.chaos.worker import Duty, Hours
from tests.waiting import wait_until

__all__ = ["Chaos"]

START_SECONDS = 90.0
SETTLE_SECONDS = 60.0
PROGRESS_SECONDS = 3.0


class Chaos:
    """A run of `seconds` of storm in `folder`, which must be empty; `run` returns what was wrong."""

    def __init__(
        self, seed: int, seconds: float, folder: Path, *, tell: Callable[[str], None] = print
    ) -> None:
        self._seed = seed
        self._seconds = seconds
        self._folder = folder
        self._tell = tell
        self._storm = Storm(seed, seconds, WORKERS)
        self._proxy = Proxy(random.Random(f"{seed} proxy"))
        self._processes = Processes(folder, f"http://127.0.0.1:{self._proxy.port}")
        self._proxy.upstream_port = self._processes.tracker_port
        self._lives = [0] * WORKERS
        self._due: list[tuple[float, Callable[[], None]]] = []
        self._log = LogReader(folder)
        self._struck = self._returned = 0
        self._wrong: list[str] = []

    def run(self) -> list[str]:
        """Everything; every process has ended when it returns or raises."""
        with ExitStack() as stack:
            self._proxy.start()
            stack.callback(self._proxy.stop)
            stack.callback(self._processes.close)
            self._rage()
            self._calm_down()
            self._settle()
            books = self._processes.books()
            self._sum_up(books)
            url = f"http://127.0.0.1:{self._processes.tracker_port}"
            self._wrong += checks.check_tracker(self._folder, url, books)
            if (code := self._processes.stop_tracker()) not in (0, -signal.SIGINT):
                self._wrong.append(f"the tracker ended with {code}; see tracker.err")
        self._wrong += checks.check_folders(self._processes.state_dirs, books)
        return self._wrong

    # --- the storm ------------------------------------------------------------------------------------------

    def _rage(self) -> None:
        """Strike as the storm has it, and set up again what was struck down."""
        self._processes.start_tracker()
        for number in range(WORKERS):
            self._start_worker(number)
        wait_until(self._all_ready, START_SECONDS)
        self._began = time.monotonic()
        fill = [(self._began + begin, self._began + end) for begin, end in self._storm.floods]
        Hours(until=self._began + self._seconds, fill=fill).write(self._folder)
        for strike in self._storm.strikes:
            self._at(self._began + strike.at, lambda strike=strike: self._strike(strike))  # type: ignore[misc]  # a default binds the loop's value
        progress = self._began
        while (now := time.monotonic()) < self._began + self._seconds:
            while self._due and self._due[0][0] <= now:
                self._due.pop(0)[1]()
            if now >= progress:
                progress += PROGRESS_SECONDS
                self._progress(now)
            next_due = self._due[0][0] if self._due else progress
            time.sleep(max(0.0, min(next_due, progress, self._began + self._seconds) - time.monotonic()))

    def _all_ready(self) -> bool:
        workers = all(worker.is_ready(self._folder, number) for number in range(WORKERS))
        return workers and self._processes.tracker_listens()

    def _at(self, when: float, action: Callable[[], None]) -> None:
        self._due.append((when, action))
        self._due.sort(key=lambda due: due[0])

    def _strike(self, strike: Strike) -> None:
        self._struck += 1
        self._note(str(strike))
        over = time.monotonic() + strike.seconds
        match strike.kind:
            case "weather":
                self._proxy.weather = strike.weather
            case "tracker":
                self._processes.kill_tracker()
                self._at(over, self._processes.start_tracker)
            case "pause":
                self._processes.signal_worker(strike.worker, signal.SIGSTOP)
                self._at(over, lambda: self._processes.signal_worker(strike.worker, signal.SIGCONT))
            case "kill":
                self._processes.kill_worker(strike.worker)
                self._at(over, lambda: self._start_worker(strike.worker))

    def _start_worker(self, number: int) -> None:
        self._processes.kill_worker(number)  # another strike may have set it up again meanwhile
        self._lives[number] += 1
        self._processes.start_worker(
            Duty(
                folder=str(self._folder),
                seed=self._seed,
                worker=number,
                workers=WORKERS,
                life=self._lives[number],
            )
        )

    def _note(self, text: str) -> None:
        with (self._folder / "storm.log").open("a", encoding="utf-8") as file:
            file.write(f"{time.time():.3f} {text}\n")

    def _progress(self, now: float) -> None:
        self._returned += sum(line["phase"] == "returned" for line in self._log.new_lines())
        self._tell(
            f"{now - self._began:6.1f} s  {self._returned} calls returned, {self._struck} strikes, "
            f"{self._proxy.struck} exchanges spoilt, weather: {self._proxy.weather.name}"
        )

    # --- afterwards -----------------------------------------------------------------------------------------

    def _calm_down(self) -> None:
        """The sun comes out, the tracker is there, and the workers end by themselves."""
        self._note("calm")
        self._proxy.weather = CALM
        for number in range(WORKERS):
            self._processes.signal_worker(number, signal.SIGCONT)
        self._processes.start_tracker()
        wait_until(self._all_ended, SETTLE_SECONDS)

    def _sum_up(self, books: Sequence[Mapping[str, Any]]) -> None:
        refused: Counter[str] = Counter()
        for one in books:
            refused.update(one["dropped_by_kind"])
        accepted = sum(one["accepted"] for one in books)
        self._progress(time.monotonic())
        self._tell(
            f"{accepted} events were accepted, of which refused at the limit: {dict(refused) or 'none'}"
        )

    def _all_ended(self) -> bool:
        for number, code in self._processes.ended_workers().items():
            if code != 0:
                self._wrong.append(f"worker {number} ended with {code}; see worker-{number}.err")
        return not self._processes.working

    def _settle(self) -> None:
        """Twice: whatever the first processes did, and leave behind, is for the second to tidy up."""
        for _ in range(2):
            self._tell(f"{time.monotonic() - self._began:6.1f} s  settling")
            for told in self._processes.settle(SETTLE_SECONDS):
                self._wrong += checks.check_settled(told)
