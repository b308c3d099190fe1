"""What reclaim does with the cold pages that it took off a list: demote them, drop them, or swap them out.

Models `shrink_folio_list` of mm/vmscan.c, with `try_to_unmap`, `pageout` and `__remove_mapping`, Linux 6.1, for
single pages; a huge page is split first. Writing to swap and to files is over at once: its time is charged, but
no page stays under writeback. Left out: congestion, throttling, pages of a memory cgroup under its protection.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from privmem.nodeagent.host import huge_split, swap_cache
from privmem.nodeagent.host.costs import FILE_WRITE_NS
from privmem.nodeagent.host.fault import remove_mapping
from privmem.nodeagent.host.filemap import release
from privmem.nodeagent.host.layout import (
    PG_ACTIVE,
    PG_DIRTY,
    PG_EXCLUSIVE,
    PG_FILE,
    PG_OBJECT,
    PG_REFERENCED,
    PG_SWAPCACHE,
    PTE_DIRTY,
    PTE_WRITABLE,
)
from privmem.nodeagent.host.memory import Memory
from privmem.nodeagent.host.page_alloc import free_page
from privmem.nodeagent.host.swap_area import entry_of

KSWAPD, DIRECT = "kswapd", "direct"


@dataclass(slots=True)
class ScanControl:
    """`struct scan_control`: what this reclaim may do, and what it did."""

    #: Whose counters it moves: kswapd's or direct reclaim's; empty for none (MADV_PAGEOUT).
    who: str = DIRECT
    #: The demotion target that was asked first.
    preferred_nid: int = -1
    may_swap: bool = True
    #: Whether written pages of files are written back here; MADV_PAGEOUT leaves them to the flusher.
    writes_files: bool = True
    #: Only pages that no LRU batch holds.
    heeds_batches: bool = False
    #: Time that it took.
    cost_ns: int = 0


def shrink_pages(memory: Memory, pfns: list[int], sc: ScanControl) -> int:
    """`shrink_folio_list` without demotion: take away isolated pages of any node, whose access bits were looked at
    before. Returns how many went; the others are back on their lists.
    """
    if not pfns:
        return 0
    huge_split.split_frames(memory, np.array(pfns, dtype=np.int64))
    return sum(_shrink_page(memory, pfn, sc) for pfn in pfns)


def _shrink_page(memory: Memory, pfn: int, sc: ScanControl) -> bool:
    flags = int(memory.frames.flags[pfn])
    if pfn == memory.in_use:
        return _keep(memory, pfn, activate=False)
    if flags & PG_OBJECT:
        freed = _drop_file_page(memory, pfn, sc) if flags & PG_FILE else _swap_out_shmem(memory, pfn, sc)
    elif flags & PG_FILE:
        freed = _discard(memory, pfn, sc)
    else:
        freed = _swap_out(memory, pfn, sc)
    return freed


def _keep(memory: Memory, pfn: int, activate: bool) -> bool:
    """`activate_locked` and `keep_locked`: the page goes back to a list."""
    if activate:
        memory.frames.flags[pfn] |= np.uint16(PG_ACTIVE)
        memory.vmstat.add("pgactivate")
    memory.lru_add(pfn)
    return False


def _unmap(memory: Memory, pfn: int) -> None:
    """`try_to_unmap` of a page whose entries need not remember anything."""
    while int(memory.frames.rmap[pfn]):
        remove_mapping(memory, int(memory.frames.rmap[pfn]))


def _held(memory: Memory, pfn: int, sc: ScanControl) -> bool:
    """Whether somebody else's reference keeps `__remove_mapping` from freeing the page."""
    return sc.heeds_batches and memory.lru_batches.holds(pfn)


# -- files


def _drop_file_page(memory: Memory, pfn: int, sc: ScanControl) -> bool:
    frames = memory.frames
    holder = memory.page_cache.of(int(frames.object_id[pfn]))
    index = int(frames.object_index[pfn])
    _unmap(memory, pfn)
    if int(frames.flags[pfn]) & PG_DIRTY:
        if not sc.writes_files:
            return _keep(memory, pfn, activate=True)
        frames.flags[pfn] &= np.uint16(0xFFFF ^ PG_DIRTY)
        frames.version[pfn : pfn + 1] += np.uint16(1)
        sc.cost_ns += FILE_WRITE_NS
    if _held(memory, pfn, sc):
        return _keep(memory, pfn, activate=False)
    nid = frames.nid_of(pfn)
    memory.nonresident_age[nid] += 1
    holder.shadows[index] = (nid, int(memory.nonresident_age[nid]))
    release(memory, holder, index)
    return True


