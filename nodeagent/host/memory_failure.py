"""Hardware errors: a frame goes bad, who loses a page, and who is told.

Models `memory_failure` (mm/memory-failure.c) of Linux 6.1 with `vm.memory_failure_early_kill` = 0: a free frame is
taken off the buddy; a clean page of a file is dropped and read again when somebody wants it; any other user page
is unmapped, and whoever touches it later gets SIGBUS. A bad frame is held for ever. On a private node the owner is
told besides (`memory_failure` of its ops; the owner's driver in later versions): his name is in the answer. Left
out: early signals, soft offlining, errors in pages of a hugetlb pool's mapping beyond the loss of the whole page.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass

import numpy as np

from privmem.nodeagent.host import huge_split, hugetlb, hugetlb_map, literal, swap_cache
from privmem.nodeagent.host.fault import remove_mapping
from privmem.nodeagent.host.high_order import HPAGE_PAGES
from privmem.nodeagent.host.layout import (
    PG_ALLOCATED,
    PG_DIRTY,
    PG_FILE,
    PG_HELD,
    PG_OBJECT,
    PG_SWAPCACHE,
    PG_UNINVITED,
    PTE_DIRTY,
)
from privmem.nodeagent.host.memory import Memory, note_origin
from privmem.scheduler.abi import Reason

#: errno of a frame that is known to be bad; Python's errno module lacks it.
EHWPOISON = 133

FREE, ANON, CLEAN_FILE, DIRTY_FILE, SHMEM, HUGETLB, HELD = (
    "free",
    "anonymous",
    "clean file",
    "dirty file",
    "shared memory",
    "huge page of a pool",
    "held",
)


@dataclass(frozen=True, slots=True)
class Failure:
    """What became of it."""

    #: 0; -ENXIO where no memory is online; -EHWPOISON for a known one; -EBUSY when nothing could be done.
    error: int
    #: What was in the frame.
    kind: str = ""
    #: Processes that get SIGBUS at their next touch, ascending.
    users: tuple[int, ...] = ()
    #: The owner of the private node, who was told; "" for a general node.
    told: str = ""


def memory_failure(memory: Memory, pfn: int, owner: str = "") -> Failure:
    """An uncorrectable error in a frame. `owner`: who has claimed its node, to be told if it is private."""
    frames = memory.frames
    if not 0 <= pfn < frames.nr_frames:
        return Failure(-errno.ENXIO)
    if pfn in memory.high_order.poisoned:
        return Failure(-EHWPOISON)
    node = memory.nodes[frames.nid_of(pfn)]
    told = owner if node.private else ""
    flags = int(frames.flags[pfn])
    if not flags & PG_ALLOCATED:
        there = pfn < node.start_pfn + node.spec.span_pages and node.buddy.remove_range(pfn, 1)
        if not there:
            return Failure(-errno.ENXIO)
        note_origin(memory, pfn, Reason.OWNER if node.private else Reason.KERNEL, 0)
        _hold(memory, pfn)
        return Failure(0, FREE, told=told)
    memory.vmstat.add("memory_failure")
    if frames.reason[pfn] == Reason.HUGETLB and flags & PG_HELD:
        return _fail_hugetlb(memory, pfn, told)
    if flags & PG_HELD and not int(frames.rmap[pfn]):
        return Failure(-errno.EBUSY, HELD, told=told)
    huge_split.split_frames(memory, np.array([pfn]))
    written = bool(flags & PG_DIRTY) or any(memory.page_table.pte[s] & PTE_DIRTY for s in _slots(memory, pfn))
    if flags & PG_OBJECT:
        return _fail_object(memory, pfn, told, written)
    users = _unmap(memory, pfn, lost=True)
    if flags & PG_SWAPCACHE:  # what was written to swap before is still there for who has it there
        swap_cache.drop_from_cache(memory, pfn)
    memory.lru_del(pfn)
    _lose_content(memory, pfn)
    _hold(memory, pfn)
    return Failure(0, ANON, users, told)


def _slots(memory: Memory, pfn: int) -> list[int]:
    """All slots that map a frame (`rmap_walk`)."""
    found = []
    slot = int(memory.frames.rmap[pfn])
    while slot:
        found.append(slot)
        slot = int(memory.page_table.rmap_next[slot])
    return found


def _unmap(memory: Memory, pfn: int, lost: bool) -> tuple[int, ...]:
    """`hwpoison_user_mappings`: take all mappings away; `lost`: entries that remember it. Who mapped the page."""
    slots = _slots(memory, pfn)
    for slot in slots:
        remove_mapping(memory, slot)
        if lost:
            memory.high_order.poison_slots[slot] = pfn
    return tuple(sorted({memory.page_table.find(slot).mm_id for slot in slots}))


def _lose_content(memory: Memory, pfn: int) -> None:
    """What the frame held is gone; a device that stores it need not any more."""
    literal.released(memory, np.array([pfn]))
    node = memory.nodes[memory.frames.nid_of(pfn)]
    if node.spec.stores:
        memory.outgoing.free(node.spec.device, np.array([pfn - node.start_pfn]))


def _hold(memory: Memory, pfn: int) -> None:
    """`SetPageHWPoison`: the frame is nobody's, and never free again."""
    frames = memory.frames
    frames.flags[pfn] = frames.flags[pfn] & np.uint16(PG_UNINVITED) | np.uint16(PG_ALLOCATED | PG_HELD)
    memory.high_order.poisoned[pfn] = 1


def _fail_object(memory: Memory, pfn: int, told: str, written: bool) -> Failure:
    """A page of a file is forgotten, its content read again unless it was written; one of shared memory has no
    other copy and stays in its place, bad (`me_pagecache_clean`, `me_pagecache_dirty`; shmem since 5.16).
    """
    frames = memory.frames
    in_file = bool(frames.flags[pfn] & PG_FILE)
    users = _unmap(memory, pfn, lost=in_file and written)
    memory.lru_del(pfn)
    _lose_content(memory, pfn)
    if in_file:
        holder = memory.page_cache.of(int(frames.object_id[pfn]))
        del holder.pages[int(frames.object_index[pfn])]
        holder.ahead.pop(int(frames.object_index[pfn]), None)
        _hold(memory, pfn)
        return Failure(0, DIRTY_FILE if written else CLEAN_FILE, users if written else (), told)
    _hold(memory, pfn)
    frames.flags[pfn] |= np.uint16(PG_OBJECT)
    return Failure(0, SHMEM, users, told)


def _fail_hugetlb(memory: Memory, pfn: int, told: str) -> Failure:
    """`try_memory_failure_hugetlb`: the whole huge page leaves its pool; its other frames are memory again if it
    was free (`dissolve_free_huge_page`), and held with the bad one if it was in use.
    """
    pool = hugetlb.pool_of(memory)
    head = pfn - pfn % HPAGE_PAGES
    if hugetlb.dissolve_free_page(memory, pool, head):
        memory.nodes[memory.frames.nid_of(pfn)].buddy.remove_range(pfn, 1)
        _hold(memory, pfn)
        return Failure(0, HUGETLB, told=told)
    if not int(memory.frames.rmap[head]):
        return Failure(-errno.EBUSY, HUGETLB, told=told)
    users: set[int] = set()
    for frame in range(head, head + HPAGE_PAGES):
        users.update(_unmap(memory, frame, lost=True))
        memory.high_order.poisoned[frame] = 1
    hugetlb_map.lose_page(memory, head)
    return Failure(0, HUGETLB, tuple(sorted(users)), told)
