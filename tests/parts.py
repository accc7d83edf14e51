"""The parts of the test suite: what is quick runs first, and each part's time is told at the end.

`upgrade` drains what earlier releases left, `installed` installs what is built. `faults` kills, forks and starves
processes, `load` is about quantities; both take their time.
"""

from __future__ import annotations

from collections import Counter, defaultdict

import pytest

__all__ = ["pytest_collection_modifyitems", "pytest_terminal_summary"]

PARTS = ("unit", "flow", "server", "cli", "upgrade", "installed", "faults", "load")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A mistake shows early: what takes its time comes last."""
    items.sort(key=lambda item: PARTS.index(_part(item.nodeid)))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """How long each part took, if there is more than one."""
    seconds: defaultdict[str, float] = defaultdict(float)
    tests: Counter[str] = Counter()
    for report in (each for reports in terminalreporter.stats.values() for each in reports):
        if isinstance(report, pytest.TestReport):
            seconds[_part(report.nodeid)] += report.duration
            tests[_part(report.nodeid)] += report.when == "call"
    if len(tests) > 1:
        terminalreporter.section("time of each part")
        for part in (part for part in PARTS if part in tests):
            terminalreporter.line(f"{seconds[part]:6.1f}s {tests[part]:5} tests  {part}")


def _part(node_id: str) -> str:
    folder, _, file = node_id.partition("::")[0].removeprefix("tests/").rpartition("/")
    if folder in PARTS:
        return folder
    return "flow" if file.startswith("test_flow_") else "unit"
