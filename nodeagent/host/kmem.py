"""Memory that the kernel takes for itself on a node: bare pages, slab objects, structures of a node, tracers.

Models `alloc_pages_node`, `kmalloc_node` (mm/slub.c: `new_slab` asks with `__GFP_THISNODE`, then takes a partial
slab of another node, then a page from anywhere), the structures that memory hotplug makes for a node
(`hotadd_init_pgdat`, per-node slab caches, the stack of kswapd), code that walks the possible or the online
nodes and allocates for each, and a contiguous-memory tracer that asks every online node with THISNODE (powerpc
memtrace); Linux 6.1. These pages are not movable and on no LRU list. Left out: objects inside a slab page.
"""

from __future__ import annotations

import errno

import numpy as np

from privmem.nodeagent.host import contig
from privmem.nodeagent.host.layout import PG_HELD
from privmem.nodeagent.host.memory import Memory
from privmem.nodeagent.host.page_alloc import AllocContext, alloc_page, release_frames
from privmem.scheduler import nodemask
from privmem.scheduler.abi import Reason
from privmem.scheduler.errors import InvariantError
from privmem.scheduler.zonelist import AllocRequest

#: Pages of a node's own structures: pglist_data with per-node caches, and the stack of its kswapd (16 KiB).
PGDAT_PAGES = 2
KSWAPD_STACK_PAGES = 4


def take_page(
    memory: Memory, request: AllocRequest, holder: str, mems: int | None = None, may_reclaim: bool = True
) -> int:
    """One page for the kernel itself, or -ENOMEM where the request reaches no memory."""
    resolution = memory.resolver.resolve(request, mems)
    context = AllocContext(
        resolution.zones,
        request.reason,
        uninvited=resolution.uninvited,
        request=request,
        cpu_nid=request.nid,
        may_reclaim=may_reclaim,
    )
    if not resolution.zones:
        if memory.story is not None:
            memory.story.refused(context)
        return -errno.ENOMEM
    pfn = alloc_page(memory, context)
    if pfn >= 0:
        memory.frames.flags[pfn] |= np.uint16(PG_HELD)
        memory.kernel_pages.holders[pfn] = holder
    return pfn


def give_back(memory: Memory, pfn: int) -> None:
    """Free a page of `take_page`."""
    if memory.kernel_pages.holders.pop(pfn, None) is None:
        raise InvariantError(f"the kernel holds no frame {pfn}")
    node = memory.nodes[memory.frames.nid_of(pfn)]
    release_frames(memory, node, np.array([pfn], dtype=np.int32))


def give_back_all(memory: Memory, holder: str) -> int:
    """Free all that a holder has; how many pages."""
    pfns = memory.kernel_pages.of(holder)
    for pfn in pfns:
        give_back(memory, pfn)
    return len(pfns)


def alloc_pages_node(
    memory: Memory,
    nid: int,
    holder: str,
    *,
    this_node: bool = False,
    private: bool = False,
    movable: bool = False,
) -> int:
    """`alloc_pages_node`, order 0: the frame, or -ENOMEM. `private`: with the design's word for private memory."""
    return take_page(memory, AllocRequest(nid, None, Reason.KERNEL, this_node, movable, private), holder)


def kmalloc_node(memory: Memory, nid: int, holder: str, this_node: bool = False) -> int:
    """A slab page for objects of a node. The allocator itself asks with THISNODE first; only a caller who does
    not insist gets one from elsewhere.
    """
    pfn = take_page(memory, AllocRequest(nid, None, Reason.SLAB, this_node=True, movable=False), holder)
    if pfn < 0 and not this_node:
        pfn = take_page(memory, AllocRequest(nid, None, Reason.SLAB, movable=False), holder)
    return pfn


def node_structures(memory: Memory, nid: int, kswapd: bool) -> int:
    """What hotplug makes for a node before its memory is there: preferably on it, so always elsewhere."""
    pages = PGDAT_PAGES + (KSWAPD_STACK_PAGES if kswapd else 0)
    for _ in range(pages):
        request = AllocRequest(nid, None, Reason.HOTPLUG, movable=False)
        pfn = take_page(memory, request, structures_of(nid))
        if pfn < 0:
            give_back_all(memory, structures_of(nid))
            return pfn
    return 0


def structures_of(nid: int) -> str:
    """The holder of a node's structures."""
    return f"structures of node {nid}"


def walk_possible_nodes(memory: Memory, holder: str, this_node: bool = False) -> int:
    """`for_each_node` with a kmalloc_node each (per-node caches of a subsystem): how many pages it got."""
    got = [kmalloc_node(memory, nid, holder, this_node) for nid in sorted(memory.nodes)]
    return sum(pfn >= 0 for pfn in got)


def walk_online_nodes(memory: Memory, holder: str) -> int:
    """`for_each_online_node` with THISNODE (tables of the architecture): how many pages it got."""
    online = nodemask.nodes(memory.topology.memory)
    got = [alloc_pages_node(memory, nid, holder, this_node=True, movable=True) for nid in online]
    return sum(pfn >= 0 for pfn in got)


def memtrace(memory: Memory, nr_pages: int, holder: str) -> int:
    """A tracer that wants a contiguous range of every online node (powerpc `memtrace_alloc_node`): how many
    ranges it got.
    """
    got = [
        contig.alloc_contig_pages(memory, nr_pages, nid, 1 << nid, holder, this_node=True)
        for nid in nodemask.nodes(memory.topology.memory)
    ]
    return sum(first >= 0 for first in got)
