"""Segments: the files that a journal consists of.

A segment is locked with ``flock`` by the process that writes it, from its making to that process's end;
whoever gets the lock knows that the writer is dead. It is preallocated and mapped, so a write is a copy in
memory that survives the process, though not a power cut. Where mapping is not safe, frames are written with
``pwrite``: weaker, because each write gives up the GIL and can fail half-way. Reading is always ``pread``,
never the mapping: a file that somebody cut short then costs an empty read, not the process.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path

from otel_agent_tracker import frames
from otel_agent_tracker.frames import HEADER_BYTES, MAGIC, SIZE_AT, ReadResult

try:
    import fcntl
    import mmap
except ImportError:  # pragma: no cover - a platform without them has the journal in memory only
    DISK_SUPPORTED = False
else:
    DISK_SUPPORTED = hasattr(os, "pread") and hasattr(os, "geteuid")

__all__ = ["REMOTE", "DISK_SUPPORTED", "SUFFIX", "Segment", "adopt_dead", "private_folder"]

SUFFIX = ".journal-1"  # the number is the format's: another release's files of another format are left alone
READ_BYTES = 1024 * 1024
WARM_BYTES = 128 * 1024  # about 0.2 ms, during which nobody else runs


class Segment:
    """A file of frames. One process writes it, under its journal's lock; one thread reads it."""

    __slots__ = ("_fd", "_finished", "_furthest", "_mapping", "_on_skip", "_path", "end", "sealed", "size")

    def __init__(
        self, path: Path, fd: int, *, size: int, end: int, sealed: bool, on_skip: Callable[[int], None]
    ) -> None:
        self.size = size
        self.end = end
        self.sealed = sealed
        self._path = path
        self._fd = fd
        self._mapping: mmap.mmap | None = None
        self._on_skip = on_skip
        self._finished = False
        self._furthest = 0

    @classmethod
    def create(cls, path: Path, size: int, on_skip: Callable[[int], None]) -> Segment:
        """A new, locked, preallocated file of `size` bytes; raises OSError if the disk refuses."""
        with ExitStack() as undo:
            with private_folder(path.parent) as folder:
                fd = os.open(path.name, _NEW, 0o600, dir_fd=folder)
            undo.callback(os.close, fd)
            undo.callback(path.unlink, missing_ok=True)
            device = _lock(fd).st_dev
            segment = cls(path, fd, size=size, end=0, sealed=False, on_skip=on_skip)
            segment._mapping = _map(fd, size, device)
            undo.pop_all()
        return segment

    @property
    def name(self) -> str:
        """The file's name, unique for ever: a consumed offset may be stored under it."""
        return self._path.name

    @property
    def done(self) -> bool:
        """Whether nothing will be appended any more and the latest `read` reached the end.

        Once what was read is stored elsewhere, the segment may be retired.
        """
        return self._finished

    @property
    def retired(self) -> bool:
        """Whether the segment has been released."""
        return self._fd < 0

    @property
    def is_linked(self) -> bool:
        """Whether the file is still in its folder under its name."""
        try:
            return os.path.samestat(self._path.lstat(), os.fstat(self._fd))
        except OSError:
            return False

    def write(self, payload: bytes, checksum: int) -> bool:
        """Append one frame; False if there is no room.

        Only a segment that is not mapped makes a system call, and raises OSError if the disk refuses it.
        """
        at = self.end
        end = at + HEADER_BYTES + len(payload)
        if end > self.size:
            return False
        mapping = self._mapping
        if mapping is None:
            _write_whole(self._fd, frames.encode(payload, checksum), at)
        else:
            _pack_header_into(mapping, at, MAGIC, 0, checksum)
            mapping[at + HEADER_BYTES : end] = payload
            _pack_size_into(mapping, at + SIZE_AT, end - at)
        self.end = end
        return True

    def read(self, offset: int, max_bytes: int = READ_BYTES) -> ReadResult:
        """The frames from `offset` on: those that begin within about `max_bytes`, each whole.

        A live segment is read to its writer's position, a sealed or dead one to the end of its file. Damage
        is skipped and counted. Raises OSError if the disk does; a retired segment has nothing to read.
        """
        sealed, end = self.sealed, self.end  # in this order: a sealed segment's end moves no more
        offset = min(max(offset, 0), end)
        wanted = 0 if self.retired else min(end - offset, max_bytes + frames.LARGEST_FRAME)
        result = frames.scan(_read_whole(self._fd, wanted, offset), offset, max_bytes)
        if result.offset > self._furthest:  # what is read again is not counted again
            self._furthest = result.offset
            self._on_skip(result.skipped)
        self._finished = sealed and (
            result.offset >= end or (not result.payloads and result.offset == offset)
        )
        return result

    def warm(self, start: int) -> bool:
        """Touch `WARM_BYTES` from `start` on, so that no append pays for a page's first use.

        False if there is nothing to touch: beyond the end, not mapped, or written to already.
        """
        if self.end or self._mapping is None or start >= self.size:
            return False
        end = min(start + WARM_BYTES, self.size)
        self._mapping[start : end : mmap.PAGESIZE] = bytes(len(range(start, end, mmap.PAGESIZE)))
        return True

    def unmap(self) -> None:
        """Give up the mapping of a segment that nobody writes any more."""
        if self._mapping is not None:
            self._mapping.close()
            self._mapping = None

    def release(self) -> None:
        """Close the file and leave it where it is; idempotent.

        Never unlocks: a forked child shares the lock with its parent, who goes on holding it.
        """
        self.unmap()
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)

    def retire(self) -> bool:
        """Delete the file and release it; False if the file stays, then nothing has changed.

        It stays if the disk refuses, or if it was released before: then it is whoever's that has its lock now.
        """
        if self.retired:
            return not self._path.exists()
        try:
            self._path.unlink(missing_ok=True)
        except OSError:
            return False
        self.release()
        return True


