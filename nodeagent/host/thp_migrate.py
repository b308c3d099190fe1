"""Moving a huge page as one.

Models `migrate_pages` of Linux 6.1 for a transparent huge page, as the NUMA system calls use it: the target is
asked for a whole block; where it has none the page is split and its parts are moved one by one
(`try_split_thp`). Left out: huge pages that reclaim demotes, NUMA balancing promotes, or hotplug and contiguous
ranges move away: those are split first.
"""

from __future__ import annotations

import numpy as np

from privmem.nodeagent.host.blocks import Effort, alloc_block
from privmem.nodeagent.host.high_order import HPAGE_PAGES
from privmem.nodeagent.host.layout import PG_LRU, PTE_PFN_SHIFT
from privmem.nodeagent.host.memory import Memory
from privmem.nodeagent.host.migrate import move_to_frames
from privmem.nodeagent.host.page_alloc import AllocContext
from privmem.scheduler.abi import PAGEBLOCK_ORDER, Reason


def page_of(memory: Memory, pfn: int) -> list[int]:
    """The frames of the huge page that a frame is part of, if some mapping maps it as one; else itself."""
    maps = memory.high_order.huge_maps
    slot = int(memory.frames.rmap[pfn]) if len(maps) else 0
    while slot:
        for first in maps.overlapping(slot):
            head = int(memory.page_table.pte[first]) >> PTE_PFN_SHIFT
            return list(range(head, head + HPAGE_PAGES))
        slot = int(memory.page_table.rmap_next[slot])
    return [pfn]


def move_whole(
    memory: Memory, pfns: list[int], contexts: list[AllocContext]
) -> tuple[list[int], list[AllocContext]]:
    """Move the huge pages of which all parts are among `pfns`, each to a block by its first part's context. What is
    left to be moved by single pages, with its contexts.
    """
    if not len(memory.high_order.huge_maps):
        return pfns, contexts
    context_of = dict(zip(pfns, contexts, strict=True))
    done: dict[int, None] = {}
    for pfn in pfns:
        page = page_of(memory, pfn) if pfn % HPAGE_PAGES == 0 else [pfn]
        whole = len(page) > 1 and all(part in context_of for part in page)
        if not whole or not np.all(memory.frames.flags[page] & np.uint16(PG_LRU)):
            continue
        if _move(memory, pfn, context_of[pfn]):
            done.update(dict.fromkeys(page))
    left = [pfn for pfn in pfns if pfn not in done]
    return left, [context_of[pfn] for pfn in left]


def _move(memory: Memory, head: int, context: AllocContext) -> bool:
    """One huge page into a block. False, with nothing changed, when there is none."""
    new = alloc_block(memory, context, PAGEBLOCK_ORDER, Effort.RECLAIM) if context.zones else -1
    if new < 0:
        memory.vmstat.add("thp_migration_split")
        return False
    move_block(memory, head, new, Reason.USER_MOVE)
    return True


def move_block(memory: Memory, head: int, new: int, reason: Reason) -> None:
    """A huge page into a block that is allocated for it; the mappings stay huge."""
    maps = memory.high_order.huge_maps
    slots = _mappings(memory, head)
    for slot in slots:
        maps.remove(slot)
    old = np.arange(head, head + HPAGE_PAGES, dtype=np.int32)
    for pfn in old.tolist():
        memory.lru_del(pfn)
    move_to_frames(memory, old, np.arange(new, new + HPAGE_PAGES, dtype=np.int32), reason)
    for slot in slots:
        maps.add(slot)
    memory.vmstat.add("thp_migration_success")


def _mappings(memory: Memory, head: int) -> list[int]:
    """First slots of the huge mappings of a page."""
    found = []
    slot = int(memory.frames.rmap[head])
    while slot:
        if slot in memory.high_order.huge_maps.overlapping(slot):
            found.append(slot)
        slot = int(memory.page_table.rmap_next[slot])
    return found
