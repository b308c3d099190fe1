"""hugetlb: pools of huge pages that the administrator sets aside. Mappings of them are in hugetlb_map.py.

Models `set_max_huge_pages` (mm/hugetlb.c) of Linux 6.1 for the global file, round-robin over the allowed nodes,
and for a node's own. The pool asks for every page with THISNODE and Reason.HUGETLB; whether a private node gives
one is the design's answer to that request. Sizes: 2 MiB by the buddy, 1 GiB (gigantic) as contiguous ranges,
from a CMA area of the node first. Pages in use move in hugetlb_move.py. Left out: overcommit, freeing the memory
map of huge pages.
"""

from __future__ import annotations

import errno
from collections.abc import Callable

import numpy as np

from privmem.nodeagent.host import contig
from privmem.nodeagent.host.blocks import Effort, alloc_block, free_block
from privmem.nodeagent.host.high_order import HugePool
from privmem.nodeagent.host.layout import PG_ALLOCATED, PG_HELD, PG_UNINVITED
from privmem.nodeagent.host.memory import Memory
from privmem.nodeagent.host.page_alloc import AllocContext
from privmem.scheduler import nodemask
from privmem.scheduler.abi import MAX_ORDER, PAGEBLOCK_ORDER, Reason
from privmem.scheduler.zonelist import AllocRequest

#: Order of a gigantic page, 1 GiB.
GIGANTIC_ORDER = 18


def pool_of(memory: Memory, order: int = PAGEBLOCK_ORDER) -> HugePool:
    """The pool of this size; an empty one at first."""
    return memory.high_order.pools.setdefault(order, HugePool(order))


# -- the administrator's files


def write_nr_hugepages(
    memory: Memory,
    count: int,
    nid: int | None = None,
    allowed: int | None = None,
    order: int = PAGEBLOCK_ORDER,
) -> int:
    """`nr_hugepages` of the whole pool, or of node `nid`; `allowed`: nodes of the writer's policy
    (`nr_hugepages_mempolicy`). 0 or -EINVAL; the pool grows as far as memory allows (`set_max_huge_pages`).
    """
    pool = pool_of(memory, order)
    if count < 0 or (nid is not None and nid not in memory.nodes):
        return -errno.EINVAL
    if nid is not None:
        count += pool.total - pool.nr.get(nid, 0)
    nodes = memory_nodes(memory) if allowed is None else memory_nodes(memory) & allowed
    nodes = nodes if nid is None else 1 << nid
    if not nodes:
        return 0
    while pool.total_surplus and count > pool.persistent and _move_surplus(pool, nodes, -1):
        pass
    while count > pool.persistent and _grow(memory, pool, nodes):
        pass
    _shrink(memory, pool, nodes, count)
    return 0


def memory_nodes(memory: Memory) -> int:
    """N_MEMORY as the design defines it: what the global file walks."""
    states = memory.resolver.design.node_states(memory.topology)
    return states.get("has_memory", memory.topology.public)


def nr_hugepages(memory: Memory, nid: int | None = None, order: int = PAGEBLOCK_ORDER) -> int:
    """Reading the file: what the administrator asked for and got; with a node, all pages there."""
    pool = pool_of(memory, order)
    return pool.persistent if nid is None else pool.nr.get(nid, 0)


def free_hugepages(memory: Memory, nid: int | None = None, order: int = PAGEBLOCK_ORDER) -> int:
    """`free_hugepages`, of all nodes or of one."""
    pool = pool_of(memory, order)
    return pool.total_free if nid is None else len(pool.free.get(nid, ()))


def _next_allowed(nid: int, nodes: int) -> int:
    """`get_valid_node_allowed`: `nid` itself, or the next node of the mask, around."""
    return nid if nodemask.has(nodes, nid) else nodemask.next_in(nid, nodes)


def _grow(memory: Memory, pool: HugePool, nodes: int) -> bool:
    """`alloc_pool_huge_page`: one page, from the next node in turn that gives one."""
    for _ in range(nodemask.weight(nodes)):
        nid = _next_allowed(pool.next_nid_to_alloc, nodes)
        pool.next_nid_to_alloc = nodemask.next_in(nid, nodes)
        head = fresh_page(memory, pool, nid)
        if head >= 0:
            pool.add(pool.nr, nid, 1)
            pool.free.setdefault(nid, []).append(head)
            memory.vmstat.add("htlb_buddy_alloc_success")
            return True
    memory.vmstat.add("htlb_buddy_alloc_fail")
    return False


def fresh_page(memory: Memory, pool: HugePool, nid: int) -> int:
    """`alloc_fresh_huge_page`: a block of this node and of no other."""
    if pool.order > MAX_ORDER:
        return _gigantic_page(memory, pool, nid)
    request = AllocRequest(nid, None, Reason.HUGETLB, this_node=True)
    resolution = memory.resolver.resolve(request, None)
    if not resolution.zones:
        return -errno.ENOMEM
    context = AllocContext(
        resolution.zones, Reason.HUGETLB, uninvited=resolution.uninvited, request=request, cpu_nid=nid
    )
    head = alloc_block(memory, context, pool.order, Effort.RETRY)
    if head >= 0:
        memory.frames.flags[head : head + pool.nr_pages] |= np.uint16(PG_HELD)
    return head


