"""Blocks of 2**order frames from the buddies: what huge pages ask the allocator for.

Models `__alloc_pages` of Linux 6.1 for one folio of a higher order: the fast path at the low watermark, then, for
a caller that may wait, direct compaction of each candidate node (`__alloc_pages_direct_compact`) and a try at
min, and for one that asks for more, reclaim until compaction has room to work, and compaction again. Which nodes
are candidates was decided as for single pages. Left out: extents of a pool: a huge page never makes the host ask
for one; its caller falls back to single pages, which do.
"""

from __future__ import annotations

import errno
from enum import IntEnum

import numpy as np

from privmem.nodeagent.host import compaction
from privmem.nodeagent.host.layout import PG_ALLOCATED, PG_UNINVITED
from privmem.nodeagent.host.memory import Memory, Node
from privmem.nodeagent.host.page_alloc import (
    MAX_RECLAIM_RETRIES,
    AllocContext,
    release_frames,
    zone_statistics,
)
from privmem.scheduler.isolation import Service


class Effort(IntEnum):
    """What a caller lets be done for a block."""

    LIGHT = 0  # take what is free (GFP_TRANSHUGE_LIGHT)
    COMPACT = 1  # compact once (`__GFP_DIRECT_RECLAIM` with `__GFP_NORETRY`)
    RECLAIM = 2  # reclaim and compact once more (GFP_TRANSHUGE)
    RETRY = 3  # again, as long as reclaim gets on (`__GFP_RETRY_MAYFAIL`)


def alloc_block(memory: Memory, ctx: AllocContext, order: int, effort: Effort) -> int:
    """First frame of an aligned block for `ctx`, allocated and with its origin noted, or -ENOMEM."""
    pfn = _from_zones(memory, ctx, order, "low_pages")
    if pfn < 0 and effort and ctx.zones:
        pfn = _after_compaction(memory, ctx, order)
    if pfn < 0 and effort >= Effort.RECLAIM and ctx.zones:
        pfn = _after_reclaim(memory, ctx, order, MAX_RECLAIM_RETRIES if effort is Effort.RETRY else 1)
    if pfn >= 0 and memory.memcg.active and not _charge(memory, ctx, pfn, 1 << order):
        return -errno.ENOMEM
    if pfn >= 0:
        mark_block(memory, ctx, pfn, 1 << order)
        nid = memory.frames.nid_of(pfn)
        zone_statistics(memory, ctx.zones[0], nid, ctx.cpu_nid, 1)
    return pfn


def _charge(memory: Memory, ctx: AllocContext, first: int, nr_pages: int) -> bool:
    """`mem_cgroup_charge` of a block, which goes back when a group's limit does not allow it."""
    from privmem.nodeagent.host import memcg  # which reclaims

    allowed = False
    try:
        allowed = memcg.charge(memory, ctx, np.arange(first, first + nr_pages, dtype=np.int32))
    finally:
        if not allowed:
            memory.nodes[memory.frames.nid_of(first)].buddy.free_bulk(np.arange(first, first + nr_pages))
    return allowed


def _from_zones(memory: Memory, ctx: AllocContext, order: int, mark: str) -> int:
    """`get_page_from_freelist` with `__zone_watermark_ok`: the block must leave the mark, and exist."""
    for nid in ctx.zones:
        node = memory.nodes[nid]
        if node.no_alloc_owner or (node.spec.stores and node.store_room_pages < 1 << order):
            continue
        if node.free_pages - (1 << order) + 1 > getattr(node.wmark, mark):
            pfn = alloc_from(node, order)
            if pfn >= 0:
                return pfn
    return -errno.ENOMEM


def alloc_from(node: Node, order: int) -> int:
    """A block of one node's buddy, or -ENOMEM; whoever asked marks it."""
    pfn = node.buddy.alloc(order) if order < node.buddy.nr_orders else -1
    return pfn if pfn >= 0 else -errno.ENOMEM


def _after_compaction(memory: Memory, ctx: AllocContext, order: int) -> int:
    """`__alloc_pages_direct_compact`."""
    memory.vmstat.add("compact_stall")
    for nid in ctx.zones:
        if memory.resolver.allows(Service.COMPACTION, nid):
            compaction.compact_zone(memory, memory.nodes[nid], order)
    pfn = _from_zones(memory, ctx, order, "min_pages")
    memory.vmstat.add("compact_success" if pfn >= 0 else "compact_fail")
    return pfn


def _after_reclaim(memory: Memory, ctx: AllocContext, order: int, tries: int) -> int:
    """`__alloc_pages_direct_reclaim`, until some node has twice the block free above its low watermark
    (`compact_gap`), and `should_compact_retry`.
    """
    from privmem.nodeagent.host import reclaim  # both need each other, as in the kernel

    for _ in range(tries):
        progress = 0
        while not any(_can_compact(memory.nodes[nid], order) for nid in ctx.zones):
            memory.vmstat.add("allocstall")
            freed = reclaim.direct_reclaim(memory, ctx.zones)
            progress += freed
            if not freed:
                break
        pfn = _after_compaction(memory, ctx, order)
        if pfn >= 0 or not progress:
            return pfn
    return -errno.ENOMEM


def _can_compact(node: Node, order: int) -> bool:
    """`compaction_suitable`: free memory enough to move pages about."""
    return node.free_pages > node.wmark.low_pages + (2 << order)


def mark_block(memory: Memory, ctx: AllocContext, first: int, nr_pages: int, flags: int = 0) -> None:
    """Frames [first, first + nr_pages) of one node are allocated for `ctx` (`prep_new_page`, `note_origin`)."""
    frames = memory.frames
    nid = frames.nid_of(first)
    span = slice(first, first + nr_pages)
    frames.flags[span] = PG_ALLOCATED | flags
    frames.version[span] = 0
    frames.scan_ms[span] = 0
    frames.reason[span] = int(ctx.reason)
    frames.origin_nid[span] = nid
    frames.owner[span] = ctx.owner
    memory.vmstat.add("pgalloc", nr_pages)
    if ctx.uninvited >> nid & 1:
        frames.flags[span] |= np.uint16(PG_UNINVITED)
        memory.vmstat.add("pgleak", nr_pages)
    if memory.story is not None:
        for pfn in range(first, first + nr_pages):
            memory.story.allocated(ctx, pfn)


def free_block(memory: Memory, first: int, nr_pages: int) -> None:
    """Give back frames that are mapped nowhere and on no list."""
    pfns = np.arange(first, first + nr_pages, dtype=np.int32)
    release_frames(memory, memory.nodes[memory.frames.nid_of(first)], pfns)


def free_unused_block(memory: Memory, first: int, nr_pages: int) -> None:
    """Give back a block that nothing was put into: a storing device never heard of it."""
    memory.frames.flags[first : first + nr_pages] = 0
    if memory.memcg.active:
        memory.memcg.uncharge(np.arange(first, first + nr_pages))
    pfns = np.arange(first, first + nr_pages, dtype=np.int32)
    memory.nodes[memory.frames.nid_of(first)].buddy.free_bulk(pfns)
    memory.vmstat.add("pgfree", nr_pages)
