"""The compressed RAM service of the kernel side: entry by demotion only, mapped read-only, promoted by a
write fault.

Follows the feature series (F1): a compressed node is write-fenced, so every page there is mapped without the
right to write (`migrate.move_to_frames`), and a store finds its way here. The page moves to a public node,
nearest first; reclaim may run for it, the OOM killer may not. If no memory can be had the page stays where it
is, nothing is written in place, and the store is tried again a little later. Space on the device is leased
(messages.PagesStored), so a page that was moved there was certainly taken. Left out here: pressure, balloon,
trim results, promotion of pages that are hot for reads.
"""

from __future__ import annotations

import errno

import numpy as np

from privmem.nodeagent.host.costs import FAULT_NS, FENCE_RETRY_NS
from privmem.nodeagent.host.cram.service import Generation
from privmem.nodeagent.host.layout import PG_LRU, PTE_PFN_SHIFT, PTE_WRITABLE
from privmem.nodeagent.host.memory import Memory
from privmem.nodeagent.host.migrate import migrate_cost_ns, move_to_frames
from privmem.nodeagent.host.mm import Vma
from privmem.nodeagent.host.page_alloc import AllocContext, alloc_page
from privmem.scheduler.abi import Reason


def copies(memory: Memory, vma: Vma, pfn: int) -> bool:
    """Whether a store to a page of a fenced node leaves it where it is, for the writer gets a copy of its own
    in any case: a private mapping of a page that others have too. In the first generation the owner's
    `handle_fault` comes first, and moves it.
    """
    if not vma.private or memory.cram.generation is Generation.V4:
        return False
    return memory.is_object_page(pfn) or not memory.mapped_once(pfn)


def fence_fault(memory: Memory, slot: int, ctx: AllocContext, own: bool) -> int:
    """A store to a page of a fenced node: promote the page and let the store go on. Returns ns. May raise
    NeedsExtent.

    Unless the page is the writer's `own`, the store faults again where the page is then, and the page is
    copied or shared there as anywhere.
    """
    pte = memory.page_table.pte
    pfn = int(pte[slot]) >> PTE_PFN_SHIFT
    source = memory.nodes[memory.frames.nid_of(pfn)]
    new = promote(memory, pfn, ctx)
    if new < 0:
        return FAULT_NS + FENCE_RETRY_NS
    target = memory.nodes[memory.frames.nid_of(new)]
    if own and memory.mapped_once(new):
        pte[slot] |= np.uint32(PTE_WRITABLE)
    return FAULT_NS + migrate_cost_ns(source, target)


def why_not(memory: Memory, slot: int) -> int:
    """Why the page at a slot could not be promoted: -EAGAIN while it is pinned, else -ENOMEM."""
    pfn = int(memory.page_table.pte[slot]) >> PTE_PFN_SHIFT
    return -errno.ENOMEM if memory.frames.flags[pfn] & PG_LRU else -errno.EAGAIN


def promote(memory: Memory, pfn: int, ctx: AllocContext) -> int:
    """Move a page off a fenced node, because it is going to be written: its new frame, -ENOMEM, or -EAGAIN for one
    that is pinned or held, which does not move (`folio_expected_refs`).
    """
    held = not memory.frames.flags[pfn] & PG_LRU
    new = -errno.EAGAIN if held else alloc_page(memory, ctx)
    if new < 0:
        memory.vmstat.add("pgpromote_fence_fail")
        memory.cram.promote_fail += 1
        return new
    memory.lru_del(pfn)
    as_array = np.array([pfn, new], dtype=np.int32)
    move_to_frames(memory, as_array[:1], as_array[1:], Reason.PROMOTION)
    memory.vmstat.add("pgpromote_fence")
    memory.cram.promote_count += 1
    return new
