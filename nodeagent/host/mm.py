"""Address spaces: VMAs, and the page table of a host as one packed array.

Models `mm_struct`, `vm_area_struct` and the leaf level of the page table. Every mapping gets a contiguous
range of slots, so that the access loop finds an entry by adding. Upper levels of the table, and the memory
that they would take, are left out.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import astuple, dataclass, replace
from typing import Any

import numpy as np

from privmem.scheduler.errors import InvariantError
from privmem.scheduler.mempolicy import Mempolicy

VMA_ANON = 0  # private anonymous
VMA_OBJECT = 1  # pages come from an object: shared anonymous memory, or a file
_FIRST_SLOTS = 1 << 12


@dataclass(frozen=True, slots=True)
class Vma:
    """One range of an address space with one policy. Frozen: a change replaces it (`Mm.replace_range`)."""

    start: int  # first virtual page number
    end: int  # one past the last
    slot: int  # slot of `start`
    kind: int = VMA_ANON
    writable: bool = True
    policy: Mempolicy | None = None
    object_id: int = 0
    #: With VMA_OBJECT: index in the object of the page at `start` (`vm_pgoff`).
    index: int = 0
    #: Object mapped privately (MAP_PRIVATE of a file): a write gets an anonymous copy.
    private: bool = True
    #: Anonymous mapping of a device: pages come from this node, by its owner's call; -1 for any other mapping.
    device_nid: int = -1
    #: VM_NOHUGEPAGE: never mapped by huge pages.
    no_huge: bool = False
    #: VM_HUGEPAGE: huge pages are wanted.
    huge: bool = False
    #: VM_READ. Without it and `writable` (PROT_NONE) no access is allowed.
    readable: bool = True
    #: VM_MAYWRITE: mprotect may grant writing; not for a shared mapping of a file opened for reading only.
    may_write: bool = True
    #: VM_LOCKED, and VM_LOCKONFAULT: pages are mlocked, but only those that a fault brings in.
    locked: bool = False
    on_fault: bool = False
    #: VM_SEQ_READ and VM_RAND_READ: what madvise said of how a file is read.
    sequential: bool = False
    random: bool = False
    #: The open file that is mapped (`vm_file`), see pagecache.OpenFile; 0 for none.
    file_id: int = 0
    #: Anonymous memory that mremap moved: what its page numbers were before, less what they are (`vm_pgoff`).
    moved: int = 0
    #: The `anon_vma` of its private pages, as a number in its address space: 0 before the first of them, negative
    #: in a forked child, which has those of its parent too (more than one `anon_vma_chain`).
    anon_vma: int = 0

    @property
    def nr_pages(self) -> int:
        return self.end - self.start

    @property
    def accessible(self) -> bool:
        """`vma_is_accessible`: anything but PROT_NONE."""
        return self.readable or self.writable

    def slot_of(self, vpn: int) -> int:
        """Slot of a page of this VMA."""
        return self.slot + vpn - self.start

    def offset_of(self, vpn: int) -> int:
        """`linear_page_index`: a page's number in what is mapped; in anonymous memory its first address."""
        return vpn + self.moved if self.kind == VMA_ANON else self.index + vpn - self.start

    def cut(self, start: int, end: int) -> Vma:
        """The part [start, end) of this VMA."""
        shift = start - self.start
        index = self.index if self.kind == VMA_ANON else self.index + shift
        return replace(self, start=start, end=end, slot=self.slot + shift, index=index)


@dataclass(frozen=True, slots=True)
class Region:
    """A range of slots: what one mmap made, less what was unmapped since."""

    start: int  # first slot
    end: int
    mm_id: int
    vpn: int  # virtual page of the first slot
    #: What a private anonymous page there holds, see `nodeagent/content.py`: the first slot's page is
    #: (source, index), the next (source, index + 1). Source 0 is zero pages. It stays with the address
    #: through every split and migration.
    source: int
    index: int

    def cut(self, start: int, end: int) -> Region:
        """The part [start, end) of this region."""
        shift = start - self.start
        return replace(self, start=start, end=end, vpn=self.vpn + shift, index=self.index + shift)


