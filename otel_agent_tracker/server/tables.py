"""The tables of the tracker's database.

Events are what arrived, word for word, and the only truth. Conversations are derived from them by the outcome
rules, counts from conversations and turns; both may be made again at any time. Times are Unix microseconds,
durations seconds, JSON is text.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    text,
)

__all__ = [
    "activities",
    "agents",
    "conversation_counts",
    "conversations",
    "events",
    "instances",
    "keys",
    "metadata",
    "projects",
    "turn_counts",
    "turns",
]

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)
_RowId = BigInteger().with_variant(Integer(), "sqlite")  # only an INTEGER key numbers itself in SQLite


_NEWEST_FIRST = ("start_us", "session_id", "number")
_FIGURES = ("status", "ended_by", "quality")


def _project_key() -> Column[int]:
    return Column("project_id", ForeignKey("projects.id"), primary_key=True)


projects = Table(
    "projects",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", String, nullable=False, unique=True),
    Column("created_us", BigInteger, nullable=False),
)

keys = Table(
    "keys",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("project_id", ForeignKey("projects.id"), nullable=False),
    Column("name", String),
    Column("prefix", String, nullable=False, unique=True),
    Column("digest", String, nullable=False, unique=True),
    Column("created_us", BigInteger, nullable=False),
    Column("revoked_us", BigInteger),
    Column("used_us", BigInteger),
)

events = Table(
    "events",
    metadata,
    Column("id", _RowId, primary_key=True),
    Column("project_id", ForeignKey("projects.id"), nullable=False),
    Column("event_id", String, nullable=False),
    Column("path", String, nullable=False),
    Column("session_id", String),
    Column("agent_id", String),
    Column("time_us", BigInteger, nullable=False),
    Column("received_us", BigInteger, nullable=False),
    Column("body", Text, nullable=False),
    Column("service", String),
    Column("version", String),
    Column("environment", String),
    Column("instance", String),
    UniqueConstraint("project_id", "event_id"),
    Index(None, "project_id", "session_id"),
)

conversations = Table(
    "conversations",
    metadata,
    _project_key(),
    Column("session_id", String, primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("agent_id", String, nullable=False),
    Column("user_id", String),
    Column("origin", String, nullable=False),
    Column("start_us", BigInteger, nullable=False),
    Column("end_us", BigInteger),
    Column("last_activity_us", BigInteger, nullable=False),
    Column("status", String, nullable=False),
    Column("ended_by", String),
    Column("quality", Float),
    Column("feedback", Text),
    Column("error_type", String),
    Column("error_message", Text),
    Column("message_count", BigInteger),
    Column("turns", Integer, nullable=False),
    Column("waiting", Boolean, nullable=False),
    Column("ungrouped", Boolean, nullable=False),
    Column("ttl_seconds", Float),
    Column("silent_at_us", BigInteger),
    Column("metadata", Text),
    Column("service", String),
    Column("version", String),
    Column("environment", String),
    # Each list has its index, in the list's order; the last columns spare figures the way to the table.
    Index("ix_conversations_by_start", "project_id", *_NEWEST_FIRST, *_FIGURES),
    Index("ix_conversations_by_agent", "project_id", "agent_id", *_NEWEST_FIRST, *_FIGURES),
    Index("ix_conversations_by_status", "project_id", "status", *_NEWEST_FIRST),
    Index("ix_conversations_by_user", "project_id", "user_id", *_NEWEST_FIRST),
    Index(
        "ix_conversations_by_end",
        "project_id",
        "status",
        "end_us",
        "session_id",
        "number",
        "start_us",
        "agent_id",
    ),
    Index(
        "ix_conversations_silent",
        "silent_at_us",
        sqlite_where=text("silent_at_us IS NOT NULL"),
        postgresql_where=text("silent_at_us IS NOT NULL"),
    ),
)

turns = Table(
    "turns",
    metadata,
    _project_key(),
    Column("session_id", String, primary_key=True),
    Column("event_id", String, primary_key=True),
    Column("agent_id", String, nullable=False),
    Column("end_us", BigInteger, nullable=False),
    Column("seconds", Float, nullable=False),
    Column("status", String, nullable=False),
    Index(None, "project_id", "end_us", "seconds"),
    Index(None, "project_id", "agent_id", "end_us", "seconds"),
    Index(None, "project_id", "seconds", "end_us", "agent_id"),
)


def _period_keys() -> list[Column[Any]]:
    """Whose counts of when: of an agent or of all (an empty id), over one hour or 24 from a Unix hour on."""
    return [
        _project_key(),
        Column("agent_id", String, primary_key=True),
        Column("hours", Integer, primary_key=True),
        Column("hour", Integer, primary_key=True),
    ]


conversation_counts = Table(
    "conversation_counts",
    metadata,
    *_period_keys(),
    Column("total", BigInteger, nullable=False),
    Column("completed", BigInteger, nullable=False),
    Column("failed", BigInteger, nullable=False),
    Column("expired", BigInteger, nullable=False),
    Column("idle_ended", BigInteger, nullable=False),
    *[Column(f"score_{score}", BigInteger, nullable=False) for score in range(1, 6)],
    Column("quality", Float, nullable=False),  # the sum of all
    sqlite_with_rowid=False,
)

turn_counts = Table(
    "turn_counts",
    metadata,
    *_period_keys(),
    Column("seconds", Float, nullable=False),  # the sum of all
    Column("histogram", Text, nullable=False),  # how many turns lie in each bucket, as JSON
    sqlite_with_rowid=False,
)

agents = Table(
    "agents",
    metadata,
    _project_key(),
    Column("agent_id", String, primary_key=True),
    Column("status", String),
    Column("status_us", BigInteger),
    Column("sdk_version", String),
    Column("registration_us", BigInteger),
    Column("metadata", Text),
    Column("last_seen_us", BigInteger, nullable=False),
)

instances = Table(
    "instances",
    metadata,
    _project_key(),
    Column("agent_id", String, primary_key=True),
    Column("instance", String, primary_key=True),
    Column("last_seen_us", BigInteger, nullable=False),
    Column("delivery", Text, nullable=False),
    Column("service", String),
    Column("version", String),
    Column("environment", String),
)

activities = Table(
    "activities",
    metadata,
    _project_key(),
    Column("event_id", String, primary_key=True),
    Column("agent_id", String, nullable=False),
    Column("action", String, nullable=False),
    Column("time_us", BigInteger, nullable=False),
    Column("details", Text),
    Column("duration", Float),
    Index(None, "project_id", "time_us", "event_id"),
    Index(None, "project_id", "agent_id", "time_us"),
)
