"""What the report plots of compressed RAM with a service: capacity, states, and pages that were lost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from privmem.cluster.results.figures import (
    DASHES,
    PALETTE,
    SHOWN_MAX,
    Figure,
    Panel,
    TimeAxis,
    area,
    limit,
    line,
    line_styles,
)
from privmem.cluster.results.intervals import Track, held, steps, tracks_of, until
from privmem.cluster.results.series import short_name
from privmem.scheduler.abi import PAGE_SIZE

_MIB = 2**20
_PAGES_PER_MIB = _MIB // PAGE_SIZE
_LINES = (
    ("usable_pages", "usable: perceived capacity", PALETTE[0]),
    ("resident_pages", "pages that are there", PALETTE[4]),
)
_NONE = "No compressed RAM with a service that a device reports to."
#: State: colour, and what it means.
STATES = {
    "normal": ("#009e73", "normal"),
    "pressure": (PALETTE[4], "pressure: less fits than it shows"),
    "closed": (PALETTE[1], "gate closed: nothing comes in"),
    "refusing": (PALETTE[3], "refusing: no room that is certain"),
}


@dataclass(frozen=True, slots=True)
class Node:
    """A compressed node with a service."""

    title: str
    track: Track
    #: Physical memory of its device; 0 when nobody says.
    physical_bytes: int


def nodes_of(
    summary: Mapping[str, Any], tables: Mapping[str, pa.Table], devices: Mapping[str, Track]
) -> list[Node]:
    """Those of a run, by host and node."""
    if "cram" not in tables:
        return []
    found = []
    for (host, nid), track in tracks_of(tables["cram"], ("host", "nid")).items():
        entries = summary.get("hosts", {}).get(host, {}).get("nodes", {})
        entry = entries.get(nid, entries.get(str(nid), {}))
        device = devices.get(short_name(str(entry.get("device", f"{host}.n{nid}"))))
        physical = 0 if device is None else int(device.columns["capacity_bytes"].max())
        found.append(Node(_title(host, nid, entry.get("service")), track, physical))
    return found


def _title(host: str, nid: int, service: Mapping[str, Any] | None) -> str:
    if not service:  # an interrupted run
        return f"{host}, node {nid}"
    return f"{host}: {service['generation']}, {'' if service['write_control'] else 'no '}write control"


def capacity(nodes: Sequence[Node], grid: np.ndarray, axis: TimeAxis) -> Figure:
    """What a compressed node can hold, what is there, and the memory behind it."""
    panels = []
    for node in nodes[:SHOWN_MAX]:
        own = until(grid, int(node.track.time_ns[-1]))
        x, panel = axis.values(own), Panel(node.title)
        used = held(node.track, own, "device_used_bytes") / _MIB
        panel.traces.append(area("physical memory used", PALETTE[1], x, used, unit="MiB"))
        for column, name, colour in _LINES:
            pages = held(node.track, own, column) / _PAGES_PER_MIB
            panel.traces.append(line(name, colour, x, pages, unit="MiB", line={"width": 2}))
        shown = held(node.track, own, "shown_pages") / _PAGES_PER_MIB
        panel.traces.append(limit("shown when nothing is stored", x, shown, unit="MiB"))
        if node.physical_bytes:
            there = np.full(len(own), node.physical_bytes / _MIB)
            style = {"dash": "dot", "width": 1.4}
            panel.traces.append(line("physical memory", PALETTE[3], x, there, unit="MiB", line=style))
        panels.append(panel)
    return Figure(
        "Capacity of compressed RAM",
        "A compressed device shows more memory than it has; how much of it can be used depends on what pages "
        "hold. When contents compress worse, the service takes memory out of use (the balloon), and pages leave, "
        "until what is left fits into the physical memory.",
        "MiB",
        panels,
        empty=_NONE,
        note=_note(nodes),
    )


def states(nodes: Sequence[Node], grid: np.ndarray, axis: TimeAxis) -> Figure:
    """Share of the time in each state."""
    panels = []
    for node in nodes[:SHOWN_MAX]:
        own = until(grid, int(node.track.time_ns[-1]))
        panel = Panel(node.title)
        for state, (colour, name) in STATES.items():
            share = 100 * node.track.delta(own, f"{state}_ns") / np.diff(own)
            panel.traces.append(area(name, colour, axis.values(own), steps(share), unit="%"))
        panels.append(panel)
    return Figure(
        "State of the compressed RAM service",
        "Share of each interval that the service spent in each state, the one of greatest need counting. With the "
        "gate closed pages stay in ordinary memory or go to swap.",
        "% of time",
        panels,
        empty=_NONE,
        note=_note(nodes),
        y_max=100,
    )


def lost(nodes: Sequence[Node], grid: np.ndarray, axis: TimeAxis) -> Figure:
    """Pages that devices refused after they had accepted them."""
    panel = Panel("")
    shown = {node.title: node.track for node in nodes[:SHOWN_MAX]}
    for at, (name, (colour, _)) in enumerate(line_styles(shown).items()):
        values = held(shown[name], grid, "lost_pages")
        style = {"dash": DASHES[at % len(DASHES)], "width": 2}  # most of them are 0 all the time
        panel.traces.append(line(name, colour, axis.values(grid), values, unit="pages", digits=0, line=style))
    return Figure(
        "Pages refused after they were accepted",
        "A page that is written in place may need more physical memory than when it came, at a time when there is "
        "none: the device then has to refuse a page that it had accepted, and its content is lost. A write-fenced "
        "page cannot: a write moves it to ordinary memory first. Counted from the start.",
        "pages lost",
        [panel] if shown else [],
        empty=_NONE,
        note=_note(nodes),
    )


def _note(nodes: Sequence[Node]) -> str:
    more = len(nodes) - SHOWN_MAX
    return f"{more} more compressed nodes are in cram.parquet." if more > 0 else ""
