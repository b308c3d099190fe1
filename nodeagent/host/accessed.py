"""A page was used by a system call, or by a mapping that goes: `folio_mark_accessed` of mm/swap.c, Linux 6.1.

The first mark makes a page referenced, the second active. A page on a list becomes active by way of a batch of
the CPU; one that is still in the CPU's own `lru_add` batch is marked there; one in another CPU's cannot be found
(`__lru_cache_activate_folio`). Left out: workingset distances, idle tracking, the multi-generational LRU.
"""

from __future__ import annotations

import numpy as np

from privmem.nodeagent.host.layout import PG_ACTIVE, PG_LRU, PG_REFERENCED, PG_UNEVICTABLE
from privmem.nodeagent.host.memory import Memory

_NOT_REFERENCED = np.uint16(0xFFFF ^ PG_REFERENCED)


def mark_accessed(memory: Memory, cpu: int, pfn: int) -> None:
    """`folio_mark_accessed` by a task on a CPU. Nothing for a frame that is on no list (held)."""
    flags, batches = memory.frames.flags, memory.lru_batches
    now = int(flags[pfn])
    if not now & PG_LRU:
        return
    if not now & PG_REFERENCED:
        flags[pfn] |= np.uint16(PG_REFERENCED)
        return
    if now & PG_UNEVICTABLE or (now & PG_ACTIVE and not batches.is_activating(pfn)):
        return
    added_on = batches.added_on(pfn)
    if added_on is None:
        batches.activate(cpu, pfn)
    if added_on in (None, cpu) and not now & PG_ACTIVE:
        memory.lru_del(pfn)
        flags[pfn] |= np.uint16(PG_ACTIVE)
        memory.lru_add(pfn)
        memory.vmstat.add("pgactivate")
    flags[pfn] &= _NOT_REFERENCED
