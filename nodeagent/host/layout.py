"""Bits of the packed arrays of a host, read by compiled and plain code alike.

A page-table entry (PTE) is a uint32. Bits 0-4 are flags, bits 5-31 the page frame number: so a host can have
2**27 frames, 512 GiB. An entry without PRESENT is 0, or one of those below. As in the kernel, hardware sets
ACCESSED and DIRTY; here the access loop does.

Slots: page-table entries of all address spaces of a host live in one array, and a *slot* is an index into it.
Slot 0 is never used, so that 0 can stand for "none" in the reverse map.
"""

from __future__ import annotations

PTE_PRESENT = 1
PTE_WRITABLE = 2
PTE_ACCESSED = 4
PTE_DIRTY = 8
PTE_PROTNONE = 16  # NUMA balancing took the access right to see the next access (`pte_protnone`)
PTE_PFN_SHIFT = 5
#: The whole entry of the shared zero page, which has no frame here, and so no PRESENT. A write gets a page.
PTE_ZERO = PTE_ACCESSED
#: In an entry without PRESENT: the page is on swap, the frame number is that of its slot (swap_area.py).
PTE_SWAP = PTE_DIRTY
#: With PTE_SWAP: no other process had the page (`pte_swp_exclusive`).
PTE_SWP_EXCLUSIVE = PTE_WRITABLE
PTE_FLAGS = (1 << PTE_PFN_SHIFT) - 1
FRAMES_MAX = 1 << (32 - PTE_PFN_SHIFT)

# Flags of a page frame, uint16 (`enum pageflags`).
PG_ALLOCATED = 1  # somebody owns it; clear: free in the buddy, or offline
PG_LRU = 2
PG_ACTIVE = 4
PG_REFERENCED = 8
PG_FILE = (
    16  # on the file lists: page cache that is not shmem; anonymous pages after MADV_FREE (not swap-backed)
)
PG_DIRTY = 64  # written through a mapping that is gone; the others say so in their PTE
PG_UNINVITED = 128  # on a private node that did not invite the request: a leak (`Design.invited`)
PG_HELD = 256  # held by a driver or the kernel: mapped or not, on no LRU list, never reclaimed or moved
PG_UNEVICTABLE = 512  # mlocked: on the list that reclaim does not scan
PG_SWAPCACHE = 1024  # the swap cache knows it: a slot of the swap area holds, or will hold, the same
PG_EXCLUSIVE = 2048  # anonymous, of one process alone, which may write it in place (PG_anon_exclusive)
PG_OBJECT = 32  # belongs to a file or shared-memory object: `object_id`, `object_index` say where

# LRU lists of node `nid` are rows nid * NR_LRU_LISTS + one of these (`enum lru_list`).
LRU_INACTIVE_ANON = 0
LRU_ACTIVE_ANON = 1
LRU_INACTIVE_FILE = 2
LRU_ACTIVE_FILE = 3
LRU_UNEVICTABLE = 4
NR_LRU_LISTS = 5

NIL = -1

# Why the access loop stopped.
STOP_END = 0  # the batch is used up
STOP_BUDGET = 1  # the slice's time is used up
STOP_NOT_PRESENT = 2
STOP_WRITE_PROTECT = 3
STOP_HINT = 4
