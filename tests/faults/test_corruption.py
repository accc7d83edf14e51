"""A journal that the disk has damaged: what is beside the damage is told, and the damage does not pass unseen."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from otel_agent_tracker import AgentPerformanceTracker, frames
from otel_agent_tracker.config import resolve
from otel_agent_tracker.segment import SUFFIX
from tests.conftest import MakeTracker
from tests.faults.sink import CountingTracker, counting_tracker
from tests.faults.trackers import free_port
from tests.waiting import wait_until

EVENTS = 10


@pytest.fixture
def counting() -> Iterator[CountingTracker]:
    with counting_tracker() as tracker:
        yield tracker


def journal_of(tracker: AgentPerformanceTracker) -> list[bytes]:
    """The frames that a tracker object writes for some conversations."""
    for _ in range(EVENTS):
        tracker.start_conversation("bot")
    files = sorted(tracker._config.state_folder.glob(f"*{SUFFIX}"))
    scanned = [frames.scan(data, 0, len(data)) for data in map(Path.read_bytes, files)]
    payloads = [payload for result in scanned for payload in result.payloads]
    return [frames.encode(payload, frames.checksum(payload)) for payload in payloads]


@pytest.mark.parametrize("damage", ["flipped", "truncated", "garbage"])
def test_fault_19_24_damage_in_the_journal_costs_what_it_lies_in(
    make_tracker: MakeTracker,
    counting: CountingTracker,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    damage: str,
) -> None:
    """Where the disk has damaged the journal of a dead process, every event beside the damage is delivered. The
    bytes that could not be read are told by a warning and as `skipped_bytes` in `delivery_stats()`.
    """
    nobody = f"http://127.0.0.1:{free_port()}"
    written = journal_of(make_tracker(nobody, state_dir=tmp_path / "written"))
    assert len(written) == EVENTS
    broken = bytearray(written[4])
    broken[len(broken) // 2] ^= 0xFF
    left, skipped, told = {
        "flipped": ([*written[:4], bytes(broken), *written[5:]], len(broken), EVENTS - 1),
        "truncated": ([*written[:-1], written[-1][:-7]], len(written[-1]) - 7, EVENTS - 1),
        "garbage": ([b"x" * 999, *written], 999, EVENTS),
    }[damage]
    folder = resolve({"url": counting.url, "state_dir": tmp_path / "left"}).state_folder
    folder.mkdir(parents=True)
    (folder / f"0000000000000000-1-0000000000000000-00000000{SUFFIX}").write_bytes(b"".join(left))
    with caplog.at_level(logging.WARNING, "otel_agent_tracker"):
        tracker = make_tracker(counting.url, state_dir=tmp_path / "left")
        assert tracker.flush(20)
        wait_until(lambda: f"{skipped} bytes could not be read" in caplog.text)
    assert len(counting.events) == told
    stats = tracker.delivery_stats()
    assert (stats["delivered"], stats["pending"], stats["skipped_bytes"]) == (told, 0, skipped)
