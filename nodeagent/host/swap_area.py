"""The swap area of a host and its swap cache: which slot holds which page, and which frames have a copy there.

Models `struct swap_info_struct` with its `swap_map`, and the swap cache, of Linux 6.1, for one area without
priorities. Slots count from 1, since page 0 of a real area is its header. What is written keeps the identity
of its content (see `mm.Region`). Slots are given out in ascending order and used again only when the end was
reached, which stands for the clusters and per-CPU slot caches of an SSD.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from privmem.nodeagent.host.layout import PTE_PFN_SHIFT, PTE_PRESENT, PTE_SWAP, PTE_SWP_EXCLUSIVE
from privmem.scheduler.errors import InvariantError

#: Most slots of an area: what an entry of the page table can name.
SLOTS_MAX = (1 << (32 - PTE_PFN_SHIFT)) - 1

_ARRAYS = ("count", "version", "source", "index")
_IS_SWAP = np.uint32(PTE_PRESENT | PTE_SWAP)


def entry_of(slot: int, exclusive: bool) -> int:
    """The page-table entry of a page on swap; `exclusive`: nobody else had it when it went there."""
    return slot << PTE_PFN_SHIFT | PTE_SWAP | (PTE_SWP_EXCLUSIVE if exclusive else 0)


def is_swap_entry(entry: int) -> bool:
    """Whether a page-table entry says that its page is on swap."""
    return entry & (PTE_PRESENT | PTE_SWAP) == PTE_SWAP


def swap_entries(entries: np.ndarray) -> np.ndarray:
    """Positions of the swap entries among page-table entries."""
    return np.flatnonzero(entries & _IS_SWAP == np.uint32(PTE_SWAP))


class SwapArea:
    """`swap_info`; no area while `nr_pages` is 0.

    Arrays over slots, index 0 unused:
    count    uint16  users of the slot (`swap_map`): page-table entries, or one shared-memory object
    version  uint16  version of the content that was written there
    source   uint16  what the content is, see mm.Region
    index    uint32
    """

    def __init__(self) -> None:
        self.nr_pages = 0
        #: A device that answers at once (brd, zram): pages that one process has do not go by the swap cache.
        self.synchronous = False
        #: `vm.page_cluster`: a fault reads up to 2**page_cluster slots. Linux has 3, workloads 0.
        self.page_cluster = 0
        self._next = 1
        self._allocate(0)
        #: The swap cache: slot -> frame, and back.
        self.cache: dict[int, int] = {}
        self.slot_of: dict[int, int] = {}
        #: Frames that readahead brought and nobody has used yet (PG_readahead).
        self.ahead: dict[int, None] = {}
        #: Readahead around a fault's address (`swap_readahead_info`): first page of the VMA's slots -> last
        #: fault, window, hits.
        self.vma_info: dict[int, tuple[int, int, int]] = {}
        #: Readahead around a slot: last slot, last window, hits since (`swapin_nr_pages`).
        self.cluster_info = (0, 0, 4)

    def _allocate(self, nr_pages: int) -> None:
        self.nr_pages = nr_pages
        self.count = np.zeros(nr_pages + 1, dtype=np.uint16)
        self.version = np.zeros(nr_pages + 1, dtype=np.uint16)
        self.source = np.zeros(nr_pages + 1, dtype=np.uint16)
        self.index = np.zeros(nr_pages + 1, dtype=np.uint32)
        self.used = 0

    def on(self, nr_pages: int, synchronous: bool, page_cluster: int) -> None:
        """`swapon`: an empty area of this many pages."""
        self.synchronous, self.page_cluster, self._next = synchronous, page_cluster, 1
        self._allocate(nr_pages)

    @property
    def free_pages(self) -> int:
        """`get_nr_swap_pages`."""
        return self.nr_pages - self.used

    def take(self) -> int:
        """A free slot, which is then in use by the swap cache only; 0 when there is none."""
        if not self.free_pages:
            return 0
        for _ in range(self.nr_pages):
            slot = self._next
            self._next = slot + 1 if slot < self.nr_pages else 1
            if not self.count[slot] and slot not in self.cache:
                self.used += 1
                return slot
        raise InvariantError("free slots of the swap area do not add up")

    def add_to_cache(self, slot: int, pfn: int) -> None:
        """`add_to_swap_cache`: the frame holds what the slot holds, or will."""
        self.cache[slot] = pfn
        self.slot_of[pfn] = slot

    def drop_from_cache(self, pfn: int) -> None:
        """`delete_from_swap_cache`: a slot without other users is free then."""
        slot = self.slot_of.pop(pfn)
        del self.cache[slot]
        self.ahead.pop(pfn, None)
        if not self.count[slot]:
            self.used -= 1

    def content_of(self, pfn: int) -> tuple[int, int]:
        """(source, index) of what a page of the swap cache holds."""
        slot = self.slot_of[pfn]
        return int(self.source[slot]), int(self.index[slot])

    def moved(self, old_pfn: int, new_pfn: int) -> None:
        """A page of the swap cache is in another frame now."""
        slot = self.slot_of.pop(old_pfn)
        self.add_to_cache(slot, new_pfn)
        if old_pfn in self.ahead:
            del self.ahead[old_pfn]
            self.ahead[new_pfn] = None

    def duplicate(self, slot: int) -> None:
        """`swap_duplicate`: one more entry names the slot."""
        self.count[slot] += np.uint16(1)

    def free(self, slot: int) -> None:
        """`swap_free`: one entry less names the slot."""
        self.count[slot] -= np.uint16(1)
        if not self.count[slot] and slot not in self.cache:
            self.used -= 1

    def snapshot(self) -> dict[str, Any]:
        """Plain form."""
        used = self.nr_pages + 1 if self.used else 0
        return {
            "nr_pages": self.nr_pages,
            "synchronous": self.synchronous,
            "page_cluster": self.page_cluster,
            "next": self._next,
            "used": self.used,
            "arrays": [getattr(self, name)[:used].copy() for name in _ARRAYS],
            "cache": [[slot, self.cache[slot]] for slot in sorted(self.cache)],
            "ahead": sorted(self.ahead),
            "vma_info": [[slot, *self.vma_info[slot]] for slot in sorted(self.vma_info)],
            "cluster_info": list(self.cluster_info),
        }

    def restore(self, snapshot: dict[str, Any]) -> None:
        """Take over a snapshot."""
        self.on(snapshot["nr_pages"], snapshot["synchronous"], snapshot["page_cluster"])
        self._next, self.used = snapshot["next"], snapshot["used"]
        for name, saved in zip(_ARRAYS, snapshot["arrays"], strict=True):
            getattr(self, name)[: len(saved)] = saved
        self.cache = {int(slot): int(pfn) for slot, pfn in snapshot["cache"]}
        self.slot_of = {pfn: slot for slot, pfn in self.cache.items()}
        self.ahead = dict.fromkeys(int(pfn) for pfn in snapshot["ahead"])
        self.vma_info = {int(s): (int(a), int(w), int(h)) for s, a, w, h in snapshot["vma_info"]}
        last, window, hits = snapshot["cluster_info"]
        self.cluster_info = (int(last), int(window), int(hits))
