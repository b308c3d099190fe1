"""madvise: what a process says of its memory, and what follows for pages.

Models mm/madvise.c of Linux 6.1: `madvise_walk_vmas` (an error of one VMA ends the call; holes are passed over,
and give -ENOMEM in the end), MADV_DONTNEED, _FREE, _COLD, _PAGEOUT, _WILLNEED, _POPULATE_READ and _WRITE; how files
are read is in read_advice.py, huge pages in thp.py. PAGEOUT and COLD take only pages that nobody else maps, and
only on nodes where `Service.MADVISE` is allowed; PAGEOUT never demotes. Left out: MADV_REMOVE, _DONTFORK,
_WIPEONFORK, hardware poison, and the rights to a file that PAGEOUT of a shared mapping needs.
"""

from __future__ import annotations

import errno
from collections.abc import Callable

import numpy as np

from privmem.nodeagent.host import (
    file_io,
    huge_split,
    hugetlb_map,
    khugepaged,
    read_advice,
    swap,
    swap_cache,
    thp,
)
from privmem.nodeagent.host.cram import placement
from privmem.nodeagent.host.fault import unmap_range
from privmem.nodeagent.host.layout import (
    PG_ACTIVE,
    PG_DIRTY,
    PG_FILE,
    PG_LRU,
    PG_OBJECT,
    PG_REFERENCED,
    PG_SWAPCACHE,
    PG_UNEVICTABLE,
    PTE_ACCESSED,
    PTE_DIRTY,
    PTE_PFN_SHIFT,
    PTE_PRESENT,
)
from privmem.nodeagent.host.memory import Memory
from privmem.nodeagent.host.mm import VMA_ANON, Vma
from privmem.nodeagent.host.pagecache import FILE, SHMEM
from privmem.nodeagent.host.populate import fault_in
from privmem.nodeagent.host.shrink import ScanControl, shrink_pages
from privmem.nodeagent.host.swap_area import swap_entries
from privmem.nodeagent.host.task import Task
from privmem.scheduler.isolation import Service

MADV_NORMAL, MADV_RANDOM, MADV_SEQUENTIAL, MADV_WILLNEED = 0, 1, 2, 3
MADV_DONTNEED = 4
MADV_FREE = 8
MADV_HUGEPAGE, MADV_NOHUGEPAGE = 14, 15
MADV_COLD, MADV_PAGEOUT = 20, 21
MADV_POPULATE_READ, MADV_POPULATE_WRITE = 22, 23
MADV_DONTNEED_LOCKED = 24
MADV_COLLAPSE = 25

Visit = Callable[[Memory, Task, Vma], int]


def madvise(memory: Memory, task: Task, start: int, nr_pages: int, advice: int) -> int:
    """`do_madvise` of pages [start, start + nr_pages): 0 or a negative errno."""
    if advice not in _CALLS and advice not in _VISITS:
        return -errno.EINVAL
    if nr_pages < 0:
        return -errno.EINVAL
    if nr_pages == 0:
        return 0
    if advice in _CALLS:
        return _CALLS[advice](memory, task, start, nr_pages)
    end, at, error = start + nr_pages, start, 0
    for part in task.mm.in_range(start, end):
        if part.start != at:
            error = -errno.ENOMEM
        refused = _VISITS[advice](memory, task, part)
        if refused:
            return refused
        at = part.end
    return error if at == end else -errno.ENOMEM


# -- forgetting pages


def madvise_dontneed(memory: Memory, task: Task, start: int, nr_pages: int) -> int:
    """MADV_DONTNEED: the entries of the page table become empty."""
    return madvise(memory, task, start, nr_pages, MADV_DONTNEED)


def _dontneed(memory: Memory, task: Task, part: Vma) -> int:
    return -errno.EINVAL if part.locked else _dontneed_locked(memory, task, part)


def _dontneed_locked(memory: Memory, task: Task, part: Vma) -> int:
    """`madvise_dontneed_single_vma`."""
    if hugetlb_map.cuts_a_page(memory, task, part.start, part.end):
        return -errno.EINVAL
    memory.lru_batches.drain(task.cpu)
    gather = task.gather()
    unmap_range(memory, part, task.cpu, gather)
    task.finish(gather)
    return 0


def _free(memory: Memory, task: Task, part: Vma) -> int:
    """`madvise_free_single_vma`: reclaim may take the pages without asking; those on swap go at once."""
    if part.locked or part.kind != VMA_ANON or part.device_nid >= 0:
        return -errno.EINVAL
    memory.lru_batches.drain(task.cpu)
    huge_split.split(memory, part.slot, part.nr_pages)
    entries = memory.page_table.pte[part.slot : part.slot + part.nr_pages]
    for offset in swap_entries(entries).tolist():
        swap_cache.free_swap_and_cache(memory, int(entries[offset]) >> PTE_PFN_SHIFT)
        entries[offset] = 0
    for offset in np.flatnonzero(entries & np.uint32(PTE_PRESENT)).tolist():
        _free_page(memory, task.cpu, part.slot + offset)
    return 0


