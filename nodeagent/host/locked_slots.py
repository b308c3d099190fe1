"""Which page-table slots belong to mlocked VMAs: what says whether a page that is unmapped there stays
mlocked.

Stands for VM_LOCKED as `page_remove_rmap` and `mlock_vma_page` of Linux 6.1 look it up over the reverse map;
here the reverse map knows slots, not VMAs.
"""

from __future__ import annotations

from bisect import bisect_right

import numpy as np


class LockedSlots:
    """Ranges of slots, ascending, that neither overlap nor touch."""

    def __init__(self) -> None:
        self.ranges: list[tuple[int, int]] = []  # first slot, one past the last

    def __len__(self) -> int:
        return len(self.ranges)

    def add(self, slot: int, nr_pages: int) -> None:
        """These slots are of a locked VMA from now on."""
        start, end = slot, slot + nr_pages
        apart = [r for r in self.ranges if r[1] < start or r[0] > end]
        for low, high in self.ranges:
            if low <= end and high >= start:
                start, end = min(start, low), max(end, high)
        self.ranges = sorted([*apart, (start, end)])

    def remove(self, slot: int, nr_pages: int) -> None:
        """These slots are no longer of a locked VMA, if they were."""
        start, end = slot, slot + nr_pages
        kept: list[tuple[int, int]] = []
        for low, high in self.ranges:
            kept += [(low, min(high, start))] if low < start else []
            kept += [(max(low, end), high)] if high > end else []
        self.ranges = kept

    def covers(self, slot: int) -> bool:
        """Whether a slot is of a locked VMA."""
        at = bisect_right(self.ranges, slot, key=lambda r: r[0]) - 1
        return at >= 0 and slot < self.ranges[at][1]

    def covers_any(self, slot: int, rmap_next: np.ndarray) -> bool:
        """Whether a slot, or one that follows it in the reverse map, is of a locked VMA."""
        while slot:
            if self.covers(slot):
                return True
            slot = int(rmap_next[slot])
        return False

    def snapshot(self) -> list[list[int]]:
        """Plain form."""
        return [list(r) for r in self.ranges]

    def restore(self, snapshot: list[list[int]]) -> None:
        """Take over a snapshot."""
        self.ranges = [(int(low), int(high)) for low, high in snapshot]
