"""What a compressed device says of its capacity, to a host whose compressed RAM service listens.

At the end of an epoch in which anything changed: how many pages it can hold at the ratio that it reaches now, the
ratio itself, and whether it is low. It is low from when less than `low_bytes` of its memory are free until more
than `high_bytes` are: the two thresholds of the v4 CXL device (interrupt vectors 12 and 13). What it says it can
hold leaves the low reserve out, so that a host that keeps to it stays above the threshold. A page that comes
although there is no room is refused: nothing is stored, the host hears which one, and when it was written in
place its old content is gone as well. Left out: the mailbox, interrupts in mid-epoch, reports that get lost.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from privmem.nodeagent.device.backing import PageStore
from privmem.scheduler.abi import PAGE_SIZE
from privmem.scheduler.messages import CapacityReport

#: A ratio of 1.00, as hosts reckon.
RATIO_ONE = 1000
_NUMBERS = ("low", "taken", "refused_pages", "refused_accepted_pages")


class CapacityControl:
    """State of a device that reports. `thresholds`: [low_bytes, high_bytes] of free memory."""

    def __init__(self, thresholds: list[int], physical_bytes: int, capacity_pages: int) -> None:
        self.low_bytes, self.high_bytes = thresholds
        self.physical_bytes = physical_bytes
        self.capacity_pages = capacity_pages
        self.low = False
        #: Pages that came anew since the last report.
        self.taken = 0
        #: Pages that were refused when they came anew, and pages that it had held until they were written in
        #: place.
        self.refused_pages = 0
        self.refused_accepted_pages = 0
        #: Refused pages that their host has not freed since: they hold nothing.
        self.lost: dict[int, int] = {}
        #: The last report's numbers.
        self.told: list[int] = []

    def store(self, store: PageStore, *columns: np.ndarray) -> np.ndarray:
        """Keep pages, as far as there is room; columns as in messages.StorePages. Those that were refused."""
        dpa = columns[0]
        held = store.holds(dpa)
        self.taken += int(np.count_nonzero(~held))
        refused = store.store_what_fits(*columns)
        self.refused_accepted_pages += int(np.count_nonzero(refused & held))
        self.refused_pages += int(np.count_nonzero(refused & ~held))
        found: np.ndarray = dpa[refused]
        self.lost |= dict.fromkeys(found.tolist(), 1)
        return found

    def freed(self, dpa: np.ndarray) -> np.ndarray:
        """Of the pages that a host frees, those that were not refused."""
        if not self.lost:
            return dpa
        kept: np.ndarray = dpa[[self.lost.pop(page, 0) == 0 for page in dpa.tolist()]]
        return kept

    def report(self, device: str, epoch: int, store: PageStore) -> CapacityReport | None:
        """What to tell the host, if there is anything."""
        free_bytes = self.physical_bytes - store.used_bytes
        self.low = free_bytes < self.low_bytes or (self.low and free_bytes <= self.high_bytes)
        ratio = self._ratio(store)
        usable_bytes = self.physical_bytes - self.low_bytes
        fits = min(self.capacity_pages, usable_bytes * ratio // RATIO_ONE // PAGE_SIZE)
        numbers = [store.room_pages, fits, ratio * usable_bytes // self.physical_bytes, store.used_bytes]
        if not self.taken and [*numbers, self.low] == self.told:
            return None
        self.told = [*numbers, self.low]
        taken, self.taken = self.taken, 0
        room, fits, ratio, used_bytes = numbers
        return CapacityReport(device, epoch, taken, room, fits, ratio, used_bytes, self.low)

    def _ratio(self, store: PageStore) -> int:
        """Stored bytes for each byte of memory that they take, in thousandths: of what is there now. An empty
        device reaches whatever it shows.
        """
        shown = self.capacity_pages * PAGE_SIZE * RATIO_ONE // max(1, self.physical_bytes - self.low_bytes)
        if not store.used_bytes:
            return shown + 1
        return store.stored_pages * PAGE_SIZE * RATIO_ONE // store.used_bytes

    def counters(self) -> dict[str, int]:
        """Columns of the time series."""
        return {
            "low": int(self.low),
            "refused_pages": self.refused_pages,
            "refused_accepted_pages": self.refused_accepted_pages,
        }

    def snapshot(self) -> dict[str, Any]:
        """The whole state."""
        rest = {"told": list(self.told), "lost": sorted(self.lost)}
        return {name: getattr(self, name) for name in _NUMBERS} | rest

    def restore(self, snapshot: dict[str, Any]) -> None:
        """Inverse of `snapshot`."""
        for name in _NUMBERS:
            setattr(self, name, snapshot[name])
        self.told = list(snapshot["told"])
        self.lost = dict.fromkeys(snapshot["lost"], 1)