def _free_page(memory: Memory, cpu: int, slot: int) -> None:
    """`madvise_free_pte_range` of one page, and `lru_lazyfree_fn`."""
    pte, frames = memory.page_table.pte, memory.frames
    pfn = int(pte[slot]) >> PTE_PFN_SHIFT
    flags = int(frames.flags[pfn])
    if flags & PG_SWAPCACHE and not (memory.mapped_once(pfn) and swap_cache.free_swap(memory, pfn)):
        return
    if flags & PG_DIRTY or int(pte[slot]) & PTE_DIRTY:  # what was written until now is a version of its own
        frames.version[pfn : pfn + 1] += np.uint16(1)
        frames.flags[pfn] &= np.uint16(0xFFFF ^ PG_DIRTY)
    pte[slot] &= np.uint32(0xFFFFFFFF ^ (PTE_ACCESSED | PTE_DIRTY))
    if flags & (PG_FILE | PG_OBJECT | PG_UNEVICTABLE) or not flags & PG_LRU:
        return
    memory.lru_del(pfn)
    frames.flags[pfn] &= np.uint16(0xFFFF ^ (PG_ACTIVE | PG_REFERENCED))
    frames.flags[pfn] |= np.uint16(PG_FILE)
    memory.lru_add(pfn)
    memory.lru_batches.lazyfree(cpu, pfn)
    memory.vmstat.add("pglazyfree")


# -- aging and reclaiming pages


def _cold_pages(memory: Memory, task: Task, part: Vma) -> list[int]:
    """`madvise_cold_or_pageout_pte_range`: pages of a part on a list that nobody else maps; they are old now."""
    memory.lru_batches.drain(task.cpu)
    entries = memory.page_table.pte[part.slot : part.slot + part.nr_pages]
    found = []
    for offset in np.flatnonzero(entries & np.uint32(PTE_PRESENT)).tolist():
        pfn = int(entries[offset]) >> PTE_PFN_SHIFT
        on_list = memory.frames.flags[pfn] & np.uint16(PG_LRU) and memory.lru_batches.added_on(pfn) is None
        if not on_list or not memory.mapped_once(pfn):
            continue
        if not memory.resolver.allows(Service.MADVISE, memory.frames.nid_of(pfn)):
            continue
        entries[offset] &= np.uint32(0xFFFFFFFF ^ PTE_ACCESSED)
        memory.frames.flags[pfn] &= np.uint16(0xFFFF ^ PG_REFERENCED)
        found.append(pfn)
    return found


def _cold(memory: Memory, task: Task, part: Vma) -> int:
    """MADV_COLD: `deactivate_page`."""
    if _is_special(memory, part):
        return -errno.EINVAL
    for pfn in _cold_pages(memory, task, part):
        if memory.frames.flags[pfn] & np.uint16(PG_ACTIVE):
            memory.lru_del(pfn)
            memory.frames.flags[pfn] &= np.uint16(0xFFFF ^ PG_ACTIVE)
            memory.lru_add(pfn)
            memory.vmstat.add("pgdeactivate")
    return 0


def _pageout(memory: Memory, task: Task, part: Vma) -> int:
    """MADV_PAGEOUT: `reclaim_pages`, without demotion but for compressed RAM."""
    if _is_special(memory, part):
        return -errno.EINVAL
    victims = []
    for pfn in _cold_pages(memory, task, part):
        if not memory.frames.flags[pfn] & np.uint16(PG_UNEVICTABLE):
            memory.lru_del(pfn)
            victims.append(pfn)
    sc = ScanControl(who="", writes_files=False, heeds_batches=True)
    stayed, cost_ns = placement.demote(memory, victims)
    shrink_pages(memory, stayed, sc)
    memory.charge_ns += sc.cost_ns + cost_ns
    return 0


def _is_special(memory: Memory, part: Vma) -> bool:
    """`can_madv_lru_vma`, denied."""
    return part.locked or part.device_nid >= 0 or hugetlb_map.is_hugetlb(memory, part)


# -- bringing pages


def _willneed(memory: Memory, task: Task, part: Vma) -> int:
    """`madvise_willneed`: from swap into the swap cache, from a file into the page cache; nothing is mapped."""
    if part.kind == VMA_ANON:
        swap.willneed_anon(memory, task, part)
        return 0
    holder = memory.page_cache.of(part.object_id)
    end = part.index + part.nr_pages
    if holder.kind == SHMEM:
        swap.willneed_shmem(memory, task, holder, part.index, end)
    elif holder.kind == FILE:
        file_io.will_need(memory, task, memory.page_cache.open_files[part.file_id], part.index, end)
    return 0


def _populate(write: bool) -> Callable[[Memory, Task, int, int], int]:
    def populate(memory: Memory, task: Task, start: int, nr_pages: int) -> int:
        """`madvise_populate`: page after page, up to the first hole or the first page that cannot be had."""
        at, end = start, start + nr_pages
        for part in task.mm.in_range(start, end):
            if part.start != at:
                return -errno.ENOMEM
            if not (part.writable if write else part.readable):
                return -errno.EINVAL
            error = fault_in(memory, task, part, write)
            if error:
                return error
            at = part.end
        return 0 if at == end else -errno.ENOMEM

    return populate


def _order(advice: int) -> Callable[[Memory, Task, int, int], int]:
    return lambda memory, task, start, nr: read_advice.madvise_order(memory, task, start, nr, advice)


_CALLS: dict[int, Callable[[Memory, Task, int, int], int]] = {
    **{advice: _order(advice) for advice in (MADV_NORMAL, MADV_RANDOM, MADV_SEQUENTIAL)},
    MADV_HUGEPAGE: lambda memory, task, start, nr: thp.madvise(memory, task, start, nr, huge=True),
    MADV_NOHUGEPAGE: lambda memory, task, start, nr: thp.madvise(memory, task, start, nr, huge=False),
    MADV_POPULATE_READ: _populate(write=False),
    MADV_POPULATE_WRITE: _populate(write=True),
    MADV_COLLAPSE: khugepaged.madvise_collapse,
}
_VISITS: dict[int, Visit] = {
    MADV_WILLNEED: _willneed,
    MADV_DONTNEED: _dontneed,
    MADV_DONTNEED_LOCKED: _dontneed_locked,
    MADV_FREE: _free,
    MADV_COLD: _cold,
    MADV_PAGEOUT: _pageout,
}
