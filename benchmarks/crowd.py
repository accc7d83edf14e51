"""A tracker's database with as many conversations as one likes, made by SQL: events would take an hour."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from otel_agent_tracker.server.counts import recount
from otel_agent_tracker.server.database import Database
from otel_agent_tracker.server.store import Store

__all__ = ["AGENTS", "DAYS", "fill"]

AGENTS, DAYS = 40, 90
CHUNK = 50_000


def fill(path: Path, conversations: int, tell: Callable[[str], None]) -> str:
    """Make the database at `path`; returns the id of a session that is in it.

    They are spread over the last 90 days and 40 agents: four of five completed, half of them rated, the others
    failed, expired or ended when they fell silent; of a thousand one is open. Each has two turns.
    """
    Store(Database(str(path))).close()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA synchronous = OFF")  # it need not outlive the machine
        connection.execute("PRAGMA cache_size = -200000")  # KiB
        indexes = connection.execute(_INDEXES).fetchall()
        for name, _ in indexes:  # they are made in a tenth of the time once all is there
            connection.execute(f'DROP INDEX "{name}"')
        (project,) = connection.execute("SELECT id FROM projects WHERE name = 'default'").fetchone()
        since_us = int(time.time() - DAYS * 86_400) * 1_000_000
        given = {"project": project, "since": since_us, "step": DAYS * 86_400_000_000 // conversations}
        for first in range(0, conversations, CHUNK):
            chunk = given | {"first": first, "last": min(first + CHUNK, conversations) - 1}
            with connection:
                for statement in _STATEMENTS:
                    connection.execute(statement, chunk)
            tell(f"{chunk['last'] + 1:,} of {conversations:,} conversations")
        for name, statement in indexes:
            tell(f"index {name}")
            connection.execute(statement)
        with connection:
            connection.execute(_AGENTS, given | {"agents": AGENTS, "now": int(time.time() * 1e6)})
        query = "SELECT session_id FROM conversations ORDER BY start_us LIMIT 1 OFFSET ?"
        (session,) = connection.execute(query, (conversations // 2,)).fetchone()
    tell("counting them")
    with closing(Database(str(path))) as database, database.writing() as counting:
        recount(counting)
    return str(session)


_NUMBERS = """
WITH RECURSIVE numbers(i) AS (SELECT :first UNION ALL SELECT i + 1 FROM numbers WHERE i < :last),
rolled AS (SELECT i, :since + i * :step AS start_us, (i * 2654435761) % 1000 AS dice FROM numbers),
told AS (SELECT i, dice, start_us, printf('agent-%02d', i % 40) AS agent_id,
  printf('agent-%02d_%d_%016x', i % 40, start_us / 1000000, i) AS session_id, 30000000 + dice * 600000 AS long_us
  FROM rolled)
"""
_CONVERSATIONS = f"""{_NUMBERS}
INSERT INTO conversations (project_id, session_id, number, agent_id, user_id, origin, start_us, end_us,
  last_activity_us, status, ended_by, quality, feedback, error_type, error_message, message_count, turns, waiting,
  ungrouped, ttl_seconds, silent_at_us, metadata, service, version, environment)
SELECT :project, session_id, 1, agent_id, printf('user-%015d', i % 9973), 'call', start_us,
  CASE WHEN dice > 0 THEN start_us + long_us END, start_us + long_us,
  CASE WHEN dice = 0 THEN 'active' WHEN dice < 100 THEN 'failed' WHEN dice < 200 THEN 'expired' ELSE 'completed' END,
  CASE WHEN dice = 0 THEN NULL WHEN dice < 100 THEN 'call' WHEN dice < 200 THEN 'ttl' WHEN dice < 250 THEN 'idle'
  ELSE 'call' END,
  CASE WHEN dice >= 600 THEN 1 + dice % 5 END, CASE WHEN dice >= 900 THEN 'that helped' END,
  CASE WHEN dice BETWEEN 1 AND 99 THEN 'OSError' END, CASE WHEN dice BETWEEN 1 AND 99 THEN 'no route to the shop' END,
  6, 2, 0, 0, 36000.0, NULL, '{{"plan":"pro"}}', 'shop', '1.2.3', 'production'
FROM told
"""
_TURNS = f"""{_NUMBERS}
INSERT INTO turns (project_id, event_id, session_id, agent_id, end_us, seconds, status)
SELECT :project, lower(hex(randomblob(16))), session_id, agent_id, start_us + turn * 10000000,
  0.2 + ((i * 40503 + turn * 7919) % 10000) / 1000.0, CASE WHEN dice < 100 THEN 'failed' ELSE 'ok' END
FROM told, (SELECT 1 AS turn UNION ALL SELECT 2)
"""
_ACTIVITIES = f"""{_NUMBERS}
INSERT INTO activities (project_id, event_id, agent_id, action, time_us, details, duration)
SELECT :project, lower(hex(randomblob(16))), agent_id, 'look', start_us, '{{"found":3}}', 0.5 FROM told WHERE i % 10 = 0
"""
_STATEMENTS = (_CONVERSATIONS, _TURNS, _ACTIVITIES)
_INDEXES = "SELECT name, sql FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL"
_AGENTS = """
WITH RECURSIVE numbers(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM numbers WHERE i + 1 < :agents)
INSERT INTO agents (project_id, agent_id, status, status_us, last_seen_us)
SELECT :project, printf('agent-%02d', i), 'idle', :since, :now FROM numbers
"""
