"""The stories of a run's pages: `story/HOST.jsonl.gz`, written by `privmem run --story`, read by `privmem why`.

The first line says which host it is, how many events came before those that were kept, and the address space of
each process; each other line is one event, as `Event.plain` gives it. Equal runs give equal files.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from privmem.cluster.errors import ConfigError
from privmem.nodeagent.host.story_events import Event

FOLDER = "story"
SCHEMA = 1


@dataclass(frozen=True, slots=True)
class HostStory:
    """The story of one host, read back."""

    host: str
    #: Events that were dropped because there were too many.
    dropped: int
    #: Process -> its address space.
    processes: dict[str, int]
    events: list[Event]


def write_stories(folder: Path, summary: Mapping[str, Any]) -> dict[str, Any]:
    """Write the stories that hosts kept; returns the summary without them."""
    hosts = {}
    for name, host in summary.get("hosts", {}).items():
        hosts[name] = {key: value for key, value in host.items() if key != "story"}
        if "story" in host:
            _write(folder / FOLDER / f"{name}.jsonl.gz", name, host)
    return {**summary, "hosts": hosts} if "hosts" in summary else dict(summary)


def _write(path: Path, name: str, host: Mapping[str, Any]) -> None:
    told = host["story"]
    head = {
        "schema": SCHEMA,
        "host": name,
        "dropped": told["number"] - len(told["events"]),
        "processes": {process: entry["spec"]["pid"] for process, entry in host["processes"].items()},
    }
    lines = [json.dumps(head), *(json.dumps(row) for row in told["events"])]
    path.parent.mkdir(exist_ok=True)
    unfinished = path.with_name(f".{path.name}.tmp")
    unfinished.write_bytes(gzip.compress("\n".join(lines).encode(), mtime=0))
    unfinished.replace(path)


def read_story(folder: Path, host: str) -> HostStory:
    """The story of a host. Raises ConfigError when the run has none, or it is damaged."""
    path = folder / FOLDER / f"{host}.jsonl.gz"
    if not path.is_file():
        known = sorted(p.name.removesuffix(".jsonl.gz") for p in (folder / FOLDER).glob("*.jsonl.gz"))
        told = f"hosts with a story: {', '.join(known)}" if known else "it was not run with --story"
        raise ConfigError(f"{folder}: no story of the host {host!r}; {told}")
    try:
        head, *rows = map(json.loads, gzip.decompress(path.read_bytes()).decode().split("\n"))
        if head["schema"] != SCHEMA:
            raise ConfigError(f"{path}: of schema {head['schema']!r}; this privmem reads {SCHEMA}")
        events = [Event.from_plain(row) for row in rows]
        return HostStory(head["host"], head["dropped"], dict(head["processes"]), events)
    except (OSError, EOFError, zlib.error, ValueError, TypeError, KeyError) as error:
        raise ConfigError(f"{path}: damaged: {error}") from error
