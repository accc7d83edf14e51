"""Segments: files that are found again when their process is dead, and only then."""

from __future__ import annotations

import errno
import os
import resource
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from otel_agent_tracker import frames, segment
from otel_agent_tracker.frames import ReadResult
from otel_agent_tracker.segment import SUFFIX, Segment, adopt_dead

SIZE = 64 * 1024
Make = Callable[..., Segment]


@pytest.fixture
def skipped() -> list[int]:
    return []


@pytest.fixture
def make(tmp_path: Path, skipped: list[int]) -> Iterator[Make]:
    made: list[Segment] = []

    def make_segment(name: str = "a", folder: Path = tmp_path / "journal", size: int = SIZE) -> Segment:
        made.append(Segment.create(folder / f"{name}{SUFFIX}", size, skipped.append))
        return made[-1]

    yield make_segment
    for each in made:
        each.release()


@pytest.fixture
def adopt(tmp_path: Path, skipped: list[int]) -> Iterator[Callable[..., list[Segment]]]:
    adopted: list[Segment] = []

    def adopt_segments(known: tuple[str, ...] = (), most: int = 99) -> list[Segment]:
        found = adopt_dead(tmp_path / "journal", known=known, most=most, on_skip=skipped.append)
        adopted.extend(found)
        return found

    yield adopt_segments
    for each in adopted:
        each.release()


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Limit the size to which this process may let a file grow: a disk that refuses.

    Not longer than needed: whatever pytest prints may go to a file too.
    """
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def put(into: Segment, *payloads: bytes) -> None:
    for payload in payloads:
        assert into.write(payload, frames.checksum(payload))


def test_folder_and_file_are_private(make: Make, tmp_path: Path) -> None:
    """Missing folders are made; the last is 0700, the file 0600 and as large as it will ever be."""
    folder = tmp_path / "state" / "abc"
    make(folder=folder)
    status = (folder / f"a{SUFFIX}").stat()
    assert [stat.S_IMODE(folder.stat().st_mode), stat.S_IMODE(status.st_mode)] == [0o700, 0o600]
    assert [status.st_size, status.st_blocks * 512 >= SIZE] == [SIZE, True]


def test_a_folder_open_to_others_is_closed(make: Make, tmp_path: Path) -> None:
    """A folder of our own that others may enter loses their permissions."""
    folder = tmp_path / "wide"
    folder.mkdir(mode=0o755)
    make(folder=folder)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_symlinked_folder_is_refused(make: Make, tmp_path: Path) -> None:
    """Events are not written to where a symbolic link leads."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(OSError, match="link"):
        make(folder=tmp_path / "link")
    assert list((tmp_path / "real").iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_another_users_folder_is_refused(make: Make, tmp_path: Path) -> None:
    """Events are not written where another user may read or replace them."""
    (tmp_path / "theirs").mkdir()
    os.chown(tmp_path / "theirs", 12345, 12345)
    with pytest.raises(PermissionError, match="another user"):
        make(folder=tmp_path / "theirs")


def test_a_refused_segment_leaves_nothing(make: Make, tmp_path: Path) -> None:
    """If the disk has no room for the whole segment, there is no file and no open descriptor."""
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    with largest_file(SIZE // 2), pytest.raises(OSError, match="File too large"):
        make()
    assert list((tmp_path / "journal").iterdir()) == []
    assert len(list(Path("/proc/self/fd").iterdir())) == descriptors


def test_warming_changes_nothing(make: Make) -> None:
    """Every page of a new segment is touched, whatever its size; one that is written to is left alone."""
    warmed = make(size=segment.WARM_BYTES + 5000)
    starts = [0, segment.WARM_BYTES, 2 * segment.WARM_BYTES]
    assert [warmed.warm(start) for start in starts] == [True, True, False]
    put(warmed, b"event")
    assert not warmed.warm(0)
    assert warmed.read(0).payloads == [b"event"]


def test_a_full_segment_takes_no_more(make: Make) -> None:
    """A frame that does not fit is not written in part; one that fits exactly is."""
    full = make(size=100)
    assert not full.write(b"x" * 89, 0)
    put(full, b"x" * 88)
    assert full.read(0) == ReadResult([b"x" * 88], 100, 0)
    assert not full.write(b"", 0)


def test_a_live_segment_is_read_to_its_writers_position(make: Make) -> None:
    """Reading goes on where it ended; the segment is done once it is sealed and read to its end."""
    live = make()
    put(live, b"one")
    first = live.read(0)
    assert (first, live.done) == (ReadResult([b"one"], 15, 0), False)
    put(live, b"two")
    live.sealed = True
    assert not live.done
    assert (live.read(first.offset), live.done) == (ReadResult([b"two"], 30, 0), True)
    assert (live.read(0, max_bytes=1), live.done) == (ReadResult([b"one"], 15, 0), False)


@pytest.mark.parametrize("offset", [-5, 30, 31, 10**12])
def test_an_offset_out_of_range_is_harmless(make: Make, offset: int) -> None:
    """Whatever offset is stored for it, a segment is read from somewhere in it."""
    live = make()
    put(live, b"one", b"two")
    assert live.read(offset).offset == 30


def test_a_sealed_segment_stays_readable_without_its_mapping(make: Make) -> None:
    """Giving up the mapping loses nothing, and may be done twice."""
    sealed = make()
    put(sealed, b"event")
    sealed.sealed = True
    sealed.unmap()
    sealed.unmap()
    assert sealed.read(0).payloads == [b"event"]


def test_retiring_deletes_the_file(make: Make, tmp_path: Path) -> None:
    """A retired segment has no file and nothing to read; retiring it again changes nothing."""
    spent = make()
    put(spent, b"event")
    assert spent.is_linked
    assert [spent.retire(), spent.retire()] == [True, True]
    assert list((tmp_path / "journal").iterdir()) == []
    assert (spent.read(0).payloads, spent.is_linked) == ([], False)


def test_what_cannot_be_deleted_is_not_retired(make: Make, tmp_path: Path) -> None:
    """If the disk refuses the deletion, the segment stays as it is and can be retired later."""
    folder = tmp_path / "journal"
    stubborn = make()
    put(stubborn, b"event")
    folder.rename(tmp_path / "away")
    folder.write_text("a file in the folder's place")
    assert (stubborn.retire(), stubborn.retired, stubborn.is_linked) == (False, False, False)
    assert stubborn.read(0).payloads == [b"event"]


def test_what_was_released_is_not_retired(make: Make, adopt: Callable[..., list[Segment]]) -> None:
    """Its file is there for another process, which must still learn how far it was read."""
    left = make()
    put(left, b"event")
    left.release()
    assert not left.retire()
    (adopted,) = adopt()
    assert [adopted.read(0).payloads, adopted.retire(), left.retire()] == [[b"event"], True, True]


def test_a_live_segment_is_not_adopted(make: Make, adopt: Callable[..., list[Segment]]) -> None:
    """The lock of the writer keeps others away, also within one process."""
    put(make(), b"event")
    assert adopt() == []


def test_a_dead_segment_is_adopted_once(make: Make, adopt: Callable[..., list[Segment]]) -> None:
    """Released by its writer it is read to the end, and locked for the adopter alone."""
    dead = make()
    put(dead, b"one", b"two")
    dead.release()
    (adopted,) = adopt()
    assert adopt() == []
    assert adopted.name == f"a{SUFFIX}"
    assert (adopted.read(0), adopted.done) == (ReadResult([b"one", b"two"], SIZE, 0), True)


def test_adoption_is_in_order_and_bounded(make: Make, adopt: Callable[..., list[Segment]]) -> None:
    """The oldest come first; more than `most` and known ones are left."""
    for name in "cabd":
        put(dead := make(name), b"event")
        dead.release()
    assert [each.name[0] for each in adopt(most=2, known=(f"a{SUFFIX}",))] == ["b", "c"]
    assert [each.name[0] for each in adopt()] == ["a", "d"]


def test_an_unused_segment_is_deleted_at_adoption(
    make: Make, adopt: Callable[..., list[Segment]], tmp_path: Path
) -> None:
    """Spares of dead processes hold nothing and go."""
    make().release()
    (tmp_path / "journal" / f"empty{SUFFIX}").touch()
    assert adopt() == []
    assert list((tmp_path / "journal").iterdir()) == []


def test_what_is_no_segment_is_left_alone(adopt: Callable[..., list[Segment]], tmp_path: Path) -> None:
    """Other names, other formats, folders, pipes and links are neither opened for good nor deleted."""
    folder = tmp_path / "journal"
    folder.mkdir()
    (folder / "state.sqlite").write_text("other")
    (folder / "a.journal-2").write_text("a later format")
    (folder / f"folder{SUFFIX}").mkdir()
    os.mkfifo(folder / f"pipe{SUFFIX}")
    (folder / f"link{SUFFIX}").symlink_to(folder / "state.sqlite")
    assert adopt() == []
    assert len(list(folder.iterdir())) == 5


@pytest.mark.parametrize("garbage", [b"\0\0x", b"GIF89a" * 9000, frames.MAGIC * 500, b"\xff" * SIZE])
def test_a_segment_of_garbage_is_skipped_and_counted(
    adopt: Callable[..., list[Segment]], tmp_path: Path, garbage: bytes, skipped: list[int]
) -> None:
    """A file that holds no frame is done after its bytes were counted, once."""
    (tmp_path / "journal").mkdir()
    (tmp_path / "journal" / f"a{SUFFIX}").write_bytes(garbage)
    (adopted,) = adopt()
    for _ in range(2):
        assert adopted.read(0) == ReadResult([], len(garbage), len(garbage))
    assert (adopted.done, skipped) == (True, [len(garbage)])


def test_a_file_cut_short_under_its_reader_ends_there(
    make: Make, adopt: Callable[..., list[Segment]], tmp_path: Path
) -> None:
    """Reading what is gone gives nothing and ends; a mapping would end the process."""
    put(dead := make(), b"one", b"two")
    dead.release()
    (adopted,) = adopt()
    os.truncate(tmp_path / "journal" / adopted.name, 15)
    assert (adopted.read(0).payloads, adopted.read(15).payloads, adopted.done) == ([b"one"], [], True)


@pytest.fixture
def no_fallocate(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that cannot preallocate, which glibc hides on most."""

    def refuse(_fd: int, _offset: int, _length: int) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(os, "posix_fallocate", refuse)


@pytest.mark.usefixtures("no_fallocate")
def test_without_preallocation_frames_are_written(make: Make, adopt: Callable[..., list[Segment]]) -> None:
    """Where mapping is not safe the same frames are written, and adopted, as elsewhere."""
    written = make(size=200)
    assert not written.warm(0)
    put(written, b"x" * 88, b"y" * 88)
    assert not written.write(b"", 0)
    assert written.read(0) == ReadResult([b"x" * 88, b"y" * 88], 200, 0)
    written.release()
    (adopted,) = adopt()
    assert adopted.read(0).payloads == [b"x" * 88, b"y" * 88]


@pytest.mark.usefixtures("no_fallocate")
def test_a_short_write_is_written_over(make: Make) -> None:
    """A frame of which the disk took a part is refused; the next one takes its place."""
    written = make()
    put(written, b"x" * 88)
    with largest_file(150), pytest.raises(OSError, match="File too large"):
        written.write(b"y" * 88, 0)
    put(written, b"z" * 20)
    assert written.read(0) == ReadResult([b"x" * 88, b"z" * 20], 132, 0)


def test_other_refusals_of_preallocation_are_refusals(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk must not pass for one that cannot preallocate."""

    def full(_fd: int, _offset: int, _length: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left"):
        make()


def test_network_file_systems_are_known_by_their_type() -> None:
    """Shared mappings are not trusted on them; devices are those of the mount table."""
    mounts = (
        "22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw\n"
        "30 22 0:44 / /home rw shared:2 master:1 - nfs4 server:/home rw\n"
        "31 22 0:45 / /mnt/a\\040b rw - fuse.sshfs user@host: rw\n"
        "32 22 0:46 / /run rw - tmpfs tmpfs rw\n"
        "a line of another kind\n"
    )
    assert segment._remote_devices(mounts) == {"0:44", "0:45"}
