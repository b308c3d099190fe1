"""The folder of one run: `run.json`, which says what it is and how far it got, beside results and checkpoints.

`run.json` is what `privmem resume` starts from: `{"schema": 1, "status": "running" | "complete" |
"interrupted" | "failed", "name", "digest", "config" (the effective configuration), "config_folder" (relative
to this folder; recordings are relative to it), "checkpoint_every", "story_events"}`. A run that was killed stays
"running". A lock on the folder tells it from one that still runs.
"""

from __future__ import annotations

import fcntl
import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from privmem.cluster.errors import ConfigError

RUN_FILE = "run.json"
SCHEMA = 1

RUNNING = "running"
FAILED = "failed"


@dataclass(slots=True)
class RunRecord:
    """The contents of `run.json`."""

    name: str
    config: dict[str, Any]
    #: As handed in, absolute or relative to the working directory; relative to the run's folder on disk.
    config_folder: str
    checkpoint_every: int = 0
    #: Most events of the story of each host's pages; 0 for no stories.
    story_events: int = 0
    status: str = RUNNING
    digest: str = ""
    schema: int = field(default=SCHEMA)


class RunFolder:
    """The folder of a run in progress, locked. `release` it, whatever happens."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = os.open(path, os.O_RDONLY)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._lock)
            raise ConfigError(f"{path}: a run is in progress there") from None

    def write(self, record: RunRecord) -> None:
        """Replace `run.json`, at once and whole."""
        plain = asdict(record)
        plain["config_folder"] = os.path.relpath(record.config_folder, self.path)
        write_text(self.path / RUN_FILE, json.dumps(plain, indent=2) + "\n")

    def release(self) -> None:
        """Unlock."""
        os.close(self._lock)


def write_text(path: Path, text: str) -> None:
    """Write a file so that it is there whole or not at all."""
    unfinished = path.with_name(f"{path.name}.tmp")
    unfinished.write_text(text)
    unfinished.replace(path)


def check_out(out: Path | None) -> None:
    """Refuse a folder named by `--out` that holds something."""
    if out is None:
        return
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out: {out} is not a folder")
    if out.is_dir() and any(out.iterdir()):
        raise ConfigError(f"--out: {out} is not empty")


def create(out: Path | None, name: str) -> RunFolder:
    """Make the folder of a new run: `out`, or the first of results/NAME, results/NAME-2, ... that is free."""
    try:
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
            return RunFolder(out)
        number = 1
        while True:
            path = Path("results") / (name if number == 1 else f"{name}-{number}")
            try:
                path.mkdir(parents=True)
                return RunFolder(path)
            except FileExistsError:
                number += 1
    except OSError as error:
        raise ConfigError(f"--out: {error.filename}: cannot be made: {error.strerror}") from error


def read_record(path: Path) -> RunRecord:
    """The record of the run in a folder. Raises ConfigError when there is none."""
    file = path / RUN_FILE
    try:
        plain = json.loads(file.read_text())
        if plain.get("schema") != SCHEMA:
            raise ConfigError(f"{file}: of schema {plain.get('schema')!r}; this privmem reads {SCHEMA}")
        record = RunRecord(**plain)
        record.config_folder = os.path.normpath(path / record.config_folder)
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}; is {path} a run's folder?") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise ConfigError(f"{file}: damaged: {error}") from error
    return record
