"""The state folder: whether it can keep what is accepted, and what it keeps."""

from __future__ import annotations

import os
import shutil
import sqlite3
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from otel_agent_tracker.cli.doctor.checks import Check, ok, warning, wrong
from otel_agent_tracker.cli.folders import Books, StateFolder, folders_below
from otel_agent_tracker.cli.output import duration
from otel_agent_tracker.config import Config, Durability
from otel_agent_tracker.segment import REMOTE

__all__ = ["check_file_system", "check_space", "check_state_folder", "file_system"]

MIB = 1024 * 1024
LEAST_FREE = 64 * MIB  # a few segments of the journal and the state file
OLD_SECONDS = 3600
_IN_MEMORY = ("tmpfs", "ramfs", "ramdisk")


def check_state_folder(config: Config) -> Iterator[Check]:
    """The folder of the configured destination, its disk, its contents, and its neighbours."""
    if config.durability is Durability.MEMORY:
        yield warning(
            "durability",
            "Events are kept in memory and die with their process.",
            "Unset AGENT_TRACKER_DURABILITY to keep them on disk.",
        )
        return
    if config.disabled_because is None:
        folder = config.state_folder
        yield from _check_place(folder, config)
        if folder.is_dir():
            yield from _check_contents(StateFolder(folder))
    yield from _check_neighbours(config)


def file_system(path: Path, mounts: Path = Path("/proc/self/mounts")) -> str | None:
    """The type of the file system that `path` is on; None where the platform does not tell."""
    try:
        lines = mounts.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    place = path
    while not os.path.ismount(place):
        place = place.parent
    found = [fields[2] for fields in map(str.split, lines) if _unescaped(fields[1]) == str(place)]
    return found[-1] if found else None  # the last one lies on top


def _unescaped(mount_point: str) -> str:
    return mount_point.encode("latin-1", "replace").decode("unicode_escape", "replace")


def _check_place(folder: Path, config: Config) -> Iterator[Check]:
    existing = folder
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if existing == folder:
        yield _check_owner(folder)
    yield _check_writable(folder, existing)
    yield check_file_system(file_system(existing.resolve()))
    yield check_space(shutil.disk_usage(existing).free, config.outbox_max_mb)


def _check_owner(folder: Path) -> Check:
    """The journal refuses a folder that is a link or another's, and closes one that is open to others."""
    status = folder.lstat()
    mode = stat.S_IMODE(status.st_mode)
    if stat.S_ISLNK(status.st_mode):
        return wrong(
            "state folder", f"{folder} is a link.", "Name the folder itself with AGENT_TRACKER_STATE_DIR."
        )
    if hasattr(os, "geteuid") and status.st_uid != os.geteuid():
        advice = "Run the doctor as the application's user, or give the folder to this one."
        return wrong(
            "state folder", f"{folder} belongs to user {status.st_uid}, not to {os.geteuid()}.", advice
        )
    if mode & 0o077:
        return warning("state folder", f"Others may enter {folder} (mode {mode:04o}).", f"chmod 700 {folder}")
    return ok("state folder", f"{folder} (mode {mode:04o})")


def _check_writable(folder: Path, existing: Path) -> Check:
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        advice = "Let this user write there, or set AGENT_TRACKER_STATE_DIR to another folder."
        return wrong("writable", f"{existing} takes no file: {error.strerror or error}.", advice)
    return ok("writable", "yes" if existing == folder else f"yes; {folder} is made at the first event")


def check_file_system(kind: str | None) -> Check:
    """Whether files of the journal and of SQLite are safe on a file system of that type."""
    if kind is None:
        return ok("file system", "not told by this platform")
    if kind.partition(".")[0] in REMOTE:
        advice = "Set AGENT_TRACKER_STATE_DIR to a local disk: over a network, files are not safely shared."
        return warning("file system", f"{kind}, a network's", advice)
    if kind in _IN_MEMORY:
        advice = "Set AGENT_TRACKER_STATE_DIR to a disk if events must survive a reboot."
        return warning("file system", f"{kind}, in memory", advice)
    return ok("file system", f"{kind}{', goes with its container' if kind == 'overlay' else ''}")


def check_space(free: int, outbox_max_mb: float) -> Check:
    """Whether so many free bytes are enough."""
    finding = f"{free / MIB:,.0f} MiB"
    if free < LEAST_FREE:
        return wrong("free space", finding, "Make room: the journal needs some to keep what is accepted.")
    if free < outbox_max_mb * MIB:
        advice = f"Make room, or lower AGENT_TRACKER_OUTBOX_MAX_MB ({outbox_max_mb:g})."
        return warning("free space", f"{finding}, less than the outbox may take", advice)
    return ok("free space", finding)


def _check_contents(folder: StateFolder) -> Iterator[Check]:
    try:
        books = folder.books()
    except (sqlite3.Error, OSError) as error:
        advice = "Stop what holds it, or move the state file away: the application then makes a new one."
        yield wrong("state file", f"It cannot be read: {getattr(error, 'strerror', None) or error}.", advice)
        return
    yield _check_pending(books)
    if books.counts.dead_lettered:
        yield warning(
            "dead letters",
            f"The tracker has refused {books.counts.dead_lettered} events.",
            "`otel-agent-tracker outbox list --dead` says why; `outbox retry` sends them again.",
        )
    if books.counts.dropped:
        kinds = ", ".join(f"{kind} {number}" for kind, number in sorted(books.counts.dropped_by_kind.items()))
        yield warning(
            "dropped", f"{books.counts.dropped} events: {kinds}.", "See AGENT_TRACKER_OUTBOX_MAX_MB."
        )


def _check_pending(books: Books) -> Check:
    oldest = books.counts.oldest_pending_us
    age = 0.0 if oldest is None else time.time() - oldest / 1e6
    finding = f"{books.pending} of {books.accepted} accepted"
    if age > OLD_SECONDS:
        advice = "If no application runs that sends them: `otel-agent-tracker outbox drain`."
        return warning("pending", f"{finding}, the oldest for {duration(age)}", advice)
    return ok("pending", finding)


def _check_neighbours(config: Config) -> Iterator[Check]:
    """Folders of other destinations: what waits there is sent by nobody who has these settings."""
    waiting = {}
    for each in folders_below(config.state_dir):
        if config.disabled_because is not None or each.path != config.state_folder:
            try:
                waiting[each.name] = each.books().pending
            except (sqlite3.Error, OSError):
                yield warning("other folders", f"{each.path} cannot be read.", "`outbox status` says why.")
    if total := sum(waiting.values()):
        names = ", ".join(name for name, pending in waiting.items() if pending)
        yield warning(
            "other folders",
            f"{total} events wait for other destinations ({names}).",
            "`otel-agent-tracker outbox status` shows whose they are.",
        )
