"""Projects and the keys that open them; of a key only its SHA-256 and its first characters are stored."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from hmac import compare_digest
from threading import Lock
from time import monotonic

from sqlalchemy import Connection, insert, select, update

from otel_agent_tracker.arguments import identifier
from otel_agent_tracker.server import tables
from otel_agent_tracker.server.database import Database, insert_or_ignore

__all__ = ["DEFAULT_PROJECT", "KeyInfo", "Keys", "digest_of", "looks_like_key"]

DEFAULT_PROJECT = "default"
PREFIX = "oat_"
PREFIX_LENGTH = 12
MAX_AGE_SECONDS = 1.0  # within which keys revoked by another process lose theirs


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyInfo:
    """What may be shown of a key; times are Unix microseconds."""

    prefix: str
    project: str
    name: str | None
    created_us: int
    revoked_us: int | None
    used_us: int | None


@dataclass(frozen=True, slots=True)
class _Known:
    """The keys as they were at `read_at`, when the reading began."""

    read_at: float
    ever_made: bool
    valid: tuple[tuple[bytes, int], ...]  # digest and project


class Keys:
    """The projects and keys of a database; safe for use from many threads."""

    def __init__(self, database: Database, now_us: Callable[[], int]) -> None:
        self._database = database
        self._now_us = now_us
        self._known = _Known(float("-inf"), ever_made=True, valid=())
        self._used: dict[bytes, int] = {}
        self._reading, self._using = Lock(), Lock()  # the second is never held while the database is asked

    def create(self, project: str = DEFAULT_PROJECT, name: str | None = None) -> str:
        """Make a key, and its project if need be; it is returned once and cannot be read again."""
        key = f"{PREFIX}{secrets.token_urlsafe(32)}"
        with self._database.writing() as connection:
            project_id = self._ensure_project(connection, project)
            row = insert(tables.keys).values(
                project_id=project_id,
                name=name,
                prefix=key[:PREFIX_LENGTH],
                digest=digest_of(key.encode()).hex(),
                created_us=self._now_us(),
            )
            connection.execute(row)
        self._forget()
        return key

    def list(self) -> list[KeyInfo]:
        """All keys, oldest first, revoked ones too."""
        columns = tables.keys.columns
        query = select(tables.keys, tables.projects.columns.name.label("project")).join(tables.projects)
        with self._database.reading() as connection:
            rows = connection.execute(query.order_by(columns.id)).mappings().all()
        return [KeyInfo(**{name: row[name] for name in KeyInfo.__slots__}) for row in rows]

    def revoke(self, prefix: str) -> bool:
        """Revoke the key that begins with `prefix`; False if no valid key does, or more than one."""
        columns = tables.keys.columns
        with self._database.writing() as connection:
            valid = connection.execute(select(columns.id, columns.prefix).where(columns.revoked_us.is_(None)))
            found = [row.id for row in valid if prefix and row.prefix.startswith(prefix[:PREFIX_LENGTH])]
            if len(found) == 1:
                revoked = update(tables.keys).where(columns.id == found[0]).values(revoked_us=self._now_us())
                connection.execute(revoked)
        self._forget()
        return len(found) == 1

    def projects(self) -> dict[str, int]:
        """The ids of all projects by their names."""
        columns = tables.projects.columns
        with self._database.reading() as connection:
            return {name: id_ for id_, name in connection.execute(select(columns.id, columns.name))}

    @property
    def is_stale(self) -> bool:
        """Whether the next question must read the database."""
        return monotonic() - self._known.read_at > MAX_AGE_SECONDS

    def refresh(self, since: float | None = None) -> None:
        """Read the keys if what is known of them is older than a second, or than the monotonic time `since`."""
        with self._reading:
            if self.is_stale or (since is not None and self._known.read_at < since):
                self._known = self._read()

    @property
    def in_force(self) -> bool:
        """Whether a key is needed: from the first made on, even if all were revoked. As of `refresh`."""
        return self._known.ever_made

    def project_of(self, key: bytes) -> int | None:
        """The project that a key opens, as of `refresh`; None for a key that is not valid."""
        return self.project_of_digest(digest_of(key))

    def project_of_digest(self, digest: bytes) -> int | None:
        """The project that the key with this digest opens, as `project_of` tells it."""
        project_id = None
        for known, its_project in self._known.valid:
            if compare_digest(known, digest):
                project_id = its_project
        if project_id is not None:
            with self._using:
                self._used[digest] = self._now_us()
        return project_id

    def write_usage(self) -> None:
        """Store when the keys were last used."""
        with self._using:
            used, self._used = self._used, {}
        if used:
            with self._database.writing() as connection:
                for digest, used_us in used.items():
                    is_it = tables.keys.columns.digest == digest.hex()
                    connection.execute(update(tables.keys).where(is_it).values(used_us=used_us))

    def ensure_project(self, name: str) -> int:
        """The id of the project `name`, made if need be."""
        with self._database.writing() as connection:
            return self._ensure_project(connection, name)

    def _ensure_project(self, connection: Connection, name: str) -> int:
        row = {"name": identifier("project", name), "created_us": self._now_us()}
        insert_or_ignore(connection, tables.projects, [row])
        columns = tables.projects.columns
        project_id: int = connection.execute(select(columns.id).where(columns.name == name)).scalar_one()
        return project_id

    def _read(self) -> _Known:
        columns, began = tables.keys.columns, monotonic()
        with self._database.reading() as connection:
            rows = connection.execute(select(columns.digest, columns.project_id, columns.revoked_us)).all()
        valid = tuple((bytes.fromhex(row.digest), row.project_id) for row in rows if row.revoked_us is None)
        return _Known(began, bool(rows), valid)

    def _forget(self) -> None:
        with self._reading:
            self._known = _Known(float("-inf"), ever_made=True, valid=())


def looks_like_key(given: bytes) -> bool:
    """Whether it may be a key of ours; what cannot be need not be looked up."""
    return given.startswith(PREFIX.encode())


def digest_of(key: bytes) -> bytes:
    """What is kept of a key."""
    return sha256(key).digest()
