"""Charging pages to memory control groups, and reclaiming theirs: limits, `memory.reclaim`, and their files.

Models `try_charge_memcg`, `try_to_free_mem_cgroup_pages`, `memory_reclaim` and the files memory.current,
memory.max, memory.reclaim, memory.numa_stat and memory.events of mm/memcontrol.c, Linux 6.1, cgroup v2. Reclaim
looks only at pages of the group and those below it, on every node where reclaim is allowed, and demotes before it
swaps, like any other. Left out: memory.high, min and low, limits on swap, charges of slab and sockets, threads in
other groups.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import numpy as np

from privmem.nodeagent.host import _lru_kernel as lru_kernel
from privmem.nodeagent.host import reclaim
from privmem.nodeagent.host.costs import SCAN_NS
from privmem.nodeagent.host.layout import LRU_INACTIVE_ANON, LRU_INACTIVE_FILE, NR_LRU_LISTS, PG_FILE, PG_LRU
from privmem.nodeagent.host.memcg_tree import CHARGED
from privmem.nodeagent.host.memory import Memory, Node
from privmem.nodeagent.host.page_alloc import MAX_RECLAIM_RETRIES, AllocContext
from privmem.nodeagent.host.shrink import DIRECT, ScanControl
from privmem.nodeagent.host.wake import may_reclaim
from privmem.scheduler import nodemask
from privmem.scheduler.abi import PAGE_SHIFT

if TYPE_CHECKING:
    from privmem.nodeagent.host.kernel import Kernel

#: How often a list is looked through without success before reclaim gives up on it.
_FRUITLESS_PASSES = 2
_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


def charge(memory: Memory, ctx: AllocContext, pfns: np.ndarray) -> bool:
    """`mem_cgroup_charge` of frames that were just allocated; False when the limit of a group does not allow them
    and reclaim in it does not help. May raise NeedsExtent.
    """
    tree = memory.memcg
    group = tree.of_pid.get(ctx.owner, 0) if ctx.reason in CHARGED else 0
    if not group:
        return True
    fruitless = 0
    while full := tree.over_limit(group, len(pfns)):
        if fruitless > MAX_RECLAIM_RETRIES:
            tree.events[full]["oom"] += 1
            memory.failed_memcg = full
            return False
        tree.events[full]["max"] += 1
        got = shrink_group(memory, full, max(len(pfns), reclaim.SWAP_CLUSTER_MAX))
        fruitless = 0 if got else fruitless + 1
    tree.charge(group, pfns)
    return True


def shrink_group(memory: Memory, group: int, nr_pages: int) -> int:
    """`try_to_free_mem_cgroup_pages`: take pages of a group and those below it, node by node; how many went.
    Charges the caller.
    """
    inside = memory.memcg.below(group)
    freed = 0
    for nid in sorted(memory.nodes):
        node = memory.nodes[nid]
        if may_reclaim(memory, node) and freed < nr_pages:
            freed += _shrink_node(memory, node, inside, nr_pages - freed)
    return freed


def _shrink_node(memory: Memory, node: Node, inside: np.ndarray, nr_pages: int) -> int:
    """`shrink_node_memcgs` of one node, in rounds until enough went or nothing more goes."""
    freed = fruitless = 0
    while freed < nr_pages and fruitless <= _FRUITLESS_PASSES:
        sc = ScanControl(DIRECT)
        targets = reclaim.targets_with_room(memory, node, sc)
        kinds = [LRU_INACTIVE_FILE]
        if targets or memory.swap.free_pages:
            kinds.append(LRU_INACTIVE_ANON)
        gone = looked = 0
        for inactive in kinds:
            lists = node.nid * NR_LRU_LISTS + inactive
            victims, seen = _isolate(memory, lists, inside)
            gone += reclaim.take_victims(memory, node, victims, targets, sc)
            looked += seen
        memory.charge_ns += sc.cost_ns + looked * SCAN_NS
        freed += gone
        fruitless = 0 if gone else fruitless + 1
        if not looked:
            break
    return freed


def _isolate(memory: Memory, lists: int, inside: np.ndarray) -> tuple[np.ndarray, int]:
    """Cold pages of the groups off an inactive list, aging its active list when there are too few of them. Returns
    them, and how many were looked at.
    """
    arrays = (*memory.lru_arrays(), *memory.rmap_arrays())
    of_frame, vmstat = memory.memcg.of_frame, memory.vmstat
    victims = np.empty(reclaim.SWAP_CLUSTER_MAX, dtype=np.int32)
    nr_scan = len(victims)
    scanned, taken, activated = lru_kernel.isolate_inactive_of(
        lists, nr_scan, inside, of_frame, victims, *arrays
    )
    aged = 0
    if scanned < nr_scan:
        aged = lru_kernel.shrink_active_of(lists + 1, nr_scan, inside, of_frame, *arrays)
    vmstat.add(f"pgscan_{DIRECT}", scanned)
    vmstat.add("pgactivate", activated)
    vmstat.add("pgdeactivate", aged)
    return victims[:taken], scanned + aged


# -- what an administrator does


def memory_reclaim(memory: Memory, name: str, nr_pages: int) -> int:
    """Write `memory.reclaim`: 0, or -EAGAIN when fewer pages could be had. Demoted pages count, as in 6.1."""
    group = memory.memcg.names.index(name)
    freed, retries = 0, MAX_RECLAIM_RETRIES
    while freed < nr_pages:
        if not retries:
            memory.lru_batches.drain_all()
        got = shrink_group(memory, group, nr_pages - freed)
        if not got and not retries:
            return -errno.EAGAIN
        retries -= not got
        freed += got
    return 0


def set_max(memory: Memory, name: str, nr_pages: int | None) -> int:
    """Write `memory.max`: 0. What is over the new limit is reclaimed; what cannot be stays, and the OOM killer is
    the caller's (`Kernel.write_memory_max`).
    """
    tree = memory.memcg
    group = tree.names.index(name)
    tree.max_pages[group] = nr_pages
    retries = MAX_RECLAIM_RETRIES
    while nr_pages is not None and tree.usage[group] > nr_pages and retries:
        if not shrink_group(memory, group, tree.usage[group] - nr_pages):
            retries -= 1
    return 0


def numa_stat(memory: Memory, name: str) -> dict[str, dict[int, int]]:
    """`memory.numa_stat`: pages of a group and those below it, of both kinds, by node with memory."""
    tree, frames = memory.memcg, memory.frames
    inside = tree.below(tree.names.index(name))
    stat: dict[str, dict[int, int]] = {"anon": {}, "file": {}}
    for nid in nodemask.nodes(memory.topology.memory):
        node = memory.nodes[nid]
        span = slice(node.start_pfn, node.start_pfn + node.spec.span_pages)
        flags = frames.flags[span]
        mine = inside[tree.of_frame[span]] & (flags & PG_LRU != 0) if tree.active else flags & PG_LRU != 0
        file = mine & (flags & PG_FILE != 0)
        stat["file"][nid] = int(np.count_nonzero(file))
        stat["anon"][nid] = int(np.count_nonzero(mine)) - stat["file"][nid]
    return stat


# -- files


def add_files(kernel: Kernel) -> None:
    """Enter the files of the memory controller into the kernel's."""
    own = MemcgFiles(kernel)
    group = r"/sys/fs/cgroup/(\w+)/memory\."
    kernel.sysfs.add(group + "current", own.current)
    kernel.sysfs.add(group + "max", own.max, own.write_max)
    kernel.sysfs.add(group + "reclaim", lambda _name: -errno.EINVAL, own.write_reclaim)
    kernel.sysfs.add(r"/sys/fs/cgroup/(?:(\w+)/)?memory\.numa_stat", own.numa_stat)
    kernel.sysfs.add(group + "events", own.events)