# -- anonymous and shared memory


def _swap_out(memory: Memory, pfn: int, sc: ScanControl) -> bool:
    """An anonymous page, mapped or in the swap cache only."""
    area, frames = memory.swap, memory.frames
    cached = bool(int(frames.flags[pfn]) & PG_SWAPCACHE)
    if not sc.may_swap:
        return _keep(memory, pfn, activate=False)
    if not cached and not swap_cache.add_to_swap(memory, pfn):
        if memory.story is not None:
            memory.story.stayed(pfn, "no room on swap")
        return _keep(memory, pfn, activate=True)
    slot = area.slot_of[pfn]
    alone = memory.mapped_once(pfn)
    while int(frames.rmap[pfn]):
        at = int(frames.rmap[pfn])
        exclusive = alone and bool(
            int(memory.page_table.pte[at]) & PTE_WRITABLE or int(frames.flags[pfn]) & PG_EXCLUSIVE
        )
        remove_mapping(memory, at)
        memory.page_table.pte[at] = np.uint32(entry_of(slot, exclusive))
        area.duplicate(slot)
    sc.cost_ns += swap_cache.write_out(memory, pfn)
    if memory.story is not None:
        memory.story.swapped(pfn, slot)
    return _free_cached(memory, pfn, sc)


def _free_cached(memory: Memory, pfn: int, sc: ScanControl) -> bool:
    """`__remove_mapping` of a page of the swap cache that nobody maps and that is written."""
    if _held(memory, pfn, sc):
        return _keep(memory, pfn, activate=False)
    swap_cache.drop_from_cache(memory, pfn)
    free_page(memory, pfn)
    return True


def _swap_out_shmem(memory: Memory, pfn: int, sc: ScanControl) -> bool:
    """`shmem_writepage`: the object remembers the slot, the entries of the page table nothing. A page that nobody
    wrote to is forgotten: zeros are cheaper made than read.
    """
    frames = memory.frames
    holder, index = memory.page_cache.of(int(frames.object_id[pfn])), int(frames.object_index[pfn])
    if sc.may_swap and _was_only_read(memory, pfn):
        _unmap(memory, pfn)
        if _held(memory, pfn, sc):
            return _keep(memory, pfn, activate=False)
        release(memory, holder, index)
        return True
    if not sc.may_swap or not memory.swap.free_pages:
        return _keep(memory, pfn, activate=bool(sc.may_swap))
    _unmap(memory, pfn)
    slot = swap_cache.add_to_swap(memory, pfn)
    del holder.pages[index]
    holder.swapped[index] = slot
    memory.swap.duplicate(slot)
    frames.flags[pfn] &= np.uint16(0xFFFF ^ PG_OBJECT)
    frames.object_id[pfn] = frames.object_index[pfn] = 0
    sc.cost_ns += swap_cache.write_out(memory, pfn)
    if memory.story is not None:
        memory.story.swapped(pfn, slot)
    return _free_cached(memory, pfn, sc)


def _was_only_read(memory: Memory, pfn: int) -> bool:
    """Neither dirty, nor written before: it never was."""
    dirty = bool(int(memory.frames.flags[pfn]) & PG_DIRTY) or int(memory.frames.version[pfn]) > 0
    slot = int(memory.frames.rmap[pfn])
    while slot and not dirty:
        dirty = bool(int(memory.page_table.pte[slot]) & PTE_DIRTY)
        slot = int(memory.page_table.rmap_next[slot])
    return not dirty


def _discard(memory: Memory, pfn: int, sc: ScanControl) -> bool:
    """A page after MADV_FREE: it goes without a trace, unless it was written again."""
    frames = memory.frames
    slots = []
    slot = int(frames.rmap[pfn])
    while slot:
        slots.append(slot)
        slot = int(memory.page_table.rmap_next[slot])
    # Writes through mappings that are gone do not count (`zap_pte_range` forgets them for anonymous pages).
    dirty = any(int(memory.page_table.pte[at]) & PTE_DIRTY for at in slots)
    if dirty or _held(memory, pfn, sc):
        frames.flags[pfn] &= np.uint16(0xFFFF ^ (PG_FILE | PG_REFERENCED))
        return _keep(memory, pfn, activate=True)
    _unmap(memory, pfn)
    free_page(memory, pfn)
    memory.vmstat.add("pglazyfreed")
    return True
