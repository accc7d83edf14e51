"""One peer beside ours, in its environment: ``python -m benchmarks.peer NAME URL {caller,exit} [--quick]``."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.plain_span import PlainSpan, make_provider
from benchmarks.timing import Subject, alone, beside_cpu_bound_thread

__all__: list[str] = []

_BESIDE_OURS = ("langfuse", "logfire")  # agentops lives with an SDK older than the one we are measured with


def _caller(name: str, peer: Subject, url: str, quick: bool) -> None:
    subjects = {name: peer, "plain": PlainSpan(make_provider(url))}
    if name not in _BESIDE_OURS:
        _measure(subjects, quick)
        return
    from benchmarks.caller import StartEnd
    from otel_agent_tracker import AgentPerformanceTracker

    with TemporaryDirectory() as folder, AgentPerformanceTracker(url, state_dir=Path(folder)) as tracker:
        _measure(subjects | {"ours": StartEnd(tracker)}, quick)


def _measure(subjects: Mapping[str, Subject], quick: bool) -> None:
    times = alone(subjects, rounds=4 if quick else 10, calls=200)
    busy = beside_cpu_bound_thread(subjects, rounds=1 if quick else 3, seconds=1.5 if quick else 4)
    figures = {
        f"{one}.start_end.{key}": value for one in times for key, value in times[one]._asdict().items()
    }
    figures |= {f"{one}.threads.{key}": value for one in busy for key, value in busy[one]._asdict().items()}
    print(json.dumps(figures), flush=True)


def _exit(peer: Subject) -> None:
    for _ in range(100):
        peer.call()
    print(json.dumps({"done": time.time()}), flush=True)


def main() -> None:
    """Measure, and print one JSON object as the last line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name")
    parser.add_argument("url")
    parser.add_argument("what", choices=["caller", "exit"])
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    peer: Subject = import_module(f"benchmarks.peer_{options.name}").Peer(options.url)
    if options.what == "exit":
        _exit(peer)
    else:
        _caller(options.name, peer, options.url, options.quick)


if __name__ == "__main__":
    main()
