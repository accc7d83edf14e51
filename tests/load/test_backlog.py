"""A process that finds a million events on disk, as after an outage of days."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from otel_agent_tracker import AgentPerformanceTracker
from otel_agent_tracker.state import State
from tests.faults.sink import counting_tracker
from tests.waiting import wait_until

EVENTS = 1_000_000
SOME_THOUSANDS = 3000
MOST_MIB = 100

HOST = """
import sys
from pathlib import Path
from otel_agent_tracker import AgentPerformanceTracker

def mib(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(name))

def converse(state_dir):
    tracker = AgentPerformanceTracker(sys.argv[1], state_dir=state_dir, flush_timeout_seconds=0.1)
    tracker.end_conversation(tracker.start_conversation("bot", "u1"), 4)
    return tracker

assert converse(sys.argv[2]).flush(30)
idle = mib("VmRSS:")
tracker = converse(sys.argv[3])
tracker.flush(1)
sys.stdin.readline()
print(tracker.delivery_stats()["pending"], mib("VmHWM:") - idle, flush=True)
sys.stdin.readline()
"""
EVENTS_OF_OTHERS = f"""
WITH RECURSIVE numbers (n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM numbers WHERE n < {EVENTS - 1})
INSERT INTO outbox (event_id, event, path, lane, body, service, otlp, time_us)
SELECT printf('%032x', n), iif(n % 2, 'conversation', 'conversation.start'),
    iif(n % 2, '/conversations/end', '/conversations/start'), printf('bot_%d_%06x', 1700000000, n / 2),
    CAST(printf('{{"session_id": "bot_%d_%06x", "agent_id": "bot"}}', 1700000000, n / 2) AS BLOB),
    x'7b7d', x'', 1700000000000000 + n
FROM numbers
"""
ENDS_OF_OTHERS = """
INSERT INTO tombstones (session_id, agent_id, start_us, end_us, outcome, ended_by, quality, writer, seq)
SELECT lane, 'bot', time_us - 1, time_us, 'completed', 'call', 4, 'another', 1
FROM outbox WHERE event = 'conversation'
"""


def fill(folder: Path) -> None:
    """Half a million conversations, started and ended by another process, undelivered."""
    folder.mkdir(parents=True)
    state = State(folder / "state.sqlite3", writer="another", max_bytes=1 << 30)
    with state.transaction():
        state._connection.execute(EVENTS_OF_OTHERS)
        state._connection.execute(ENDS_OF_OTHERS)
        state._next_seq()
        state._count("accepted", EVENTS)
    state.close()


def test_a_million_pending_events_take_little_memory(tmp_path: Path) -> None:
    """At no time more than 100 MiB above what the process has without any, while they are looked at and delivered."""
    with counting_tracker() as counting:
        with AgentPerformanceTracker(counting.url, state_dir=tmp_path / "full") as tracker:
            fill(tracker._config.state_folder)
        command = [sys.executable, "-c", HOST, counting.url, str(tmp_path / "idle"), str(tmp_path / "full")]
        pipe = subprocess.PIPE
        with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as host:
            try:
                wait_until(lambda: len(counting.events) > SOME_THOUSANDS, 60)
                assert host.stdin is not None
                assert host.stdout is not None
                host.stdin.write("\n")
                host.stdin.flush()
                pending, grown = host.stdout.readline().split()
            finally:
                host.kill()
        assert int(pending) > EVENTS // 2
        assert 0 < float(grown) <= MOST_MIB
