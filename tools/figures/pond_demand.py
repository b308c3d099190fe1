"""How much memory the servers of a pool need from day to day, and the configuration in which they do.

Published: Pond (ASPLOS 2023), which saves 7 % of DRAM by its abstract. Its traces are not public; this model stands
for them, with figures that were reported of the same servers and one choice, a distribution. docs/experiments.md
says where each comes from and how sure it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import yaml

#: The demand model (docs/experiments.md says where each figure comes from, and how sure it is). What the virtual
#: machines of a server need of its memory changes once a day, at another time of the day on each server; what they
#: do not need is stranded.
STRANDED_MAX = 0.25  # "up to 25 %"; uniform below it, which is our choice
LOCAL_SHARE = 0.5  # about half of rented memory is never touched: that much may be behind CXL
DAYS = 75
DRAWS_SEED = 2023
#: The scale: a server of 32 MiB stands for one of 256 GiB, an extent for 2 GiB. A pool gets one extent back an
#: epoch, so a day has more epochs than a server has extents to return.
SERVER_PAGES = 8192
EXTENT_PAGES = 64
DAY_MS = 50
#: What a kernel keeps free at this scale: below the low watermark of the local zone nobody allocates while there is
#: a pool; a movable zone's minimum is 32 pages, and gaps are of 0.1 %, here of the four pages of half a server.
LOCAL_FREE_PAGES = 5
POOLED_LOW_PAGES, POOLED_HIGH_PAGES = 35, 38


@dataclass(frozen=True, slots=True)
class Demand:
    """What the model is asked for; all but the number of servers as in the experiment."""

    hosts: int
    days: int = DAYS
    stranded_max: float = STRANDED_MAX
    local: float = LOCAL_SHARE
    seed: int = DRAWS_SEED
    server_pages: int = SERVER_PAGES

    @property
    def local_pages(self) -> int:
        """Of each server's own."""
        return int(self.server_pages * self.local)

    @property
    def least_pages(self) -> int:
        """What no day's demand is below."""
        return int(self.server_pages * (1 - self.stranded_max))

    def pages(self) -> np.ndarray:
        """Pages that each server's machines need, by (day, server)."""
        drawn = np.random.default_rng(self.seed).random((self.days, self.hosts))
        return np.ceil(self.server_pages * (1 - self.stranded_max * drawn)).astype(np.int64)

    def pool_pages(self) -> int:
        """What a pool must have: the most that all need at once behind what is local. Servers change one after the
        other: when server n has come to its new day, those after it are still in the one before.
        """
        behind = np.maximum(0, self.pages() - self.local_pages)
        before = np.vstack([np.full(self.hosts, max(0, self.least_pages - self.local_pages)), behind[:-1]])
        changed, unchanged = behind.cumsum(axis=1), before[:, ::-1].cumsum(axis=1)[:, ::-1]
        return int((changed + unchanged - before).max())

    def held_pages(self, day_ms: int = DAY_MS) -> int:
        """The same in extents, as hosts of the emulator hold them: a new one when the free pages of the pooled node
        come to its low watermark, one given back an epoch when two are free above its high one.
        """
        wanted = np.full(self.hosts, self.least_pages)
        held, most = np.zeros(self.hosts, dtype=np.int64), 0
        changes: dict[int, list[tuple[int, int]]] = {}
        for (day, number), pages in np.ndenumerate(self.pages()):
            at_ms = change_ms(day, number, self.hosts, day_ms)
            changes.setdefault(at_ms, []).append((number, int(pages)))
        for at_ms in range((self.days + 1) * day_ms):
            for number, pages in changes.get(at_ms, []):
                wanted[number] = pages
            behind = np.maximum(0, wanted - self.local_pages + LOCAL_FREE_PAGES)
            held = np.maximum(held, -(-(behind + POOLED_LOW_PAGES) // EXTENT_PAGES) * EXTENT_PAGES)
            most = max(most, int(held.sum()))
            held -= EXTENT_PAGES * (held - behind >= 2 * EXTENT_PAGES + POOLED_HIGH_PAGES)
        return most

    def saved(self, pool_pages: int) -> float:
        """Share of the DRAM of servers that have all of theirs, which such a pool saves."""
        return 1 - (self.hosts * self.local_pages + pool_pages) / (self.hosts * self.server_pages)


def change_ms(day: int, number: int, hosts: int, day_ms: int) -> int:
    """When a day of a server begins. What it always needs is there half a day before, and takes local memory."""
    return day * day_ms + day_ms // 2 + number * day_ms // hosts


def pond_configuration(demand: Demand, day_ms: int = DAY_MS) -> dict[str, Any]:
    """Servers with the local part of their memory, and a pool that could give each of them the rest."""
    pool_kib = demand.hosts * (demand.server_pages - demand.local_pages) * 4
    nodes = [
        {"id": 0, "memory": {"class": "dram", "capacity": f"{4 * demand.local_pages}KiB"}, "cpus": [0]},
        {"id": 1, "device": "pool", "via": 0, "hop": 14},
    ]
    entries = []
    for number, by_day in enumerate(demand.pages().T.tolist()):
        processes = [{"name": "always", "workload": _touch(demand.least_pages)}]
        for day, pages in enumerate(by_day):
            start_ms = change_ms(day, number, demand.hosts, day_ms)
            times = {"start": f"{start_ms}ms", "stop": f"{start_ms + day_ms}ms"}
            if pages > demand.least_pages:
                processes.append(
                    {"name": f"day{day}", **times, "workload": _touch(pages - demand.least_pages)}
                )
        # What Linux computes for 128 GiB of low memory, as a share of it: 46 MiB, and 0.1 % a watermark.
        sysctl = {"min_free_kbytes": demand.local_pages * 4 * 46 // 131072, "watermark_scale_factor": 10}
        entries.append(
            {"name": f"h{number}", "cpus": 1, "nodes": nodes, "sysctl": sysctl, "processes": processes}
        )
    pool = {"class": "cxl", "capacity": f"{pool_kib}KiB", "pooled": True, "extent": f"{4 * EXTENT_PAGES}KiB"}
    return {
        "schema": 1,
        "name": "pond",
        "seed": 1,
        "engine": {"duration": f"{(demand.days + 2) * day_ms}ms", "epoch": "1ms", "slice": "1ms"},
        "results": {"sample_every": 10},
        "devices": {"pool": pool},
        "hosts": entries,
    }


def _touch(pages: int) -> dict[str, Any]:
    return {"kind": "scan", "size": f"{4 * pages}KiB", "accesses": pages}


def pond_text(demand: Demand) -> str:
    """The configuration as a file: a line a process."""
    config = pond_configuration(demand)
    lines = [
        f"# {demand.hosts} servers whose demand for memory changes daily share a pool: what does that save?",
        f"# Written by `python tools/figures/pools.py pond-config {demand.hosts}`; see docs/experiments.md.",
    ]
    entries = config.pop("hosts")
    lines += [f"{key}: {_flow(value)}" for key, value in config.items()]
    lines.append("hosts:")
    for entry in entries:
        processes = entry.pop("processes")
        for at, (key, value) in enumerate(entry.items()):
            lines.append(f"  {' ' if at else '-'} {key}: {_flow(value)}")
        lines.append("    processes:")
        lines += [f"      - {_flow(process)}" for process in processes]
    return "\n".join(lines) + "\n"


def _flow(value: Any) -> str:
    text = yaml.safe_dump(value, sort_keys=False, default_flow_style=True, width=1000)
    return text.removesuffix("...\n").strip()
