"""The owner of slow distributed memory: it finds by accessed bits which pages are hot, and which are cold.

Nothing in core mm promotes from a private node (feature series from F1 on: NUMA balancing never touches it), and
the latest version demotes to none. So the driver that owns the node does, every period: a page of the node that was
accessed in two periods in a row moves to the nearest public node with room above its high watermark; and, where it
is told to, pages of ordinary nodes that are short of memory move onto its node if nobody accessed them lately. It
asks as the owner, so that it may under every isolation design; nobody else's allocation ever falls back here.
"""

from __future__ import annotations

import errno

import numpy as np

from privmem.nodeagent.host import _lru_kernel as lru_kernel
from privmem.nodeagent.host.drivers.owner import owner_context
from privmem.nodeagent.host.layout import LRU_INACTIVE_ANON, NR_LRU_LISTS
from privmem.nodeagent.host.memory import Memory, Node
from privmem.nodeagent.host.migrate import migrate_isolated, move_to_frames, room_pages
from privmem.nodeagent.host.page_alloc import NeedsExtent, alloc_page
from privmem.scheduler import nodemask
from privmem.scheduler.abi import Reason

#: Most pages brought home at one look, and most taken from one ordinary node.
PROMOTE_PAGES_MAX = 512
DEMOTE_PAGES_MAX = 512
#: An ordinary node is short of memory with less free than its high watermark, which kswapd would have restored if
#: it could; the owner takes as many pages as leave so many times that free. Both a choice.
FREE_AFTER = 3


def sample(memory: Memory) -> None:
    """Look at every node whose owner's period is over. May raise NeedsExtent, and is then called again."""
    for node in memory.nodes.values():
        if not node.spec.owner_period_ns or memory.now_ns < node.next_sample_ns:
            continue
        if node.spec.owner_demotes:
            for source in _public_from(memory, node):
                _take_cold(memory, source, node)
        node.next_sample_ns = memory.now_ns + node.spec.owner_period_ns
        _promote_hot(memory, node)


def _home(memory: Memory, node: Node) -> int:
    """The CPUs' node that is nearest to a node."""
    topology = memory.topology
    return min(
        nodemask.nodes(topology.with_cpus),
        key=lambda cpu_node: (topology.distance(cpu_node, node.nid), cpu_node),
    )


def _public_from(memory: Memory, node: Node) -> list[Node]:
    """Public nodes, nearest to the CPUs that are nearest to a node first."""
    topology, home = memory.topology, _home(memory, node)
    public = [n for n in memory.nodes.values() if not n.private]
    return sorted(public, key=lambda n: (topology.distance(home, n.nid), n.nid))


def _promote_hot(memory: Memory, node: Node) -> None:
    hot = np.empty(PROMOTE_PAGES_MAX, dtype=np.int32)
    found = lru_kernel.sample_referenced(
        node.nid * NR_LRU_LISTS,
        hot,
        memory.lru_head,
        memory.frames.next_,
        memory.frames.flags,
        *memory.rmap_arrays(),
    )
    left = hot[:found]
    for target in _public_from(memory, node):
        room = max(0, target.free_pages - target.wmark.high_pages)
        here, left = left[:room], left[room:]
        if not len(here):
            continue
        for pfn in here.tolist():
            memory.lru_del(pfn)
        migrate_isolated(memory, here, node, target, Reason.OWNER, target.nid, _home(memory, node))
        memory.vmstat.add("pgpromote_owner", len(here))


def _take_cold(memory: Memory, source: Node, node: Node) -> None:
    """Move cold anonymous pages of a node that is short of memory onto the owner's node, as many as there is room
    for; NeedsExtent when there is too little and the pool may give more.
    """
    if source.free_pages >= source.wmark.high_pages:
        return
    wanted = min(FREE_AFTER * source.wmark.high_pages - source.free_pages, DEMOTE_PAGES_MAX)
    if room_pages(node) < wanted and node.can_grow(memory.now_ns):
        raise NeedsExtent(node.nid)
    wanted = min(wanted, room_pages(node))
    if wanted <= 0:
        return
    inactive = source.nid * NR_LRU_LISTS + LRU_INACTIVE_ANON
    lru, rmap = memory.lru_arrays(), memory.rmap_arrays()
    short = 2 * wanted - int(memory.lru_size[inactive])
    if short > 0:
        memory.vmstat.add("pgdeactivate", lru_kernel.shrink_active(inactive + 1, short, *lru, *rmap))
    cold = np.empty(wanted, dtype=np.int32)
    nr_scan = int(memory.lru_size[inactive])
    _, found, activated = lru_kernel.isolate_inactive(inactive, nr_scan, cold, wanted, *lru, *rmap)
    memory.vmstat.add("pgactivate", activated)
    new = [_owners_page(memory, node) for _ in range(found)]
    got = [pfn for pfn in new if pfn >= 0]
    back = cold[len(got) : found]
    lru_kernel.putback(back, len(back), source.nid * NR_LRU_LISTS, *lru)
    if got:
        move_to_frames(memory, cold[: len(got)], np.array(got, dtype=np.int32), Reason.OWNER)
        memory.vmstat.add("pgdemote_owner", len(got))


def _owners_page(memory: Memory, node: Node) -> int:
    """A page of the node, or -ENOMEM; near its low watermark no extent is waited for with pages in hand."""
    context = owner_context(memory, node.nid)
    try:
        return alloc_page(memory, context) if context.zones else -errno.ENOMEM
    except NeedsExtent:
        return -errno.ENOMEM
