"""Kernel samepage merging: equal anonymous pages become one, read-only.

Models `cmp_and_merge_page` and `try_to_merge_one_page` (mm/ksm.c) of Linux 6.1, as one full scan over all areas
that were advised MADV_MERGEABLE. Pages are equal when their content is (`nodeagent/content.py`: source, index,
version), so nothing is compared byte by byte; the first one seen stays. A page of a private node is skipped
unless the design lets KSM work there. Left out: the stable and unstable trees (a scan sees all at once),
`merge_across_nodes=0`, the zero page, pages_to_scan.
"""

from __future__ import annotations

import numpy as np

from privmem.nodeagent.host.fault import add_mapping, drop_if_unused, remove_mapping
from privmem.nodeagent.host.layout import (
    PG_EXCLUSIVE,
    PG_HELD,
    PG_OBJECT,
    PTE_ACCESSED,
    PTE_DIRTY,
    PTE_PFN_SHIFT,
    PTE_PRESENT,
    PTE_WRITABLE,
)
from privmem.nodeagent.host.memory import Memory
from privmem.nodeagent.host.task import Task
from privmem.scheduler.isolation import Service

#: A stretch of an address space that was advised: (address space, first page, one past the last).
Area = tuple[int, int, int]

_NOT_EXCLUSIVE = np.uint16(0xFFFF ^ PG_EXCLUSIVE)
_READ_ONLY = np.uint32(0xFFFFFFFF ^ (PTE_WRITABLE | PTE_DIRTY))


def scan(memory: Memory, tasks: list[Task], areas: list[Area]) -> int:
    """One full scan of ksmd over the areas of these tasks: how many pages were merged away."""
    kept: dict[tuple[int, int, int] | bytes, int] = {}
    merged = 0
    by_mm = {task.mm.mm_id: task for task in tasks}
    for mm_id, start, end in areas:
        task = by_mm.get(mm_id)
        for part in task.mm.in_range(start, end) if task else ():
            for slot in range(part.slot, part.slot + part.nr_pages):
                merged += _merge(memory, slot, kept)
    return merged


def _merge(memory: Memory, slot: int, kept: dict[tuple[int, int, int] | bytes, int]) -> int:
    """Look at one page: 1 when it went for an equal one, 0 when it stays."""
    entry = int(memory.page_table.pte[slot])
    if not entry & PTE_PRESENT:
        return 0
    pfn = entry >> PTE_PFN_SHIFT
    if int(memory.frames.flags[pfn]) & (PG_OBJECT | PG_HELD):
        return 0
    if not memory.resolver.allows(Service.KSM, memory.frames.nid_of(pfn)):
        return 0
    source, index = memory.page_table.content_of(np.array([slot], dtype=np.int64))
    version = int(memory.frames.version[pfn])
    key = (int(source[0]), int(index[0]) if source[0] else 0, version if source[0] else 0)
    keeper = kept.setdefault(memory.literal.written.get(pfn, key), pfn)
    if keeper == pfn:
        return 0
    _protect(memory, keeper)
    remove_mapping(memory, slot)
    add_mapping(memory, slot, keeper, entry & PTE_ACCESSED | PTE_PRESENT)
    drop_if_unused(memory, pfn)
    memory.vmstat.add("ksm_merged")
    return 1


def _protect(memory: Memory, pfn: int) -> None:
    """Whoever writes to the one copy from now on gets a page of his own."""
    memory.frames.flags[pfn] &= _NOT_EXCLUSIVE
    slot = int(memory.frames.rmap[pfn])
    while slot:
        memory.page_table.pte[slot] &= _READ_ONLY
        slot = int(memory.page_table.rmap_next[slot])
