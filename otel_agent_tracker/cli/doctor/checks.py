"""Checks: what the doctor found, how bad it is, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

__all__ = ["Check", "Level", "ok", "warning", "wrong"]


class Level(StrEnum):
    """How bad a finding is; only what is wrong makes the exit code 1."""

    OK = "ok"
    WARNING = "warning"
    WRONG = "wrong"


@dataclass(frozen=True, slots=True)
class Check:
    """One finding; `advice` is what to do, empty where nothing is to be done."""

    level: Level
    name: str
    finding: str
    advice: str = ""


def ok(name: str, finding: str) -> Check:
    """All is well."""
    return Check(Level.OK, name, finding)


def warning(name: str, finding: str, advice: str) -> Check:
    """It works, but not as one might think."""
    return Check(Level.WARNING, name, finding, advice)


def wrong(name: str, finding: str, advice: str) -> Check:
    """It does not work."""
    return Check(Level.WRONG, name, finding, advice)
