"""Print, as pip's constraints, the oldest version of each dependency that pyproject.toml allows."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

_REQUIREMENT = re.compile(r"(?P<name>[\w-]+)(\[[\w,]+\])?>=(?P<version>[\w.]+)")


def main() -> None:
    """Read the dependencies and all extras but the one that names the others."""
    project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = (lines for name, lines in project["optional-dependencies"].items() if name != "all")
    for line in [*project["dependencies"], *(line for lines in extras for line in lines)]:
        found = _REQUIREMENT.match(line)
        if found is None:
            raise SystemExit(f"no oldest version is named: {line}")
        print(f"{found['name']}=={found['version']}")  # noqa: T201 - its output is its purpose


if __name__ == "__main__":
    main()
