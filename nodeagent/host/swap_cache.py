"""Pages on their way to swap and back: the swap cache's side of reclaim, of freeing, and of reading.

Models mm/swap_state.c and the freeing half of mm/swapfile.c, Linux 6.1 (`add_to_swap`, `folio_free_swap`,
`free_swap_and_cache`, `__read_swap_cache_async`), for single pages. A write to swap is over at once, so that
no page waits under writeback.
"""

from __future__ import annotations

import numpy as np

from privmem.nodeagent.host import literal, written
from privmem.nodeagent.host.costs import SWAP_RAM_NS, SWAP_READ_NS, SWAP_WRITE_NS
from privmem.nodeagent.host.layout import PG_DIRTY, PG_SWAPCACHE
from privmem.nodeagent.host.memory import Memory
from privmem.nodeagent.host.migrate import store_content
from privmem.nodeagent.host.page_alloc import AllocContext, alloc_page, free_page

_NOT_CACHED = np.uint16(0xFFFF ^ PG_SWAPCACHE)
_CLEAN = np.uint16(0xFFFF ^ PG_DIRTY)


def add_to_swap(memory: Memory, pfn: int) -> int:
    """`add_to_swap`: give a page a slot, and enter it into the swap cache. The slot, or 0 when the area is full."""
    area = memory.swap
    slot = area.take()
    if slot:
        area.add_to_cache(slot, pfn)
        memory.frames.flags[pfn] |= np.uint16(PG_SWAPCACHE)
        # What it holds is known now; later it may be mapped nowhere.
        source, index = content_of(memory, pfn)
        area.source[slot], area.index[slot] = source, index
        # Nothing is written there yet.
        area.version[slot : slot + 1] = memory.frames.version[pfn : pfn + 1] - np.uint16(1)
    return slot


def content_of(memory: Memory, pfn: int) -> tuple[int, int]:
    """(source, index) of what a page holds that is mapped, or belongs to an object."""
    if memory.is_object_page(pfn):
        return memory.object_content(pfn)
    source, index = memory.page_table.content_of(np.array([memory.frames.rmap[pfn]], dtype=np.int64))
    return int(source[0]), int(index[0])


def write_out(memory: Memory, pfn: int) -> int:
    """`swap_writepage` of a page of the swap cache that nobody maps, if the slot does not hold the same. The ns
    that it takes.
    """
    area, frames = memory.swap, memory.frames
    slot = area.slot_of[pfn]
    if int(frames.flags[pfn]) & PG_DIRTY:
        frames.flags[pfn] &= _CLEAN
        written.advance(memory, np.array([pfn]), np.ones(1, dtype=np.uint16))
    literal.ask_back(memory, memory.nodes[frames.nid_of(pfn)], np.array([pfn]))
    memory.literal.swapped_out(pfn, slot)
    if area.version[slot] == frames.version[pfn]:
        return 0
    area.version[slot] = frames.version[pfn]
    memory.vmstat.add("pswpout")
    return SWAP_RAM_NS if area.synchronous else SWAP_WRITE_NS


def drop_from_cache(memory: Memory, pfn: int) -> None:
    """`delete_from_swap_cache`."""
    memory.swap.drop_from_cache(pfn)
    memory.frames.flags[pfn] &= _NOT_CACHED


def free_swap(memory: Memory, pfn: int) -> bool:
    """`folio_free_swap`: take a page out of the swap cache, unless some entry still names its slot."""
    if memory.swap.count[memory.swap.slot_of[pfn]]:
        return False
    drop_from_cache(memory, pfn)
    return True


def free_swap_and_cache(memory: Memory, slot: int) -> None:
    """`free_swap_and_cache`: an entry that names the slot is gone; after the last one the cached page goes, if
    nobody maps it.
    """
    memory.swap.free(slot)
    pfn = memory.swap.cache.get(slot)
    if pfn is None or memory.swap.count[slot] or int(memory.frames.rmap[pfn]):
        return
    drop_from_cache(memory, pfn)
    memory.lru_del(pfn)
    free_page(memory, pfn)


def read_slot(memory: Memory, pfn: int, slot: int) -> None:
    """`swap_readpage` into a new frame."""
    memory.frames.version[pfn] = memory.swap.version[slot]
    memory.literal.swapped_in(pfn, slot)
    memory.vmstat.add("pswpin")


def read_wait_ns(memory: Memory) -> int:
    """What a fault waits for the device."""
    return SWAP_RAM_NS if memory.swap.synchronous else SWAP_READ_NS


def read_to_cache(memory: Memory, context: AllocContext, slot: int, cpu: int) -> tuple[int, bool]:
    """`__read_swap_cache_async`: the frame that the swap cache has for a slot in use, and whether it is new; or
    -ENOMEM.
    """
    area = memory.swap
    if slot in area.cache:
        return area.cache[slot], False
    pfn = alloc_page(memory, context)
    if pfn < 0:
        return pfn, False
    area.add_to_cache(slot, pfn)
    memory.frames.flags[pfn] |= np.uint16(PG_SWAPCACHE)
    read_slot(memory, pfn, slot)
    memory.lru_add(pfn)
    memory.lru_batches.add(cpu, pfn)
    node = memory.nodes[memory.frames.nid_of(pfn)]
    if node.spec.stores:
        store_content(memory, node, np.array([pfn], dtype=np.int32))
    return pfn, True
