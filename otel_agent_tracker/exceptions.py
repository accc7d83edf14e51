"""What this library raises.

Wrong arguments raise the built-in ``ValueError`` and ``TypeError``. Trouble at run time is kept, counted and
logged, never raised, but for queries, which a caller waits for:

    AgentTrackerError
    └── TrackerUnavailable      a query got no answer in time, or one that is not a tracker's
"""

from __future__ import annotations

__all__ = ["AgentTrackerError", "TrackerUnavailable"]


class AgentTrackerError(Exception):
    """The base of every exception that this library defines."""


class TrackerUnavailable(AgentTrackerError):  # noqa: N818 - says what is so, as the design names it
    """A query could not be answered: no tracker is configured, reachable, or willing."""
