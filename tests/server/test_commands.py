"""`otel-agent-tracker keys`."""

from __future__ import annotations

from pathlib import Path

from click.testing import Result

from tests.cli import terminal


def run(database: Path | str, *arguments: str) -> Result:
    return terminal.run("keys", *arguments, "--database", database)


def test_a_key_is_shown_once(database_path: Path) -> None:
    """On standard output alone, so that it can be put where it belongs; the list shows how it begins."""
    made = run(database_path, "create", "--project", "shop", "--name", "ci")
    key = made.stdout.strip()
    assert key.startswith("oat_")
    assert key not in made.stderr
    listed = run(database_path, "list").stdout
    assert key not in listed
    assert all(shown in listed for shown in (key[:12], "shop", "ci"))


def test_a_key_is_revoked_by_its_beginning(database_path: Path) -> None:
    """Once, and it is named; an unknown beginning revokes none, one of less than 6 characters is wrong use."""
    keys = [run(database_path, "create").stdout.strip() for _ in range(2)]
    assert run(database_path, "revoke", "oat_").exit_code == 2
    assert keys[0][:12] in run(database_path, "revoke", keys[0][:12]).stdout
    assert run(database_path, "revoke", keys[0][:12]).exit_code == 1
    assert "No key begins" in run(database_path, "revoke", "nothing").stderr


def test_an_empty_list_says_so(database_path: Path) -> None:
    """Instead of an empty table."""
    assert "No key was made yet" in run(database_path, "list").stdout


def test_a_wrong_project_or_database_is_a_usage_error(database_path: Path) -> None:
    """It names the option."""
    assert "--project" in run(database_path, "create", "--project", "a\nb").stderr
    wrong = run("sqlite://", "list")
    assert wrong.exit_code == 2
    assert "--database" in wrong.stderr
