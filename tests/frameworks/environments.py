"""The environments of the frameworks: ``python -m tests.frameworks.environments`` makes those that are not there.

Each lies in ``.venv-frameworks`` under the name of its pair, with this repository installed for editing. With
``FRAMEWORKS_NEWEST`` set they are made anew, beside the others, of the newest releases, whatever the table says.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.frameworks.table import AS_OF, PAIRS, Pair

__all__ = ["AT_ONCE", "NEWEST", "ROOT", "make", "python_of"]

ROOT = Path(__file__).parent.parent.parent
AT_ONCE = 2
NEWEST = bool(os.environ.get("FRAMEWORKS_NEWEST"))


def python_of(pair: Pair, *, newest: bool = NEWEST) -> Path:
    """The Python of the pair's environment."""
    return _folder(pair, newest) / "bin" / "python"


def make(pairs: Iterable[Pair] = PAIRS, *, newest: bool = NEWEST) -> None:
    """Make the environments that are missing or made of something else, and say how long each took.

    One that cannot be made is named, and so are its tests when they fail: the others go on.
    """
    with ThreadPoolExecutor(AT_ONCE) as threads:
        for line in threads.map(lambda pair: _make(pair, newest), pairs):
            print(line, flush=True)


def _make(pair: Pair, newest: bool) -> str:
    folder, wanted = _folder(pair, newest), pair.names if newest else pair.packages
    until = () if newest else ("--exclude-newer", AS_OF)
    ready, contents = folder / ".ready", "\n".join((*until, *wanted, *_own_dependencies()))
    if not newest and ready.exists() and ready.read_text(encoding="utf-8") == contents:
        return f"{pair.name:30} is there"
    began = time.monotonic()
    shutil.rmtree(folder, ignore_errors=True)
    python = str(python_of(pair, newest=newest))
    try:
        _uv("venv", "--python", sys.executable, str(folder))
        _uv("pip", "install", "--python", python, *until, "--editable", f"{ROOT}[auto]", *wanted)
    except subprocess.CalledProcessError as error:
        shutil.rmtree(folder, ignore_errors=True)
        return f"{pair.name:30} cannot be made:\n{error.stderr}"
    ready.write_text(contents, encoding="utf-8")
    took = f"{pair.name:30} made in {time.monotonic() - began:.1f} s"
    return took + (f": {_versions(pair)}" if newest else "")


def _uv(*arguments: str) -> str:
    """What uv prints."""
    command = [str(Path(sys.executable).with_name("uv")), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _versions(pair: Pair) -> str:
    """What is newest today."""
    names = [name.partition("[")[0] for name in pair.names]
    found = _uv("pip", "freeze", "--python", str(python_of(pair, newest=True))).splitlines()
    return ", ".join(line for line in found if line.partition("==")[0] in names)


def _own_dependencies() -> list[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return [*project["dependencies"], *project["optional-dependencies"]["auto"]]


def _folder(pair: Pair, newest: bool) -> Path:
    return ROOT / ".venv-frameworks" / (f"newest-{pair.name}" if newest else pair.name)


if __name__ == "__main__":
    make()