def _gigantic_page(memory: Memory, pool: HugePool, nid: int) -> int:
    """`alloc_gigantic_page`: the node's own CMA area, then a range found on the node."""
    for area in memory.high_order.cma:
        if area.nid == nid and not area.dma:
            head = contig.cma_alloc(memory, area, pool.nr_pages, "hugetlb")
            if head >= 0:
                return head
    return contig.alloc_contig_pages(memory, pool.nr_pages, nid, None, "hugetlb", this_node=True)


def _shrink(memory: Memory, pool: HugePool, nodes: int, count: int) -> None:
    """The second half of `set_max_huge_pages`: free pages go; those in use or promised become surplus."""
    keep = max(count, pool.reserved + pool.total - pool.total_free)
    while keep < pool.persistent:
        nid = _next_to_free(pool, nodes, lambda n: bool(pool.free.get(n)))
        if nid < 0:
            break
        give_back(memory, pool, nid, pool.free[nid].pop())
        pool.add(pool.nr, nid, -1)
    while count < pool.persistent and _move_surplus(pool, nodes, 1):
        pass


def _next_to_free(pool: HugePool, nodes: int, fits: Callable[[int], bool]) -> int:
    """`hstate_next_node_to_free`: the next node in turn for which there is something to do, or -1."""
    for _ in range(nodemask.weight(nodes)):
        nid = _next_allowed(pool.next_nid_to_free, nodes)
        pool.next_nid_to_free = nodemask.next_in(nid, nodes)
        if fits(nid):
            return nid
    return -1


def _move_surplus(pool: HugePool, nodes: int, by: int) -> bool:
    """`adjust_pool_surplus`."""

    def fits(nid: int) -> bool:
        surplus = pool.surplus.get(nid, 0)
        return surplus > 0 if by < 0 else surplus < pool.nr.get(nid, 0)

    nid = _next_to_free(pool, nodes, fits)
    if nid >= 0:
        pool.add(pool.surplus, nid, by)
    return nid >= 0


def give_back(memory: Memory, pool: HugePool, nid: int, head: int) -> None:
    """`update_and_free_page`: the frames are ordinary memory again."""
    if pool.order > MAX_ORDER:
        contig.free_contig_range(memory, head)
    else:
        free_block(memory, head, pool.nr_pages)


# -- for mappings


def take_page(pool: HugePool, zones: tuple[int, ...]) -> int:
    """`dequeue_huge_page_vma`: a free page of the first of these nodes that has one; -ENOMEM for none."""
    for nid in zones:
        heads = pool.free.get(nid)
        if heads:
            return heads.pop()
    return -errno.ENOMEM


def return_page(memory: Memory, pool: HugePool, head: int) -> None:
    """`free_huge_page`: back to the pool, or, when the node has surplus pages, to the buddy. A page of which any
    part is pinned comes back with its last pin.
    """
    if any(head <= pfn < head + pool.nr_pages for pfn in memory.high_order.pins):
        return
    nid = memory.frames.nid_of(head)
    flags = memory.frames.flags
    flags[head : head + pool.nr_pages] &= np.uint16(PG_ALLOCATED | PG_HELD | PG_UNINVITED)
    if pool.surplus.get(nid, 0):
        pool.add(pool.surplus, nid, -1)
        pool.add(pool.nr, nid, -1)
        give_back(memory, pool, nid, head)
    else:
        pool.free.setdefault(nid, []).append(head)


def unreserve(memory: Memory, pool: HugePool, nr: int) -> None:
    """`hugetlb_acct_memory` of less, `return_unused_surplus_pages`: promises are taken back, and as many free pages
    go that the administrator no longer wants.
    """
    pool.reserved -= nr
    for _ in range(min(nr, pool.total_surplus)):
        nodes = memory_nodes(memory)
        nid = _next_to_free(pool, nodes, lambda n: bool(pool.surplus.get(n) and pool.free.get(n)))
        if nid < 0:
            break
        give_back(memory, pool, nid, pool.free[nid].pop())
        pool.add(pool.nr, nid, -1)
        pool.add(pool.surplus, nid, -1)


def dissolve_free_page(memory: Memory, pool: HugePool, head: int) -> bool:
    """`dissolve_free_huge_page`: a free page that nobody was promised leaves the pool; whether it did."""
    nid = memory.frames.nid_of(head)
    heads = pool.free.get(nid, [])
    if head not in heads or pool.total_free <= pool.reserved:
        return False
    heads.remove(head)
    pool.add(pool.nr, nid, -1)
    if pool.surplus.get(nid, 0):  # since 6.14; before, a node could have more surplus pages than pages
        pool.add(pool.surplus, nid, -1)
    give_back(memory, pool, nid, head)
    return True


def holds_free(memory: Memory, first: int, nr_pages: int) -> np.ndarray:
    """Of frames [first, first + nr_pages), which are in free pages of pools."""
    found = np.zeros(nr_pages, dtype=bool)
    for pool in memory.high_order.pools.values():
        for heads in pool.free.values():
            for head in heads:
                found[max(0, head - first) : max(0, head + pool.nr_pages - first)] = True
    return found


def dissolve_free_pages(memory: Memory, first: int, nr_pages: int) -> int:
    """`dissolve_free_huge_pages` of a range that goes offline: 0, or -EBUSY when one is promised."""
    for pool in memory.high_order.pools.values():
        heads = [head for nid in sorted(pool.free) for head in pool.free[nid]]
        for head in heads:
            inside = first < head + pool.nr_pages and head < first + nr_pages
            if inside and not dissolve_free_page(memory, pool, head):
                return -errno.EBUSY
    return 0
