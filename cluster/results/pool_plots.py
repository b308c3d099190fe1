"""What the report says of pools: what each host holds beside its share, and what sharing saves.

The scheduler's samples tell shares, the hosts' own tell what they hold and use of it (they send one every time).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from privmem.cluster.results.figures import (
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
from privmem.cluster.results.intervals import Track, held
from privmem.scheduler.abi import PAGE_SIZE

_PAGES_PER_MIB = 2**20 // PAGE_SIZE
#: Device -> host -> samples.
ByHost = Mapping[str, Mapping[str, Track]]


def shares(asked: ByHost, grid: np.ndarray, axis: TimeAxis) -> Figure:
    """What hosts hold of each pool that is divided by weights, beside what is due to them; `asked`: the
    scheduler's samples.
    """
    divided = {device: by_host for device, by_host in asked.items() if _divides(by_host)}
    devices = list(divided)[:SHOWN_MAX]
    # Two lines a host: more than eight of them are a thicket.
    hosts = list(dict.fromkeys(host for device in devices for host in divided[device]))
    styles, x = line_styles(hosts[:SHOWN_MAX]), axis.values(grid)
    panels = []
    for device in devices:
        panel = Panel(device if len(devices) > 1 else "")
        for host, (colour, _) in styles.items():
            if host not in divided[device]:
                continue
            track = divided[device][host]
            for name, column, style in (
                (host, "granted_pages", {}),
                (f"due to {host}", "entitled_pages", {"dash": "dot", "width": 1.2}),
            ):
                values = held(track, grid, column) / _PAGES_PER_MIB
                panel.traces.append(line(name, colour, x, values, unit="MiB", line=style))
        panels.append(panel)
    left_out = len(hosts) - len(styles)
    return Figure(
        "Pooled memory against the host's share",
        "What each host holds of a pool that hosts ask more of than there is, and, dotted, what is due to it: "
        "by its weight, its reservation, and what all of them hold and want at that time. Where no dotted line "
        "is to be seen, a host holds what is due to it.",
        "MiB",
        panels,
        empty="No pool was divided by shares: no weights, nobody asked to give back, or nobody asked for more "
        "than its share.",
        note=f"{left_out} more hosts are in scheduler.parquet." if left_out else "",
    )


def sharing(grants: ByHost, grid: np.ndarray, axis: TimeAxis) -> Figure:
    """Sums over the hosts of each pool: used, held, and what devices of their own would need; `grants`: the
    hosts' samples of their pooled nodes.
    """
    panels, x = [], axis.values(grid)
    for device in list(grants)[:SHOWN_MAX]:
        tracks = list(grants[device].values())
        columns = [_held_pages(track) for track in tracks]
        total, peaks, free = (np.zeros(len(grid)) for _ in range(3))
        for track, column in zip(tracks, columns, strict=True):
            total += held(track, grid, column)
            highest = Track(track.time_ns, {column: np.maximum.accumulate(track.columns[column])})
            peaks += held(highest, grid, column)
            free += held(track, grid, "free_pages")
        panel = Panel(device if len(grants) > 1 else "")
        panel.traces = [
            area("used by hosts", PALETTE[0], x, (total - free) / _PAGES_PER_MIB, unit="MiB"),
            area("held, not used", PALETTE[1], x, free / _PAGES_PER_MIB, unit="MiB"),
            limit(
                "most held at once, so far: the pool's size",
                x,
                np.maximum.accumulate(total) / _PAGES_PER_MIB,
                unit="MiB",
            ),
            line(
                "most that each held, added up: devices of their own",
                PALETTE[3],
                x,
                peaks / _PAGES_PER_MIB,
                unit="MiB",
            ),
        ]
        panels.append(panel)
    return Figure(
        "What sharing a pool saves",
        "The layers are what all hosts hold of a pool; the upper one lies idle with them, and nobody else can "
        "have it. A pool must be as large as the most that they ever held at once; a device for each host would "
        "have to be as large as the most that this host ever held. What is between the two lines at the end is "
        "the memory that sharing saved. Hosts that were refused memory would have held more on their own.",
        "MiB",
        panels,
        empty="No pooled device was used.",
    )


def _held_pages(track: Track) -> str:
    return "granted_pages" if "granted_pages" in track.columns else "present_pages"


def _divides(by_host: Mapping[str, Track]) -> bool:
    """Whether anybody ever held more than its share: without shares, that is what it holds or was promised."""
    return any(
        bool((track.columns["granted_pages"] > track.columns["entitled_pages"]).any())
        for track in by_host.values()
        if "entitled_pages" in track.columns
    )