class PageTable:
    """The host's page-table entries.

    pte        uint32  entries, see layout.py
    rmap_next  int32   next slot that maps the same frame, 0 at the end; only read for present entries
    """

    def __init__(self) -> None:
        self.pte = np.zeros(_FIRST_SLOTS, dtype=np.uint32)
        self.rmap_next = np.zeros(_FIRST_SLOTS, dtype=np.int32)
        self.nr_slots = 1  # slot 0 means none
        #: Columns of `regions` for `content_of`; None when stale.
        self._starts: np.ndarray | None = None
        self._sources = np.zeros(0, dtype=np.uint16)
        self._shifts = np.zeros(0, dtype=np.int64)
        self._free: list[tuple[int, int]] = []  # (start, length) of given-back ranges, ascending, merged
        #: Who uses which slots, ascending.
        self.regions: list[Region] = []
        #: Source of contents that have phases -> when those begin. No state: the configuration's.
        self.content_phases: dict[int, list[int]] = {}

    def take(self, nr_pages: int, mm_id: int, vpn: int, source: int = 0, index: int = 0) -> int:
        """A range of empty slots for [vpn, vpn + nr_pages) of an address space; first fit.

        `source`, `index`: what the anonymous pages there hold, see Region.
        """
        slot = self._reuse(nr_pages)
        if slot == 0:
            slot = self.nr_slots
            self.nr_slots += nr_pages
            self._grow(self.nr_slots)
        self._insert(Region(slot, slot + nr_pages, mm_id, vpn, source, index))
        return slot

    def give_back(self, slot: int, nr_pages: int) -> None:
        """Return slots whose entries are all empty; the range may be part of a region, or of several."""
        end = slot + nr_pages
        for part in self.parts(slot, nr_pages):
            region = self.find(part.start)
            self.regions.remove(region)
            if end < region.end:
                self._insert(region.cut(end, region.end))
            if region.start < slot:
                self._insert(region.cut(region.start, slot))
        free = sorted([*self._free, (slot, nr_pages)])
        self._free = []
        for begin, length in free:
            if self._free and sum(self._free[-1]) == begin:
                self._free[-1] = (self._free[-1][0], self._free[-1][1] + length)
            else:
                self._free.append((begin, length))

    def move(self, slot: int, nr_pages: int, vpn: int) -> None:
        """The pages of these slots are mapped from page `vpn` on from now on (`move_page_tables`)."""
        for part in self.parts(slot, nr_pages):
            region = self.find(part.start)
            self.regions.remove(region)
            if region.start < part.start:
                self._insert(region.cut(region.start, part.start))
            if part.end < region.end:
                self._insert(region.cut(part.end, region.end))
            self._insert(replace(part, vpn=vpn + part.start - slot))

    def find(self, slot: int) -> Region:
        """The region that a slot belongs to."""
        at = bisect_right(self.regions, slot, key=lambda r: r.start) - 1
        if at < 0 or slot >= self.regions[at].end:
            raise InvariantError(f"slot {slot} belongs to no region")
        return self.regions[at]

    def parts(self, slot: int, nr_pages: int) -> list[Region]:
        """The regions of these slots, cut to them. A VMA that was merged can have several."""
        found: list[Region] = []
        end = slot + nr_pages
        while slot < end:
            region = self.find(slot)
            found.append(region.cut(slot, min(end, region.end)))
            slot = region.end
        return found

    def take_copy(self, slot: int, nr_pages: int, mm_id: int, vpn: int) -> int:
        """`take`, for pages that hold what those of `nr_pages` slots from `slot` on hold."""
        parts = self.parts(slot, nr_pages)
        new = self.take(nr_pages, mm_id, vpn)
        self.regions.remove(self.find(new))
        for part in parts:
            at = part.start - slot
            self._insert(
                replace(part, start=new + at, end=new + at + part.end - part.start, mm_id=mm_id, vpn=vpn + at)
            )
        return new

    def content_of(self, slots: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(source uint16, index uint32) of the anonymous pages at these slots."""
        if self._starts is None:
            self._starts = np.array([r.start for r in self.regions], dtype=np.int64)
            self._sources = np.array([r.source for r in self.regions], dtype=np.uint16)
            self._shifts = np.array([r.index - r.start for r in self.regions], dtype=np.int64)
        at = np.searchsorted(self._starts, slots, side="right") - 1
        return self._sources[at], (slots + self._shifts[at]).astype(np.uint32)

    def _insert(self, region: Region) -> None:
        self.regions.insert(bisect_right(self.regions, region.start, key=lambda r: r.start), region)
        self._starts = None

    def _reuse(self, nr_pages: int) -> int:
        for at, (start, length) in enumerate(self._free):
            if length >= nr_pages:
                self._free[at : at + 1] = [(start + nr_pages, length - nr_pages)] if length > nr_pages else []
                return start
        return 0

    def _grow(self, nr_slots: int) -> None:
        if nr_slots <= len(self.pte):
            return
        size = max(2 * len(self.pte), nr_slots)
        for name in ("pte", "rmap_next"):
            old = getattr(self, name)
            new = np.zeros(size, dtype=old.dtype)
            new[: len(old)] = old
            setattr(self, name, new)

    def snapshot(self) -> dict[str, Any]:
        return {
            "pte": self.pte[: self.nr_slots].copy(),
            "rmap_next": self.rmap_next[: self.nr_slots].copy(),
            "free": [list(r) for r in self._free],
            "regions": [list(astuple(r)) for r in self.regions],
        }

    def restore(self, snapshot: dict[str, Any]) -> None:
        self.nr_slots = len(snapshot["pte"])
        self._grow(self.nr_slots)
        self.pte[: self.nr_slots] = snapshot["pte"]
        self.rmap_next[: self.nr_slots] = snapshot["rmap_next"]
        self._free = [(int(a), int(b)) for a, b in snapshot["free"]]
        self.regions = [Region(*row) for row in snapshot["regions"]]
        self._starts = None


class Mm:
    """One address space (`mm_struct`): an ordered list of VMAs that do not overlap."""

    def __init__(self, mm_id: int) -> None:
        self.mm_id = mm_id
        self.vmas: list[Vma] = []
        #: What mlockall(MCL_FUTURE) wants of new mappings (`def_flags`): 0 nothing, 1 mlock, 2 mlock on fault.
        self.lock_future = 0

    def find(self, vpn: int) -> Vma | None:
        """The VMA that holds `vpn`, or None (the kernel's find_vma would give the next one)."""
        at = bisect_right(self.vmas, vpn, key=lambda v: v.start) - 1
        if at >= 0 and vpn < self.vmas[at].end:
            return self.vmas[at]
        return None

    def in_range(self, start: int, end: int) -> list[Vma]:
        """The parts of all VMAs inside [start, end), in order."""
        return [
            v.cut(max(v.start, start), min(v.end, end)) for v in self.vmas if v.start < end and v.end > start
        ]

    def insert(self, vma: Vma) -> None:
        """Add a VMA that overlaps none; the caller checked."""
        self.vmas.insert(bisect_right(self.vmas, vma.start, key=lambda v: v.start), vma)

    def to_spec(self) -> list[list[Any]]:
        """Plain form of all VMAs."""
        return [
            [
                v.start,
                v.end,
                v.slot,
                v.kind,
                v.writable,
                v.policy and v.policy.to_spec(),
                v.object_id,
                v.index,
                v.private,
                v.device_nid,
                v.no_huge,
                v.huge,
                v.readable,
                v.may_write,
                v.locked,
                v.on_fault,
                v.sequential,
                v.random,
                v.file_id,
                v.moved,
                v.anon_vma,
            ]
            for v in self.vmas
        ]

    def restore(self, spec: list[list[Any]]) -> None:
        """Inverse of `to_spec`."""
        self.vmas = [
            Vma(
                start,
                end,
                slot,
                kind,
                writable,
                policy and Mempolicy.from_spec(policy),
                object_id,
                index,
                *rest,
            )
            for start, end, slot, kind, writable, policy, object_id, index, *rest in spec
        ]

    def replace_range(self, start: int, end: int, parts: list[Vma]) -> None:
        """Take away all that is in [start, end) when there are no `parts`; else put each in the place of what was
        there. Splits VMAs at the borders (`split_vma`).
        """
        if not parts:
            self.vmas = [*self._before(start), *self._behind(end)]
        for part in parts:
            self._put(part)

    def _before(self, vpn: int) -> list[Vma]:
        return [v if v.end <= vpn else v.cut(v.start, vpn) for v in self.vmas if v.start < vpn]

    def _behind(self, vpn: int) -> list[Vma]:
        return [v if v.start >= vpn else v.cut(vpn, v.end) for v in self.vmas if v.end > vpn]

    def _put(self, part: Vma) -> None:
        """`vma_merge`: with what is before and behind, if nothing tells them apart, or `split_vma`. A part that
        is as it was stays in its VMA.
        """
        old = self.find(part.start)
        if old is not None and part.end <= old.end:
            part = replace(part, anon_vma=old.anon_vma)
            if part == old.cut(part.start, part.end):
                return
        before, behind = self._before(part.start), self._behind(part.end)
        last = before[-1] if before and _is_next(before[-1], part) and _may_join(part, before[-1]) else None
        following = behind[0] if behind and _is_next(part, behind[0]) and _may_join(part, behind[0]) else None
        if last is not None:
            part = _join(before.pop(), part)
            if following is not None and not _may_meet(part, following):
                following = None
        if following is not None:
            part = _join(part, behind.pop(0))
        self.vmas = [*before, part, *behind]

    def pieces(self, vma: Vma) -> list[Vma]:
        """What the kernel has as one VMA, and has its slots in more than one place here: mremap made it longer, or
        brought it beside another.
        """
        at = self.vmas.index(vma)
        first, end = at, at + 1
        while first and _is_one(self.vmas[first - 1], self.vmas[first]):
            first -= 1
        while end < len(self.vmas) and _is_one(self.vmas[end - 1], self.vmas[end]):
            end += 1
        return self.vmas[first:end]

    def prepare_anon_vma(self, vma: Vma) -> Vma:
        """`anon_vma_prepare`: before its first private page a VMA gets the anon_vma of a neighbour that it could be
        merged with, but for rights of access, or a new one.
        """
        pieces = self.pieces(vma)
        near = [v for v in (self.find(pieces[-1].end), self.find(pieces[0].start - 1)) if v is not None]
        shared = [v.anon_vma for v in near if v.anon_vma > 0 and _is_compatible(v, vma)]
        number = shared[0] if shared else 1 + max(0, max(v.anon_vma for v in self.vmas))
        self.vmas = [replace(v, anon_vma=number) if v in pieces else v for v in self.vmas]
        return replace(vma, anon_vma=number)


def _is_next(one: Vma, other: Vma) -> bool:
    """Whether nothing but the anon_vma tells a VMA from the one before it, with their slots in one place too."""
    if one.end != other.start:
        return False
    return other == replace(replace(one, end=other.end).cut(one.end, other.end), anon_vma=other.anon_vma)


def _is_one(one: Vma, other: Vma) -> bool:
    """The same with slots in two places: what has been one from the start, or was merged."""
    if one.end != other.start or one.slot + one.nr_pages == other.slot:
        return False
    return _may_meet(one, other) and _is_next(one, replace(other, slot=one.slot + one.nr_pages))


def _is_compatible(one: Vma, other: Vma) -> bool:
    """`anon_vma_compatible` of two neighbours."""
    first, second = (one, other) if one.start < other.start else (other, one)
    like_first = replace(
        second, slot=first.slot + first.nr_pages, writable=first.writable, readable=first.readable
    )
    return _is_next(first, like_first)


def _may_join(part: Vma, neighbour: Vma) -> bool:
    """`is_mergeable_anon_vma`: to 6.15 a part with an anon_vma does not join a VMA that has none."""
    return part.anon_vma == neighbour.anon_vma or (part.anon_vma == 0 and neighbour.anon_vma > 0)


def _may_meet(one: Vma, other: Vma) -> bool:
    """The same of two neighbours of a part that joins both."""
    return one.anon_vma == other.anon_vma or 0 in (one.anon_vma, other.anon_vma)


def _join(one: Vma, other: Vma) -> Vma:
    return replace(one, end=other.end, anon_vma=one.anon_vma or other.anon_vma)
