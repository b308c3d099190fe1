"""What a host remembers of memory beyond single pages: huge mappings, pools, ranges, pins, poison. State only.

Frames and page-table entries are single pages throughout; a huge page is an aligned block of frames, mapped by as
many entries, and a record here that one entry of the next level maps it (`pmd_trans_huge`). The rules are in
thp.py, khugepaged.py, hugetlb.py, contig.py, pins.py and memory_failure.py, which work on a `Memory`; this
module knows none, so that `Memory` can hold it.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import astuple, dataclass, field
from typing import Any

from privmem.scheduler.abi import PAGEBLOCK_ORDER

#: Base pages of a huge page, `HPAGE_PMD_NR`.
HPAGE_PAGES = 1 << PAGEBLOCK_ORDER


class HugeMaps:
    """Which slots begin a range that one entry of the next level maps; ascending, never overlapping."""

    def __init__(self) -> None:
        self.slots: list[int] = []

    def __len__(self) -> int:
        return len(self.slots)

    def add(self, slot: int) -> None:
        """Slots [slot, slot + HPAGE_PAGES) are mapped as one."""
        self.slots.insert(bisect_left(self.slots, slot), slot)

    def remove(self, slot: int) -> None:
        """The range that begins at `slot` is mapped by base pages from now on, or not at all."""
        self.slots.pop(bisect_left(self.slots, slot))

    def overlapping(self, slot: int, nr_pages: int = 1) -> list[int]:
        """First slots of the huge mappings that have a page in [slot, slot + nr_pages)."""
        first = bisect_right(self.slots, slot - HPAGE_PAGES)
        return self.slots[first : bisect_left(self.slots, slot + nr_pages)]


@dataclass(slots=True)
class ThpKnobs:
    """/sys/kernel/mm/transparent_hugepage, defaults of a distribution's 6.1."""

    enabled: str = "madvise"  # always, madvise, never
    defrag: str = "madvise"  # always, defer, defer+madvise, madvise, never
    khugepaged_defrag: bool = True
    pages_to_scan: int = 8 * HPAGE_PAGES
    max_ptes_none: int = HPAGE_PAGES - 1
    max_ptes_shared: int = HPAGE_PAGES // 2


@dataclass(slots=True)
class HugePool:
    """Pages of one size (`struct hstate`). Per-node numbers are dicts by node id; a missing node has none."""

    order: int
    nr: dict[int, int] = field(default_factory=dict)
    surplus: dict[int, int] = field(default_factory=dict)
    #: First frames of the free pages of each node; the next one taken is the last.
    free: dict[int, list[int]] = field(default_factory=dict)
    #: Of the free pages, how many are promised to mappings.
    reserved: int = 0
    next_nid_to_alloc: int = 0
    next_nid_to_free: int = 0

    @property
    def nr_pages(self) -> int:
        """Base pages of one page of the pool."""
        return 1 << self.order

    @property
    def total(self) -> int:
        """`nr_huge_pages`."""
        return sum(self.nr.values())

    @property
    def total_surplus(self) -> int:
        """`surplus_huge_pages`."""
        return sum(self.surplus.values())

    @property
    def persistent(self) -> int:
        """`persistent_huge_pages`: what the administrator asked for."""
        return self.total - self.total_surplus

    @property
    def total_free(self) -> int:
        """`free_huge_pages`."""
        return sum(len(heads) for heads in self.free.values())

    def add(self, table: dict[int, int], nid: int, by: int) -> None:
        """Count in one of the per-node tables; zero is absence."""
        value = table.get(nid, 0) + by
        if value:
            table[nid] = value
        else:
            table.pop(nid, None)

    def snapshot(self) -> list[Any]:
        free = [[nid, list(heads)] for nid, heads in sorted(self.free.items()) if heads]
        numbers = [self.reserved, self.next_nid_to_alloc, self.next_nid_to_free]
        return [self.order, _pairs(self.nr), _pairs(self.surplus), free, *numbers]

    @staticmethod
    def from_snapshot(snapshot: list[Any]) -> HugePool:
        order, nr, surplus, free, *numbers = snapshot
        heads = {int(nid): [int(pfn) for pfn in pfns] for nid, pfns in free}
        return HugePool(order, _dict(nr), _dict(surplus), heads, *numbers)