def adopt_dead(
    folder: Path, *, known: Collection[str], most: int, on_skip: Callable[[int], None]
) -> list[Segment]:
    """Segments in `folder` whose process is dead, oldest first, at most `most`, locked from now on.

    Skips the names in `known` and deletes what was never written. Raises OSError if the folder is not fit.
    """
    adopted: list[Segment] = []
    with private_folder(folder) as folder_fd:
        for name in sorted(entry.name for entry in os.scandir(folder_fd)):
            if len(adopted) == most:
                break
            if name.endswith(SUFFIX) and name not in known:
                segment = _adopt(folder / name, folder_fd, on_skip)
                if segment is not None:
                    adopted.append(segment)
    return adopted


def _adopt(path: Path, folder: int, on_skip: Callable[[int], None]) -> Segment | None:
    """The segment at `path`, or None if its process lives, it holds nothing, or it cannot be opened."""
    with ExitStack() as undo, suppress(OSError):
        fd = os.open(path.name, _OLD, dir_fd=folder)
        undo.callback(os.close, fd)
        status = _lock(fd)
        if not stat.S_ISREG(status.st_mode):
            return None
        if _is_blank(fd, status.st_size):
            path.unlink(missing_ok=True)
            return None
        undo.pop_all()
        return Segment(path, fd, size=status.st_size, end=status.st_size, sealed=True, on_skip=on_skip)
    return None


@contextmanager
def private_folder(path: Path) -> Iterator[int]:
    """A descriptor of the folder, made if missing; OSError if it is a symlink or somebody else's."""
    try:
        folder = os.open(path, _FOLDER)
    except FileNotFoundError:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder = os.open(path, _FOLDER)
    try:
        status = os.fstat(folder)
        if status.st_uid != os.geteuid():
            raise PermissionError(errno.EACCES, "the journal's folder belongs to another user", str(path))
        if status.st_mode & 0o077:
            os.fchmod(folder, 0o700)
        yield folder
    finally:
        os.close(folder)


def _lock(fd: int) -> os.stat_result:
    """Lock the file; BlockingIOError if another process has it or, having had it, deleted it."""
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    status = os.fstat(fd)
    if status.st_nlink == 0:
        raise BlockingIOError(errno.EWOULDBLOCK, "the file was adopted and deleted")
    return status


def _map(fd: int, size: int, device: int) -> mmap.mmap | None:
    """The file's preallocated mapping, or None where that is not safe.

    Without its blocks on disk, a write to the mapping on a full disk would end the process (SIGBUS).
    """
    if not hasattr(os, "posix_fallocate") or _is_remote(device):
        return None
    try:
        os.posix_fallocate(fd, 0, size)
        return mmap.mmap(fd, size)
    except OSError as error:
        if error.errno in _CANNOT_MAP:
            return None
        raise


@cache
def _is_remote(device: int) -> bool:
    """Whether the file system is known to be on the network; Linux only."""
    try:
        mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:  # pragma: no cover - not Linux
        return False
    return f"{os.major(device)}:{os.minor(device)}" in _remote_devices(mounts)


def _remote_devices(mounts: str) -> set[str]:
    """The devices (``major:minor``) of network file systems in the text of Linux's ``mountinfo``."""
    halves = (mount.partition(" - ") for mount in mounts.splitlines())
    return {
        left.split()[2] for left, _, right in halves if right and right.split()[0].partition(".")[0] in REMOTE
    }


def _is_blank(fd: int, size: int) -> bool:
    """Whether nothing was ever written; what is too large to be ours is not looked through."""
    return size <= frames.LARGEST_FRAME and _read_whole(fd, size, 0) == bytes(size)


def _read_whole(fd: int, count: int, offset: int) -> bytes:
    """`count` bytes from `offset` on, fewer only at the end of the file."""
    pieces = []
    while count > 0 and (piece := os.pread(fd, count, offset)):
        pieces.append(piece)
        count -= len(piece)
        offset += len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _write_whole(fd: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view = view[written:]
        offset += written


_pack_header_into = frames.HEADER.pack_into
_pack_size_into = frames.SIZE.pack_into
_NO_LINKS = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
_FOLDER = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | _NO_LINKS
_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | _NO_LINKS
_OLD = os.O_RDWR | getattr(os, "O_NONBLOCK", 0) | _NO_LINKS
_CANNOT_MAP = {errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.ENODEV, errno.EINVAL}
REMOTE = {
    "nfs",
    "nfs4",
    "cifs",
    "smb3",
    "smbfs",
    "9p",
    "afs",
    "ceph",
    "glusterfs",
    "lustre",
    "fuse",
    "virtiofs",
}
