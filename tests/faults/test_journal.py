"""The journal of a process that is killed: another one finds what it had kept."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from otel_agent_tracker.journal import Journal

KILLED = """
import mmap, os, random, signal, sys, threading
from pathlib import Path
from otel_agent_tracker.journal import Journal

def append_for_ever(folder, returned):
    journal = Journal(folder, segment_bytes=256 * 1024)
    def work():
        while True:
            journal.wait(1)
            journal.prepare()
    threading.Thread(target=work, daemon=True).start()
    number = 0
    while journal.append(b"%d" % number + b"." * (number % 700)):
        number += 1
        returned[0] = number  # one store, which no signal can cut in two

for round in range(int(sys.argv[2])):
    folder, returned = Path(sys.argv[1]) / str(round), memoryview(mmap.mmap(-1, 8)).cast("Q")
    child = os.fork()
    if child == 0:
        append_for_ever(folder, returned)
        os._exit(1)
    wanted = random.randrange(1, 5000)
    while returned[0] < wanted:
        if os.waitpid(child, os.WNOHANG)[0]:
            sys.exit("the child gave up")
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    print(returned[0])
"""

FORKED = """
import os, signal, sys
from pathlib import Path
from otel_agent_tracker.journal import Journal

journal = Journal(Path(sys.argv[1]), segment_bytes=65536, ring_bytes=100000)
os.register_at_fork(after_in_child=journal.after_fork_in_child)
journal.prepare()
journal.append(b"parent")
parent, (ready, tell_ready), (go, tell_go) = os.getpid(), os.pipe(), os.pipe()
if os.fork():
    os.read(ready, 1)
    os.kill(parent, signal.SIGKILL)
os.write(tell_ready, b"!")
while os.getppid() == parent:
    pass
assert journal.readable() == [] and journal.counters.appended == 0
if "append" in sys.argv:
    assert journal.append(b"child")
    assert [s.read(0).payloads for s in journal.readable()] == [[b"child"]]
print("forked", flush=True)
sys.stdin.read()
"""

Orphan = Callable[..., None]


@pytest.fixture
def orphan(tmp_path: Path) -> Iterator[Orphan]:
    """Starts a process that appends, forks and is killed; its child lives until the test ends."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str) -> None:
        command = [sys.executable, "-W", "error", "-c", FORKED, str(tmp_path), *arguments]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "forked\n"
        process.wait(60)

    yield start
    for process in started:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.close()
        assert process.stdout.read() == ""  # ends when the child does
        process.stdout.close()


def adopted(folder: Path) -> list[bytes]:
    """What the dead left in the folder, in order; their segments are done with afterwards."""
    journal, payloads = Journal(folder), list[bytes]()
    while journal.adopt():
        for segment in journal.readable():
            offset = 0
            while (result := segment.read(offset)).payloads:
                payloads.extend(result.payloads)
                offset = result.offset
            assert segment.retire()
    journal.close()
    return payloads


def test_what_was_appended_survives_kill_9(tmp_path: Path) -> None:
    """Whenever a process is killed, an adopter finds every event whose append had returned, in order."""
    command = [sys.executable, "-W", "error", "-c", KILLED, str(tmp_path), "20"]
    told = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout
    counts = [int(line) for line in told.split()]
    assert len(counts) == 20
    for number, count in enumerate(counts):
        found = adopted(tmp_path / str(number))
        assert len(found) - count in (0, 1)
        assert found == [b"%d" % index + b"." * (index % 700) for index in range(len(found))]
        assert list((tmp_path / str(number)).iterdir()) == []


@pytest.mark.parametrize("child", ["", "append"])
def test_a_dead_process_is_adopted_beside_its_living_child(
    tmp_path: Path, orphan: Orphan, child: str
) -> None:
    """A forked child gives up its parent's segments at once; its own are not adopted while it lives."""
    orphan(child)
    assert adopted(tmp_path) == [b"parent"]
