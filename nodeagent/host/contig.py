"""Contiguous ranges of frames: by address, by search, and from CMA areas.

Models `alloc_contig_range`, `alloc_contig_pages` (mm/page_alloc.c) and `cma_alloc` (mm/cma.c) of Linux 6.1: the
free frames of the range are taken off the buddy, its residents move elsewhere (their own node first, then the
ordinary list), and the frames belong to the caller; -EBUSY, and all as before, when one cannot move. What a
private node answers is the design's: the request carries Reason.CONTIG, THISNODE where it names one node, and
`private` when the owner asks or a search says so; residents of a private node are displaced only with the right
(Service.DISPLACE), else -EPERM. Left out: isolation by pageblock (frames are isolated one by one) and so the
alignment of ranges, migrate types: an unmovable page may sit in a CMA area, which is then of less use.
"""

from __future__ import annotations

import errno

import numpy as np

from privmem.nodeagent.host.blocks import free_block, mark_block
from privmem.nodeagent.host.compaction import free_frames
from privmem.nodeagent.host.high_order import CmaArea, ContigRange
from privmem.nodeagent.host.layout import PG_ALLOCATED, PG_HELD, PG_LRU, PG_UNINVITED
from privmem.nodeagent.host.memory import Memory, Node
from privmem.nodeagent.host.migrate import move_to_frames
from privmem.nodeagent.host.page_alloc import AllocContext, alloc_page
from privmem.scheduler import nodemask
from privmem.scheduler.abi import Reason
from privmem.scheduler.errors import InvariantError
from privmem.scheduler.isolation import Service
from privmem.scheduler.zonelist import AllocRequest

#: How often a range is tried while pages move in behind the ones that left (`__alloc_contig_migrate_range`).
_TRIES = 5


def alloc_contig_range(
    memory: Memory,
    first: int,
    nr_pages: int,
    owner: str,
    private: bool = False,
    displaced: AllocContext | None = None,
) -> int:
    """Frames [first, first + nr_pages) for `owner`: 0, -EINVAL where there is no memory or the design keeps such
    requests out, -EPERM for residents of a private node that must stay, -EBUSY, or -ENOMEM.

    `private`: it is the node's owner who asks; `displaced`: how residents get their new frames. May raise
    NeedsExtent, with all as before.
    """
    node = _node_of(memory, first, nr_pages)
    if node is None:
        return -errno.EINVAL
    context = _context(memory, AllocRequest(node.nid, None, Reason.CONTIG, this_node=True, private=private))
    if node.nid not in context.zones:
        return -errno.EINVAL
    return _take(memory, node, first, nr_pages, owner, context, displaced)


def alloc_contig_pages(
    memory: Memory,
    nr_pages: int,
    nid: int,
    nodes: int | None,
    owner: str,
    this_node: bool = False,
    private: bool = False,
) -> int:
    """The first range of `nr_pages` frames, aligned to its size, on the nodes of the request's list in their
    order; its first frame, or -ENOMEM.
    """
    request = AllocRequest(nid, nodes, Reason.CONTIG, this_node=this_node, private=private)
    context = _context(memory, request)
    for zone in context.zones:
        node = memory.nodes[zone]
        for first in range(0, node.spec.span_pages - nr_pages + 1, nr_pages):
            at = node.start_pfn + first
            if _looks_valid(memory, node, at, nr_pages) and not _take(
                memory, node, at, nr_pages, owner, context
            ):
                return at
    return -errno.ENOMEM


def free_contig_range(memory: Memory, first: int) -> None:
    """Give a range back, as it was taken."""
    held = memory.high_order.ranges.pop(first, None)
    if held is None:
        raise InvariantError(f"no contiguous range begins at frame {first}")
    free_block(memory, held.first, held.nr_pages)


def _context(memory: Memory, request: AllocRequest) -> AllocContext:
    resolution = memory.resolver.resolve(request, None)
    return AllocContext(
        resolution.zones, Reason.CONTIG, uninvited=resolution.uninvited, request=request, may_reclaim=False
    )


def _node_of(memory: Memory, first: int, nr_pages: int) -> Node | None:
    """The one node whose span holds the range, if all of it is online."""
    if nr_pages <= 0 or not 0 <= first < memory.frames.nr_frames:
        return None
    node = memory.nodes[memory.frames.nid_of(first)]
    if not node.start_pfn <= first <= first + nr_pages <= node.start_pfn + node.spec.span_pages:
        return None
    return node if _is_online(memory, node, first, nr_pages) else None


def _is_online(memory: Memory, node: Node, first: int, nr_pages: int) -> bool:
    flags = memory.frames.flags[first : first + nr_pages]
    allocated = int(np.count_nonzero(flags & np.uint16(PG_ALLOCATED)))
    return allocated + node.buddy.count_free(first, nr_pages) == nr_pages


def _looks_valid(memory: Memory, node: Node, first: int, nr_pages: int) -> bool:
    """`pfn_range_valid_contig`: online, and nothing in it that is reserved or a huge page of a pool."""
    flags = memory.frames.flags[first : first + nr_pages]
    return not np.any(flags & np.uint16(PG_HELD)) and _is_online(memory, node, first, nr_pages)


