"""Moving pages of a hugetlb pool that are in use: mappings stay, the node changes, and with it the pool's counts.

Models `isolate_hugetlb`, `alloc_huge_page_nodemask`, `alloc_migrate_huge_page` and `move_hugetlb_state`
(mm/hugetlb.c) and `unmap_and_move_huge_page` (mm/migrate.c) of Linux 6.1, for the NUMA system calls, memory that
goes offline and long-term pins. The target is a free page that the pool has on the wanted nodes and promised to
nobody, else a fresh one for as long as the move lasts. As since 6.3, pages of pools go before the others of a
call. Left out: contiguous ranges over pages in use, which stay -EBUSY.
"""

from __future__ import annotations

import errno

import numpy as np

from privmem.nodeagent.host import hugetlb
from privmem.nodeagent.host.high_order import HPAGE_PAGES, HugePool
from privmem.nodeagent.host.layout import PG_ALLOCATED, PG_HELD, PG_UNINVITED
from privmem.nodeagent.host.memory import Memory
from privmem.nodeagent.host.migrate import carry_over
from privmem.nodeagent.host.page_alloc import AllocContext
from privmem.scheduler.abi import Reason


def is_pool_page(memory: Memory, pfn: int) -> bool:
    """`PageHuge` of a frame in use; one that a hardware error took is no longer the pool's."""
    if not memory.frames.flags[pfn] & PG_HELD or memory.frames.reason[pfn] != Reason.HUGETLB:
        return False
    return pfn - pfn % HPAGE_PAGES not in memory.high_order.poisoned


def may_isolate(memory: Memory, head: int) -> bool:
    """`isolate_hugetlb`, and that nobody has pinned a part of the page."""
    return not any(head <= pfn < head + HPAGE_PAGES for pfn in memory.high_order.pins)


def move_first(
    memory: Memory, pfns: list[int], contexts: list[AllocContext]
) -> tuple[int, list[int], list[AllocContext]]:
    """Move the pool pages among `pfns` (first frames), in order: 0 or -ENOMEM at the first one for which there is
    no other; and what is left to be moved, with its contexts.
    """
    left: list[int] = []
    theirs: list[AllocContext] = []
    for pfn, context in zip(pfns, contexts, strict=True):
        if not is_pool_page(memory, pfn):
            left.append(pfn)
            theirs.append(context)
            continue
        new = move(memory, pfn, context.zones, Reason.USER_MOVE)
        if new < 0:
            return new, [], []
    return 0, left, theirs


def move(memory: Memory, head: int, zones: tuple[int, ...], reason: Reason) -> int:
    """One page to the first of these nodes that has or gives one: its new first frame, or -ENOMEM."""
    pool = hugetlb.pool_of(memory)
    new, temporary = _target(memory, pool, zones)
    if new < 0:
        return new
    flags = memory.frames.flags
    held = flags[head : head + HPAGE_PAGES] & np.uint16(PG_ALLOCATED | PG_HELD | PG_UNINVITED)
    old = np.arange(head, head + HPAGE_PAGES, dtype=np.int32)
    carry_over(memory, old, np.arange(new, new + HPAGE_PAGES, dtype=np.int32), reason)
    flags[new : new + HPAGE_PAGES] |= np.uint16(PG_HELD)
    memory.frames.reason[new : new + HPAGE_PAGES] = int(Reason.HUGETLB)
    flags[head : head + HPAGE_PAGES] = held
    if temporary:
        _take_the_place(memory, pool, head, new)
    else:
        hugetlb.return_page(memory, pool, head)
    return new


def _target(memory: Memory, pool: HugePool, zones: tuple[int, ...]) -> tuple[int, bool]:
    """A page to move into, and whether it is a fresh one; -ENOMEM."""
    if pool.total_free > pool.reserved:
        head = hugetlb.take_page(pool, zones)
        if head >= 0:
            return head, False
    for nid in zones:
        head = hugetlb.fresh_page(memory, pool, nid)
        if head >= 0:
            pool.add(pool.nr, nid, 1)
            return head, True
    return -errno.ENOMEM, False


def _take_the_place(memory: Memory, pool: HugePool, old: int, new: int) -> None:
    """`move_hugetlb_state`: the fresh page is the pool's from now on, surplus if the old one's node had any; it
    was the old one that was lent.
    """
    source, target = memory.frames.nid_of(old), memory.frames.nid_of(new)
    if source != target and pool.surplus.get(source, 0):
        pool.add(pool.surplus, source, -1)
        pool.add(pool.surplus, target, 1)
    pool.add(pool.nr, source, -1)
    hugetlb.give_back(memory, pool, source, old)
