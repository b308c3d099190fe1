"""DAMON's actions on a region of a process: migrate its pages to another node.

Models `damos_va_migrate` of the DAMON series (mainline since Linux 6.16; the private-node series gates its
actions, of every kind, by node). A region whose pages are all on nodes that DAMON may not touch is not tried:
the action answers -ENOENT and the counts of regions stay 0. Left out: monitoring, schemes, quotas.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass

import numpy as np

from privmem.nodeagent.host.layout import PG_LRU, PTE_PFN_SHIFT, PTE_PRESENT
from privmem.nodeagent.host.memory import Memory
from privmem.nodeagent.host.migrate import move_to_frames
from privmem.nodeagent.host.page_alloc import AllocContext, alloc_page
from privmem.nodeagent.host.task import Task
from privmem.scheduler.abi import Reason
from privmem.scheduler.isolation import Service
from privmem.scheduler.zonelist import AllocRequest


@dataclass(frozen=True, slots=True)
class Applied:
    """What a scheme did: regions tried and applied, pages moved; `error` when there was nothing to try."""

    error: int
    tried: int
    applied: int
    pages: int


def migrate_region(memory: Memory, task: Task, start: int, nr_pages: int, target: int) -> Applied:
    """DAMOS action `migrate_cold` or `migrate_hot` of one region to a node. May raise NeedsExtent."""
    pfns = []
    for part in task.mm.in_range(start, start + nr_pages):
        entries = memory.page_table.pte[part.slot : part.slot + part.nr_pages]
        present = entries[entries & np.uint32(PTE_PRESENT) != 0] >> np.uint32(PTE_PFN_SHIFT)
        pfns += [pfn for pfn in present.tolist() if _may_touch(memory, memory.frames.nid_of(pfn))]
    if not pfns or not _may_touch(memory, target):
        return Applied(-errno.ENOENT, 0, 0, 0)
    request = AllocRequest(target, None, Reason.DEMOTION, this_node=True)
    resolution = memory.resolver.resolve(request, None)
    context = AllocContext(
        resolution.zones, Reason.DEMOTION, uninvited=resolution.uninvited, request=request, may_reclaim=False
    )
    moved = 0
    for pfn in pfns:
        if memory.frames.nid_of(pfn) == target or not int(memory.frames.flags[pfn]) & PG_LRU:
            continue
        new = alloc_page(memory, context) if context.zones else -errno.ENOMEM
        if new < 0:
            break
        memory.lru_del(pfn)
        pair = np.array([pfn, new], dtype=np.int32)
        move_to_frames(memory, pair[:1], pair[1:], Reason.DEMOTION)
        moved += 1
    return Applied(0, 1, int(moved > 0), moved)


def _may_touch(memory: Memory, nid: int) -> bool:
    return memory.resolver.allows(Service.DAMON, nid)
