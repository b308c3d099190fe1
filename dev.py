#!/usr/bin/env python3
"""Set up privmem in a virtual environment of its own, and run it or its tests there. Needs Python 3.11 and
pip, nothing else.

    python3 dev.py run configs/quickstart.yaml     any privmem verb works: run, validate, topo, ...
    python3 dev.py test                            quick tests, Ray included
    python3 dev.py test-full                       all tests
    python3 dev.py lint | types | check            ruff; mypy; lint, types and all tests

The environment is `.venv` beside this file; it is made at the first call and brought up to date when
pyproject.toml changes.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
BIN = VENV / "bin"
STAMP = VENV / "pyproject.sha256"
PACKAGES = ("scheduler", "nodeagent", "cluster")


def main(argv: list[str]) -> int:
    """Run one command of the list above; returns its exit status."""
    if not argv or argv[0] in ("-h", "--help"):
        print(__doc__)
        return 0 if argv else 2
    _ensure_environment()
    verb, rest = argv[0], argv[1:]
    commands = {
        "test": [[*_PYTEST, "-m", "not full", *rest]],
        "test-full": [[*_PYTEST, *rest]],
        "lint": _LINT,
        "types": _TYPES,
        "check": [*_LINT, *_TYPES, [*_PYTEST, "-m", "not full"], [*_PYTEST, "-m", "full"]],
    }
    for command in commands.get(verb, [["privmem", *argv]]):
        status = _run(command)
        if status:
            return status
    return 0


# A file's tests stay together: fixtures such as a Ray cluster are made once a file.
_PYTEST = ["pytest", "-n", str(min(4, os.cpu_count() or 1)), "--dist", "loadfile"]
_LINT = [["ruff", "check", "."], ["ruff", "format", "--check", "."]]
_TYPES = [["mypy", *(part for name in PACKAGES for part in ("-p", f"privmem.{name}"))]]


def _run(command: list[str]) -> int:
    where = None if command[0] == "privmem" else ROOT
    return subprocess.run([str(BIN / command[0]), *command[1:]], cwd=where, env=_environment()).returncode


def _environment() -> dict[str, str]:
    return {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ.get('PATH', '')}", "VIRTUAL_ENV": str(VENV)}


def _ensure_environment() -> None:
    """Make the virtual environment and install this checkout into it, unless that is done already."""
    if sys.version_info < (3, 11):  # noqa: UP036 - told to people who start this with an old Python
        sys.exit(f"privmem needs Python 3.11 or newer; this is {sys.version.split()[0]}")
    want = hashlib.sha256((ROOT / "pyproject.toml").read_bytes() + str(ROOT).encode()).hexdigest()
    _link_for_type_checkers()
    if STAMP.exists() and STAMP.read_text() == want:
        return
    print(f"setting up {VENV} (first run, or pyproject.toml has changed) ...", file=sys.stderr, flush=True)
    if not (BIN / "python").exists():
        made = subprocess.run([sys.executable, "-m", "venv", str(VENV)])
        if made.returncode:
            sys.exit(
                "could not make a virtual environment; on Debian or Ubuntu: apt-get install python3-venv"
            )
    install = [
        str(BIN / "python"),
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "-e",
        f"{ROOT}[dev]",
    ]
    if subprocess.run(install, stdout=sys.stderr).returncode:
        sys.exit("pip could not install the dependencies; see its message above")
    STAMP.write_text(want)


def _link_for_type_checkers() -> None:
    """`.typing/privmem/` with links to the packages.

    Type checkers do not see through an editable install's import hook.
    """
    folder = ROOT / ".typing" / "privmem"
    folder.mkdir(parents=True, exist_ok=True)
    for package in PACKAGES:
        link = folder / package
        if not link.is_symlink():
            link.symlink_to(Path("..") / ".." / package)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
