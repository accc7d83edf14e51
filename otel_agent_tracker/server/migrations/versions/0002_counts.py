"""Counts by the hour and by the day, an index for each list, and turns kept together by session.

The counts are left empty: whoever migrates counts all rows again.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Create the counts, and replace keys and indexes."""
    _create_conversation_counts()
    _create_turn_counts()
    _replace_indexes_of_conversations()
    _replace_key_of_turns()


def _period_columns() -> list[sa.Column[object]]:
    return [
        sa.Column("project_id", sa.Integer(), nullable=False),
        sa.Column("agent_id", sa.String(), nullable=False),
        sa.Column("hours", sa.Integer(), nullable=False),
        sa.Column("hour", sa.Integer(), nullable=False),
    ]


def _create_conversation_counts() -> None:
    names = (
        "total",
        "completed",
        "failed",
        "expired",
        "idle_ended",
        *(f"score_{each}" for each in range(1, 6)),
    )
    op.create_table(
        "conversation_counts",
        *_period_columns(),
        *[sa.Column(name, sa.BigInteger(), nullable=False) for name in names],
        sa.Column("quality", sa.Float(), nullable=False),
        *_constraints("conversation_counts"),
        sqlite_with_rowid=False,
    )


def _create_turn_counts() -> None:
    op.create_table(
        "turn_counts",
        *_period_columns(),
        sa.Column("seconds", sa.Float(), nullable=False),
        sa.Column("histogram", sa.Text(), nullable=False),
        *_constraints("turn_counts"),
        sqlite_with_rowid=False,
    )


def _constraints(table: str) -> list[sa.Constraint]:
    return [
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name=f"fk_{table}_project_id"),
        sa.PrimaryKeyConstraint("project_id", "agent_id", "hours", "hour", name=f"pk_{table}"),
    ]


def _replace_indexes_of_conversations() -> None:
    op.drop_index("ix_conversations_by_agent", "conversations")
    op.drop_index("ix_conversations_by_status", "conversations")
    op.drop_index("ix_conversations_project_id_start_us_session_id_number", "conversations")
    newest_first, figures = ("start_us", "session_id", "number"), ("status", "ended_by", "quality")
    for name, columns in {
        "by_start": ["project_id", *newest_first, *figures],
        "by_agent": ["project_id", "agent_id", *newest_first, *figures],
        "by_status": ["project_id", "status", *newest_first],
        "by_user": ["project_id", "user_id", *newest_first],
        "by_end": ["project_id", "status", "end_us", "session_id", "number", "start_us", "agent_id"],
    }.items():
        op.create_index(f"ix_conversations_{name}", "conversations", columns)


def _replace_key_of_turns() -> None:
    op.drop_index("ix_turns_project_id_seconds", "turns")
    with op.batch_alter_table("turns") as turns:
        turns.drop_constraint("pk_turns", type_="primary")
        turns.create_primary_key("pk_turns", ["project_id", "session_id", "event_id"])
    op.create_index(
        "ix_turns_project_id_seconds_end_us_agent_id",
        "turns",
        ["project_id", "seconds", "end_us", "agent_id"],
    )
