"""Recounting a host's memory: the invariants that must hold between any two steps."""

from __future__ import annotations

import numpy as np

from privmem.nodeagent.host.high_order import HPAGE_PAGES
from privmem.nodeagent.host.layout import (
    NIL,
    NR_LRU_LISTS,
    PG_ALLOCATED,
    PG_HELD,
    PG_LRU,
    PG_OBJECT,
    PG_SWAPCACHE,
    PG_UNINVITED,
    PTE_PFN_SHIFT,
    PTE_PRESENT,
    PTE_WRITABLE,
)
from privmem.nodeagent.host.memory import Memory, Node
from privmem.nodeagent.host.swap_area import swap_entries
from privmem.scheduler.abi import Reason
from privmem.scheduler.errors import InvariantError
from privmem.scheduler.zonelist import AllocRequest


def validate_memory(memory: Memory) -> None:
    """Raise InvariantError unless every frame is in exactly one state and all counters equal a recount."""
    for node in memory.nodes.values():
        node.buddy.validate()
        _check_frames(memory, node)
        _check_lists(memory, node)
        _check_isolation(memory, node)
        _check_balloon(memory, node)
    _check_mappings(memory)
    _check_swap(memory)
    _check_huge(memory)


def _require(condition: bool, text: str) -> None:
    if not condition:
        raise InvariantError(text)


def _frames_of(node: Node) -> slice:
    return slice(node.start_pfn, node.start_pfn + node.spec.span_pages)


def _check_frames(memory: Memory, node: Node) -> None:
    """free + allocated = managed, and no frame is both."""
    flags = memory.frames.flags[_frames_of(node)]
    allocated = int(np.count_nonzero(flags & PG_ALLOCATED))
    _require(
        allocated + node.free_pages == node.managed_pages,
        f"node {node.nid}: {allocated} allocated + {node.free_pages} free != {node.managed_pages} managed",
    )
    stray = np.flatnonzero(flags[(flags & PG_ALLOCATED) == 0])
    _require(not len(stray), f"node {node.nid}: frames that are not allocated have flags")
    orders = memory.frames.block_order[_frames_of(node)]
    heads = np.flatnonzero(orders >= 0)
    covered = np.zeros(len(flags) + 1, dtype=np.int64)
    np.add.at(covered, heads, 1)
    np.add.at(covered, heads + (1 << orders[heads].astype(np.int64)), -1)
    free = np.cumsum(covered)[:-1]
    _require(bool(np.all(free <= 1)), f"node {node.nid}: free blocks overlap")
    both = np.flatnonzero((free == 1) & ((flags & PG_ALLOCATED) != 0))
    _require(not len(both), f"node {node.nid}: frames are free and allocated at once")
    if node.spec.pooled:
        _require(
            sum(pages for _, pages in node.extents) == node.managed_pages,
            f"node {node.nid}: extents do not add up to its managed pages",
        )


def _check_lists(memory: Memory, node: Node) -> None:
    """Every LRU list has its stated length, and its members the right flags."""
    on_lists = 0
    for kind in range(NR_LRU_LISTS):
        lru = node.nid * NR_LRU_LISTS + kind
        pfn, previous, count = int(memory.lru_head[lru]), NIL, 0
        while pfn != NIL:
            _require(int(memory.frames.prev[pfn]) == previous, f"LRU list {lru}: broken link at frame {pfn}")
            flags = int(memory.frames.flags[pfn])
            _require(flags & PG_LRU != 0, f"frame {pfn} is on LRU list {lru} without PG_LRU")
            count += 1
            previous, pfn = pfn, int(memory.frames.next_[pfn])
        _require(int(memory.lru_tail[lru]) == previous, f"LRU list {lru}: wrong tail")
        _require(
            count == memory.lru_size[lru], f"LRU list {lru}: {count} frames, counted {memory.lru_size[lru]}"
        )
        on_lists += count
    here = memory.frames.flags[_frames_of(node)]
    flagged = int(np.count_nonzero(here & PG_LRU))
    _require(on_lists == flagged, f"node {node.nid}: {flagged} frames say they are on a list, {on_lists} are")
    unlisted = PG_LRU | PG_HELD
    forgotten = int(np.count_nonzero((here & (PG_ALLOCATED | unlisted)) == PG_ALLOCATED))
    _require(not forgotten, f"node {node.nid}: reclaim cannot find {forgotten} pages, they are on no list")


