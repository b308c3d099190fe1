"""Compaction: movable pages of a node go to its top, so that free blocks form at its bottom.

Models `compact_zone`, `compact_node` (the `compact` file of a node), `kcompactd_do_work` and the fragmentation
index of Linux 6.1: the migrate scanner comes from the bottom, the free scanner from the top, and they meet. A page
moves within its node only and keeps its reason. Kernel pages, pages held by drivers, pools and pins stay; so do
huge pages; a pageblock that is free as a whole is not broken up for a target. Left out: migrate types, skip
hints and deferral (every run looks at the whole zone), proactive compaction, the sync modes.
"""

from __future__ import annotations

import errno

import numpy as np

from privmem.nodeagent.host import migrate
from privmem.nodeagent.host.high_order import HPAGE_PAGES
from privmem.nodeagent.host.layout import PG_LRU, PG_UNINVITED, PTE_PFN_SHIFT
from privmem.nodeagent.host.memory import Memory, Node
from privmem.scheduler.abi import Reason
from privmem.scheduler.isolation import Service

#: Pages that are moved at a time, `COMPACT_CLUSTER_MAX`.
CLUSTER_PAGES = 32


def compact_node(memory: Memory, nid: int) -> int:
    """A write to /sys/devices/system/node/nodeN/compact: 0, or -EINVAL for a node that does not take part."""
    if nid not in memory.nodes or not memory.resolver.allows(Service.COMPACTION, nid):
        return -errno.EINVAL
    memory.lru_batches.drain_all()
    compact_zone(memory, memory.nodes[nid], None)
    return 0


def compact_memory(memory: Memory) -> int:
    """`echo 1 > /proc/sys/vm/compact_memory`: every node that takes part."""
    for nid in memory.nodes:
        compact_node(memory, nid)
    return 0


def kcompactd(memory: Memory, nid: int, order: int) -> int:
    """`kcompactd_do_work` of one node, woken by kswapd for blocks of `order`. How many pages it moved."""
    node = memory.nodes[nid]
    if not memory.resolver.allows(Service.COMPACTION, nid) or has_block(node, order):
        return 0
    return compact_zone(memory, node, order)


def compact_zone(memory: Memory, node: Node, order: int | None) -> int:
    """Move pages until a free block of `order` is there (None: until the scanners meet). How many moved."""
    if node.spec.stores:
        return 0  # a storing device keeps pages by number; its own allocator packs them
    movable, free = _scan(memory, node)
    low, high = 0, len(free)
    moved = 0
    while order is None or not has_block(node, order):
        sources = _next_movable(movable, low, high)
        if not len(sources):
            break
        targets, high = _next_free(free, int(sources[-1]) + 1, high, len(sources))
        sources = sources[: len(targets)]
        if not len(sources):
            break
        low = int(sources[-1]) + 1
        _move(memory, node, sources + node.start_pfn, targets + node.start_pfn)
        free[targets] = False
        moved += len(sources)
    return moved


def _scan(memory: Memory, node: Node) -> tuple[np.ndarray, np.ndarray]:
    """(movable, usable as a target) for each frame of the node's span."""
    span = slice(node.start_pfn, node.start_pfn + node.spec.span_pages)
    movable = (memory.frames.flags[span] & np.uint16(PG_LRU)) != 0
    maps = memory.high_order.huge_maps
    for slot in maps.slots:
        head = (int(memory.page_table.pte[slot]) >> PTE_PFN_SHIFT) - node.start_pfn
        if 0 <= head < len(movable):
            movable[head : head + HPAGE_PAGES] = False
    free = free_frames(memory, node)
    whole = len(free) // HPAGE_PAGES * HPAGE_PAGES
    blocks = free[:whole].reshape(-1, HPAGE_PAGES)
    blocks[blocks.all(axis=1)] = False
    return movable, free


def free_frames(memory: Memory, node: Node) -> np.ndarray:
    """Which frames of the node's span are in its buddy, as booleans."""
    orders = memory.frames.block_order[node.start_pfn : node.start_pfn + node.spec.span_pages]
    heads = np.flatnonzero(orders >= 0)
    steps = np.zeros(len(orders) + 1, dtype=np.int32)
    np.add.at(steps, heads, 1)
    np.add.at(steps, heads + (1 << orders[heads].astype(np.int64)), -1)
    return np.cumsum(steps)[:-1] > 0


def _next_movable(movable: np.ndarray, low: int, high: int) -> np.ndarray:
    """`isolate_migratepages`: the next cluster of one pageblock, upwards."""
    while low < high:
        end = min(high, (low // HPAGE_PAGES + 1) * HPAGE_PAGES)
        found = np.flatnonzero(movable[low:end])[:CLUSTER_PAGES]
        if len(found):
            return found + low
        low = end
    return np.zeros(0, dtype=np.int64)


def _next_free(free: np.ndarray, low: int, high: int, nr: int) -> tuple[np.ndarray, int]:
    """`isolate_freepages`: up to `nr` free frames above `low`, from the highest pageblock that has some, upwards
    within it; and how far down the scanner is.
    """
    found = np.zeros(0, dtype=np.int64)
    while high > low and len(found) < nr:
        start = max(low, (high - 1) // HPAGE_PAGES * HPAGE_PAGES)
        here = np.flatnonzero(free[start:high]) + start
        found = np.concatenate([found, here[: nr - len(found)]])
        if len(found) < nr:
            high = start
    return found, high


def _move(memory: Memory, node: Node, sources: np.ndarray, targets: np.ndarray) -> None:
    """Pages move within their node; why they are there stays as it was."""
    old, new = sources.astype(np.int32), np.sort(targets).astype(np.int32)
    frames = memory.frames
    for pfn in new.tolist():
        node.buddy.remove_range(pfn, 1)
    for pfn in old.tolist():
        memory.lru_del(pfn)
    reasons = frames.reason[old].copy()
    frames.flags[new] |= frames.flags[old] & np.uint16(PG_UNINVITED)
    memory.vmstat.add("pgalloc", len(new))
    migrate.move_to_frames(memory, old, new, Reason.KERNEL)
    frames.reason[new] = reasons
    memory.vmstat.add("compact_isolated", 2 * len(new))


# -- how fragmented a node is


def has_block(node: Node, order: int) -> bool:
    """Whether a free block of this order, or a larger one, is there."""
    return any(int(n) for n in node.buddy.nr_free[order:])


def fragmentation_index(node: Node, order: int) -> int:
    """`fragmentation_index`: near 0, a failure would be for want of memory; near 1000, for fragmentation; -1000
    when a block is there.
    """
    blocks = sum(int(n) for n in node.buddy.nr_free)
    if not blocks:
        return 0
    if has_block(node, order):
        return -1000
    return 1000 - (1000 + node.free_pages * 1000 // (1 << order)) // blocks


def unusable_index(node: Node, order: int) -> int:
    """`unusable_free_index`: the share of free memory, in thousandths, that blocks of this order cannot use."""
    if not node.free_pages:
        return 1000
    usable = sum(int(n) << k for k, n in enumerate(node.buddy.nr_free) if k >= order)
    return (node.free_pages - usable) * 1000 // node.free_pages
