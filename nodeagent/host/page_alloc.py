"""The page allocator: walk the candidate zones, reclaim, and give up with -ENOMEM.

Models `__alloc_pages` of Linux 6.1 for order-0 folios: fast path at the low watermark, then wake kswapd and
try at min, then direct reclaim with a bounded number of fruitless rounds. Which zones are candidates was
decided by policy, cpuset and isolation design (`scheduler` package); nothing here adds one. Left out: per-CPU
lists, compaction, reserves below min for atomic callers.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass, replace

import numpy as np

from privmem.nodeagent.host import literal, node_callbacks
from privmem.nodeagent.host.cram import freeing
from privmem.nodeagent.host.layout import PG_ALLOCATED, PG_OBJECT, PG_UNINVITED
from privmem.nodeagent.host.memory import (
    INTERLEAVE_HIT,
    LOCAL_NODE,
    NUMA_FOREIGN,
    NUMA_HIT,
    NUMA_MISS,
    OTHER_NODE,
    Memory,
    Node,
    note_origin,
)
from privmem.nodeagent.host.wake import wake_kswapd
from privmem.scheduler.abi import Reason
from privmem.scheduler.zonelist import AllocRequest

#: Fruitless rounds of direct reclaim before the allocator gives up; Linux `MAX_RECLAIM_RETRIES`.
MAX_RECLAIM_RETRIES = 16


class NeedsExtent(Exception):
    """An allocation needs memory that only the pool can grant. Raised before anything has changed."""

    def __init__(self, nid: int) -> None:
        self.nid = nid
        super().__init__(f"node {nid} needs an extent")


@dataclass(frozen=True, slots=True)
class AllocContext:
    """One request, resolved (`struct alloc_context`)."""

    #: Candidate nodes in the order in which they are tried: a zonelist, cut by nodemask and cpuset.
    zones: tuple[int, ...]
    reason: Reason
    #: MPOL_PREFERRED_MANY: candidates of the second try, when `zones` have nothing free; None for no second
    #: try.
    retry_zones: tuple[int, ...] | None = None
    #: The CPU's own node, for local_node and other_node.
    cpu_nid: int = 0
    #: Process id, remembered in the frame.
    owner: int = 0
    may_reclaim: bool = True
    #: Whether the OOM killer may be called when nothing is found (oom.py).
    may_oom: bool = True
    interleave: bool = False
    #: Private nodes of `zones` on which a page for this request is a leak.
    uninvited: int = 0
    #: What was asked for, before a list was chosen.
    request: AllocRequest | None = None


def alloc_page(memory: Memory, ctx: AllocContext) -> int:
    """A page frame for `ctx`, allocated and with its origin noted, or -ENOMEM. May raise NeedsExtent."""
    if ctx.retry_zones is not None:
        pfn = alloc_page(memory, replace(ctx, retry_zones=None, may_reclaim=False))
        return pfn if pfn >= 0 else alloc_page(memory, replace(ctx, zones=ctx.retry_zones, retry_zones=None))
    if not ctx.zones:  # a policy that no cpuset rebinds names none of the task's nodes
        return -errno.ENOMEM
    pfn = _get_page(memory, ctx, "low_pages")
    if pfn < 0:
        pfn = _alloc_slowpath(memory, ctx)
    memory.failed_memcg = 0
    if pfn >= 0 and memory.memcg.active:
        pfn = _charge(memory, ctx, pfn)
    if pfn >= 0:
        memory.frames.flags[pfn] = PG_ALLOCATED
        memory.frames.version[pfn] = 0
        memory.frames.scan_ms[pfn] = 0
        note_origin(memory, pfn, ctx.reason, ctx.owner)
        memory.vmstat.add("pgalloc")
        nid = memory.frames.nid_of(pfn)
        if ctx.uninvited >> nid & 1:
            memory.frames.flags[pfn] |= np.uint16(PG_UNINVITED)
            memory.vmstat.add("pgleak")
        if memory.story is not None:
            memory.story.allocated(ctx, pfn)
        zone_statistics(memory, ctx.zones[0], nid, ctx.cpu_nid, 1)
        if ctx.interleave and nid == ctx.zones[0]:
            memory.numastat[nid, INTERLEAVE_HIT] += 1
    else:
        memory.failed = ctx
        if memory.story is not None:
            memory.story.refused(ctx)
    return pfn


def _charge(memory: Memory, ctx: AllocContext, pfn: int) -> int:
    """`mem_cgroup_charge`: the frame, or -ENOMEM after giving it back when a group's limit does not allow it."""
    from privmem.nodeagent.host import memcg  # which reclaims

    allowed = False
    try:
        allowed = memcg.charge(memory, ctx, np.array([pfn], dtype=np.int32))
    finally:
        if not allowed:
            memory.nodes[memory.frames.nid_of(pfn)].buddy.free(pfn)
    return pfn if allowed else -errno.ENOMEM


