"""Projects and keys, events, and what is derived from them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Create every table."""
    _create_projects()
    _create_activities()
    _create_agents()
    _create_conversations()
    _create_events()
    _create_instances()
    _create_keys()
    _create_turns()


def _create_projects() -> None:
    op.create_table(
        "projects",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("created_us", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_projects"),
        sa.UniqueConstraint("name", name="uq_projects_name"),
    )


def _create_activities() -> None:
    op.create_table(
        "activities",
        sa.Column("project_id", sa.Integer(), nullable=False),
        sa.Column("event_id", sa.String(), nullable=False),
        sa.Column("agent_id", sa.String(), nullable=False),
        sa.Column("action", sa.String(), nullable=False),
        sa.Column("time_us", sa.BigInteger(), nullable=False),
        sa.Column("details", sa.Text()),
        sa.Column("duration", sa.Float()),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name="fk_activities_project_id"),
        sa.PrimaryKeyConstraint("project_id", "event_id", name="pk_activities"),
    )
    op.create_index(
        "ix_activities_project_id_agent_id_time_us", "activities", ["project_id", "agent_id", "time_us"]
    )
    op.create_index(
        "ix_activities_project_id_time_us_event_id", "activities", ["project_id", "time_us", "event_id"]
    )


def _create_agents() -> None:
    op.create_table(
        "agents",
        sa.Column("project_id", sa.Integer(), nullable=False),
        sa.Column("agent_id", sa.String(), nullable=False),
        sa.Column("status", sa.String()),
        sa.Column("status_us", sa.BigInteger()),
        sa.Column("sdk_version", sa.String()),
        sa.Column("registration_us", sa.BigInteger()),
        sa.Column("metadata", sa.Text()),
        sa.Column("last_seen_us", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name="fk_agents_project_id"),
        sa.PrimaryKeyConstraint("project_id", "agent_id", name="pk_agents"),
    )


def _create_conversations() -> None:
    op.create_table(
        "conversations",
        sa.Column("project_id", sa.Integer(), nullable=False),
        sa.Column("session_id", sa.String(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("agent_id", sa.String(), nullable=False),
        sa.Column("user_id", sa.String()),
        sa.Column("origin", sa.String(), nullable=False),
        sa.Column("start_us", sa.BigInteger(), nullable=False),
        sa.Column("end_us", sa.BigInteger()),
        sa.Column("last_activity_us", sa.BigInteger(), nullable=False),
        sa.Column("status", sa.String(), nullable=False),
        sa.Column("ended_by", sa.String()),
        sa.Column("quality", sa.Float()),
        sa.Column("feedback", sa.Text()),
        sa.Column("error_type", sa.String()),
        sa.Column("error_message", sa.Text()),
        sa.Column("message_count", sa.BigInteger()),
        sa.Column("turns", sa.Integer(), nullable=False),
        sa.Column("waiting", sa.Boolean(), nullable=False),
        sa.Column("ungrouped", sa.Boolean(), nullable=False),
        sa.Column("ttl_seconds", sa.Float()),
        sa.Column("silent_at_us", sa.BigInteger()),
        sa.Column("metadata", sa.Text()),
        sa.Column("service", sa.String()),
        sa.Column("version", sa.String()),
        sa.Column("environment", sa.String()),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name="fk_conversations_project_id"),
        sa.PrimaryKeyConstraint("project_id", "session_id", "number", name="pk_conversations"),
    )
    op.create_index(
        "ix_conversations_by_agent",
        "conversations",
        ["project_id", "agent_id", "start_us", "status", "ended_by", "quality"],
    )
    op.create_index(
        "ix_conversations_by_status",
        "conversations",
        ["project_id", "status", "start_us", "ended_by", "quality"],
    )
    op.create_index(
        "ix_conversations_project_id_start_us_session_id_number",
        "conversations",
        ["project_id", "start_us", "session_id", "number"],
    )
    op.create_index(
        "ix_conversations_silent",
        "conversations",
        ["silent_at_us"],
        sqlite_where=sa.text("silent_at_us IS NOT NULL"),
        postgresql_where=sa.text("silent_at_us IS NOT NULL"),
    )


def _create_events() -> None:
    op.create_table(
        "events",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("project_id", sa.Integer(), nullable=False),
        sa.Column("event_id", sa.String(), nullable=False),
        sa.Column("path", sa.String(), nullable=False),
        sa.Column("session_id", sa.String()),
        sa.Column("agent_id", sa.String()),
        sa.Column("time_us", sa.BigInteger(), nullable=False),
        sa.Column("received_us", sa.BigInteger(), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("service", sa.String()),
        sa.Column("version", sa.String()),
        sa.Column("environment", sa.String()),
        sa.Column("instance", sa.String()),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name="fk_events_project_id"),
        sa.PrimaryKeyConstraint("id", name="pk_events"),
        sa.UniqueConstraint("project_id", "event_id", name="uq_events_project_id_event_id"),
    )
    op.create_index("ix_events_project_id_session_id", "events", ["project_id", "session_id"])


def _create_instances() -> None:
    op.create_table(
        "instances",
        sa.Column("project_id", sa.Integer(), nullable=False),
        sa.Column("agent_id", sa.String(), nullable=False),
        sa.Column("instance", sa.String(), nullable=False),
        sa.Column("last_seen_us", sa.BigInteger(), nullable=False),
        sa.Column("delivery", sa.Text(), nullable=False),
        sa.Column("service", sa.String()),
        sa.Column("version", sa.String()),
        sa.Column("environment", sa.String()),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name="fk_instances_project_id"),
        sa.PrimaryKeyConstraint("project_id", "agent_id", "instance", name="pk_instances"),
    )


def _create_keys() -> None:
    op.create_table(
        "keys",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("project_id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String()),
        sa.Column("prefix", sa.String(), nullable=False),
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("created_us", sa.BigInteger(), nullable=False),
        sa.Column("revoked_us", sa.BigInteger()),
        sa.Column("used_us", sa.BigInteger()),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name="fk_keys_project_id"),
        sa.PrimaryKeyConstraint("id", name="pk_keys"),
        sa.UniqueConstraint("digest", name="uq_keys_digest"),
        sa.UniqueConstraint("prefix", name="uq_keys_prefix"),
    )


def _create_turns() -> None:
    op.create_table(
        "turns",
        sa.Column("project_id", sa.Integer(), nullable=False),
        sa.Column("event_id", sa.String(), nullable=False),
        sa.Column("session_id", sa.String(), nullable=False),
        sa.Column("agent_id", sa.String(), nullable=False),
        sa.Column("end_us", sa.BigInteger(), nullable=False),
        sa.Column("seconds", sa.Float(), nullable=False),
        sa.Column("status", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name="fk_turns_project_id"),
        sa.PrimaryKeyConstraint("project_id", "event_id", name="pk_turns"),
    )
    op.create_index(
        "ix_turns_project_id_agent_id_end_us_seconds",
        "turns",
        ["project_id", "agent_id", "end_us", "seconds"],
    )
    op.create_index("ix_turns_project_id_end_us_seconds", "turns", ["project_id", "end_us", "seconds"])
    op.create_index("ix_turns_project_id_seconds", "turns", ["project_id", "seconds"])