def parse_bytes(text: str) -> int | None:
    """`page_counter_memparse`: pages of a size such as `64M`; None for `max`, -EINVAL for nonsense."""
    if text == "max":
        return None
    number, unit = text, ""
    if text and text[-1].lower() in _UNITS:
        number, unit = text[:-1], text[-1].lower()
    if not number.isascii() or not number.isdecimal():
        return -errno.EINVAL
    return int(number) * _UNITS[unit] >> PAGE_SHIFT


class MemcgFiles:
    """Readers give text or a negative errno, writers 0 or a negative errno."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.memory = kernel.memory

    def _group(self, name: str) -> int:
        names = self.memory.memcg.names
        return names.index(name) if name in names else -errno.ENOENT

    def current(self, name: str) -> str | int:
        group = self._group(name)
        return group if group < 0 else str(self.memory.memcg.usage[group] << PAGE_SHIFT)

    def max(self, name: str) -> str | int:
        group = self._group(name)
        if group < 0:
            return group
        limit = self.memory.memcg.max_pages[group]
        return "max" if limit is None else str(limit << PAGE_SHIFT)

    def write_max(self, name: str, text: str) -> int:
        limit = parse_bytes(text)
        if self._group(name) < 0 or (limit is not None and limit < 0):
            return self._group(name) if self._group(name) < 0 else -errno.EINVAL
        return self.kernel.write_memory_max(name, limit)

    def write_reclaim(self, name: str, text: str) -> int:
        nr_pages = parse_bytes(text)
        if self._group(name) < 0:
            return self._group(name)
        if nr_pages is not None and nr_pages < 0:
            return nr_pages
        everything = sum(node.managed_pages for node in self.memory.nodes.values())
        return memory_reclaim(self.memory, name, everything if nr_pages is None else nr_pages)

    def numa_stat(self, name: str | None) -> str | int:
        if self._group(name or "") < 0:
            return -errno.ENOENT
        stat = numa_stat(self.memory, name or "")
        return "\n".join(
            " ".join([kind, *(f"N{nid}={pages << PAGE_SHIFT}" for nid, pages in by_node.items())])
            for kind, by_node in stat.items()
        )

    def events(self, name: str) -> str | int:
        group = self._group(name)
        if group < 0:
            return group
        return "\n".join(f"{event} {count}" for event, count in self.memory.memcg.events[group].items())
