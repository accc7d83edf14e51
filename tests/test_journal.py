"""The journal keeps what it said it keeps: through crashes, forks, full disks and interrupted appends."""

from __future__ import annotations

import os
import resource
import signal
import stat
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from otel_agent_tracker import frames, making
from otel_agent_tracker import journal as journal_module
from otel_agent_tracker.journal import Journal, JournalCounters, MemoryJournal, Segment
from tests.waiting import wait_until

SEGMENT = 64 * 1024
FRAME = 1000
EVENT = b"e" * (FRAME - frames.HEADER_BYTES)
OpenJournal = Callable[..., Journal]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "state" / "journal"


@pytest.fixture
def open_journal(folder: Path) -> Iterator[OpenJournal]:
    opened: list[Journal] = []

    def make(segment_bytes: int = SEGMENT, ring_bytes: int = 100 * FRAME, at: Path = folder) -> Journal:
        opened.append(Journal(at, segment_bytes=segment_bytes, ring_bytes=ring_bytes))
        return opened[-1]

    yield make
    for each in opened:
        each.close()


@contextmanager
def refusing_disk() -> Iterator[None]:
    """A disk that refuses segments, by a limit on the size of files.

    Not longer than needed: whatever pytest prints may go to a file too.
    """
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (SEGMENT // 2, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def read_all(journal: MemoryJournal, *, retire: bool = False) -> list[bytes]:
    """What the segments hold, as a worker reads it."""
    payloads = []
    for segment in journal.readable():
        offset = 0
        while (result := segment.read(offset, max_bytes=10_000)).payloads:
            payloads.extend(result.payloads)
            offset = result.offset
        if retire and segment.done:
            segment.retire()
    return payloads


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --- keeping ------------------------------------------------------------------------------------------------


@settings(max_examples=30)
@given(payloads=st.lists(st.binary(max_size=300), max_size=60), prepared=st.booleans())
def test_what_is_appended_is_read_in_order(
    payloads: list[bytes], prepared: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Any payloads, over any number of segments, with or without a worker that makes them ready."""
    journal = Journal(tmp_path_factory.mktemp("journal"), segment_bytes=512)
    for payload in payloads:
        if prepared:
            journal.prepare()
        assert journal.append(payload)
    assert read_all(journal) == payloads
    assert journal.counters.appended == len(payloads)
    journal.close()


def test_making_a_journal_touches_no_disk(open_journal: OpenJournal, folder: Path) -> None:
    """The constructor makes nothing; the worker makes two segments ready before any event comes."""
    journal = open_journal()
    assert not folder.parent.exists()
    journal.prepare()
    journal.prepare()
    assert len(files(folder)) == 2
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert (journal.refusal, journal.readable()) == (None, [])


def test_full_segments_are_followed_by_prepared_ones(open_journal: OpenJournal) -> None:
    """Only when both spares are used up does a caller make a segment, which is counted."""
    journal = open_journal()
    journal.prepare()
    per_segment = SEGMENT // FRAME
    for _ in range(2 * per_segment):
        journal.append(EVENT)
    assert (journal.counters.made_by_callers, len(journal.readable())) == (0, 2)
    journal.append(EVENT)
    assert (journal.counters.made_by_callers, len(journal.readable())) == (1, 3)


def test_retired_segments_are_gone(open_journal: OpenJournal, folder: Path) -> None:
    """Sealed segments that were read are deleted; the current one stays and is read on."""
    journal = open_journal()
    for _ in range(SEGMENT // FRAME + 1):
        journal.append(EVENT)
    assert len(read_all(journal, retire=True)) == SEGMENT // FRAME + 1
    (current,) = journal.readable()
    assert files(folder) == [current.name]
    journal.prepare()
    assert read_all(journal) == [EVENT]


def test_sealed_segments_give_up_their_mapping(open_journal: OpenJournal) -> None:
    """While events wait to be read, only the segments that are written to take address space."""
    journal = open_journal()
    for _ in range(5 * SEGMENT // FRAME):
        journal.append(EVENT)
    journal.prepare()
    mapped = [line for line in Path("/proc/self/maps").read_text().splitlines() if journal._set in line]
    assert len(mapped) == 3
    assert len(read_all(journal)) == 5 * SEGMENT // FRAME


def test_a_large_event_gets_a_segment_of_its_size(open_journal: OpenJournal) -> None:
    """What is larger than a segment is durable too, and keeps its place in the order."""
    journal = open_journal()
    journal.prepare()
    large = b"L" * 3 * SEGMENT
    assert [journal.append(payload) for payload in (b"1", large, b"2")] == [True, True, True]
    assert read_all(journal) == [b"1", large, b"2"]


def test_the_largest_event(open_journal: OpenJournal) -> None:
    """A frame of 16 MiB is kept; one byte more is dropped and counted, in memory too."""
    journal = open_journal(ring_bytes=2 * frames.LARGEST_FRAME)
    largest = bytes(frames.LARGEST_PAYLOAD)
    assert [journal.append(largest), journal.append(largest + b"x")] == [True, False]
    assert journal.counters == JournalCounters(appended=1, dropped=1, made_by_callers=1)
    assert read_all(journal) == [largest]


def test_threads_lose_and_mix_nothing(open_journal: OpenJournal) -> None:
    """Every event is kept once and whole, while a worker prepares, reads and retires.

    On a busy machine some may wait in memory for a moment, so their order is not looked at.
    """
    journal, read, complete = (
        open_journal(segment_bytes=16 * 1024, ring_bytes=1 << 20),
        list[bytes](),
        threading.Event(),
    )

    def append(thread: int) -> None:
        for number in range(2000):
            journal.append(b"%d %d" % (thread, number))

    def work() -> None:
        offsets: dict[str, int] = {}
        while len(read) < 16_000:
            journal.wait(60)
            come_back(journal)
            for segment in journal.readable():
                result = segment.read(offsets.get(segment.name, 0))
                offsets[segment.name] = result.offset
                read.extend(result.payloads)
                if segment.done:
                    segment.retire()
        complete.set()

    callers = [threading.Thread(target=append, args=(thread,)) for thread in range(8)]
    worker = threading.Thread(target=work)
    worker.start()
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert complete.wait(60)
    worker.join()
    assert sorted(read) == sorted(
        b"%d %d" % (thread, number) for thread in range(8) for number in range(2000)
    )
    assert (journal.counters.appended, journal.counters.skipped_bytes) == (16_000, 0)


def test_an_event_that_interrupts_who_has_the_lock_waits_for_no_segment(
    open_journal: OpenJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody could make it meanwhile."""
    monkeypatch.setattr(making, "TURN", 60.0)
    journal = open_journal()
    with journal._lock:
        assert not journal.append(b"within")
    assert journal.append(b"after")
    assert journal.read_ring() + read_all(journal) == [b"within", b"after"]


def test_an_event_that_interrupts_the_making_of_a_segment_waits_for_that(
    open_journal: OpenJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Making is not begun within making, which a storm of signals would nest without end."""
    journal = open_journal()
    plain_make, results = Journal._make, list[bool]()

    def interrupted_make(self: Journal, least: int = 0) -> Segment:
        results.append(self.append(b"inner"))
        return plain_make(self, least)

    monkeypatch.setattr(Journal, "_make", interrupted_make)
    assert journal.append(b"outer")
    assert (results, read_all(journal), journal.read_ring()) == ([False], [b"inner", b"outer"], [])


@pytest.mark.parametrize("durable", [True, False])
def test_a_signal_handler_may_append_in_the_midst_of_an_append(
    open_journal: OpenJournal, durable: bool
) -> None:
    """The lock is not waited for in vain, and neither event is lost or damaged."""
    journal = open_journal() if durable else MemoryJournal()
    handled = 0

    def handle(_signal: int, _frame: object) -> None:
        nonlocal handled
        handled += 1
        journal.append(b"from the handler")

    before = signal.signal(signal.SIGALRM, handle)
    signal.setitimer(signal.ITIMER_REAL, 0.0001, 0.0001)
    try:
        for _ in range(20_000):
            journal.append(b"event")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    kept = read_all(journal) + journal.read_ring()
    assert (kept.count(b"from the handler"), kept.count(b"event")) == (handled, 20_000)
    assert handled > 50
    assert (journal.counters.appended, journal.counters.skipped_bytes) == (len(kept), 0)


def test_an_event_that_interrupts_an_append_follows_it(
    open_journal: OpenJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An append from within an append is put aside, then made as durable as any."""
    journal = open_journal()
    plain_write, results = Journal._write, list[bool]()

    def interrupted_write(self: Journal, payload: bytes, checksum: int) -> bool:
        if not results:
            results.append(self.append(b"inner"))
        return plain_write(self, payload, checksum)

    monkeypatch.setattr(Journal, "_write", interrupted_write)
    journal.prepare()
    assert journal.append(b"outer")
    assert (results, read_all(journal)) == ([False], [b"outer", b"inner"])
    assert journal.counters == JournalCounters(appended=2)


# --- waking the worker --------------------------------------------------------------------------------------


@pytest.mark.parametrize("durable", [True, False])
def test_an_event_ends_the_wait(open_journal: OpenJournal, durable: bool) -> None:
    """A worker asleep is roused by the first event; one that came before is not overlooked."""
    journal = open_journal() if durable else MemoryJournal()
    journal.append(b"before")
    assert journal.wait(60)
    assert not journal.wait(0)
    appender = threading.Timer(0.02, journal.append, [b"meanwhile"])
    appender.start()
    assert journal.wait(60)
    appender.join()


def test_a_wake_ends_the_wait() -> None:
    """Whoever stops the worker need not wait for its sleep to end."""
    journal = MemoryJournal()
    journal.wake()
    journal.wake()
    assert not journal.wait(60)
    assert not journal.wait(0)


# --- if the disk refuses ------------------------------------------------------------------------------------


def come_back(journal: Journal) -> None:
    """Try the disk again, as a worker does that cannot store what waits in memory."""
    journal.prepare()
    journal.save_ring()


def test_events_wait_in_memory_while_the_disk_refuses(open_journal: OpenJournal) -> None:
    """They are counted as not durable, those beyond the ring as dropped; later they return in order."""
    journal = open_journal(ring_bytes=3 * FRAME)
    with refusing_disk():
        events = [bytes([letter]) + EVENT[1:] for letter in b"abcd"]
        assert [journal.append(event) for event in events] == [False] * 4
        assert isinstance(journal.refusal, OSError)
        assert journal.counters == JournalCounters(appended=3, not_durable=3, dropped=1)
        come_back(journal)
        assert (journal.read_ring(), journal.readable()) == (events[:3], [])

    come_back(journal)
    assert (journal.read_ring(), read_all(journal)) == ([], events[:3])
    assert journal.append(b"after")


def test_what_must_be_on_disk_is_there_or_nowhere(open_journal: OpenJournal) -> None:
    """While the disk refuses, nothing is kept in memory for a sender that keeps it itself."""
    journal = open_journal()
    with refusing_disk():
        assert not journal.persist(EVENT)
        assert (journal.counters, journal.read_ring()) == (JournalCounters(), [])
    come_back(journal)
    assert journal.persist(EVENT)
    assert (journal.counters, read_all(journal)) == (JournalCounters(appended=1), [EVENT])


def test_memory_takes_what_fits_or_nothing() -> None:
    """Where memory is all the durability that is asked for."""
    journal = MemoryJournal(ring_bytes=100)
    assert journal.persist(b"x" * 50)
    assert not journal.persist(b"x" * 50)
    assert (journal.counters.appended, journal.counters.dropped) == (1, 0)
    journal.close()
    assert not journal.persist(b"")


def test_a_large_ring_returns_to_disk(open_journal: OpenJournal) -> None:
    """As many segments as needed are made, large ones too; if the disk refuses again the rest waits on."""
    journal = open_journal(segment_bytes=SEGMENT // 4, ring_bytes=10 * SEGMENT)
    (folder := journal._folder).parent.mkdir()
    folder.write_text("a file in the folder's place")
    events = [bytes([letter]) + EVENT for letter in range(100)] + [b"L" * SEGMENT]
    for event in events:
        assert not journal.append(event)
    folder.unlink()
    with refusing_disk():
        come_back(journal)
        assert (len(journal.read_ring()), type(journal.refusal)) == (1, OSError)
    come_back(journal)
    assert (journal.read_ring(), journal.refusal, read_all(journal)) == ([], None, events)


def test_the_ring_can_be_drained() -> None:
    """A worker looks at what waits, stores it, and takes as much away; that makes room again."""
    journal = MemoryJournal(ring_bytes=3 * FRAME)
    for letter in b"abc":
        journal.append(bytes([letter]) + EVENT[1:])
    assert [payload[:1] for payload in journal.read_ring()] == [b"a", b"b", b"c"]
    assert [payload[:1] for payload in journal.drain_ring(2)] == [b"a", b"b"]
    assert (journal.append(EVENT), len(journal.drain_ring()), journal.drain_ring(5)) == (False, 2, [])
    assert journal.counters == JournalCounters(appended=4, not_durable=4)


@pytest.mark.parametrize("refused", ["parent is a file", "symlink", "dangling symlink", "file"])
def test_an_unfit_folder_is_a_disk_that_refuses(
    open_journal: OpenJournal, tmp_path: Path, refused: str
) -> None:
    """Nothing is raised, nothing written elsewhere, events wait in memory."""
    (tmp_path / "target").mkdir()
    (tmp_path / "symlink").symlink_to(tmp_path / "target")
    (tmp_path / "dangling symlink").symlink_to(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    journal = open_journal(at=tmp_path / ("file/journal" if refused == "parent is a file" else refused))
    assert (journal.append(b"event"), journal.adopt()) == (False, 0)
    journal.prepare()
    assert isinstance(journal.refusal, OSError)
    assert (journal.read_ring(), list((tmp_path / "target").iterdir())) == ([b"event"], [])


@pytest.mark.parametrize("what", ["files", "folder", "moved folder"])
def test_deletion_under_a_running_process_is_noticed(
    open_journal: OpenJournal, folder: Path, what: str
) -> None:
    """What is in the deleted file stays readable here; the next events go to new files."""
    journal = open_journal()
    journal.prepare()
    journal.append(b"before")
    if what == "moved folder":
        folder.rename(folder.with_name("elsewhere"))
    else:
        for path in folder.iterdir():
            path.unlink()
        if what == "folder":
            folder.rmdir()
    journal.prepare()
    assert journal.append(b"after")
    deleted, current = journal.readable()
    assert (read_all(journal), deleted.done, current.is_linked) == ([b"before", b"after"], True, True)
    assert deleted.retire()
    assert journal.readable() == [current]


def test_unread_segments_are_bounded(
    open_journal: OpenJournal, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that is stuck must not cost the host all its disk and descriptors: memory is next."""
    monkeypatch.setattr(journal_module, "_MOST_UNREAD", 3)
    journal = open_journal()
    durable = [journal.append(EVENT) for _ in range(4 * SEGMENT // FRAME)]
    assert (durable.count(True), len(files(folder))) == (3 * (SEGMENT // FRAME), 3)
    assert "unread" in str(journal.refusal)
    read_all(journal, retire=True)
    come_back(journal)
    assert (journal.refusal, journal.read_ring()) == (None, [])


def hanging_disk(monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Event, threading.Event]:
    """A disk that does not answer who makes a segment; tells that it was asked, and waits for leave to answer."""
    plain_make, asked, may_answer = Journal._make, threading.Event(), threading.Event()

    def make_in_the_end(self: Journal, least: int = 0) -> Segment:
        asked.set()
        may_answer.wait(60)
        return plain_make(self, least)

    monkeypatch.setattr(Journal, "_make", make_in_the_end)
    return asked, may_answer


def test_only_one_call_waits_for_a_disk_that_hangs(
    open_journal: OpenJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Later events go into memory at once; all go to disk, in order, as soon as it has answered."""
    (_, may_answer), journal = hanging_disk(monkeypatch), open_journal()
    assert not journal.append(b"0")
    monkeypatch.setattr(making, "TURN", 60.0)
    assert [journal.append(b"%d" % number) for number in range(1, 4)] == [False] * 3
    may_answer.set()
    wait_until(lambda: not journal.read_ring())
    assert journal.append(b"4")
    assert (journal.refusal, read_all(journal)) == (None, [b"0", b"1", b"2", b"3", b"4"])


def test_a_disk_that_was_slow_is_waited_for_less_long_until_it_answers_in_time(
    open_journal: OpenJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each file that it is slow to make would cost all callers a wait."""
    (_, may_answer), journal = hanging_disk(monkeypatch), open_journal()
    assert not journal.append(b"finds out")
    may_answer.set()
    wait_until(lambda: not journal.read_ring())
    may_answer.clear()
    with monkeypatch.context() as patience:
        patience.setattr(making, "TURN", 60.0)
        while journal.append(EVENT):
            pass
    may_answer.set()

    def is_well() -> bool:
        for _ in range(SEGMENT // FRAME + 1):
            journal.append(EVENT)
        read_all(journal, retire=True)
        return not journal._is_slow

    wait_until(is_well)


def test_no_call_waits_twice_for_a_disk_that_hangs_the_worker(
    open_journal: OpenJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It makes files too; what waits in memory is then its own to store."""
    (asked, may_answer), journal = hanging_disk(monkeypatch), open_journal()
    worker = threading.Thread(target=journal.prepare)
    worker.start()
    assert asked.wait(60)
    assert not journal.append(b"waits")
    monkeypatch.setattr(making, "TURN", 60.0)
    assert not journal.append(b"too")
    may_answer.set()
    worker.join()
    assert journal.append(b"answered")
    assert (journal.read_ring(), read_all(journal)) == ([b"waits", b"too"], [b"answered"])


def test_what_the_worker_is_storing_from_memory_is_not_brought_to_disk_too(
    open_journal: OpenJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would be stored twice."""
    (_, may_answer), journal = hanging_disk(monkeypatch), open_journal()
    with journal.moving:
        assert not journal.append(b"event")
        may_answer.set()
        wait_until(lambda: journal.counters.made_by_callers and journal._making is None)
        assert journal.drain_ring() == [b"event"]
    assert read_all(journal) == []


def test_calls_that_wait_for_a_disk_together_cease_to_wait_together(
    open_journal: OpenJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While nobody knows that it hangs all want their events on it; once one knows, none waits."""
    (_, may_answer), journal = hanging_disk(monkeypatch), open_journal()
    done = list[bool]()
    callers = [threading.Thread(target=lambda: done.append(journal.append(b"event"))) for _ in range(8)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(10)
    assert done == [False] * 8
    may_answer.set()


def test_where_no_thread_can_be_started_a_caller_makes_the_segment(
    open_journal: OpenJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As while the interpreter exits."""

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    journal = open_journal()
    assert journal.append(b"event")
    assert (read_all(journal), journal.counters.made_by_callers) == ([b"event"], 1)


def test_a_segment_that_cannot_be_made_for_want_of_memory_is_a_refusal(
    open_journal: OpenJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The event waits, and the next cycle of the worker tries again."""

    def fail(*_: object) -> Segment:
        raise MemoryError

    journal = open_journal()
    with monkeypatch.context() as failing:
        failing.setattr(Segment, "create", fail)
        assert not journal.append(b"event")
    assert "MemoryError" in str(journal.refusal)
    come_back(journal)
    assert read_all(journal) == [b"event"]


def test_a_written_segment_that_fails_is_a_refusal(
    open_journal: OpenJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where segments are not mapped the disk may refuse any event: it waits in memory and returns."""
    monkeypatch.delattr(os, "posix_fallocate")
    journal = open_journal()
    durable = []
    with refusing_disk():
        for _ in range(SEGMENT // FRAME):
            durable.append(journal.append(EVENT))
        assert durable == [True] * (SEGMENT // 2 // FRAME) + [False] * (
            SEGMENT // FRAME - SEGMENT // 2 // FRAME
        )
    come_back(journal)
    assert (len(read_all(journal)), journal.read_ring()) == (SEGMENT // FRAME, [])
    assert journal.counters.skipped_bytes == 0


# --- closing ------------------------------------------------------------------------------------------------


def test_a_closed_journal_leaves_its_events_to_the_next(open_journal: OpenJournal, folder: Path) -> None:
    """Spares are deleted, what was not retired is adopted; closing again changes nothing."""
    journal = open_journal()
    journal.prepare()
    journal.append(b"event")
    journal.close()
    journal.close()
    journal.prepare()
    assert (len(files(folder)), journal.readable()) == (1, [])
    following = open_journal()
    assert (following.adopt(), following.adopt(), read_all(following, retire=True)) == (1, 0, [b"event"])
    assert files(folder) == []


@pytest.mark.parametrize("durable", [True, False])
def test_after_closing_events_are_dropped(open_journal: OpenJournal, durable: bool) -> None:
    """They go nowhere and are counted, with those that waited in memory; nothing sleeps on."""
    journal = open_journal(at=Path("/dev/null/journal")) if durable else MemoryJournal()
    journal.append(b"waits")
    journal.wait(0)
    journal.close()
    assert (journal.append(b"late"), journal.read_ring(), journal.wait(60)) == (False, [], False)
    assert journal.counters == JournalCounters(appended=1, not_durable=1, dropped=2)


def test_a_closed_journal_makes_no_files(open_journal: OpenJournal, folder: Path) -> None:
    """An event that comes too late does not bring back a folder that is no longer used."""
    journal = open_journal()
    journal.close()
    assert not journal.append(b"late")
    assert not folder.exists()


def test_closing_in_the_midst_of_an_append(
    open_journal: OpenJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal handler may close the journal while its thread appends: that event is still kept."""
    journal = open_journal()
    journal.append(b"first")
    plain_write = Journal._write

    def interrupted_write(self: Journal, payload: bytes, checksum: int) -> bool:
        done = plain_write(self, payload, checksum)
        self.close()
        return done

    monkeypatch.setattr(Journal, "_write", interrupted_write)
    assert journal.append(b"second")
    assert read_all(journal) == [b"first", b"second"]
    assert not journal.append(b"late")


def test_closing_in_the_midst_of_closing() -> None:
    """A signal handler may close a journal that is being closed: what waited in memory is counted as dropped once."""

    class Interrupted(deque[bytes]):
        def clear(self) -> None:
            journal.close()
            super().clear()

    journal = MemoryJournal()
    journal._ring = Interrupted()
    journal.append(b"waits")
    journal.close()
    assert journal.counters == JournalCounters(appended=1, not_durable=1, dropped=1)


def test_closing_while_a_caller_makes_a_segment(
    open_journal: OpenJournal, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The segment that comes too late is deleted and its event dropped."""
    journal = open_journal()
    plain_make = Journal._make

    def slow_make(self: Journal, least: int = 0) -> Segment:
        segment = plain_make(self, least)
        self.close()
        return segment

    monkeypatch.setattr(Journal, "_make", slow_make)
    assert not journal.append(b"event")
    assert (files(folder), journal.counters) == ([], JournalCounters(dropped=1))


def test_a_memory_journal_has_the_same_face(open_journal: OpenJournal) -> None:
    """What a worker calls on a journal does nothing on one without a disk."""
    journal, other = MemoryJournal(), open_journal()
    other.append(b"event")
    assert [journal.is_own(segment) for segment in other.readable()] == [False]
    journal.prepare()
    journal.append(b"event")
    assert (journal.adopt(), journal.readable(), journal.refusal) == (0, [], None)
    journal.after_fork_in_child()
    assert (journal.read_ring(), journal.counters) == ([], JournalCounters())


# --- other processes ----------------------------------------------------------------------------------------


def test_what_a_child_closes_is_free_and_its_own_is_new(open_journal: OpenJournal, folder: Path) -> None:
    """Beginning anew forgets ring, counters and segments, deletes nothing, and works like a new journal."""
    journal, other = open_journal(), open_journal()
    journal.prepare()
    journal.append(b"parent")
    journal.after_fork_in_child()
    assert (journal.readable(), journal.counters, len(files(folder))) == ([], JournalCounters(), 2)
    assert journal.append(b"child")
    assert (other.adopt(), read_all(other), read_all(journal)) == (1, [b"parent"], [b"child"])


def test_living_processes_do_not_adopt_from_each_other(open_journal: OpenJournal) -> None:
    """Neither takes the other's segments, used or spare; nor one's own."""
    one, two = open_journal(), open_journal()
    for journal in (one, two):
        journal.prepare()
        journal.append(b"event")
    assert [one.adopt(), two.adopt()] == [0, 0]
    assert [len(one.readable()), len(two.readable())] == [1, 1]


def test_adopted_segments_come_before_our_own(open_journal: OpenJournal, folder: Path) -> None:
    """They are the older ones; damage in them is skipped and counted once."""
    dead, journal = open_journal(), open_journal()
    dead.append(b"old one")
    dead.append(b"old two")
    (name,) = files(folder)
    dead.close()
    with (folder / name).open("r+b") as file:
        file.seek(frames.HEADER_BYTES)
        file.write(b"X")
    journal.append(b"new")
    assert journal.adopt() == 1
    assert [read_all(journal), read_all(journal)] == [[b"old two", b"new"]] * 2
    assert [journal.is_own(segment) for segment in journal.readable()] == [False, True]
    assert journal.counters.skipped_bytes == frames.HEADER_BYTES + len(b"old one")


def test_a_new_file_that_another_took_for_dead_is_replaced(
    open_journal: OpenJournal, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between making a file and locking it, another process may adopt and delete it; the next one does."""
    plain_open, opened = os.open, list[str]()

    def open_and_lose(path: str, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        file = plain_open(path, flags, mode, dir_fd=dir_fd)
        if flags & os.O_CREAT and not opened:
            opened.append(path)
            (folder / path).unlink()
        return file

    monkeypatch.setattr(os, "open", open_and_lose)
    journal = open_journal()
    assert journal.append(b"event")
    assert [segment.name for segment in journal.readable()] == files(folder) != opened


def test_new_files_that_are_taken_every_time_are_a_refusal(
    open_journal: OpenJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The attempts are few; then the event waits in memory until the worker tries again."""
    tries = list[Path]()

    def taken(path: Path, _size: int, _on_skip: object) -> Segment:
        tries.append(path)
        raise BlockingIOError

    monkeypatch.setattr(Segment, "create", taken)
    journal = open_journal()
    assert not journal.append(b"event")
    assert (len(set(tries)), type(journal.refusal)) == (3, BlockingIOError)


def test_an_event_that_interrupts_the_worker_is_kept(
    open_journal: OpenJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A finaliser may append on the worker's thread too, while that moves the ring to disk."""
    journal = open_journal()
    with refusing_disk():
        journal.append(b"waits")
    plain_forget = Journal._forget_oldest

    def interrupted_forget(self: Journal) -> bytes:
        assert not self.append(b"finaliser")
        return plain_forget(self)

    monkeypatch.setattr(Journal, "_forget_oldest", interrupted_forget)
    come_back(journal)
    assert (read_all(journal), journal.read_ring()) == ([b"waits", b"finaliser"], [])


def test_a_platform_without_locks_has_no_journal_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There the choice of a journal in memory must be made, not fallen into."""
    monkeypatch.setattr(journal_module, "DISK_SUPPORTED", False)
    with pytest.raises(NotImplementedError, match="MemoryJournal"):
        Journal(tmp_path)