def _check_isolation(memory: Memory, node: Node) -> None:
    """Nothing is on a private node for a reason that its features do not allow (unless it is marked as a leak),
    and nothing writable on a fenced one.
    """
    if not node.private:
        return
    resolver = memory.resolver
    frames = _frames_of(node)
    used = (memory.frames.flags[frames] & (PG_ALLOCATED | PG_UNINVITED)) == PG_ALLOCATED
    for value in np.unique(memory.frames.reason[frames][used]).tolist():
        asked = AllocRequest(node.nid, 1 << node.nid, Reason(value), this_node=True, private=True)
        _require(
            resolver.design.invited(asked, resolver.topology.node(node.nid)),
            f"private node {node.nid} holds pages for {Reason(value).name}, which it does not allow",
        )
    if node.fenced:
        pte = memory.page_table.pte[: memory.page_table.nr_slots]
        pfn = (pte >> PTE_PFN_SHIFT).astype(np.int64)
        there = (pfn >= node.start_pfn) & (pfn < node.start_pfn + node.spec.span_pages)
        open_ = there & ((pte & (PTE_PRESENT | PTE_WRITABLE)) == PTE_PRESENT | PTE_WRITABLE)
        _require(not open_.any(), f"node {node.nid} is write-fenced and has writable mappings")


def _check_balloon(memory: Memory, node: Node) -> None:
    """The frames of a balloon are held, no frame is in it twice, and the node counts them."""
    cram = memory.cram.nodes.get(node.nid)
    parts = [] if cram is None else sorted(cram.balloon)
    end = 0
    for first, nr_pages in parts:
        _require(first >= end, f"node {node.nid}: frame {first} is in the balloon twice")
        _check_held(memory, first, nr_pages, "a part of a balloon")
        end = first + nr_pages
    counted = sum(nr_pages for _, nr_pages in parts)
    _require(counted == node.balloon_pages, f"node {node.nid}: the balloon has {counted} frames")


def _check_mappings(memory: Memory) -> None:
    """Page tables and reverse map say the same; an anonymous frame is mapped, a free one is not."""
    table, frames = memory.page_table, memory.frames
    pte = table.pte[: table.nr_slots]
    present = np.flatnonzero(pte & PTE_PRESENT)
    pfns = (pte[present] >> PTE_PFN_SHIFT).astype(np.int64)
    by_table = np.bincount(pfns, minlength=frames.nr_frames)
    by_rmap = np.zeros(frames.nr_frames, dtype=np.int64)
    heads = np.flatnonzero(frames.rmap)
    slots = frames.rmap[heads].astype(np.int64)
    while len(heads):
        _require(bool(np.all(pte[slots] & PTE_PRESENT)), "the reverse map names an empty entry")
        same = (pte[slots] >> PTE_PFN_SHIFT).astype(np.int64) == heads
        _require(bool(np.all(same)), "the reverse map and the page table disagree")
        by_rmap[heads] += 1
        slots = table.rmap_next[slots].astype(np.int64)
        heads, slots = heads[slots != 0], slots[slots != 0]
    _require(np.array_equal(by_table, by_rmap), "a page-table entry is missing in the reverse map")
    allocated = (frames.flags & PG_ALLOCATED) != 0
    _require(not np.any((by_table > 0) & ~allocated), "a frame that is not allocated is mapped")
    lost = allocated & (by_table == 0) & ((frames.flags & (PG_OBJECT | PG_HELD | PG_SWAPCACHE)) == 0)
    _require(not lost.any(), f"{int(lost.sum())} anonymous frames are mapped nowhere")


