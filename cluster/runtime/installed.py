"""What is installed on this machine: two machines that differ in it must not carry one run together."""

from __future__ import annotations

import hashlib
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

from privmem import cluster, nodeagent, scheduler
from privmem.nodeagent.device import codecs
from privmem.scheduler.messages import SCHEMA_VERSION


def installed() -> dict[str, Any]:
    """Versions of privmem, of its messages and codecs, and a hash of its source, as plain data."""
    return {
        "privmem": metadata.version("privmem"),
        "message_schema": SCHEMA_VERSION,
        "codecs": codec_versions(),
        "source": source_hash(),
    }


def codec_versions() -> dict[str, str]:
    """Versions of the compression libraries: another one may compress to another size."""
    return dict(codecs.codec_versions())


def source_hash() -> str:
    """Hash of all source files of privmem, by their paths inside it."""
    running = hashlib.blake2b(digest_size=16)
    for package in (scheduler, nodeagent, cluster):
        folder = _folder(package)
        for path in sorted(folder.rglob("*.py")):
            running.update(f"{package.__name__}/{path.relative_to(folder).as_posix()}\0".encode())
            body = path.read_bytes()
            running.update(len(body).to_bytes(8, "little"))
            running.update(body)
    return running.hexdigest()


def differences(mine: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    """One phrase for each thing that is not the same."""
    return [
        f"{key} is {theirs.get(key)!r} there and {mine.get(key)!r} here"
        for key in sorted(mine.keys() | theirs.keys())
        if mine.get(key) != theirs.get(key)
    ]


def _folder(package: ModuleType) -> Path:
    assert package.__file__ is not None, "privmem's packages have an __init__.py"
    return Path(package.__file__).parent
