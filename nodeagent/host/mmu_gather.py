"""The pages that one unmapping gathers before it frees them, and what the list of them costs a task.

Models `struct mmu_gather` (mm/mmu_gather.c, `zap_pte_range`) of Linux 6.1 so far as it can be seen: the list has
room for a few pages, and then takes pages of the kernel's own, which come under the policy of the task. A task that
interleaves gives a turn for each. Left out: the page itself, which is free again when the unmapping ends, and the
page tables that munmap frees, which are on the list too.
"""

from __future__ import annotations

#: Pages that the list has room for in itself (MMU_GATHER_BUNDLE), and in each page that it takes; so many of these.
_BUNDLE = 8
_BATCH = 510
_BATCHES_MAX = 19

#: Pages that one page of a page table maps.
_TABLE_PAGES = 512


class MmuGather:
    """`tlb_gather_mmu` to `tlb_finish_mmu`."""

    def __init__(self) -> None:
        self._waiting = 0
        #: Pages that the list took.
        self.batches = 0

    def add(self, vpns: list[int], flushes: list[bool]) -> None:
        """Pages in order of their addresses. One that `flushes` is dirty and belongs to an object: what waits is
        freed at the end of its page table.
        """
        flush, table = False, -1
        for vpn, dirty in zip(vpns, flushes, strict=True):
            if vpn // _TABLE_PAGES != table:
                self._end_of_table(flush)
                flush, table = False, vpn // _TABLE_PAGES
            flush = flush or dirty
            self._waiting += 1
        self._end_of_table(flush)

    def _end_of_table(self, flush: bool) -> None:
        if self._waiting >= _BUNDLE:
            wanted = 1 + (self._waiting - _BUNDLE) // _BATCH
            self.batches = max(self.batches, min(wanted, _BATCHES_MAX))
        if flush:
            self._waiting = 0
