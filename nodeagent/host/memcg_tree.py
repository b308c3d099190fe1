"""Memory control groups: the tree, who is in which group, and which group pays for which frame.

Models `struct mem_cgroup` with its page counters (mm/memcontrol.c, Linux 6.1, cgroup v2): a page is charged to
the group of the process that first asked for it, and to all groups above; it stays charged there when the
process moves. Group 0 is the root, which counts nothing and has no limit. Without another group nothing is kept.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from privmem.scheduler.abi import Reason

#: Pages that are charged (`__GFP_ACCOUNT`, `mem_cgroup_charge`); the kernel's own and a driver's are not.
CHARGED = frozenset(
    {Reason.FAULT, Reason.POLICY, Reason.PAGECACHE, Reason.SWAPIN, Reason.PAGETABLE, Reason.COLLAPSE}
)


class MemcgTree:
    """All groups of a host, by id."""

    def __init__(self, nr_frames: int) -> None:
        self._nr_frames = nr_frames
        self.names: list[str] = [""]
        self.parents: list[int] = [0]
        #: Pages charged to a group and to those below it.
        self.usage: list[int] = [0]
        #: `memory.max` in pages; None for no limit.
        self.max_pages: list[int | None] = [None]
        #: `memory.events`: how often the limit was hit, memory could not be had, a process was killed.
        self.events: list[dict[str, int]] = [{"max": 0, "oom": 0, "oom_kill": 0}]
        self.of_pid: dict[int, int] = {}
        #: Group of each frame; empty until there is a group.
        self.of_frame = np.zeros(0, dtype=np.uint16)

    @property
    def active(self) -> bool:
        """Whether there is a group but the root."""
        return len(self.names) > 1

    def create(self, name: str, parent: str = "") -> int:
        """`mkdir`; its id."""
        above = self.names.index(parent)
        if not self.active:
            self.of_frame = np.zeros(self._nr_frames, dtype=np.uint16)
        self.names.append(name)
        self.parents.append(above)
        self.usage.append(0)
        self.max_pages.append(None)
        self.events.append(dict.fromkeys(self.events[0], 0))
        return len(self.names) - 1

    def attach(self, pid: int, name: str) -> None:
        """A process is in the group from now on; what it has stays charged where it is."""
        if self.active:
            self.of_pid[pid] = self.names.index(name)

    def forked(self, pid: int, child: int) -> None:
        """A child is in its parent's group."""
        if pid in self.of_pid:
            self.of_pid[child] = self.of_pid[pid]

    def path(self, group: int) -> list[int]:
        """The group and those above it, without the root."""
        found = []
        while group:
            found.append(group)
            group = self.parents[group]
        return found

    def below(self, group: int) -> np.ndarray:
        """By id: whether a group is this one or below it."""
        return np.array([group in (*self.path(g), 0) for g in range(len(self.names))], dtype=np.bool_)

    def over_limit(self, group: int, nr_pages: int) -> int:
        """The first group on the way up whose limit does not allow so many pages more; 0 for none."""
        for at in self.path(group):
            limit = self.max_pages[at]
            if limit is not None and self.usage[at] + nr_pages > limit:
                return at
        return 0

    def charge(self, group: int, pfns: np.ndarray) -> None:
        """`commit_charge`."""
        self.of_frame[pfns] = group
        for at in self.path(group):
            self.usage[at] += len(pfns)

    def uncharge(self, pfns: np.ndarray) -> None:
        """`mem_cgroup_uncharge`."""
        groups, counts = np.unique(self.of_frame[pfns], return_counts=True)
        for group, count in zip(groups.tolist(), counts.tolist(), strict=True):
            for at in self.path(group):
                self.usage[at] -= count
        self.of_frame[pfns] = 0

    def moved(self, old: np.ndarray, new: np.ndarray) -> None:
        """`mem_cgroup_migrate`: the pages are in other frames."""
        self.of_frame[new] = self.of_frame[old]
        self.of_frame[old] = 0

    def snapshot(self) -> dict[str, Any]:
        """Plain form."""
        return {
            "names": list(self.names),
            "parents": list(self.parents),
            "usage": list(self.usage),
            "max_pages": list(self.max_pages),
            "events": [dict(events) for events in self.events],
            "of_pid": [[pid, self.of_pid[pid]] for pid in sorted(self.of_pid)],
            "of_frame": self.of_frame.copy(),
        }

    def restore(self, snapshot: dict[str, Any]) -> None:
        """Take over a snapshot."""
        self.names, self.parents = list(snapshot["names"]), list(snapshot["parents"])
        self.usage, self.max_pages = list(snapshot["usage"]), list(snapshot["max_pages"])
        self.events = [dict(events) for events in snapshot["events"]]
        self.of_pid = {int(pid): int(group) for pid, group in snapshot["of_pid"]}
        self.of_frame = np.array(snapshot["of_frame"], dtype=np.uint16)