def alloc_beside(memory: Memory, ctx: AllocContext, pfn: int) -> int:
    """`alloc_page` by somebody who holds a reference to frame `pfn`, so that reclaim leaves it."""
    memory.in_use = pfn
    try:
        return alloc_page(memory, ctx)
    finally:
        memory.in_use = -1


def _get_page(memory: Memory, ctx: AllocContext, mark: str) -> int:
    """`get_page_from_freelist`: first zone that stays above the mark.

    A page whose content a device keeps needs the device's promise to take it as well.
    """
    for nid in ctx.zones:
        node = memory.nodes[nid]
        if node.no_alloc_owner or (node.spec.stores and node.store_room_pages < 1):
            continue
        if node.free_pages > getattr(node.wmark, mark):
            return node.buddy.alloc(0)
        if node.free_pages <= node.wmark.low_pages and node.can_grow(memory.now_ns):
            raise NeedsExtent(nid)
    return -errno.ENOMEM


def _alloc_slowpath(memory: Memory, ctx: AllocContext) -> int:
    """`__alloc_pages_slowpath`."""
    from privmem.nodeagent.host import reclaim  # both need each other, as in the kernel

    for nid in ctx.zones:
        wake_kswapd(memory, memory.nodes[nid])
    pfn = _get_page(memory, ctx, "min_pages")
    if pfn >= 0 or not ctx.may_reclaim:
        return pfn
    fruitless = 0
    while fruitless < MAX_RECLAIM_RETRIES:
        memory.vmstat.add("allocstall")
        progress = reclaim.direct_reclaim(memory, ctx.zones)
        pfn = _get_page(memory, ctx, "min_pages")
        if pfn >= 0:
            return pfn
        fruitless = 0 if progress else fruitless + 1
    return -errno.ENOMEM


def zone_statistics(memory: Memory, preferred: int, nid: int, cpu_nid: int, nr_pages: int) -> None:
    """`zone_statistics` of mm/page_alloc.c: pages of `nid` went to who asked for `preferred` first."""
    stat = memory.numastat
    if nid == preferred:
        stat[nid, NUMA_HIT] += nr_pages
    else:
        stat[nid, NUMA_MISS] += nr_pages
        stat[preferred, NUMA_FOREIGN] += nr_pages
    stat[nid, LOCAL_NODE if nid == cpu_nid else OTHER_NODE] += nr_pages


def free_page(memory: Memory, pfn: int) -> None:
    """`__free_pages`: the frame is mapped nowhere and on no list. A storing device is told that the content
    is gone.
    """
    if pfn in memory.high_order.pins or pfn in memory.high_order.poisoned:  # freed when unpinned, or never
        memory.frames.flags[pfn] &= np.uint16(0xFFFF ^ PG_OBJECT)
        return
    release_frames(memory, memory.nodes[memory.frames.nid_of(pfn)], np.array([pfn], dtype=np.int32))


def free_unused_page(memory: Memory, pfn: int) -> None:
    """Give back a frame that nothing was put into: a storing device never heard of it."""
    literal.released(memory, np.array([pfn]))
    memory.frames.flags[pfn] = 0
    if memory.memcg.active:
        memory.memcg.uncharge(np.array([pfn]))
    if memory.story is not None:
        memory.story.freed(pfn)
    memory.nodes[memory.frames.nid_of(pfn)].buddy.free(pfn)
    memory.vmstat.add("pgfree")


def release_frames(memory: Memory, node: Node, pfns: np.ndarray) -> None:
    """Give frames of one node back to its buddy."""
    literal.released(memory, pfns)
    if node.spec.stores:
        memory.outgoing.free(node.spec.device, pfns - node.start_pfn)
    if memory.cram.owns(node.nid):
        pfns = freeing.freed(memory, node, pfns)
    elif node.nid in memory.callbacks.keeps:
        pfns = node_callbacks.free_folio(memory, node, pfns)
    memory.frames.flags[pfns] = 0
    if memory.memcg.active:
        memory.memcg.uncharge(pfns)
    if memory.story is not None:
        for pfn in pfns.tolist():
            memory.story.freed(pfn)
    memory.lru_batches.forget(pfns)
    node.buddy.free_bulk(pfns)
    memory.vmstat.add("pgfree", len(pfns))