def _check_swap(memory: Memory) -> None:
    """Entries and objects that name a slot are as many as it counts; the swap cache is what the frames say."""
    area, flags = memory.swap, memory.frames.flags
    pte = memory.page_table.pte[: memory.page_table.nr_slots]
    counted = np.bincount(pte[swap_entries(pte)] >> PTE_PFN_SHIFT, minlength=area.nr_pages + 1)
    for holder in memory.page_cache.objects.values():
        for slot in holder.swapped.values():
            counted[slot] += 1
        _require(not holder.pages.keys() & holder.swapped.keys(), "a page is cached and on swap at once")
    _require(np.array_equal(counted, area.count), "users of swap slots do not add up")
    in_cache = np.zeros(area.nr_pages + 1, dtype=bool)
    in_cache[list(area.cache)] = True
    used = int(np.count_nonzero((counted > 0) | in_cache))
    _require(used == area.used, f"{used} slots of the swap area are in use, {area.used} were counted")
    cached = np.flatnonzero(flags & PG_SWAPCACHE).tolist()
    _require(sorted(area.slot_of) == cached, "the swap cache and the frames disagree")
    _require(all(area.cache[area.slot_of[pfn]] == pfn for pfn in cached), "the swap cache contradicts itself")
    both = np.flatnonzero((flags & (PG_SWAPCACHE | PG_OBJECT)) == PG_SWAPCACHE | PG_OBJECT)
    _require(not len(both), "a page is in the swap cache and in its object at once")


def _check_huge(memory: Memory) -> None:
    """A huge mapping is 512 entries of one aligned block; pools, pins and ranges hold their frames."""
    high, frames, pte = memory.high_order, memory.frames, memory.page_table.pte
    last = -HPAGE_PAGES
    for slot in high.huge_maps.slots:
        _require(slot >= last + HPAGE_PAGES, f"the huge mappings at slots {last} and {slot} overlap")
        entries = pte[slot : slot + HPAGE_PAGES]
        head = int(entries[0]) >> PTE_PFN_SHIFT
        block = np.arange(head, head + HPAGE_PAGES, dtype=np.uint32)
        whole = bool(np.all(entries & PTE_PRESENT)) and np.array_equal(entries >> PTE_PFN_SHIFT, block)
        _require(whole and head % HPAGE_PAGES == 0, f"the huge mapping at slot {slot} is not of one block")
        last = slot
    for pool in high.pools.values():
        heads = [head for nid in sorted(pool.free) for head in pool.free[nid]]
        _require(
            pool.reserved <= len(heads), f"{pool.reserved} huge pages are promised, {len(heads)} are free"
        )
        for head in heads:
            _check_held(memory, head, pool.nr_pages, "a free page of a pool")
            _require(not frames.rmap[head : head + pool.nr_pages].any(), "a free page of a pool is mapped")
    promised = sum(len(r.indices) for r in high.reservations)
    _require(promised == sum(pool.reserved for pool in high.pools.values()), "promises do not add up")
    for held in high.ranges.values():
        _check_held(memory, held.first, held.nr_pages, "a contiguous range")
    for pfn in high.pins:
        _check_held(memory, pfn, 1, "a pinned page")
    counted: dict[int, int] = {}
    for pid in high.pins_of:
        for pfn in high.pins_of[pid]:
            counted[pfn] = counted.get(pfn, 0) + 1
    _require(counted == high.pins, "the pins of the processes do not add up")


def _check_held(memory: Memory, first: int, nr_pages: int, what: str) -> None:
    held = PG_ALLOCATED | PG_HELD
    flags = memory.frames.flags[first : first + nr_pages]
    _require(bool(np.all(flags & (held | PG_LRU) == held)), f"{what} at frame {first} is not held")
