"""Pages of mlocked VMAs: on the unevictable list, out of reach of reclaim.
 Models PG_mlocked and PG_unevictable of Linux 6.1 (`mlock_vma_page`, `munlock_vma_page`, mm/mlock.c) as one
flag: a page is unevictable while some locked VMA maps it, unless the isolation design keeps mlock off its
node (`Service.MLOCK`). Left out: the batches of mlock and their references, `mlock_count`, ramfs.
"""

from __future__ import annotations

import numpy as np

from privmem.nodeagent.host.layout import PG_ACTIVE, PG_LRU, PG_UNEVICTABLE
from privmem.nodeagent.host.memory import Memory
from privmem.scheduler.isolation import Service


def settle(memory: Memory, pfn: int) -> None:
    """Put a mapped frame on the list on which it belongs: the unevictable one if a locked VMA maps it."""
    flags = memory.frames.flags
    locked = memory.locked_slots.covers_any(int(memory.frames.rmap[pfn]), memory.page_table.rmap_next)
    locked = locked and memory.resolver.allows(Service.MLOCK, memory.frames.nid_of(pfn))
    now = int(flags[pfn])
    if locked == bool(now & PG_UNEVICTABLE):
        return
    memory.lru_del(pfn)
    if locked:
        flags[pfn] = np.uint16(int(flags[pfn]) & ~PG_ACTIVE | PG_UNEVICTABLE)
    else:
        flags[pfn] = np.uint16(int(flags[pfn]) & ~PG_UNEVICTABLE)
    if now & PG_LRU:
        memory.lru_add(pfn)