def _take(
    memory: Memory,
    node: Node,
    first: int,
    nr_pages: int,
    owner: str,
    context: AllocContext,
    displaced: AllocContext | None = None,
) -> int:
    frames = memory.frames
    resident = (frames.flags[first : first + nr_pages] & np.uint16(PG_ALLOCATED)) != 0
    if resident.any() and not memory.resolver.allows(Service.DISPLACE, node.nid):
        return -errno.EPERM
    if np.any(frames.flags[first : first + nr_pages][resident] & np.uint16(PG_LRU) == 0):
        return -errno.EBUSY
    memory.lru_batches.drain_all()
    taken = np.zeros(nr_pages, dtype=bool)
    error = -errno.EBUSY
    try:
        error = _empty(memory, node, first, taken, displaced)
    finally:
        if error:
            _put_back(memory, node, first, taken)
    if error:
        return error
    mark_block(memory, context, first, nr_pages, PG_HELD)
    memory.high_order.ranges[first] = ContigRange(first, nr_pages, owner)
    return 0


def _empty(memory: Memory, node: Node, first: int, taken: np.ndarray, displaced: AllocContext | None) -> int:
    """Take the free frames off the buddy, move the residents out, again until all are taken."""
    start = first - node.start_pfn
    span = slice(start, start + len(taken))
    for _ in range(_TRIES):
        free = free_frames(memory, node)[span]
        _take_runs(node, first, free)
        taken |= free
        if taken.all():
            return 0
        for pfn in (np.flatnonzero(~taken) + first).tolist():
            flags = int(memory.frames.flags[pfn])
            if not flags & PG_ALLOCATED:
                continue  # reclaim for the others freed it
            error = _displace(memory, node, pfn, displaced) if flags & PG_LRU else -errno.EBUSY
            if error:
                return error
            # Its old frame must not be the next one's new frame (`MIGRATE_ISOLATE`).
            taken[pfn - first] |= node.buddy.remove_range(pfn, 1)
    return -errno.EBUSY


def _displace(memory: Memory, node: Node, pfn: int, context: AllocContext | None) -> int:
    """`alloc_migration_target`: a frame of the same node if the ordinary list has it, else of another one. A page
    that stays on its node keeps its reason.
    """
    if context is None:
        resolution = memory.resolver.resolve(AllocRequest(node.nid, None, Reason.CONTIG), None)
        context = AllocContext(
            resolution.zones, Reason.CONTIG, uninvited=resolution.uninvited, cpu_nid=node.nid
        )
    if not context.zones:
        return -errno.ENOMEM
    memory.lru_del(pfn)
    new = -errno.ENOMEM
    try:
        new = alloc_page(memory, context)
    finally:
        if new < 0:
            memory.lru_add(pfn)
    if new < 0:
        return new
    frames = memory.frames
    reason = int(frames.reason[pfn]) if frames.nid_of(new) == node.nid else int(Reason.CONTIG)
    if frames.nid_of(new) == node.nid:
        frames.flags[new] |= frames.flags[pfn] & np.uint16(PG_UNINVITED)
    pair = np.array([pfn, new], dtype=np.int32)
    move_to_frames(memory, pair[:1], pair[1:], Reason(reason))
    return 0


def _take_runs(node: Node, first: int, free: np.ndarray) -> None:
    """Remove the free frames of a range from the buddy, run by run."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], free.astype(np.int8), [0]])))
    for begin, end in edges.reshape(-1, 2).tolist():
        node.buddy.remove_range(first + begin, end - begin)


def _put_back(memory: Memory, node: Node, first: int, taken: np.ndarray) -> None:
    """`undo_isolate_page_range`."""
    node.buddy.free_bulk((np.flatnonzero(taken) + first).astype(np.int32))


# -- CMA


def reserve_cma(memory: Memory, name: str, nid: int, nr_pages: int, dma: bool) -> int:
    """`cma_declare_contiguous_nid` at boot: the highest part of the node that is still free. 0, -ENODEV or -ENOMEM.

    Movable pages go on using it until a part is wanted.
    """
    node = memory.nodes.get(nid)
    if node is None or not node.managed_pages:
        return -errno.ENODEV
    first = node.start_pfn + node.spec.span_pages
    for area in memory.high_order.cma:
        if area.nid == nid:
            first = min(first, area.first)
    first = (first - nr_pages) // nr_pages * nr_pages
    if first < node.start_pfn or not node.buddy.is_range_free(first, nr_pages):
        return -errno.ENOMEM
    memory.high_order.cma.append(CmaArea(name, nid, first, nr_pages, dma))
    return 0


def has_dma_cma(memory: Memory, nid: int) -> bool:
    """Whether the node holds a DMA area, which keeps it from being made private at boot."""
    return nodemask.has(nodemask.of(a.nid for a in memory.high_order.cma if a.dma), nid)


def cma_alloc(memory: Memory, area: CmaArea, nr_pages: int, owner: str) -> int:
    """`cma_alloc`: the first aligned part of the area that can be emptied; its first frame, or -ENOMEM."""
    node = memory.nodes[area.nid]
    context = AllocContext((area.nid,), Reason.CONTIG, may_reclaim=False)
    for first in range(area.first, area.first + area.nr_pages - nr_pages + 1, nr_pages):
        if not _is_online(memory, node, first, nr_pages):
            continue
        if not _take(memory, node, first, nr_pages, owner, context):
            memory.vmstat.add("cma_alloc_success")
            return first
    memory.vmstat.add("cma_alloc_fail")
    return -errno.ENOMEM
