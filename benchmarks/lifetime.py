"""How long an import takes, and an exit when nobody answers. Prints one JSON object."""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.peers import PEERS, command_of
from benchmarks.sink import running_sink

__all__: list[str] = []

CONVERSATIONS = 100
PATIENCE = 60.0  # what longer takes counts as this
_IMPORT = "import time; start = time.perf_counter(); {}; print(time.perf_counter() - start)"
_CONVERSE = """
import json, sys, time
from otel_agent_tracker import AgentPerformanceTracker
tracker = AgentPerformanceTracker(sys.argv[1], state_dir=sys.argv[2])
for _ in range(int(sys.argv[3])):
    tracker.end_conversation(tracker.start_conversation("support-bot"), quality_score=4)
print(json.dumps({"done": time.time()}), flush=True)
"""
_DELIVER = """
import sys
from otel_agent_tracker import AgentPerformanceTracker
with AgentPerformanceTracker(sys.argv[1], state_dir=sys.argv[2]) as tracker:
    sys.exit(not tracker.flush(60))
"""


def imports(times: int) -> dict[str, float]:
    """The shortest import of ours and of the SDK's tracing, in milliseconds, in new processes by turns."""
    statements = {
        "ours": "import otel_agent_tracker",
        "tracker": "from otel_agent_tracker import AgentPerformanceTracker",
        "sdk": "import opentelemetry.sdk.trace",
    }
    seconds: dict[str, list[float]] = {name: [] for name in statements}
    for _ in range(times):
        for name, statement in statements.items():
            ran = subprocess.run(
                [sys.executable, "-c", _IMPORT.format(statement)], check=True, capture_output=True
            )
            seconds[name].append(float(ran.stdout))
    return {f"import.{name}": round(min(taken) * 1e3, 1) for name, taken in seconds.items()}


@contextmanager
def _silence() -> Iterator[int]:
    """A port that accepts connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def exits(peers: Sequence[str]) -> dict[str, float]:
    """Seconds from the last line of a program to its end while its backend is silent; what was lost after."""
    with TemporaryDirectory() as folder:
        with _silence() as port:
            url = f"http://127.0.0.1:{port}"
            ours = [sys.executable, "-c", _CONVERSE, url, folder, str(CONVERSATIONS)]
            commands = {"ours": ours} | {peer: command_of(peer, url, "exit") for peer in peers}
            seconds = {f"exit.{name}": _seconds_to_exit(command) for name, command in commands.items()}
        return seconds | {"exit.lost": 2 * CONVERSATIONS - _delivered_later(port, Path(folder))}


def _seconds_to_exit(command: Sequence[str]) -> float:
    """How long after its last line the process ends, or `PATIENCE` if it does not, or hangs before."""
    environment = os.environ | {"PYTHONPATH": str(Path.cwd())}
    with (
        TemporaryDirectory() as folder,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=folder, env=environment
        ) as process,
    ):
        try:
            printed, _ = process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            return PATIENCE
        return round(time.time() - float(json.loads(printed)["done"]), 2)


def _delivered_later(port: int, folder: Path) -> int:
    """How many events a later process delivers when the backend is there again."""
    with running_sink(port=port) as sink:
        subprocess.run([sys.executable, "-c", _DELIVER, sink.url, str(folder)], check=True)
        return sink.counts().distinct


def main() -> None:
    """Measure both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--no-peers", dest="peers", action="store_false")
    options = parser.parse_args()
    print(json.dumps(imports(3 if options.quick else 9) | exits(PEERS if options.peers else ())))


if __name__ == "__main__":
    main()
