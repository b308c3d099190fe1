"""Per-CPU batches of pages on their way to the LRU lists: who still holds a reference to a page of nobody
else.

Models `cpu_fbatches.lru_add` of mm/swap.c, Linux 6.1: `folio_add_lru` gathers 15 pages of a CPU (31 since
6.9) before they go to the lists, and each page in a batch has one reference more. Two things can be seen of
it from outside: a write to a page that a fork left write-protected copies the page, although nobody else maps
it, when the batch of *another* CPU still holds it (`do_wp_page`; only the own CPU's batch can be drained
there); and
`drop_caches` leaves such a page in the cache. A second batch, `activate`, does the same for pages on their way
to the active list; a third, `lazyfree`, for those that MADV_FREE gave away, which are on a list meanwhile, so that
nothing drains it before a write copies them. The lists themselves are kept without delay here.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from privmem.nodeagent.host.layout import NIL
from privmem.scheduler.versions import LINUX_6_1


class LruBatches:
    """Pages that a batch holds, by CPU. A batch goes to the lists when it has `batch_pages`."""

    def __init__(self, batch_pages: int = LINUX_6_1.folio_batch_pages) -> None:
        self._batch_pages = batch_pages
        self._batches: dict[int, list[int]] = {}
        #: Page frame -> CPU whose batch holds it.
        self._holder: dict[int, int] = {}
        #: `cpu_fbatches.activate`: pages that were on a list when they were marked; a page may be in twice.
        self._activating: dict[int, list[int]] = {}
        #: `cpu_fbatches.lru_lazyfree`.
        self._lazy: dict[int, list[int]] = {}

    def add(self, cpu: int, pfn: int) -> None:
        """`folio_add_lru` on a CPU."""
        batch = self._batches.setdefault(cpu, [])
        batch.append(pfn)
        self._holder[pfn] = cpu
        if len(batch) == self._batch_pages:
            self._empty(cpu)

    def activate(self, cpu: int, pfn: int) -> None:
        """`folio_activate` on a CPU, of a page that is on a list."""
        batch = self._activating.setdefault(cpu, [])
        batch.append(pfn)
        if len(batch) == self._batch_pages:
            del self._activating[cpu]

    def lazyfree(self, cpu: int, pfn: int) -> None:
        """`folio_mark_lazyfree` on a CPU, of a page that is on a list."""
        batch = self._lazy.setdefault(cpu, [])
        batch.append(pfn)
        if len(batch) == self._batch_pages:
            del self._lazy[cpu]

    def added_on(self, pfn: int) -> int | None:
        """The CPU in whose `lru_add` batch a page is."""
        return self._holder.get(pfn)

    def is_activating(self, pfn: int) -> bool:
        """Whether a page waits in an `activate` batch: it is not active yet."""
        return any(pfn in batch for batch in self._activating.values())

    def forget(self, pfns: np.ndarray) -> None:
        """Frames are free: their next owners are not held. They still count as members of their batch."""
        if self._holder:
            for pfn in pfns.tolist():
                self._holder.pop(pfn, None)
        for batches in (self._activating, self._lazy):
            gone = set(pfns.tolist()) if batches else set()
            for cpu, batch in batches.items():
                batches[cpu] = [NIL if pfn in gone else pfn for pfn in batch]

    def drain(self, cpu: int) -> None:
        """`lru_add_drain` on a CPU."""
        self._activating.pop(cpu, None)
        self._lazy.pop(cpu, None)
        self._empty(cpu)

    def _empty(self, cpu: int) -> None:
        batch = self._batches.pop(cpu, [])
        for pfn in batch:
            if self._holder.get(pfn) == cpu:
                del self._holder[pfn]

    def drain_all(self) -> None:
        """`lru_add_drain_all`, and what `lru_cache_disable` does first."""
        self._batches.clear()
        self._holder.clear()
        self._activating.clear()
        self._lazy.clear()

    def holds(self, pfn: int) -> bool:
        """Whether the batch of some CPU has a reference to the page."""
        return pfn in self._holder or self.is_activating(pfn)

    def held_elsewhere(self, pfn: int, cpu: int) -> bool:
        """Whether the page stays held after the CPU drained its own batch, which it does if any batch holds
        the page before it is on a list.
        """
        if pfn in self._holder:
            self.drain(cpu)
        return pfn in self._holder or any(pfn in batch for batch in self._lazy.values())

    def snapshot(self) -> list[Any]:
        """Plain form."""
        batches = [[cpu, list(self._batches[cpu])] for cpu in sorted(self._batches)]
        activating = [[cpu, list(self._activating[cpu])] for cpu in sorted(self._activating)]
        lazy = [[cpu, list(self._lazy[cpu])] for cpu in sorted(self._lazy)]
        return [batches, [[pfn, self._holder[pfn]] for pfn in sorted(self._holder)], activating, lazy]

    def restore(self, snapshot: list[Any]) -> None:
        """Take over a snapshot."""
        batches, holders, activating, lazy = snapshot
        self._lazy = {int(cpu): [int(pfn) for pfn in pfns] for cpu, pfns in lazy}
        self._activating = {int(cpu): [int(pfn) for pfn in pfns] for cpu, pfns in activating}
        self._batches = {int(cpu): [int(pfn) for pfn in pfns] for cpu, pfns in batches}
        self._holder = {int(pfn): int(cpu) for pfn, cpu in holders}