@dataclass(slots=True)
class Reservation:
    """Huge pages promised to a mapping of an object and not taken yet (`struct resv_map`)."""

    object_id: int
    #: Address space that may use them; -1 for all that map the object shared.
    mm_id: int
    #: Huge-page numbers in the object, ascending.
    indices: list[int]


@dataclass(slots=True)
class ContigRange:
    """Frames [first, first + nr_pages) that one owner holds as a range."""

    first: int
    nr_pages: int
    owner: str


@dataclass(slots=True)
class CmaArea:
    """A range that movable pages may use until somebody wants a contiguous part of it (`struct cma`)."""

    name: str
    nid: int
    first: int
    nr_pages: int
    #: For DMA (`cma=`, `numa_cma=`); false for gigantic pages (`hugetlb_cma=`).
    dma: bool


class HighOrder:
    """All of it, for one host."""

    def __init__(self) -> None:
        self.huge_maps = HugeMaps()
        self.thp = ThpKnobs()
        #: Where khugepaged goes on: process id and page; and processes that it never visits again.
        self.khugepaged_at = [0, 0]
        self.pools: dict[int, HugePool] = {}
        self.reservations: list[Reservation] = []
        #: Ranges by first frame.
        self.ranges: dict[int, ContigRange] = {}
        self.cma: list[CmaArea] = []
        #: Page frame -> how often it is pinned; and each process's pins in order.
        self.pins: dict[int, int] = {}
        self.pins_of: dict[int, list[int]] = {}
        #: Frames with a hardware error, and the slots whose page it took (`swp_entry` of type hwpoison).
        self.poisoned: dict[int, int] = {}
        self.poison_slots: dict[int, int] = {}

    def snapshot(self) -> dict[str, Any]:
        return {
            "huge_maps": list(self.huge_maps.slots),
            "thp": list(astuple(self.thp)),
            "khugepaged_at": list(self.khugepaged_at),
            "pools": [pool.snapshot() for _, pool in sorted(self.pools.items())],
            "reservations": [[r.object_id, r.mm_id, list(r.indices)] for r in self.reservations],
            "ranges": [list(astuple(r)) for _, r in sorted(self.ranges.items())],
            "cma": [list(astuple(area)) for area in self.cma],
            "pins": _pairs(self.pins),
            "pins_of": [[pid, list(pfns)] for pid, pfns in sorted(self.pins_of.items())],
            "poisoned": _pairs(self.poisoned),
            "poison_slots": _pairs(self.poison_slots),
        }

    def restore(self, snapshot: dict[str, Any]) -> None:
        """Take over a snapshot."""
        self.huge_maps.slots = [int(slot) for slot in snapshot["huge_maps"]]
        self.thp = ThpKnobs(*snapshot["thp"])
        self.khugepaged_at = [int(at) for at in snapshot["khugepaged_at"]]
        pools = [HugePool.from_snapshot(pool) for pool in snapshot["pools"]]
        self.pools = {pool.order: pool for pool in pools}
        self.reservations = [
            Reservation(object_id, mm_id, list(indices))
            for object_id, mm_id, indices in snapshot["reservations"]
        ]
        self.ranges = {row[0]: ContigRange(*row) for row in snapshot["ranges"]}
        self.cma = [CmaArea(*row) for row in snapshot["cma"]]
        self.pins = _dict(snapshot["pins"])
        self.pins_of = {int(pid): [int(pfn) for pfn in pfns] for pid, pfns in snapshot["pins_of"]}
        self.poisoned = _dict(snapshot["poisoned"])
        self.poison_slots = _dict(snapshot["poison_slots"])


def _pairs(table: dict[int, int]) -> list[list[int]]:
    return [[key, table[key]] for key in sorted(table)]


def _dict(pairs: list[list[int]]) -> dict[int, int]:
    return {int(key): int(value) for key, value in pairs}
